//! The life of a greenlet: three states and the two ways between them.

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

/// The state of one greenlet, and its legal transitions.
#[derive(Debug)]
pub(crate) struct Lifecycle(Cell<State>);

impl Lifecycle {
    pub(crate) const fn new(state: State) -> Lifecycle {
        Lifecycle(Cell::new(state))
    }

    #[inline]
    pub(crate) fn get(&self) -> State {
        self.0.get()
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.0.get() == State::Active
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.get() == State::Dead
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.0.get() == State::Pending
    }

    /// The greenlet is entered for the first time. A body never runs twice (rule UD-3).
    #[inline]
    pub(crate) fn begin(&self) {
        debug_assert_eq!(self.0.get(), State::Pending);
        self.0.set(State::Active);
    }

    /// The greenlet is ended before it was entered.
    pub(crate) fn cancel(&self) {
        debug_assert_eq!(self.0.get(), State::Pending);
        self.0.set(State::Dead);
    }

    /// The greenlet has finished.
    #[inline]
    pub(crate) fn finish(&self) {
        debug_assert_eq!(self.0.get(), State::Active);
        self.0.set(State::Dead);
    }
}
