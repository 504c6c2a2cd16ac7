//! The handle of a greenlet. What a user can do with one is in `greenlet`. What its destructor does is
//! in `switch/teardown.rs`, because it may end the greenlet.

#![forbid(unsafe_code)]

use crate::node::rc::InnerRc;

/// A greenlet: a coroutine with its own stack, which switches to other greenlets by name.
///
/// This is a handle. Cloning it is cheap, and clones are equal and hash equally. A greenlet stays
/// on the thread that created it; the compiler enforces this (a handle is neither `Send` nor
/// `Sync`).
///
/// # Life
///
/// A new greenlet is [pending](crate::State::Pending) and has no stack. The first
/// [`switch`](Greenlet::switch) starts its function, and the greenlet is [active](crate::State::Active):
/// it runs, or it is suspended in a switch that it made. When the function returns, the greenlet is
/// [dead](crate::State::Dead). Its [`parent`](Greenlet::parent) is resumed and receives the function's
/// result, as the result of the switch in which the parent is suspended.
///
/// Dropping the last handle of a suspended greenlet ends the greenlet at once. A [`GreenletExit`](crate::GreenletExit)
/// is thrown into it, so that its function can clean up. If the greenlet has not ended then, its
/// stack is unwound. A child keeps a handle of its parent.
///
/// # Differences from Python's greenlet
///
/// A greenlet's function takes one value and returns one value: use a tuple for several, and `()`
/// for none. The receiver of a switch names the type that it expects. Rust unwinds the stack of a
/// greenlet that refuses to end; Python prints a warning and leaks the greenlet.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent};
///
/// let adder = Greenlet::new(|mut total: u32| {
///     let main = getparent().unwrap();
///     loop {
///         total += main.switch::<u32>(total)?;
///         if total > 100 {
///             return Ok(total);
///         }
///     }
/// });
/// assert_eq!(adder.switch::<u32>(1_u32)?, 1);
/// assert_eq!(adder.switch::<u32>(50_u32)?, 51);
/// assert_eq!(adder.switch::<u32>(60_u32)?, 111);
/// assert!(adder.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Greenlet {
    pub(crate) inner: InnerRc,
}

impl Greenlet {
    #[inline(always)] // part of the fast path of a switch: no instruction
    pub(crate) fn inner(&self) -> &InnerRc {
        &self.inner
    }

    #[inline]
    pub(crate) fn from_inner(inner: InnerRc) -> Greenlet {
        Greenlet { inner }
    }

    /// Returns the counted reference, without what dropping a handle may do.
    pub(crate) fn into_inner(self) -> InnerRc {
        // The clone keeps the greenlet: the handle sees that it is not the last one.
        self.inner.clone()
    }
}

impl Clone for Greenlet {
    #[inline]
    fn clone(&self) -> Greenlet {
        Greenlet::from_inner(self.inner.clone())
    }
}
