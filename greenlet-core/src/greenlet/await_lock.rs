//! Await locks: while a greenlet awaits a future, only its driver may resume it.
//!
//! Any other switch into that greenlet, or into one that will end into it, would take the place of
//! the wake-up.
//!
//! ```text
//!   main ── root [locked] ──┬── child          a switch to root, child or grandchild
//!                           └── grandchild     is refused with `AwaitInProgress`
//! ```
//!
//! Most locks are two stores, because only the driver refers to the root. Otherwise the thread
//! counts the lock, and every switch of the thread searches the ancestors of its target for one.
//!
//! # Invariants
//!
//! - **[locked-branch]** Nothing below a locked greenlet runs. The lock is taken from outside,
//!   after control has left, and `Greenlet::set_parent` moves nothing into the locked branch or out
//!   of it.
//! - **[hidden-sp]** The stack pointer of a locked or held greenlet is in `Inner::hidden_sp`, and
//!   `Inner::context.sp` is null. The fast path of a switch therefore never resumes it.
//! - **[held]** A held greenlet counts as locked for all below it, even if it is unlocked
//!   meanwhile. Its teardown waits. Both stages of a teardown check that, because the first one may
//!   hand control to the holder.

#![forbid(unsafe_code)]

use std::ptr;

use crate::greenlet::Greenlet;
use crate::node::Inner;
use crate::node::status::{AwaitLock, Hold};
use crate::thread::ThreadState;

/// Locks a suspended greenlet and all below it, until [`unlock`].
///
/// Switching or throwing there is refused with [`AwaitInProgress`](crate::AwaitInProgress). Ending
/// the greenlet, or dropping the last handle of one below it, is still possible. Does nothing if
/// the greenlet is locked already, is pending, or is dead.
///
/// Returns `false`, and locks nothing, if the running greenlet is this one or below it: it would run
/// behind the lock.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{AwaitInProgress, Greenlet, getparent, raw};
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>(()));
/// waiting.switch::<()>(())?;
/// assert!(raw::lock_for_await(&waiting));
/// assert!(waiting.switch::<u32>(1_u32).unwrap_err().is::<AwaitInProgress>());
/// raw::unlock(&waiting);
/// assert_eq!(waiting.switch::<u32>(2_u32)?, 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[must_use = "the greenlet may be unlocked"]
pub fn lock_for_await(greenlet: &Greenlet) -> bool {
    let inner = greenlet.inner();
    if inner.status.await_lock() != AwaitLock::Unlocked || !inner.status.is_active() {
        return true;
    }
    if greenlet.is_current() {
        return false;
    }
    // Without another handle there is none below it: each has a handle of its parent.
    let is_counted = inner.has_other_handles();
    if is_counted && ThreadState::current().current_inner().has_in_lineage(inner) {
        return false;
    }
    hide(inner);
    if is_counted {
        inner.status.set_await_lock(AwaitLock::LockedAndCounted);
        ThreadState::current().add_await_lock();
    } else {
        inner.status.set_await_lock(AwaitLock::Locked);
    }
    true
}

/// Unlocks what [`lock_for_await`] locked. Does nothing if the greenlet is not locked.
#[inline]
pub fn unlock(greenlet: &Greenlet) {
    let inner = greenlet.inner();
    let lock = inner.status.set_await_lock(AwaitLock::Unlocked);
    if lock != AwaitLock::Unlocked && inner.status.hold() == Hold::None {
        show(inner);
    }
    if lock == AwaitLock::LockedAndCounted {
        ThreadState::current().remove_await_lock();
    }
}

/// Keeps a suspended greenlet suspended while `during` runs, and returns what that returns.
///
/// Nothing resumes the greenlet or one below it meanwhile. A request to end it is carried out
/// afterwards.
///
/// # Panics
///
/// Panics if the greenlet is not suspended, or is kept suspended already.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, raw};
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// raw::keep_suspended(&waiting, || {
///     waiting.end();
///     assert!(waiting.is_active());
/// });
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline]
pub fn keep_suspended<T>(greenlet: &Greenlet, during: impl FnOnce() -> T) -> T {
    let held = Held::begin(greenlet);
    // CAUTION: runs arbitrary user code.
    let value = during();
    if held.release() {
        // CAUTION: runs arbitrary user code: the clean-up of the greenlet.
        greenlet.end();
    }
    value
}

