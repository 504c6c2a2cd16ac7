//! What the drop of a reference to a node does: the last one releases the node, and frees its slot
//! if there is no weak reference either.
//!
//! It is here and not in `node`, because the thread keeps things about its nodes.

use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use crate::node::Inner;
use crate::node::extras::Extras;
use crate::node::handle::Greenlet;
use crate::node::rc::{InnerRc, InnerWeak};
use crate::thread::{ThreadState, flag};

impl Drop for InnerRc {
    #[inline]
    fn drop(&mut self) {
        let strong = &self.counts.strong;
        strong.set(strong.get() - 1);
        if !self.is_in_use() {
            // SAFETY: this was the last reference, and the greenlet is not active.
            unsafe { release(self.0) };
        }
    }
}

/// Releases a node: drops what it owns, and frees its slot if there is no weak reference either.
///
/// # Safety
///
/// - The node has just become one that is not in use.
// Most nodes are dead, without anything to drop, and in the recycled slot. These need no frame
// here.
#[inline(never)]
unsafe fn release(node: NonNull<Inner>) {
    // The weak count of all strong references together.
    let slot = ManuallyDrop::new(InnerWeak(node));
    if !slot.node().try_release_fast() {
        // SAFETY: the node is not in use any more, says the caller.
        return unsafe { release_slow(ManuallyDrop::into_inner(slot)) };
    }
    drop(ManuallyDrop::into_inner(slot));
}

impl Inner {
    /// Releases the node and returns `true` if it owns nothing but a handle of a parent that has
    /// others, and the thread keeps nothing about it.
    ///
    /// Most greenlets end like this. It runs no user code, and no destructor.
    #[inline]
    fn try_release_fast(&self) -> bool {
        // `PREFETCH` is a flag, and a node whose creation was recorded is not plain. Main is
        // released while `EXITING` is set.
        if !ThreadState::current().flags.is_empty() || !self.status.is_plain_dead() {
            return false;
        }
        match self.parent.take() {
            // This drop only decrements the count.
            Some(parent) if parent.inner().has_other_handles() => drop(parent),
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
/// - As for [`release`]. `slot` is the weak count of all strong references together.
#[cold]
#[inline(never)]
unsafe fn release_slow(slot: InnerWeak) {
    ThreadState::current().forget(slot.node());
    // Dropped last but for `slot`, also if a destructor below panics.
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
        let mut times = self.creation_times.borrow_mut();
        if !times.is_empty() {
            times.remove(&node.id());
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
        let is_last = !parent.inner().has_other_handles() && !parent.inner().status.is_active();
        next = if is_last {
            parent.inner().parent.take()
        } else {
            None
        };
        drop(parent);
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
            unsafe { ThreadState::current().pool.free(self.0) };
        }
    }
}
