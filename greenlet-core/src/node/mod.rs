//! One greenlet: its node, and the links from child to parent.
//!
//! ```text
//!              main                    every link is a handle: children keep their ancestors alive
//!             ▲    ▲                   the lineage of `c` is c, b, main
//!            a      b                  no greenlet is its own ancestor
//!                   ▲                  every lineage ends in the thread's main greenlet
//!                   c
//! ```
//!
//! `pool` allocates nodes, `rc` counts the references to them, `handle` is the reference that users
//! hold.

pub(crate) mod closure;
pub(crate) mod extras;
pub(crate) mod handle;
pub(crate) mod parent;
pub(crate) mod pool;
pub(crate) mod rc;
pub(crate) mod status;

use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::backend::{PARENT_OFFSET, SavedContext};
use crate::node::closure::ClosureCell;
use crate::node::extras::Extras;
use crate::node::handle::Greenlet;
use crate::node::parent::ParentCell;
use crate::node::rc::{Counts, InnerRc};
use crate::node::status::Status;
use crate::stack::Stack;

/// The node of a greenlet: everything that the library knows of it.
///
/// ```text
///   cache line 1   context │ parent │ counts │ prefetch_hint │ status      all that a switch needs
///   cache line 2   stack │ hidden_sp │ id │ created_at │ next_free │ extras
///   cache line 3   extras │ closure
/// ```
///
/// A node is a slot of a chunk (`pool`), and is never moved. A free slot holds a node without
/// parent, stack, resume point, closure and extras, so a reference to a free slot is harmless.
///
/// `tools/greenlet-gdb.py` reads the fields that are marked with "gdb".
#[repr(C, align(64))]
pub(crate) struct Inner {
    /// Where the greenlet resumes (gdb).
    ///
    /// `context.sp` is null unless the greenlet is suspended and unlocked. While the greenlet runs,
    /// `context.sp` is meaningless. `context.suspended_at` is where the greenlet last suspended,
    /// and `None` before that.
    pub(crate) context: SavedContext,
    /// The parent. `None` for main alone. Backtraces follow it (`backend/asm/`).
    pub(crate) parent: ParentCell,
    /// The reference counts (gdb).
    pub(crate) counts: Counts,
    /// What to prefetch when this greenlet is switched to. May be stale, even left by the previous
    /// greenlet in the slot.
    pub(crate) prefetch_hint: Cell<PrefetchHint>,
    /// The state, and flags (gdb).
    pub(crate) status: Status,
    /// The greenlet's stack, while it is active. Main runs on the thread's own stack and has
    /// `None`.
    pub(crate) stack: Cell<Option<Stack>>,
    /// The saved stack pointer, while a lock or a hold hides it from switches (gdb).
    pub(crate) hidden_sp: Cell<*mut u8>,
    /// (gdb)
    id: Cell<u64>,
    /// (gdb)
    created_at: Cell<&'static Location<'static>>,
    /// While the slot is free: the next free slot.
    next_free: Cell<Option<NonNull<Inner>>>,
    /// (gdb)
    pub(crate) extras: Extras,
    /// The greenlet's function, until it is started.
    pub(crate) closure: ClosureCell,
}

const _: () = {
    assert!(std::mem::offset_of!(Inner, context) == 0);
    assert!(std::mem::offset_of!(Inner, parent) == PARENT_OFFSET);
    assert!(size_of::<ParentCell>() == size_of::<*const Inner>());
};

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Inner>() == 192);
    assert!(std::mem::offset_of!(Inner, stack) == 64);
};

/// Two addresses to prefetch. They may be stale: nothing dereferences them.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchHint {
    pub(crate) node: *const u8,
    pub(crate) stack: *const u8,
}

impl PrefetchHint {
    pub(crate) const NONE: PrefetchHint = PrefetchHint {
        node: ptr::null(),
        stack: ptr::null(),
    };
}

impl Inner {
    /// Creates a free slot.
    const fn vacant() -> Inner {
        Inner {
            context: SavedContext::new(),
            parent: ParentCell::new(None),
            prefetch_hint: Cell::new(PrefetchHint::NONE),
            status: Status::pending(),
            stack: Cell::new(None),
            counts: Counts::zero(),
            hidden_sp: Cell::new(ptr::null_mut()),
            id: Cell::new(0),
            created_at: Cell::new(Location::caller()),
            next_free: Cell::new(None),
            extras: Extras::none(),
            closure: ClosureCell::empty(),
        }
    }

