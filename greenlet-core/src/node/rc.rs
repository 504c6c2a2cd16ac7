//! References to nodes, counted as by `std::rc::Rc`. The drop of a reference, which may release the
//! node, is in `thread/release.rs`.
//!
//! `Rc` cannot be used: stable Rust has no way to allocate its memory from the pool.
//!
//! ```text
//!   strong    1 for each InnerRc: handles, links of children
//!   weak      1 for each InnerWeak, and 1 for all InnerRcs together
//! ```
//!
//! # Invariants
//!
//! - **[node-alive]** While `strong` is above 0, or the greenlet is active, the node is in use.
//!   Outside of `node`, a `&Inner` is always of such a node.
//! - **[slot-kept]** While `weak` is above 0, the slot is not free, so the pool keeps its memory.
//! - **[active-kept]** An active greenlet needs no reference: its node stays in use until it has
//!   finished. It finishes only while there is a reference, whose drop releases the node: see
//!   `NO_HANDLES`.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::backend::abort::abort_because;
use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::status::Status;

/// The reference counts of a node. `strong` comes first (gdb).
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) strong: Cell<u32>,
    pub(crate) weak: Cell<u32>,
}

impl Counts {
    pub(super) const fn zero() -> Counts {
        Counts {
            strong: Cell::new(0),
            weak: Cell::new(0),
        }
    }
}

/// Adds 1 to a count. Aborts on overflow, which takes four thousand million leaked references.
#[inline]
fn increment(count: &Cell<u32>) {
    count.set(count.get().wrapping_add(1));
    if count.get() == 0 {
        abort_on_overflow();
    }
}

#[cold]
#[inline(never)]
fn abort_on_overflow() -> ! {
    abort_because(format_args!("the reference count of a greenlet has overflowed"))
}

impl Inner {
    /// Returns another counted reference to this node.
    #[inline]
    pub(crate) fn to_rc(&self) -> InnerRc {
        debug_assert!(self.is_in_use());
        increment(&self.counts.strong);
        InnerRc(NonNull::from(self))
    }

    pub(crate) fn downgrade(&self) -> InnerWeak {
        increment(&self.counts.weak);
        InnerWeak(NonNull::from(self))
    }

    #[inline]
    pub(crate) fn strong_count(&self) -> u32 {
        self.counts.strong.get()
    }

    /// Returns `true` if the node has not been released.
    #[inline]
    pub(crate) fn is_in_use(&self) -> bool {
        self.strong_count() > 0 || self.status.is_active() // [active-kept]
    }

    /// Returns `true` if nothing refers to the slot.
    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.counts.weak.get() == 0
    }

    /// Returns `true` if there is a handle of this greenlet.
    #[inline]
    pub(crate) fn has_handles(&self) -> bool {
        self.strong_count() > 0
    }

    /// Returns `true` if the greenlet is active and has exactly one handle. Dropping that one ends
    /// the greenlet.
    #[inline]
    pub(crate) fn has_one_handle(&self) -> bool {
        self.strong_count() == 1 && self.status.is_active()
    }

    /// Returns `true` if the greenlet has more than one handle. Dropping one of them only
    /// decrements the count.
    #[inline]
    pub(crate) fn has_other_handles(&self) -> bool {
        self.strong_count() > 1
    }
}

/// A counted reference to a node, like an `Rc`.
pub(crate) struct InnerRc(pub(crate) NonNull<Inner>);

impl InnerRc {
    /// Fills a free slot with a new node, and returns the first reference to it.
    #[inline]
    pub(crate) fn new_in(
        slot: &Inner,
        parent: Option<Greenlet>,
        status: Status,
        id: u64,
        created_at: &'static Location<'static>,
    ) -> InnerRc {
        debug_assert!(slot.is_free());
        slot.fill(parent, status, id, created_at);
        // A signal handler looks at all nodes with references (`NodePool::find`).
        compiler_fence(Ordering::Release);
        slot.counts.weak.set(1);
        slot.counts.strong.set(1);
        InnerRc(NonNull::from(slot))
    }

    #[inline]
    pub(crate) fn ptr_eq(&self, other: &InnerRc) -> bool {
        self.0 == other.0
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.0.as_ptr()
    }

    /// Gives up the reference without decrementing the count.
    #[inline]
    pub(crate) fn into_raw(self) -> *const Inner {
        ManuallyDrop::new(self).as_ptr()
    }

    /// Makes a reference of a count that [`into_raw`](InnerRc::into_raw) gave up.
    ///
    /// # Safety
    ///
    /// - `node` comes from [`into_raw`](InnerRc::into_raw), and this is the only use of that count.
    #[inline]
    pub(crate) unsafe fn from_raw(node: *const Inner) -> InnerRc {
        // SAFETY: it was a reference, says the caller, so it is not null.
        InnerRc(unsafe { NonNull::new_unchecked(node.cast_mut()) })
    }
}

impl Deref for InnerRc {
    type Target = Inner;

    #[inline(always)] // part of the fast path of a switch: no instruction
    fn deref(&self) -> &Inner {
        // SAFETY: this reference is counted [node-alive].
        unsafe { self.0.as_ref() }
    }
}

impl Clone for InnerRc {
    #[inline]
    fn clone(&self) -> InnerRc {
        self.to_rc()
    }
}

/// A counted reference that does not keep the node, only its slot. Like a `Weak`.
#[derive(Debug)]
pub(crate) struct InnerWeak(pub(crate) NonNull<Inner>);

impl InnerWeak {
    /// The node, perhaps released. Only for this file and `thread/release.rs`.
    #[inline]
    pub(crate) fn node(&self) -> &Inner {
        // SAFETY: this reference is counted [slot-kept].
        unsafe { self.0.as_ref() }
    }

    /// Returns `true` if the greenlet has ended, or the node is not in use any more.
    pub(crate) fn is_dead(&self) -> bool {
        !self.node().is_in_use() || self.node().status.is_dead()
    }

    /// Returns a counted reference to the node, if it is still in use.
    pub(crate) fn upgrade(&self) -> Option<InnerRc> {
        self.node().is_in_use().then(|| self.node().to_rc())
    }
}

impl Clone for InnerWeak {
    fn clone(&self) -> InnerWeak {
        self.node().downgrade()
    }
}
