//! References to nodes, counted as by `std::rc::Rc`. They release a node when its last reference is
//! dropped.
//!
//! The counts are in the node itself, so a `&Inner` is enough to look at them, or to make another
//! reference. `Rc` cannot be used: stable Rust has no way to allocate its memory from the pool.
//!
//! ```text
//!   strong    1 for each InnerRc: handles, links of children, an active greenlet itself
//!   weak      1 for each InnerWeak, and 1 for all InnerRcs together
//! ```
//!
//! # Invariants
//!
//! - **[node-alive]** While `strong` is above 0, the node is in use. Outside of `node`, a `&Inner`
//!   is always of such a node.
//! - **[slot-kept]** While `weak` is above 0, the slot is not free, so the pool keeps its memory.
//! - **[own-count]** An active greenlet has a count of itself, until it has finished. So it lives
//!   without any handle.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::backend::abort::abort_because;
use crate::node::Inner;
use crate::node::extras::Extras;
use crate::node::handle::Greenlet;
use crate::node::status::Status;
use crate::thread;

/// The reference counts of a node. `strong` comes first (gdb).
#[repr(C)]
pub(super) struct Counts {
    strong: Cell<u32>,
    weak: Cell<u32>,
}

impl Counts {
    pub(super) const fn zero() -> Counts {
        Counts {
            strong: Cell::new(0),
            weak: Cell::new(0),
        }
    }
}

/// Adds 1 to a count that is not 0.
///
/// Aborts if the count is 0, as in a free slot. Also aborts on overflow, which takes four thousand
/// million leaked references.
#[inline]
fn increment(count: &Cell<u32>) {
    match count.get() {
        0 | u32::MAX => abort_on_bad_count(),
        references => count.set(references + 1),
    }
}

#[cold]
#[inline(never)]
fn abort_on_bad_count() -> ! {
    abort_because(format_args!(
        "the reference count of a greenlet is 0 or at its maximum"
    ))
}

impl Inner {
    /// Returns another counted reference to this node.
    #[inline]
    pub(crate) fn to_rc(&self) -> InnerRc {
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

    /// Returns `true` if nothing refers to the slot.
    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.counts.weak.get() == 0
    }

    /// Returns `true` if there is a handle of this active greenlet.
    #[inline]
    pub(crate) fn has_handles(&self) -> bool {
        self.strong_count() > 1 // [own-count]
    }

    /// Returns `true` if the greenlet is active and has exactly one handle. Dropping that one ends
    /// the greenlet.
    #[inline]
    pub(crate) fn has_one_handle(&self) -> bool {
        self.strong_count() == 2 && self.status.is_active() // [own-count]
    }

    /// Returns `true` if the greenlet has more than one handle. Dropping one of them only
    /// decrements the count.
    #[inline]
    pub(crate) fn has_other_handles(&self) -> bool {
        self.strong_count() > 1 + u32::from(self.status.is_active()) // [own-count]
    }
}

/// A counted reference to a node, like an `Rc`.
pub(crate) struct InnerRc(NonNull<Inner>);

