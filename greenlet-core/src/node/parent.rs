//! The link from a greenlet to its parent: a handle that can be looked at.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
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

    /// Calls `look` with the handle, which is out of the cell meanwhile.
    ///
    /// The compiler removes the two stores where `look` is inlined and only reads.
    #[inline]
    fn peek<R>(&self, look: impl FnOnce(Option<&InnerRc>) -> R) -> R {
        // Not dropped if `look` panics: none does.
        let parent = ManuallyDrop::new(self.0.take());
        let result = look(parent.as_ref().map(Greenlet::inner));
        self.init(ManuallyDrop::into_inner(parent));
        result
    }

    /// The parent's node, null if there is none. The pointer is valid until the parent is changed.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.peek(|parent| parent.map_or(ptr::null(), InnerRc::as_ptr))
    }

    /// Returns `true` if the parent is a main greenlet that is not locked.
    #[inline]
    pub(crate) fn is_unlocked_main(&self) -> bool {
        self.peek(|parent| parent.is_some_and(|parent| parent.status.is_unlocked_main()))
    }

    /// Returns a counted reference to the parent's node.
    #[inline]
    pub(crate) fn get(&self) -> Option<InnerRc> {
        // SAFETY: the handle is only counted once more, which changes no parent and runs no user
        // code. So it stays in the cell meanwhile. (`peek` would do, but its two stores take 0.8 ns
        // in every `getparent`.)
        let parent = unsafe { &*self.0.as_ptr() };
        parent.as_ref().map(|parent| parent.inner().clone())
    }
}
