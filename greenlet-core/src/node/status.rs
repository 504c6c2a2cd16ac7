//! The status word of a greenlet: its state, and flags for everything that is out of the ordinary.

#![forbid(unsafe_code)]

use std::cell::Cell;

/// The state of a greenlet: see [`Greenlet::state`](crate::Greenlet::state).
///
/// ```text
///   Pending ──first switch or throw──► Active ──function ended──► Dead
/// ```
///
/// A greenlet never returns to an earlier state. The main greenlet is active until its thread ends.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, State};
/// let greenlet = Greenlet::new(|(): ()| Ok(()));
/// assert_eq!(greenlet.state(), State::Pending);
/// greenlet.switch::<()>(())?;
/// assert_eq!(greenlet.state(), State::Dead);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Created and not started. It has no stack yet.
    Pending,
    /// Started and not ended: it runs, or it is suspended in a switch.
    Active,
    /// Ended. It has no stack, and its nearest living ancestor receives what is sent to it.
    Dead,
}

/// Whether switches to a greenlet and its descendants are refused: see `raw::lock_for_await`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AwaitLock {
    Unlocked,
    /// Locked when no other handle referred to the greenlet. Only its hidden stack pointer refuses
    /// switches.
    Locked,
    /// Locked and counted in the thread state, so that every switch of the thread looks for locked
    /// ancestors.
    LockedAndCounted,
}

/// Whether a greenlet must stay suspended for a while, and must not even be ended: see
/// `raw::keep_suspended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    None,
    Held,
    /// Held, and ended as soon as the hold is over.
    HeldThenEnd = 3, // with the bit of `Held`
}

/// The state of a greenlet, and everything about it that is out of the ordinary, in one word.
///
/// One comparison recognises an ordinary dead greenlet: its word is exactly `DEAD`.
/// `tools/greenlet-gdb.py` reads `STATE` and `MAIN`.
#[derive(Debug)]
pub(crate) struct Status(Cell<usize>);

/// The [`State`], as a number: 0 pending, 1 active, 2 dead. So the lowest bit says if it is active.
///
/// It only ever grows: a greenlet is started once and ends once.
const STATE: usize = 0b11;

/// The [`AwaitLock`], as a number.
///
/// Set while the greenlet waits for a future that something outside of the library polls. Cleared
/// by the owner that set it, and when the greenlet is ended.
const AWAIT_LOCK: usize = 0b11 << AWAIT_LOCK_SHIFT;
const AWAIT_LOCK_SHIFT: usize = 2;

/// The [`Hold`], as a number.
///
/// Set while the owner of a suspended greenlet works on data on the greenlet's stack.
const HOLD: usize = 0b11 << HOLD_SHIFT;
const HOLD_SHIFT: usize = 4;
const HELD: usize = (Hold::Held as usize) << HOLD_SHIFT;

/// Set when the greenlet did not end even by forced unwinding.
///
/// Never cleared: the greenlet stays suspended for good, and its stack is leaked.
const ABANDONED: usize = 1 << 6;

/// Set in the main greenlet of a thread, from its creation on.
///
/// Main is active without a stack of the library, has no parent, and ends with its thread.
const MAIN: usize = 1 << 7;

/// Set when any rarely used field (name, stack size, locals, attachment) has been written, or the
/// thread has recorded the creation, a switch, or the use of the stack.
///
/// Never cleared while the node is in use. A dead node whose status is exactly `DEAD` therefore has
/// nothing to drop, and its slot is reused without running a destructor.
const HAS_EXTRAS: usize = 1 << 8;

/// Set while a stage of an end is delivered to the greenlet (see `switch/teardown.rs`).
///
/// Waits that are refused meanwhile are counted, so that code that waits again after each refusal
/// cannot hold up the end.
const ENDING: usize = 1 << 9;

/// Set while the greenlet waits for another one that it ends.
///
/// An end of this one that comes from there is deferred, because the two would wait for each other.
const ENDER: usize = 1 << 10;

/// Set if the hold is counted in the thread state, so that every switch of the thread looks for held
/// ancestors. Others referred to the greenlet when the hold began.
const HOLD_COUNTED: usize = 1 << 11;

