//! What is wrong with a step or a yield.

use std::fmt;

/// A step, or a yield, at the wrong place or time.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{GeneratorError, yield_};
///
/// let error = yield_(1).unwrap_err(); // there is no generator around this
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// ```
#[derive(Debug)]
pub struct GeneratorError {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Outside,
    Busy,
    ExitIgnored,
}

impl GeneratorError {
    pub(super) fn new(kind: Kind) -> GeneratorError {
        GeneratorError { kind }
    }

    /// Returns `true` if the caller of the yield does not run in the function of such a generator.
    pub fn is_outside(&self) -> bool {
        self.kind == Kind::Outside
    }

    /// Returns `true` if the step found the function running, or in the middle of a switch: Python's "generator already executing".
    pub fn is_busy(&self) -> bool {
        self.kind == Kind::Busy
    }

    /// Returns `true` if the function was closed, and yielded: Python's "generator ignored GeneratorExit".
    pub fn is_exit_ignored(&self) -> bool {
        self.kind == Kind::ExitIgnored
    }
}

impl fmt::Display for GeneratorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Outside => {
                "yield outside a generator of this type: call it from a generator's function, in the greenlet that steps it"
            }
            Kind::Busy => {
                "generator already executing: its function runs, or has switched elsewhere; step it again when it has yielded"
            }
            Kind::ExitIgnored => {
                "generator ignored its exit: its function yielded when it was closed; let it pass the error on"
            }
        })
    }
}

impl std::error::Error for GeneratorError {}
