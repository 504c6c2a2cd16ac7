//! Gates: close a greenlet, and all below it, to switches from anywhere but their owner.
//!
//! For those who build a bridge to something else that decides when a greenlet goes on, as the driver
//! of `greenlet_spawn` does: while a future is awaited, whoever else switched into the waiting greenlet,
//! or into one that will end into it, would take the place of the wake-up.
//!
//! ```text
//!   main ── root [lock] ── child        closed: a switch to root, child or grandchild is refused
//!                            └── grandchild        with `AwaitInProgress`, unless it comes from inside
//! ```
//!
//! Closing is two words written where nobody but the owner refers to the root, which is the common case.
//! Where something does (a handle, a child), the hub counts the lock, and every switch of the thread
//! looks for closed gates in its target's lineage until it opens.
//!
//! # Invariants
//!
//! - **G1** Nothing below a closed lock runs: the lock is closed by code outside, after control has left;
//!   nothing active is moved below one or out from below one (`Greenlet::set_parent`).
//! - **G2** The resume point of a greenlet that is closed, or hold suspended, is in `Inner::hidden_sp`, and
//!   `Inner::context.sp` is null: so the fast path never takes it.
//! - **G3** What is hold suspended counts as a closed lock for all below it, whoever opens gates
//!   meanwhile. No stage of an end is delivered to it: each looks, also the second, for the first may
//!   have led to who keeps it (`end::end`).

#![forbid(unsafe_code)]

use std::ptr;

use crate::greenlet::Greenlet;
use crate::node::Inner;
use crate::node::status::{AwaitLock, Hold};
use crate::thread::{ThreadState, flag};

impl Greenlet {
    /// Closes this greenlet and all below it: switching or throwing there is refused with
    /// [`AwaitInProgress`](crate::AwaitInProgress) until [`unlock`](Greenlet::unlock).
    ///
    /// For the owner of a greenlet that waits for something outside; see the module's documentation.
    /// Ending it, or dropping the last handle of one below, is still possible.
    ///
    /// # Panics
    ///
    /// Panics if the running greenlet is this one or below it, for then it would go on behind a closed
    /// lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{AwaitInProgress, Greenlet, getparent};
    ///
    /// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>(()));
    /// waiting.switch::<()>(())?;
    /// waiting.lock_for_await();
    /// assert!(waiting.switch::<u32>(1_u32).unwrap_err().is::<AwaitInProgress>());
    /// waiting.unlock();
    /// assert_eq!(waiting.switch::<u32>(2_u32)?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn lock_for_await(&self) {
        let thread = ThreadState::current();
        let node = self.inner();
        if node.status.await_lock() != AwaitLock::Unlocked || !node.status.is_active() {
            return;
        }
        assert!(
            !node.context.sp.get().is_null() && !thread.is_current(node),
            "the lock of a running greenlet cannot be closed"
        );
        node.hidden_sp.set(node.context.sp.replace(ptr::null_mut()));
        node.status.set_await_lock(AwaitLock::Locked);
        if node.has_other_handles() {
            self.lock_descendants(thread);
        }
    }

    #[cold]
    fn lock_descendants(&self, thread: &ThreadState) {
        let node = self.inner();
        if thread.current_inner().has_in_lineage(node) {
            self.unlock();
            panic!("the lock of a greenlet cannot be closed from below it");
        }
        count_lock(thread, node);
    }

    /// Runs `during`; meanwhile nothing resumes this greenlet or one below it, not even to end it. An end
    /// that comes meanwhile is done afterwards.
    ///
    /// For the owner of a suspended greenlet, who works on something that stands on the greenlet's stack.
    ///
    /// # Panics
    ///
    /// Panics if the greenlet is not suspended, and if it is hold suspended already.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{AwaitInProgress, Greenlet, getparent};
    ///
    /// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    /// waiting.switch::<()>(())?;
    /// waiting.keep_suspended(|| {
    ///     assert!(waiting.switch::<()>(()).unwrap_err().is::<AwaitInProgress>());
    ///     waiting.end();
    ///     assert!(waiting.is_active());
    /// });
    /// assert!(waiting.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline]
    pub fn keep_suspended<T>(&self, during: impl FnOnce() -> T) -> T {
        let node = self.inner();
        assert!(
            node.status.hold() == Hold::None,
            "the greenlet is hold suspended already"
        );
        assert!(
            !ThreadState::current().is_current(node),
            "the running greenlet cannot be hold suspended"
        );
        // G2: hidden, whether or not a lock has hidden it before.
        if !node.context.sp.get().is_null() {
            node.hidden_sp.set(node.context.sp.replace(ptr::null_mut()));
        }
        assert!(
            !node.hidden_sp.get().is_null(),
            "only a suspended greenlet can be hold suspended"
        );
        node.status.set_hold(Hold::Held);
        let is_counted = node.has_other_handles();
        if is_counted {
            count_locked(ThreadState::current());
        }
        let _release = Release {
            greenlet: self,
            is_counted,
        };
        during()
    }

    /// Opens what [`lock_for_await`](Greenlet::lock_for_await) closed.
    #[inline]
    pub fn unlock(&self) {
        if self.inner().status.await_lock() != AwaitLock::Unlocked {
            self.unlock_slow();
        }
    }

    fn unlock_slow(&self) {
        let node = self.inner();
        let lock = node.status.set_await_lock(AwaitLock::Unlocked);
        if node.status.hold() == Hold::None {
            show(node);
        }
        if lock == AwaitLock::LockedAndCounted {
            uncount_locked(ThreadState::current());
        }
    }
}

/// The resume point can be seen again.
#[inline]
fn show(node: &Inner) {
    if node.context.sp.get().is_null() {
        node.context.sp.set(node.hidden_sp.replace(ptr::null_mut()));
    }
}

/// The end of a time in which a greenlet was hold suspended.
struct Release<'a> {
    greenlet: &'a Greenlet,
    is_counted: bool,
}

impl Drop for Release<'_> {
    #[inline]
    fn drop(&mut self) {
        let node = self.greenlet.inner();
        let hold = node.status.set_hold(Hold::None);
        if node.status.await_lock() == AwaitLock::Unlocked {
            show(node);
        }
        if self.is_counted {
            uncount_locked(ThreadState::current());
        }
        if hold == Hold::HeldThenEnd {
            // CAUTION: runs foreign code.
            self.greenlet.end();
        }
    }
}

/// Makes every switch of the thread look for this closed lock.
fn count_lock(thread: &ThreadState, node: &Inner) {
    if node.status.await_lock() == AwaitLock::Locked {
        node.status.set_await_lock(AwaitLock::LockedAndCounted);
        count_locked(thread);
    }
}

#[cold]
fn count_locked(thread: &ThreadState) {
    thread.await_locks.set(thread.await_locks.get() + 1);
    thread.raise_flag(flag::AWAIT_LOCKS);
}

#[cold]
fn uncount_locked(thread: &ThreadState) {
    thread.await_locks.set(thread.await_locks.get() - 1);
    if thread.await_locks.get() == 0 {
        thread.lower_flag(flag::AWAIT_LOCKS);
    }
}

/// A greenlet with a closed lock was ended: the lock goes with it.
pub(crate) fn forget(thread: &ThreadState, node: &Inner) {
    if node.status.set_await_lock(AwaitLock::Unlocked) == AwaitLock::LockedAndCounted {
        uncount_locked(thread);
    }
}
