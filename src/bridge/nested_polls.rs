//! What polls of spawns that run inside each other, on one thread, know of each other.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ptr;
use std::task::Context;

use anyhow::Result;
use greenlet_core::raw;

thread_local! {
    /// While a cancelled spawn polls what it awaits: the address of the waker of that poll. Spawns
    /// that are polled with it cancel themselves. One with another waker belongs to another task.
    static CANCELLED_TASK: Cell<Option<NonZeroUsize>> = const { Cell::new(None) };
    /// How many polls of such spawns have found that their clean-up still waits.
    static BUSY_CLEAN_UPS: Cell<u64> = const { Cell::new(0) };
    /// How many awaits have stopped before their first poll, for tests. `None`: they do not stop.
    static STOPS: Cell<Option<u64>> = const { Cell::new(None) };
}

thread_local! {
    /// How many polls of spawns run on this thread, one inside the other.
    static NESTED_POLLS: Cell<u32> = const { Cell::new(0) };
}

/// Up to this depth, polls do not ask how much of the stack is left.
const SHALLOW: u32 = 32;

/// Counts the poll of a spawn, until it is dropped.
pub(super) struct NestedPoll(());

impl NestedPoll {
    /// Enters a poll. Fails if little is left of the stack on which many polls are nested.
    #[inline]
    pub(super) fn enter() -> Result<NestedPoll> {
        let depth = NESTED_POLLS.get();
        if depth >= SHALLOW {
            check_stack(depth)?;
        }
        NESTED_POLLS.set(depth.wrapping_add(1));
        Ok(NestedPoll(()))
    }
}

impl Drop for NestedPoll {
    #[inline]
    fn drop(&mut self) {
        NESTED_POLLS.set(NESTED_POLLS.get().wrapping_sub(1));
    }
}

#[cold]
fn check_stack(depth: u32) -> Result<()> {
    let Some(usage) = raw::running_stack() else {
        return Ok(()); // the system does not say
    };
    let left = usage.size.saturating_sub(usage.used);
    // Enough for the poll of the innermost future, and for the backtrace of a panic.
    if left >= (usage.size / 8).min(32 << 10) {
        return Ok(());
    }
    anyhow::bail!(
        "{depth} spawned functions await each other, and the stack that polls them has {left} of {} bytes left; \
         poll them on a thread with a larger stack, or give the inner ones to the executor as tasks",
        usage.size
    )
}

fn task_of(cx: &Context<'_>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(ptr::from_ref(cx.waker()).addr())
}

/// Polls the future of a cancelled spawn by `poll`, with spawns in that future cancelled. `poll`
/// returns `true` if the future is pending. Returns `true` if the clean-up of a spawn still waits.
#[cold]
pub(super) fn cancel_nested(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> bool) -> bool {
    let before = BUSY_CLEAN_UPS.get();
    let _restored = Restored(CANCELLED_TASK.replace(task_of(cx)));
    poll(cx) && BUSY_CLEAN_UPS.get() != before
}

/// Returns `true` if the running poll belongs to a cancelled spawn, which waits for the clean-up.
#[inline]
pub(super) fn is_cancelled_from_outside(cx: &Context<'_>) -> bool {
    CANCELLED_TASK.get().is_some_and(|task| task_of(cx) == Some(task))
}

/// Runs `clean_up`, in which polls of spawns are ordinary ones. If `waits` returns `true` for the
/// result, the clean-up still waits.
#[cold]
pub(super) fn clean_up_nested<T>(clean_up: impl FnOnce() -> T, waits: impl FnOnce(&T) -> bool) -> T {
    let restored = Restored(CANCELLED_TASK.take());
    let before = BUSY_CLEAN_UPS.get();
    // CAUTION: runs arbitrary user code.
    let result = clean_up();
    drop(restored);
    // Those that it has polled itself do not count: it waits for them, or has left them.
    BUSY_CLEAN_UPS.set(before.wrapping_add(u64::from(waits(&result))));
    result
}

struct Restored(Option<NonZeroUsize>);

impl Drop for Restored {
    fn drop(&mut self) {
        CANCELLED_TASK.set(self.0);
    }
}

/// Runs `step`, in which every await of every spawn stops before its first poll. Returns how many
/// have stopped.
pub(super) fn with_stops<T>(step: impl FnOnce() -> T) -> (T, u64) {
    struct Reset(Option<u64>);
    impl Drop for Reset {
        fn drop(&mut self) {
            STOPS.set(self.0);
        }
    }
    let _reset = Reset(STOPS.replace(Some(0)));
    let value = step();
    (value, STOPS.get().unwrap_or_default())
}

/// Returns `true` while a step of [`with_stops`] runs.
#[inline]
pub(super) fn has_stops() -> bool {
    STOPS.get().is_some()
}

/// Counts a stop of [`with_stops`].
#[cold]
pub(super) fn count_stop(cx: &Context<'_>) {
    if let Some(stops) = STOPS.get() {
        STOPS.set(Some(stops + 1));
        cx.waker().wake_by_ref(); // an outer future may poll this one only then
    }
}
