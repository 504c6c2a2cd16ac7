//! What a spawned function's greenlets know of their driver.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};

use greenlet_core::Greenlet;

use super::request::Request;

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its greenlets do not run: it has not been polled yet, it waits, or it polls a future.
    Parked,
    /// It is being polled, and one of its greenlets runs.
    Running,
    /// Its function has ended, or it was dropped.
    Over,
}

/// The part of a driver that is attached to its root greenlet, where `await_` finds it.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) phase: Cell<Phase>,
    /// The greenlet that polls: whoever awaits switches there. Outside a poll it is the main greenlet
    /// or nobody, so that a greenlet that polled once is not kept alive.
    pub(super) poller: RefCell<Option<Greenlet>>,
    /// The future that is awaited. It stands on the stack of the greenlet that awaits, and is withdrawn
    /// by that greenlet as soon as it is resumed, for whatever reason.
    pub(super) request: Cell<Option<Request>>,
    /// How often something was awaited.
    pub(super) awaits: Cell<u64>,
    /// How often an await was refused because the driver is over.
    pub(super) refusals: Cell<u32>,
    /// Whether to stop at each await before what is awaited is polled: for tests.
    pub(super) stops: Cell<bool>,
}

impl Driver {
    pub(super) fn new() -> Driver {
        Driver {
            phase: Cell::new(Phase::Parked),
            poller: RefCell::new(None),
            request: Cell::new(None),
            awaits: Cell::new(0),
            refusals: Cell::new(0),
            stops: Cell::new(false),
        }
    }

    /// One of the driver's greenlets is about to run. Whoever waits waits in vain from now on, or is the
    /// one that runs.
    #[inline]
    pub(super) fn go(&self) {
        self.request.set(None);
        self.phase.set(Phase::Running);
    }
}

/// What the driver's greenlets send to it.
#[derive(Debug)]
pub(super) enum Event {
    /// A future is to be polled; `None` if the root greenlet itself waits for it.
    Await(Option<Greenlet>),
    /// The function has returned.
    Done,
}

/// What the driver sends to a greenlet whose future is ready.
#[derive(Debug)]
pub(super) struct Ready;
