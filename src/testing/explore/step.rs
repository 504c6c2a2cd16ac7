//! One choice of a run, and the bounds of runs.

#![forbid(unsafe_code)]

use std::fmt;
use std::panic::Location;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Value,
    /// The greenlet that runs next.
    Next,
    Fault,
}

/// A choice that a test has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) kind: Kind,
    pub(super) alternatives: u32,
    pub(super) place: &'static Location<'static>,
    /// The index of the greenlet that was picked last, if it is ready.
    pub(super) running: Option<u32>,
    /// That greenlet has yielded.
    pub(super) has_yielded: bool,
}

impl Point {
    /// Returns 1 if that alternative is a preemption, or stays with a greenlet that has yielded.
    pub(super) fn cost(&self, alternative: u32) -> u32 {
        match self.running {
            Some(running) => u32::from((alternative == running) == self.has_yielded),
            None => 0,
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Value => "alternatives",
            Kind::Next => "ready greenlets",
            Kind::Fault => "outcomes, one without a fault",
        };
        write!(f, "{} {what} at {}", self.alternatives, self.place)
    }
}

/// A choice, and what was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) point: Point,
    pub(super) picked: u32,
    /// The preemptions before this step.
    pub(super) preemptions: u32,
}

/// The bounds of each run.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) preemptions: u32,
    pub(super) faults: u32,
    pub(super) choices: usize,
}

/// The first choice that differed between two runs of the same order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Divergence {
    /// The number of the choice, from 1.
    pub(super) nth: usize,
    pub(super) before: Point,
    /// `None` if the second run ended before that choice.
    pub(super) now: Option<Point>,
}
