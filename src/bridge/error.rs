//! The errors of the bridge.

#![forbid(unsafe_code)]

use std::fmt;

/// The error of an await without a driver that could poll the future.
///
/// # Examples
///
/// ```
/// use greenlet::{NoDriver, try_await_};
///
/// let error = try_await_(async { 1 }).unwrap_err();
/// assert!(error.downcast_ref::<NoDriver>().unwrap().is_outside());
/// ```
#[derive(Debug)]
pub struct NoDriver {
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Outside,
    Polled,
    Idle,
    Over,
}

impl NoDriver {
    pub(super) fn outside() -> NoDriver {
        NoDriver { kind: Kind::Outside }
    }

    pub(super) fn polled() -> NoDriver {
        NoDriver { kind: Kind::Polled }
    }

    pub(super) fn idle() -> NoDriver {
        NoDriver { kind: Kind::Idle }
    }

    pub(super) fn over() -> NoDriver {
        NoDriver { kind: Kind::Over }
    }

    /// Returns `true` if the code that awaits does not run inside
    /// [`greenlet_spawn`](crate::greenlet_spawn): no function that runs on this thread was spawned.
    pub fn is_outside(&self) -> bool {
        matches!(self.kind, Kind::Outside)
    }

    /// Returns `true` if the code that awaits runs in the poll of a future that a spawned function
    /// awaits. It can await if the function awaits that future with
    /// [`await_nested`](crate::await_nested).
    pub fn is_polled(&self) -> bool {
        matches!(self.kind, Kind::Polled)
    }

    /// Returns `true` if there was a driver, but it was dropped or its function has returned.
    pub fn is_over(&self) -> bool {
        matches!(self.kind, Kind::Over)
    }

    /// Returns `true` if the function is being ended. `await_` then unwinds.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.kind, Kind::Over | Kind::Idle)
    }
}

impl fmt::Display for NoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Outside => {
                "cannot await here: no function of `greenlet_spawn` runs on this thread now; spawn this code, or \
                 use `block_on_greenlet` to block the thread. Code of a spawned function that is handed to \
                 another thread cannot await there"
            }
            Kind::Polled => {
                "cannot await here: this code runs in the poll of a future that a spawned function awaits; await \
                 that future with `await_nested`, or call this code by `greenlet_spawn(..).await`"
            }
            Kind::Idle => {
                "cannot await here: the spawned function is not being polled, because its greenlet was ended or \
                 resumed from outside; end it with `cancel()`, so that its clean-up can await"
            }
            Kind::Over => {
                "cannot await any more: the `greenlet_spawn` future was dropped or has returned; to let \
                 clean-up await, end it with `cancel()` instead of dropping it"
            }
        })
    }
}

impl std::error::Error for NoDriver {}

/// The error when the driver of a spawned function receives a message from a foreign greenlet.
///
/// The switch by which the function left returns it. A foreign greenlet was created outside of the
/// function, and its parent is the greenlet that polls. If the function switches to it, it ends
/// into the driver or switches there. Create such greenlets inside the function, or give them a
/// parent inside.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, StrayMessage, greenlet_spawn};
///
/// let outsider = Greenlet::new(|(): ()| Ok("a result")); // its parent polls the spawn
/// let spawned = greenlet_spawn(move || outsider.switch::<()>(()).unwrap_err().is::<StrayMessage>());
/// assert!(futures::executor::block_on(spawned));
/// ```
#[derive(Debug)]
pub struct StrayMessage {
    what: String,
}

impl StrayMessage {
    pub(super) fn new(what: String) -> StrayMessage {
        StrayMessage { what }
    }
}

impl fmt::Display for StrayMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the driver of a spawned function received {} instead of an await or the function's end; call \
             `await_` to wait, and create the greenlets that the function switches to inside it, or give them a \
             parent inside",
            self.what
        )
    }
}

impl std::error::Error for StrayMessage {}
