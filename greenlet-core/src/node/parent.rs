//! The link from a greenlet to its parent: a handle that can be looked at without being borrowed.
//!
//! - **L1** A look ends before anything else can run, so the handle stays where it is meanwhile.

use std::cell::Cell;
use std::ptr;

use crate::greenlet::Greenlet;
use crate::node::Inner;
use crate::node::record::{InnerRc, decrement_strong, strong_count};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;

/// Where a node has the handle of its parent.
pub(crate) struct ParentCell(Cell<Option<Greenlet>>);

impl ParentCell {
    #[inline]
    pub(crate) fn new(parent: Option<Greenlet>) -> ParentCell {
        ParentCell(Cell::new(parent))
    }

    /// Puts another handle there, and returns the one that was.
    #[inline]
    pub(crate) fn replace(&self, parent: Option<Greenlet>) -> Option<Greenlet> {
        self.0.replace(parent)
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<Greenlet> {
        self.0.take()
    }

    /// Uncounts the handle, if nothing else is to be done for it, and says whether it did. It stays where it is: this is the
    /// end of the link, which is not dropped.
    #[inline(always)] // a few instructions
    pub(crate) fn try_release_fast(&self) -> bool {
        let parent = self.as_ptr();
        // SAFETY: L1: the handle counts it.
        if parent.is_null() || unsafe { strong_count(parent) } <= COUNT_OF_LAST_HANDLE {
            return false;
        }
        // SAFETY: it was counted by the handle, and not by that alone.
        unsafe { decrement_strong(parent) };
        true
    }

    /// Runs `look` with the parent, uncounted. `look` must not run user code.
    #[inline]
    pub(crate) fn peek<T>(&self, look: impl FnOnce(&InnerRc) -> T) -> Option<T> {
        // SAFETY: L1.
        unsafe { &*self.0.as_ptr() }
            .as_ref()
            .map(|parent| look(parent.inner()))
    }

    /// The node that the link leads to. It lives as long as the link is not changed; null if there is none.
    #[inline(always)] // part of the fast path of a generator: one load
    pub(crate) fn as_ptr(&self) -> *const Inner {
        // SAFETY: L1.
        match unsafe { &*self.0.as_ptr() } {
            Some(parent) => parent.inner().as_ptr(),
            None => ptr::null(),
        }
    }

    /// Says whether the link leads to the main greenlet, and that has an open gate.
    #[inline]
    pub(crate) fn is_unlocked_main(&self) -> bool {
        // SAFETY: L1.
        unsafe { self.as_ptr().as_ref() }.is_some_and(|parent| parent.status.is_unlocked_main())
    }

    /// The node that the link leads to, counted.
    #[inline]
    pub(crate) fn get(&self) -> Option<InnerRc> {
        // SAFETY: L1: to count is not to run anything.
        unsafe { &*self.0.as_ptr() }
            .as_ref()
            .map(|parent| parent.inner().clone())
    }
}