/// A greenlet that is kept suspended, until [`release`](Held::release). If it is dropped instead, by an
/// unwinding, a request to end the greenlet is carried out there.
#[derive(Debug)]
#[must_use = "it is released at once otherwise"]
pub struct Held<'a>(&'a Greenlet);

/// Makes every switch of the thread search for the hold.
#[cold]
fn count_hold(inner: &Inner) {
    inner.status.set_hold_counted();
    ThreadState::current().add_await_lock();
}

/// Hides a greenlet that is about to be held, if it is locked already, or refuses.
#[cold]
#[inline(never)]
fn hide_for_hold(greenlet: &Greenlet) {
    let inner = greenlet.inner();
    assert!(
        inner.status.hold() == Hold::None,
        "the greenlet is kept suspended already"
    );
    assert!(
        !greenlet.is_current(),
        "the running greenlet cannot be kept suspended; only a suspended one can"
    );
    hide(inner);
    assert!(
        !inner.hidden_sp.get().is_null(),
        "only a suspended greenlet can be kept suspended; this one is pending or dead"
    );
}

impl<'a> Held<'a> {
    /// Keeps a suspended greenlet suspended: see [`keep_suspended`].
    ///
    /// # Panics
    ///
    /// Panics if the greenlet is not suspended, or is kept suspended already.
    #[cfg_attr(not(debug_assertions), inline(always))] // on the path of an await
    pub fn begin(greenlet: &'a Greenlet) -> Held<'a> {
        let inner = greenlet.inner();
        if inner.status.is_unlocked() && !inner.context.sp.get().is_null() && !greenlet.is_current() {
            hide(inner);
        } else {
            hide_for_hold(greenlet);
        }
        inner.status.begin_hold();
        if inner.has_other_handles() {
            count_hold(inner);
        }
        Held(greenlet)
    }

    /// Ends the hold. Returns `true` if the caller must end the greenlet, because somebody asked for
    /// that meanwhile.
    #[cfg_attr(not(debug_assertions), inline(always))] // on the path of an await
    pub fn release(self) -> bool {
        let is_to_end = self.end_hold();
        std::mem::forget(self);
        is_to_end
    }

    #[cfg_attr(not(debug_assertions), inline(always))] // on the path of an await
    fn end_hold(&self) -> bool {
        let inner = self.0.inner();
        if !inner.status.end_plain_hold() {
            return end_hold_slow(inner);
        }
        inner.context.sp.set(inner.hidden_sp.replace(ptr::null_mut())); // [hidden-sp]
        false
    }
}

#[cold]
#[inline(never)]
fn end_hold_slow(inner: &Inner) -> bool {
    let hold = inner.status.set_hold(Hold::None);
    if inner.status.await_lock() == AwaitLock::Unlocked {
        show(inner);
    }
    if inner.status.take_hold_counted() {
        ThreadState::current().remove_await_lock();
    }
    hold == Hold::HeldThenEnd
}

impl Drop for Held<'_> {
    #[cold]
    fn drop(&mut self) {
        if self.end_hold() {
            // CAUTION: runs arbitrary user code: the clean-up of the greenlet.
            self.0.end();
        }
    }
}

/// Hides the stack pointer from switches: see `[hidden-sp]`. A lock or a hold may have hidden it
/// before.
#[inline]
fn hide(inner: &Inner) {
    if !inner.context.sp.get().is_null() {
        inner.hidden_sp.set(inner.context.sp.replace(ptr::null_mut()));
    }
}

/// Shows the stack pointer to switches again.
#[inline]
fn show(inner: &Inner) {
    if inner.context.sp.get().is_null() {
        inner.context.sp.set(inner.hidden_sp.replace(ptr::null_mut()));
    }
}