/// Set if the use of the stack is to be recorded when the greenlet ends: see `track_high_water`.
///
/// It is the sign of the word, so that a comparison and a jump find it.
const IS_MEASURED: usize = 1 << (usize::BITS - 1);

impl Status {
    pub(crate) const fn pending() -> Status {
        Status(Cell::new(State::Pending as usize))
    }

    pub(crate) const fn main() -> Status {
        Status(Cell::new(State::Active as usize | MAIN))
    }

    /// Makes this the status of a new node.
    #[inline]
    pub(super) fn reset(&self, to: Status) {
        self.0.set(to.0.get());
    }

    #[inline]
    fn has(&self, bits: usize) -> bool {
        self.0.get() & bits != 0
    }

    #[inline]
    fn replace(&self, mask: usize, bits: usize) -> usize {
        let before = self.0.get();
        self.0.set(before & !mask | bits);
        before & mask
    }

    #[inline]
    pub(crate) fn state(&self) -> State {
        match self.0.get() & STATE {
            0 => State::Pending,
            1 => State::Active,
            _ => State::Dead,
        }
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.has(State::Active as usize)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.state() == State::Pending
    }

    /// Marks a pending greenlet as active. A function never runs twice (rule UD-3).
    #[inline]
    pub(crate) fn activate(&self) {
        debug_assert_eq!(self.state(), State::Pending);
        self.0.set(self.0.get() + 1);
    }

    /// Marks a pending greenlet as dead: its function will not run.
    pub(crate) fn cancel(&self) {
        debug_assert_eq!(self.state(), State::Pending);
        self.replace(STATE, State::Dead as usize);
    }

    #[inline]
    pub(crate) fn finish(&self) {
        debug_assert_eq!(self.state(), State::Active);
        self.0.set(self.0.get() + 1);
    }

    /// Returns `true` if the use of the stack is to be recorded when the greenlet ends.
    #[inline]
    pub(crate) fn is_measured(&self) -> bool {
        self.has(IS_MEASURED)
    }

    pub(crate) fn set_measured(&self) {
        self.replace(IS_MEASURED, IS_MEASURED);
    }

    #[inline]
    pub(crate) fn await_lock(&self) -> AwaitLock {
        match (self.0.get() & AWAIT_LOCK) >> AWAIT_LOCK_SHIFT {
            0 => AwaitLock::Unlocked,
            1 => AwaitLock::Locked,
            _ => AwaitLock::LockedAndCounted,
        }
    }

    /// Sets the lock, and returns the previous one.
    #[inline]
    pub(crate) fn set_await_lock(&self, lock: AwaitLock) -> AwaitLock {
        let before = self.await_lock();
        self.replace(AWAIT_LOCK, (lock as usize) << AWAIT_LOCK_SHIFT);
        before
    }

    #[inline]
    pub(crate) fn hold(&self) -> Hold {
        match (self.0.get() & HOLD) >> HOLD_SHIFT {
            0 => Hold::None,
            1 => Hold::Held,
            _ => Hold::HeldThenEnd,
        }
    }

    /// Sets the hold, and returns the previous one.
    #[inline]
    pub(crate) fn set_hold(&self, hold: Hold) -> Hold {
        let before = self.hold();
        self.replace(HOLD, (hold as usize) << HOLD_SHIFT);
        before
    }

    /// Begins a hold of a greenlet that is not held.
    #[inline]
    pub(crate) fn begin_hold(&self) {
        debug_assert_eq!(self.hold(), Hold::None);
        self.0.set(self.0.get() | HELD);
    }

    /// Ends a hold and returns `true`, unless the greenlet is locked, is to be ended then, or the
    /// hold is counted.
    #[inline]
    pub(crate) fn end_plain_hold(&self) -> bool {
        let word = self.0.get();
        let is_plain = word & (AWAIT_LOCK | HOLD_COUNTED | HOLD) & !HELD == 0;
        if is_plain {
            self.0.set(word & !HELD);
        }
        is_plain
    }

