//! The link from a greenlet to its parent: a handle that can be looked at.

use std::cell::Cell;
use std::mem;
use std::ptr;

use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;

/// The handle of the parent, in the node of the child.
pub(crate) struct ParentCell(Cell<Option<Greenlet>>);

impl ParentCell {
    pub(crate) const fn new(parent: Option<Greenlet>) -> ParentCell {
        ParentCell(Cell::new(parent))
    }

    /// Sets the parent of a node that has none, so nothing has to be dropped.
    #[inline]
    pub(crate) fn init(&self, parent: Option<Greenlet>) {
        mem::forget(self.0.replace(parent));
    }

    /// Sets another parent, and returns the handle of the previous one.
    #[inline]
    pub(crate) fn replace(&self, parent: Option<Greenlet>) -> Option<Greenlet> {
        self.0.replace(parent)
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<Greenlet> {
        self.0.take()
    }

    /// The parent's node, or null if there is none. The pointer is valid until the parent is
    /// changed.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.peek().map_or(ptr::null(), InnerRc::as_ptr)
    }

    /// Returns `true` if the parent is a main greenlet that is not locked.
    #[inline]
    pub(crate) fn is_unlocked_main(&self) -> bool {
        self.peek().is_some_and(|parent| parent.status.is_unlocked_main())
    }

    /// Returns a counted reference to the parent's node.
    #[inline]
    pub(crate) fn get(&self) -> Option<InnerRc> {
        self.peek().cloned()
    }

    /// Returns `true` if the parent is at this address.
    #[inline]
    pub(crate) fn is_at(&self, address: *const Inner) -> bool {
        self.peek().is_some_and(|parent| parent.as_ptr() == address)
    }

    /// The reference in the cell. Must not leave this file.
    #[inline]
    fn peek(&self) -> Option<&InnerRc> {
        // SAFETY: the callers only read it or count it once more. That changes no parent and runs
        // no user code, so it stays in the cell meanwhile.
        let parent = unsafe { &*self.0.as_ptr() };
        parent.as_ref().map(Greenlet::inner)
    }
}
