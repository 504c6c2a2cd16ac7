//! The error of a step or yield at the wrong place or time.

use std::fmt;

/// A step, or a yield, at the wrong place or time.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{GeneratorError, yield_};
///
/// let error = yield_(1).unwrap_err(); // not in a generator
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// ```
#[derive(Debug)]
pub struct GeneratorError {
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What was yielded, and where.
    Outside(String),
    Busy,
    ExitIgnored,
}

impl GeneratorError {
    pub(super) fn new(kind: Kind) -> GeneratorError {
        GeneratorError { kind }
    }

    pub(super) fn outside(text: String) -> GeneratorError {
        GeneratorError::new(Kind::Outside(text))
    }

    /// Returns `true` if the yield was outside a generator of these types.
    pub fn is_outside(&self) -> bool {
        matches!(self.kind, Kind::Outside(_))
    }

    /// Returns `true` if the function was running, or in the middle of a switch, at the step:
    /// Python's "generator already executing".
    pub fn is_busy(&self) -> bool {
        self.kind == Kind::Busy
    }

    /// Returns `true` if the function yielded when it was closed: Python's "generator ignored
    /// GeneratorExit".
    pub fn is_exit_ignored(&self) -> bool {
        self.kind == Kind::ExitIgnored
    }
}

impl fmt::Display for GeneratorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Outside(text) => {
                return write!(
                    f,
                    "{text}; yield from the generator's function, in the greenlet that steps it"
                );
            }
            Kind::Busy => {
                "generator already executing: its function runs, or has switched elsewhere; step it again when \
                 it has yielded"
            }
            Kind::ExitIgnored => {
                "generator ignored its exit: its function yielded when it was closed; return the error of \
                 `yield_` from the function"
            }
        })
    }
}

impl std::error::Error for GeneratorError {}