impl InnerRc {
    /// Fills a free slot with a new node, and returns the first reference to it.
    ///
    /// # Panics
    ///
    /// Panics if the slot is not free.
    #[inline]
    pub(super) fn new_in(
        slot: &Inner,
        parent: Option<Greenlet>,
        status: Status,
        id: u64,
        created_at: &'static Location<'static>,
    ) -> InnerRc {
        assert!(slot.is_free());
        slot.fill(parent, status, id, created_at);
        // A signal handler looks at all nodes with references (`NodePool::find_from_handler`).
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

    /// Drops a count that [`into_raw`](InnerRc::into_raw) gave up and that is not the last one.
    ///
    /// # Safety
    ///
    /// - As for [`from_raw`](InnerRc::from_raw). Another count remains.
    #[inline]
    pub(crate) unsafe fn decrement_strong_count(node: &Inner) {
        debug_assert!(node.strong_count() > 1);
        node.counts.strong.set(node.strong_count() - 1);
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

impl Drop for InnerRc {
    #[inline]
    fn drop(&mut self) {
        let strong = &self.counts.strong;
        strong.set(strong.get() - 1);
        if strong.get() == 0 {
            // SAFETY: this was the last reference.
            unsafe { release(self.0) };
        }
    }
}

/// Releases a node: drops what it owns, and frees its slot if there is no weak reference either.
///
/// # Safety
///
/// - The strong count has just become 0.
#[inline(never)]
unsafe fn release(node: NonNull<Inner>) {
    // The weak count of all strong references together. It is dropped last, also if a destructor
    // panics.
    let slot = InnerWeak(node);
    thread::forget_node(slot.node());
    if !slot.node().try_release_fast() {
        // SAFETY: the strong count has just become 0, says the caller.
        unsafe { release_slow(&slot) };
    }
}

impl Inner {
    /// Releases the node and returns `true` if it owns nothing but a handle of a parent that has
    /// others.
    ///
    /// Most greenlets end like this. It runs no user code, and no destructor.
    #[inline]
    fn try_release_fast(&self) -> bool {
        if !self.status.is_plain_dead() {
            return false;
        }
        match self.parent.take() {
            // More than this handle and the own count, so this drop only decrements the count.
            Some(parent) if parent.inner().strong_count() > 2 => drop(parent),
            parent => {
                self.parent.init(parent);
                return false;
            }
        }
        true
    }
}

/// Releases a node that may own anything.
///
/// # Safety
///
/// - As for [`release`].
#[cold]
#[inline(never)]
unsafe fn release_slow(slot: &InnerWeak) {
    // Dropped last, also if a destructor below panics.
    let _parent = LastLink(slot.node().parent.take());
    let extras = slot.node().status.has_extras().then(|| {
        // SAFETY: `slot` keeps the memory [slot-kept].
        let extras = unsafe { &raw mut (*slot.0.as_ptr()).extras };
        // SAFETY: no reference to the node is left, so nobody has borrowed from the extras.
        unsafe { extras.replace(Extras::none()) }
    });
    // CAUTION: runs arbitrary user code, if the greenlet was never started.
    slot.node().closure.clear();
    // CAUTION: runs arbitrary user code.
    drop(extras);
}

/// The handle of the parent of a released node.
struct LastLink(Option<Greenlet>);

impl Drop for LastLink {
    #[inline]
    fn drop(&mut self) {
        // CAUTION: runs arbitrary user code if it is the parent's last handle.
        match self.0.take() {
            Some(parent) if !parent.inner().has_other_handles() => release_with_ancestors(parent),
            parent => drop(parent),
        }
    }
}

/// Drops a handle. Releases a long chain of parents without other handles in a loop: recursion
/// would need a stack as deep as the chain is long.
#[cold]
#[inline(never)]
fn release_with_ancestors(parent: Greenlet) {
    let mut next = Some(parent);
    while let Some(parent) = next {
        // CAUTION: runs arbitrary user code: it may end the parent (rules PA-12, DE-23).
        parent.end_if_last_handle();
        let is_last = parent.inner().strong_count() == 1;
        next = if is_last {
            parent.inner().parent.take()
        } else {
            None
        };
        drop(parent);
    }
}

/// A counted reference that does not keep the node, only its slot. Like a `Weak`.
#[derive(Debug)]
pub(crate) struct InnerWeak(NonNull<Inner>);

impl InnerWeak {
    /// The node, perhaps released. Must not leave this file.
    #[inline]
    fn node(&self) -> &Inner {
        // SAFETY: this reference is counted [slot-kept].
        unsafe { self.0.as_ref() }
    }

    /// Returns `true` if the greenlet has ended, or the node is not in use any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.node().strong_count() == 0 || self.node().status.is_dead()
    }

    /// Returns a counted reference to the node, if it is still in use.
    pub(crate) fn upgrade(&self) -> Option<InnerRc> {
        (self.node().strong_count() > 0).then(|| self.node().to_rc())
    }
}

impl Clone for InnerWeak {
    fn clone(&self) -> InnerWeak {
        self.node().downgrade()
    }
}

impl Drop for InnerWeak {
    #[inline]
    fn drop(&mut self) {
        let weak = &self.node().counts.weak;
        weak.set(weak.get() - 1);
        if weak.get() == 0 {
            // SAFETY: this was the last reference to the slot. It belongs to the pool of this
            // thread, because references are not `Send`.
            unsafe { thread::free_slot(self.0) };
        }
    }
}
