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
pub(crate) enum Gate {
    Open,
    /// Closed, and at that time nothing but its owner referred to the greenlet.
    Closed,
    /// Closed, and counted in the hub, so that every switch of the thread looks for it.
    ClosedAndCounted,
}

/// Whether a greenlet is kept suspended for a while, so that nothing may resume it, not even to end it: see
/// `Greenlet::keep_suspended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    No,
    Yes,
    /// It is, and it is to be ended as soon as it is not.
    YesThenEnd,
}

/// How a greenlet stands: its state, with its legal transitions, and whatever is out of the ordinary about it.
///
/// All in one word, so that one comparison says that a greenlet is an ordinary one.
///
/// ```text
///   bits   0..2   2..4   4..6        6       7     8       9
///          state  gate   kept  abandoned  main  more  ending     0: pending, open, and nothing else
/// ```
#[derive(Debug)]
pub(crate) struct Standing(Cell<usize>);

const STATE: usize = 0b11;
const GATE: usize = 0b11 << GATE_SHIFT;
const GATE_SHIFT: usize = 2;
const KEPT: usize = 0b11 << KEPT_SHIFT;
const KEPT_SHIFT: usize = 4;
const ABANDONED: usize = 1 << 6;
const MAIN: usize = 1 << 7;
const MORE: usize = 1 << 8;
const ENDING: usize = 1 << 9;

impl Standing {
    /// That of an ordinary greenlet that is pending.
    pub(crate) const fn pending() -> Standing {
        Standing(Cell::new(State::Pending as usize))
    }

    /// That of a main greenlet.
    pub(crate) const fn main() -> Standing {
        Standing(Cell::new(State::Active as usize | MAIN))
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
    pub(crate) fn begin(&self) {
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
    pub(crate) fn gate(&self) -> Gate {
        match (self.0.get() & GATE) >> GATE_SHIFT {
            0 => Gate::Open,
            1 => Gate::Closed,
            _ => Gate::ClosedAndCounted,
        }
    }

    /// Sets the gate, and says how it was.
    #[inline]
    pub(crate) fn set_gate(&self, gate: Gate) -> Gate {
        let before = self.gate();
        self.replace(GATE, (gate as usize) << GATE_SHIFT);
        before
    }

    #[inline]
    pub(crate) fn kept(&self) -> Kept {
        match (self.0.get() & KEPT) >> KEPT_SHIFT {
            0 => Kept::No,
            1 => Kept::Yes,
            _ => Kept::YesThenEnd,
        }
    }

    /// Says whether it is kept from now on, and how it was.
    #[inline]
    pub(crate) fn set_kept(&self, kept: Kept) -> Kept {
        let before = self.kept();
        self.replace(KEPT, (kept as usize) << KEPT_SHIFT);
        before
    }

    /// Says whether its own gate is open, and it is not kept suspended.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !self.has(GATE | KEPT)
    }

    #[inline]
    pub(crate) fn is_main(&self) -> bool {
        self.has(MAIN)
    }

    /// Says whether it is a main greenlet, and open.
    #[inline]
    pub(crate) fn is_open_main(&self) -> bool {
        self.0.get() & (MAIN | GATE | KEPT) == MAIN
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

    /// The record has something that most have not: see [`Node::more`](crate::node::Node::more).
    pub(crate) fn note_more(&self) {
        self.replace(MORE, MORE);
    }

    /// Says whether the greenlet is pending, and there is nothing else to know of it.
    #[inline]
    pub(crate) fn is_just_pending(&self) -> bool {
        self.0.get() == State::Pending as usize
    }

    /// Says whether the greenlet is dead, and there is nothing else to know of it.
    #[inline]
    pub(crate) fn is_just_dead(&self) -> bool {
        self.0.get() == State::Dead as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_set_changes_anything_else() {
        let standing = Standing::pending();
        assert!(standing.is_just_pending() && standing.is_open() && !standing.is_main());
        for gate in [Gate::Closed, Gate::ClosedAndCounted, Gate::Open] {
            for kept in [Kept::Yes, Kept::YesThenEnd, Kept::No] {
                standing.set_gate(gate);
                standing.set_kept(kept);
                assert_eq!((standing.gate(), standing.kept()), (gate, kept));
                assert_eq!(standing.is_open(), gate == Gate::Open && kept == Kept::No);
                assert_eq!(standing.state(), State::Pending);
            }
        }
        assert_eq!(standing.set_gate(Gate::Closed), Gate::Open);
        assert_eq!(standing.set_kept(Kept::Yes), Kept::No);
        standing.begin();
        assert!(standing.is_active() && !standing.is_abandoned());
        standing.abandon();
        standing.note_more();
        standing.finish();
        assert!(standing.is_dead() && standing.is_abandoned() && !standing.is_just_dead());
        assert_eq!((standing.gate(), standing.kept()), (Gate::Closed, Kept::Yes));
    }

    #[test]
    fn an_ordinary_greenlet_is_just_pending_and_then_just_dead() {
        let standing = Standing::pending();
        standing.begin();
        assert!(!standing.is_just_pending() && !standing.is_just_dead());
        standing.finish();
        assert!(standing.is_just_dead());
        let main = Standing::main();
        assert!(main.is_active() && main.is_open_main());
        main.set_gate(Gate::Closed);
        assert!(main.is_main() && !main.is_open_main());
    }
}
