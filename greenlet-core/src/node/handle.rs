//! The handle of a greenlet. What a user can do with one is in `greenlet`.

#![forbid(unsafe_code)]

use crate::node::rc::InnerRc;
use crate::switch::teardown;

/// A handle of a greenlet: a coroutine on a stack of its own.
///
/// Handles are cheap to clone; clones are the same greenlet, and compare and hash equal. They are
/// neither `Send` nor `Sync`: a greenlet belongs to the thread that made it.
///
/// # Life
///
/// A new greenlet is [pending](crate::State::Pending) and has no stack. The first
/// [`switch`](Greenlet::switch) starts its function; from then on it runs, or is suspended in a
/// switch of its own. When its function returns, its value goes to its
/// [`parent`](Greenlet::parent), as the outcome of the switch in which the parent is suspended, and
/// the greenlet is dead.
///
/// When the last handle of a suspended greenlet is dropped, the greenlet is ended, at once: a
/// [`GreenletExit`](crate::GreenletExit) is thrown into it, so that its function can clean up, and
/// if it then has not ended it is unwound. A child's link to its parent counts as a handle of the
/// parent.
///
/// # Differences from Python's greenlet
///
/// The function takes one value and returns one; several are a tuple, none is `()`. The receiver of
/// a switch names the type that it expects. A greenlet that refuses to end is unwound, where Python
/// complains and leaks it.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, getparent};
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

    /// Ends the greenlet if it is active and this is its last handle.
    #[inline]
    pub(crate) fn end_if_last_handle(&self) {
        if self.inner.has_one_handle() {
            // The first of the two calls from `node` into the folders above.
            // CAUTION: runs arbitrary user code.
            teardown::last_handle_gone(self);
        }
    }
}

impl Clone for Greenlet {
    #[inline]
    fn clone(&self) -> Greenlet {
        Greenlet::from_inner(self.inner.clone())
    }
}

impl Drop for Greenlet {
    #[inline]
    fn drop(&mut self) {
        self.end_if_last_handle();
    }
}
