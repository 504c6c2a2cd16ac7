//! The life of a greenlet: three states, the two ways between them, and what may stand in the way.

#![forbid(unsafe_code)]

use std::cell::Cell;

/// Where a greenlet is in its life.
///
/// ```text
///   Pending ──first switch or throw──► Active ──function ended──► Dead
/// ```
///
/// There is no way back. The main greenlet of a thread is active for the whole life of the thread.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, State};
///
/// let greenlet = Greenlet::new(|(): ()| Ok(()));
/// assert_eq!(greenlet.state(), State::Pending);
/// greenlet.switch::<()>(())?;
/// assert_eq!(greenlet.state(), State::Dead);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Made, never entered. It has no stack yet.
    Pending,
    /// Entered and not finished: it runs, or it is suspended in a switch.
    Active,
    /// Finished. Its stack is gone; what is sent to it goes to its parent.
    Dead,
}

/// Whether a greenlet and what is below it can be switched to: see `gate.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AwaitLock {
    Unlocked,
    /// Closed, and at that time nothing but its owner referred to the greenlet.
    Locked,
    /// Closed, and counted in the hub, so that every switch of the thread looks for it.
    LockedAndCounted,
}

/// Whether a greenlet is hold suspended for a while, so that nothing may resume it, not even to end it: see
/// `Greenlet::keep_suspended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    None,
    Held,
    /// It is, and it is to be ended as soon as it is not.
    HeldThenEnd,
}

/// How a greenlet stands: its state, with its legal transitions, and whatever is out of the ordinary about it.
///
/// All in one word, so that one comparison says that a greenlet is an ordinary one.
///
/// ```text
///   bits   0..2   2..4   4..6        6       7     8       9
///          state  lock   hold  abandoned  main  more  ending     0: pending, open, and nothing else
/// ```
#[derive(Debug)]
pub(crate) struct Status(Cell<usize>);

const STATE: usize = 0b11;
const AWAIT_LOCK: usize = 0b11 << AWAIT_LOCK_SHIFT;
const AWAIT_LOCK_SHIFT: usize = 2;
const HOLD: usize = 0b11 << HOLD_SHIFT;
const HOLD_SHIFT: usize = 4;
const ABANDONED: usize = 1 << 6;
const MAIN: usize = 1 << 7;
const HAS_EXTRAS: usize = 1 << 8;
const ENDING: usize = 1 << 9;

impl Status {
    /// That of an ordinary greenlet that is pending.
    pub(crate) const fn pending() -> Status {
        Status(Cell::new(State::Pending as usize))
    }

    /// That of a main greenlet.
    pub(crate) const fn main() -> Status {
        Status(Cell::new(State::Active as usize | MAIN))
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
        self.state() == State::Active
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.state() == State::Pending
    }

    /// The greenlet is entered for the first time. A body never runs twice (rule UD-3).
    #[inline]
    pub(crate) fn activate(&self) {
        debug_assert_eq!(self.state(), State::Pending);
        self.0.set(self.0.get() + 1);
    }

    /// The greenlet is ended before it was entered.
    pub(crate) fn cancel(&self) {
        debug_assert_eq!(self.state(), State::Pending);
        self.replace(STATE, State::Dead as usize);
    }

    /// The greenlet has finished.
    #[inline]
    pub(crate) fn finish(&self) {
        debug_assert_eq!(self.state(), State::Active);
        self.0.set(self.0.get() + 1);
    }

    #[inline]
    pub(crate) fn await_lock(&self) -> AwaitLock {
        match (self.0.get() & AWAIT_LOCK) >> AWAIT_LOCK_SHIFT {
            0 => AwaitLock::Unlocked,
            1 => AwaitLock::Locked,
            _ => AwaitLock::LockedAndCounted,
        }
    }

    /// Sets the lock, and says how it was.
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

    /// Says whether it is hold from now on, and how it was.
    #[inline]
    pub(crate) fn set_hold(&self, hold: Hold) -> Hold {
        let before = self.hold();
        self.replace(HOLD, (hold as usize) << HOLD_SHIFT);
        before
    }

    /// Says whether its own lock is open, and it is not hold suspended.
    #[inline]
    pub(crate) fn is_unlocked(&self) -> bool {
        !self.has(AWAIT_LOCK | HOLD)
    }

    #[inline]
    pub(crate) fn is_main(&self) -> bool {
        self.has(MAIN)
    }

    /// Says whether it is a main greenlet, and open.
    #[inline]
    pub(crate) fn is_unlocked_main(&self) -> bool {
        self.0.get() & (MAIN | AWAIT_LOCK | HOLD) == MAIN
    }

    /// The greenlet did not end even by force: it is left alone, and its stack is leaked.
    pub(crate) fn abandon(&self) {
        self.replace(ABANDONED, ABANDONED);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.has(ABANDONED)
    }

    /// Notes whether the greenlet is being ended.
    pub(crate) fn set_ending(&self, is_ending: bool) {
        self.replace(ENDING, if is_ending { ENDING } else { 0 });
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.has(ENDING)
    }

    /// The record has something that most have not: see [`Inner::more`](crate::node::Inner::extras).
    pub(crate) fn set_has_extras(&self) {
        self.replace(HAS_EXTRAS, HAS_EXTRAS);
    }

    /// Says whether the greenlet is pending, and there is nothing else to know of it.
    #[inline]
    pub(crate) fn is_plain_pending(&self) -> bool {
        self.0.get() == State::Pending as usize
    }

    /// Says whether the greenlet is dead, and there is nothing else to know of it.
    #[inline]
    pub(crate) fn is_plain_dead(&self) -> bool {
        self.0.get() == State::Dead as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_set_changes_anything_else() {
        let status = Status::pending();
        assert!(status.is_plain_pending() && status.is_unlocked() && !status.is_main());
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
    fn an_ordinary_greenlet_is_just_pending_and_then_just_dead() {
        let status = Status::pending();
        status.activate();
        assert!(!status.is_plain_pending() && !status.is_plain_dead());
        status.finish();
        assert!(status.is_plain_dead());
        let main = Status::main();
        assert!(main.is_active() && main.is_unlocked_main());
        main.set_await_lock(AwaitLock::Locked);
        assert!(main.is_main() && !main.is_unlocked_main());
    }
}
