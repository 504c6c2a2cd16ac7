//! The link from a greenlet to its parent: a handle that can be looked at without being borrowed.
//!
//! - **L1** A look ends before anything else can run, so the handle stays where it is meanwhile.

use std::cell::Cell;
use std::ptr;

use crate::greenlet::Greenlet;
use crate::node::Node;
use crate::node::record::{NodeRef, count_of, uncount};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;

/// Where a node has the handle of its parent.
pub(crate) struct Link(Cell<Option<Greenlet>>);

impl Link {
    #[inline]
    pub(crate) fn new(parent: Option<Greenlet>) -> Link {
        Link(Cell::new(parent))
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
    pub(crate) fn is_uncounted(&self) -> bool {
        let parent = self.as_ptr();
        // SAFETY: L1: the handle counts it.
        if parent.is_null() || unsafe { count_of(parent) } <= COUNT_OF_LAST_HANDLE {
            return false;
        }
        // SAFETY: it was counted by the handle, and not by that alone.
        unsafe { uncount(parent) };
        true
    }

    /// The node that the link leads to. It lives as long as the link is not changed; null if there is none.
    #[inline(always)] // part of the fast path of a generator: one load
    pub(crate) fn as_ptr(&self) -> *const Node {
        // SAFETY: L1.
        match unsafe { &*self.0.as_ptr() } {
            Some(parent) => parent.node().as_ptr(),
            None => ptr::null(),
        }
    }

    /// Says whether the link leads to the main greenlet, and that has an open gate.
    #[inline]
    pub(crate) fn is_open_main(&self) -> bool {
        // SAFETY: L1.
        unsafe { self.as_ptr().as_ref() }.is_some_and(|parent| parent.standing.is_open_main())
    }

    /// The node that the link leads to, counted.
    #[inline]
    pub(crate) fn node(&self) -> Option<NodeRef> {
        // SAFETY: L1: to count is not to run anything.
        unsafe { &*self.0.as_ptr() }
            .as_ref()
            .map(|parent| parent.node().clone())
    }
}
