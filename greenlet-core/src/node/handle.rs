//! The handle of a greenlet. What a user can do with one is in `greenlet`. Its destructor is in
//! `thread/release.rs`.

#![forbid(unsafe_code)]

use std::mem::ManuallyDrop;

use crate::node::rc::InnerRc;

/// A greenlet: a coroutine with its own stack, which switches to other greenlets by name.
///
/// This is a handle. Clones are equal and hash equally. A greenlet stays on the thread that created
/// it: a handle is neither `Send` nor `Sync`.
///
/// # Life
///
/// The first [`switch`](Greenlet::switch) to a [pending](crate::State::Pending) greenlet starts its
/// function, and the greenlet is [active](crate::State::Active). When the function returns, it is
/// [dead](crate::State::Dead), and its [`parent`](Greenlet::parent) receives the function's result
/// from the switch in which the parent is suspended. A function takes one value and returns one:
/// use a tuple for several, and `()` for none.
///
/// Dropping the last handle of a suspended greenlet ends the greenlet at once. A
/// [`GreenletExit`](crate::GreenletExit) is thrown into it, so that its function can clean up. If
/// the greenlet has not ended then, its stack is unwound. A child keeps a handle of its parent.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent};
///
/// let adder = Greenlet::new(|mut total: u32| {
///     while total < 100 {
///         total += getparent().unwrap().switch::<u32>(total)?;
///     }
///     Ok(total)
/// });
/// assert_eq!(adder.switch::<u32>(50_u32)?, 50);
/// assert_eq!(adder.switch::<u32>(60_u32)?, 110);
/// assert!(adder.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[doc(alias = "coroutine")]
#[doc(alias = "fiber")]
#[doc(alias = "green thread")]
pub struct Greenlet {
    /// `Drop for Greenlet` drops it.
    pub(crate) inner: ManuallyDrop<InnerRc>,
}

impl Greenlet {
    #[inline(always)] // part of the fast path of a switch: no instruction
    pub(crate) fn inner(&self) -> &InnerRc {
        &self.inner
    }

    #[inline]
    pub(crate) fn from_inner(inner: InnerRc) -> Greenlet {
        Greenlet {
            inner: ManuallyDrop::new(inner),
        }
    }

    /// Returns the counted reference, without what dropping a handle may do.
    pub(crate) fn into_inner(self) -> InnerRc {
        // The clone keeps the greenlet: the handle sees that it is not the last one.
        InnerRc::clone(&self.inner)
    }
}

impl Clone for Greenlet {
    #[inline]
    fn clone(&self) -> Greenlet {
        Greenlet::from_inner(InnerRc::clone(&self.inner))
    }
}