    /// Records that the hold is counted in the thread state.
    pub(crate) fn set_hold_counted(&self) {
        self.replace(HOLD_COUNTED, HOLD_COUNTED);
    }

    /// Clears that record. Returns `true` if there was one.
    pub(crate) fn take_hold_counted(&self) -> bool {
        self.replace(HOLD_COUNTED, 0) != 0
    }

    /// Neither locked nor held itself.
    #[inline]
    pub(crate) fn is_unlocked(&self) -> bool {
        !self.has(AWAIT_LOCK | HOLD)
    }

    #[inline]
    pub(crate) fn is_main(&self) -> bool {
        self.has(MAIN)
    }

    pub(crate) fn abandon(&self) {
        self.replace(ABANDONED, ABANDONED);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.has(ABANDONED)
    }

    pub(crate) fn set_ending(&self, is_ending: bool) {
        self.replace(ENDING, if is_ending { ENDING } else { 0 });
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.has(ENDING)
    }

    /// Records whether the greenlet ends another one. Returns what was recorded before.
    #[inline]
    pub(crate) fn set_ender(&self, is_ender: bool) -> bool {
        self.replace(ENDER, if is_ender { ENDER } else { 0 }) != 0
    }

    pub(crate) fn is_ender(&self) -> bool {
        self.has(ENDER)
    }

    #[inline]
    pub(crate) fn set_has_extras(&self) {
        self.replace(HAS_EXTRAS, HAS_EXTRAS);
    }

    pub(crate) fn has_extras(&self) -> bool {
        self.has(HAS_EXTRAS)
    }

    /// Returns `true` if the greenlet is pending and no flag is set.
    #[inline]
    pub(crate) fn is_plain_pending(&self) -> bool {
        self.0.get() == State::Pending as usize
    }

    /// Returns `true` if the greenlet is dead and no flag is set.
    #[inline]
    pub(crate) fn is_plain_dead(&self) -> bool {
        self.0.get() == State::Dead as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_one_part_of_a_status_leaves_the_others_unchanged() {
        let status = Status::pending();
        assert!(status.is_pending() && status.is_unlocked() && !status.is_main());
        for lock in [
            AwaitLock::Locked,
            AwaitLock::LockedAndCounted,
            AwaitLock::Unlocked,
        ] {
            for hold in [Hold::Held, Hold::HeldThenEnd, Hold::None] {
                status.set_await_lock(lock);
                status.set_hold(hold);
                assert_eq!((status.await_lock(), status.hold()), (lock, hold));
                assert_eq!(
                    status.is_unlocked(),
                    lock == AwaitLock::Unlocked && hold == Hold::None
                );
                assert_eq!(status.state(), State::Pending);
            }
        }
        status.begin_hold();
        assert!(!status.is_unlocked() && status.end_plain_hold() && status.is_unlocked());
        status.begin_hold();
        status.set_hold(Hold::HeldThenEnd);
        assert!(!status.end_plain_hold());
        status.set_hold(Hold::Held);
        status.set_hold_counted();
        assert!(!status.end_plain_hold() && status.take_hold_counted() && status.end_plain_hold());
        assert_eq!(status.set_await_lock(AwaitLock::Locked), AwaitLock::Unlocked);
        assert_eq!(status.set_hold(Hold::Held), Hold::None);
        status.activate();
        assert!(status.is_active() && !status.is_abandoned());
        status.abandon();
        status.set_has_extras();
        status.finish();
        assert!(status.is_dead() && status.is_abandoned() && !status.is_plain_dead());
        assert_eq!(
            (status.await_lock(), status.hold()),
            (AwaitLock::Locked, Hold::Held)
        );
    }

    #[test]
    fn a_greenlet_without_flags_is_plain_before_and_after_its_life() {
        let status = Status::pending();
        status.activate();
        assert!(!status.is_pending() && !status.is_plain_dead());
        status.finish();
        assert!(status.is_plain_dead());
        let main = Status::main();
        assert!(main.is_active() && main.is_main() && main.is_unlocked());
        main.set_await_lock(AwaitLock::Locked);
        assert!(main.is_main() && !main.is_unlocked());
    }
}
