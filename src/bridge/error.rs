//! What goes wrong between a function and its driver.

#![forbid(unsafe_code)]

use std::fmt;

/// An await where nobody can poll the future.
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
    Over,
}

impl NoDriver {
    pub(super) fn outside() -> NoDriver {
        NoDriver { kind: Kind::Outside }
    }

    pub(super) fn over() -> NoDriver {
        NoDriver { kind: Kind::Over }
    }

    /// Says whether no [`greenlet_spawn`](crate::greenlet_spawn) is around the code that awaits. The
    /// poll of a future that is being awaited is outside, too.
    pub fn is_outside(&self) -> bool {
        matches!(self.kind, Kind::Outside)
    }

    /// Says whether there was a driver, but it was dropped or its function has returned.
    pub fn is_over(&self) -> bool {
        matches!(self.kind, Kind::Over)
    }
}

impl fmt::Display for NoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Outside => {
                "cannot await here: this code does not run inside `greenlet_spawn`; spawn it, or use \
                 `block_on_greenlet` to block this thread"
            }
            Kind::Over => {
                "cannot await any more: the `greenlet_spawn` future was dropped or has returned; to let \
                 clean-up await, end it with `cancel()` instead of dropping it"
            }
        })
    }
}

impl std::error::Error for NoDriver {}

/// A message from a greenlet that does not belong to a spawned function reached the function's driver.
///
/// It comes out of the switch with which the function left: a greenlet that was made outside of the
/// function, and whose parent is the greenlet that polls, was switched to from inside, and ended there or
/// switched there. Make such greenlets inside the function, or give them a parent inside.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, StrayMessage, greenlet_spawn};
///
/// let outsider = Greenlet::new(|(): ()| Ok("for whom is this?")); // its parent polls the spawn
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
            "control came to the driver of a spawned function by neither an await nor its end ({}); greenlets \
             that the function switches to must have it among their ancestors",
            self.what
        )
    }
}

impl std::error::Error for StrayMessage {}
