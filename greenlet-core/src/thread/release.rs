//! What the drop of a reference to a node does: the last one releases the node, and frees its slot
//! if there is no weak reference either. If a handle is the last reference, an active greenlet is
//! ended first.
//!
//! It is here and not in `node`, because the thread keeps things about its nodes.

use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use crate::node::Inner;
use crate::node::extras::Extras;
use crate::node::handle::Greenlet;
use crate::node::rc::{InnerRc, InnerWeak};
use crate::thread::{ThreadState, flag};

impl Drop for Greenlet {
    #[inline]
    fn drop(&mut self) {
        if self.inner.has_other_handles() {
            self.inner.counts.strong.set(self.inner.strong_count() - 1);
        } else {
            // SAFETY: it is the last reference, which nobody uses any more.
            unsafe { drop_last_handle(self) };
        }
    }
}

impl Drop for InnerRc {
    #[inline]
    fn drop(&mut self) {
        if self.has_other_handles() {
            self.counts.strong.set(self.strong_count() - 1);
        } else {
            // SAFETY: it is the last reference, which nobody uses any more.
            unsafe { drop_last(self.0) };
        }
    }
}

/// Drops a handle that is the last reference to its node.
///
/// Most greenlets are dead then, and own nothing but a handle of a parent that has others. They are
/// released here. This runs no user code, and needs no frame.
///
/// # Safety
///
/// - There is no other reference, and this one is not used any more.
#[inline(never)]
unsafe fn drop_last_handle(handle: &mut Greenlet) {
    let node = handle.inner();
    // SAFETY: the node has a handle, and main is never plain.
    if node.status.is_plain_dead() && unsafe { node.parent.drop_if_shared() } {
        node.counts.strong.set(0);
        drop(InnerWeak(node.0)); // the weak count of all strong references together
    } else {
        // SAFETY: nobody uses the handle any more, says the caller.
        unsafe { drop_last_handle_slow(handle) };
    }
}

/// As [`drop_last_handle`], for every greenlet.
///
/// # Safety
///
/// - This reference is not used any more.
#[cold]
#[inline(never)]
unsafe fn drop_last_handle_slow(handle: &mut Greenlet) {
    // Dropped last, also if the end of the greenlet unwinds.
    // SAFETY: nobody uses the handle any more, says the caller, after this function.
    let _node = unsafe { ManuallyDrop::take(&mut handle.inner) };
    // CAUTION: runs arbitrary user code.
    handle.end_if_last_handle();
}

/// Drops the last reference to a node, and releases the node unless its greenlet is active.
///
/// # Safety
///
/// - There is no other reference, and this one is not used any more.
#[cold]
#[inline(never)]
unsafe fn drop_last(node: NonNull<Inner>) {
    // The weak count of all strong references together.
    let slot = ManuallyDrop::new(InnerWeak(node));
    slot.node().counts.strong.set(0);
    if !slot.node().is_in_use() {
        // SAFETY: the node is not in use.
        unsafe { release(ManuallyDrop::into_inner(slot)) };
    }
}

/// Releases a node: drops what it owns, and frees its slot if there is no weak reference either.
///
/// # Safety
///
/// - The node is not in use. `slot` is the weak count of all strong references together.
unsafe fn release(slot: InnerWeak) {
    ThreadState::current().forget(slot.node());
    // Dropped last but for `slot`, also if a destructor below panics.
    let _parent = LastLink(slot.node().parent.take());
    let extras = slot.node().status.has_extras().then(|| {
        // SAFETY: `slot` keeps the memory [slot-kept].
        let extras = unsafe { &raw mut (*slot.0.as_ptr()).extras };
        // SAFETY: no reference to the node is left, so nobody has borrowed from the extras.
        let extras = unsafe { extras.replace(Extras::none()) };
        let mut later = ThreadState::current().later_attachments.borrow_mut();
        (extras, later.remove(&slot.node().id()))
    });
    // CAUTION: runs arbitrary user code, if the greenlet was never started.
    slot.node().closure.clear();
    // CAUTION: runs arbitrary user code.
    drop(extras);
}

impl ThreadState {
    /// Removes what the thread keeps about `node`, which is being released.
    fn forget(&self, node: &Inner) {
        if node.status.is_main() {
            self.main.set(ptr::null());
            self.current.set(ptr::null());
        }
        if self.has_flag(flag::PREFETCH) {
            self.prefetcher.forget(node);
        }
        let mut records = self.records.borrow_mut();
        if !records.is_empty() {
            records.remove(&node.id());
        }
    }
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
        let node = parent.into_inner(); // a node without a parent must have no handle [has-parent]
        let is_last = !node.has_other_handles() && !node.status.is_active();
        next = is_last.then(|| node.parent.take()).flatten();
        drop(node);
    }
}

impl Drop for InnerWeak {
    #[inline]
    fn drop(&mut self) {
        let weak = &self.node().counts.weak;
        weak.set(weak.get() - 1);
        if weak.get() == 0 && !ThreadState::current().pool.is_recycled(self.0) {
            // SAFETY: this was the last reference to the slot.
            unsafe { free(self.0) };
        }
    }
}

/// Returns a slot to the pool of this thread.
///
/// # Safety
///
/// - Its weak count has just become 0.
#[inline(never)]
unsafe fn free(slot: NonNull<Inner>) {
    // SAFETY: the count is 0, says the caller. References are not `Send`, so the slot belongs to the
    // pool of this thread.
    unsafe { ThreadState::current().pool.free(slot) };
}
