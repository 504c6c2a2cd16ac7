//! The link from a greenlet to its parent: a handle that can be looked at.
//!
//! # Invariants
//!
//! - **[has-parent]** If a greenlet is active or has a handle, its cell is empty only if it is main.

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

    /// If the parent has other handles, drops this one and returns `true`. Runs no user code.
    ///
    /// # Safety
    ///
    /// - The greenlet is active or has a handle, and is not main.
    #[inline]
    pub(crate) unsafe fn drop_if_shared(&self) -> bool {
        // SAFETY: there is a parent [has-parent].
        let parent = unsafe { self.take().unwrap_unchecked() };
        let is_shared = parent.inner().has_other_handles();
        if is_shared {
            drop(parent);
        } else {
            self.init(Some(parent));
        }
        is_shared
    }

    /// Returns the parent's node.
    ///
    /// # Safety
    ///
    /// - The greenlet is active or has a handle, and is not main. Its parent does not change while
    ///   the result is used.
    #[inline]
    pub(crate) unsafe fn get_unchecked(&self) -> &Inner {
        // SAFETY: there is a parent [has-parent].
        unsafe { self.peek().unwrap_unchecked() }
    }

    /// The parent's node, or null if there is none. The pointer is valid until the parent is
    /// changed.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.peek().map_or(ptr::null(), InnerRc::as_ptr)
    }

    /// Returns a counted reference to the parent's node.
    #[inline]
    pub(crate) fn get(&self) -> Option<InnerRc> {
        self.peek().cloned()
    }

    /// Returns `true` if the parent is at this address.
    #[inline]
    pub(crate) fn is_at(&self, address: *const Inner) -> bool {
        ptr::eq(self.as_ptr(), address)
    }

    /// The reference in the cell. Must not leave this file, except by `get_unchecked`.
    #[inline]
    fn peek(&self) -> Option<&InnerRc> {
        // SAFETY: the callers only read it or count it once more. That changes no parent and runs
        // no user code, so it stays in the cell meanwhile.
        let parent = unsafe { &*self.0.as_ptr() };
        parent.as_ref().map(Greenlet::inner)
    }
}