    /// Fills a free slot with a new node. Writes only what the previous node may have left there.
    #[inline]
    fn fill(
        &self,
        parent: Option<Greenlet>,
        status: Status,
        id: u64,
        created_at: &'static Location<'static>,
    ) {
        debug_assert!(self.resume_point().is_null());
        self.context.suspended_at.set(None);
        self.parent.init(parent);
        self.status.reset(status);
        self.id.set(id);
        self.created_at.set(created_at);
    }

    /// A number that no other greenlet of the thread has.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(crate) fn created_at(&self) -> &'static Location<'static> {
        self.created_at.get()
    }

    /// The node that a context belongs to. The pointer is valid if `context` is the context of a
    /// live node.
    #[inline]
    pub(crate) fn of_context(context: *const SavedContext) -> *const Inner {
        const { assert!(std::mem::offset_of!(Inner, context) == 0) };
        context.cast()
    }

    /// The context of a node. The pointer is valid if `node` is a live node.
    #[inline]
    pub(crate) fn context_of(node: *const Inner) -> *const SavedContext {
        const { assert!(std::mem::offset_of!(Inner, context) == 0) };
        node.cast()
    }

    /// What to call the greenlet in a message.
    pub(crate) fn label(&self) -> String {
        match self.name() {
            _ if self.status.is_main() => "the main greenlet".into(),
            Some(name) => format!("greenlet '{name}' created at {}", self.created_at()),
            None => format!("greenlet {} created at {}", self.id(), self.created_at()),
        }
    }

    /// As [`label`](Inner::label), without the place of creation if there is a name.
    pub(crate) fn short_label(&self) -> String {
        match self.name() {
            Some(name) if !self.status.is_main() => format!("greenlet '{name}'"),
            _ => self.label(),
        }
    }

    #[inline]
    pub(crate) fn finish(&self) {
        self.status.finish();
        self.context.sp.set(ptr::null_mut());
    }

    /// The saved stack pointer of a suspended greenlet, hidden or not. Null if the greenlet is not
    /// suspended.
    ///
    /// The greenlet must not be running: the result is meaningless then.
    pub(crate) fn resume_point(&self) -> *mut u8 {
        match self.context.sp.get() {
            sp if sp.is_null() => self.hidden_sp.get(),
            sp => sp,
        }
    }

    /// Calls `look` with the greenlet's stack. `None` if it has no stack of the library.
    pub(crate) fn with_stack<T>(&self, look: impl FnOnce(&Stack) -> T) -> Option<T> {
        let stack = self.stack.take();
        let seen = stack.as_ref().map(look);
        self.stack.set(stack);
        seen
    }

    /// Returns the high end of the greenlet's first frame. `None` if it has no stack of the library.
    pub(crate) fn first_frame(&self) -> Option<NonNull<u8>> {
        self.with_stack(Stack::entry)
    }

    #[inline]
    pub(crate) fn parent_greenlet(&self) -> Option<Greenlet> {
        self.parent.get().map(Greenlet::from_inner)
    }

    /// Returns `true` if this greenlet, or an ancestor, is being ended.
    pub(crate) fn is_in_an_end(&self) -> bool {
        lineage(self).any(|node| node.status.is_ending())
    }

    /// Returns `true` if `node` is this node or one of its ancestors.
    pub(crate) fn has_in_lineage(&self, node: &Inner) -> bool {
        lineage(self).any(|ancestor| ptr::eq(&raw const *ancestor, node))
    }

    /// The first of this node and its ancestors that is locked for an await, or held suspended.
    pub(crate) fn await_locked_ancestor(&self) -> Option<InnerRc> {
        lineage(self).find(|node| !node.status.is_unlocked())
    }

    /// As [`await_locked_ancestor`](Inner::await_locked_ancestor), up to the running greenlet
    /// `current`, above which nothing is locked.
    ///
    /// Saves the search in deep nests: 20,000 greenlets that each start the next take milliseconds
    /// instead of 16 seconds.
    pub(crate) fn await_locked_below(&self, current: *const Inner) -> Option<InnerRc> {
        lineage(self)
            .take_while(|node| !ptr::eq(node.as_ptr(), current))
            .find(|node| !node.status.is_unlocked())
    }

    /// The first of this node and its ancestors that is not dead. `None` once the thread has ended,
    /// when even main is dead.
    pub(crate) fn nearest_living(&self) -> Option<InnerRc> {
        lineage(self).find(|node| !node.status.is_dead())
    }
}

/// A node, its parent, and so on up to main.
pub(crate) fn lineage(node: &Inner) -> impl Iterator<Item = InnerRc> {
    std::iter::successors(Some(node.to_rc()), |node| node.parent.get())
}
