//! What a search has covered, and the failure that it has found.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, bail};

use super::step::{Divergence, Step};
use crate::testing::recorder::Recording;

/// The choices of a run, as a text that replays it: see [`Explore::replay`](super::Explore::replay).
///
/// The text lists the choices in order. Choices of 0 at the end are left out, `0x12` stands for
/// twelve of them, and an order of nothing but 0 is `0`.
///
/// # Examples
///
/// ```
/// use greenlet::testing::explore::Order;
///
/// let order: Order = "2.0x12.1".parse()?;
/// assert_eq!(order.choices().len(), 14);
/// assert_eq!(order.to_string(), "2.0x12.1");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    choices: Vec<u32>,
}

impl Order {
    pub(super) fn new(mut choices: Vec<u32>) -> Order {
        let is_deviation = |choice: &u32| *choice != 0;
        choices.truncate(choices.iter().rposition(is_deviation).map_or(0, |last| last + 1));
        Order { choices }
    }

    pub(super) fn of(path: &[Step]) -> Order {
        Order::new(path.iter().map(|step| step.picked).collect())
    }

    /// Returns the choices, without those of 0 at the end.
    pub fn choices(&self) -> &[u32] {
        &self.choices
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.choices.is_empty() {
            return f.write_str("0");
        }
        let mut rest = &self.choices[..];
        while let Some(choice) = rest.first() {
            if rest.len() < self.choices.len() {
                f.write_str(".")?;
            }
            let zeros = rest.iter().take_while(|choice| **choice == 0).count();
            match zeros {
                0 | 1 => write!(f, "{choice}")?,
                _ => write!(f, "0x{zeros}")?,
            }
            rest = &rest[zeros.max(1)..];
        }
        Ok(())
    }
}

/// The longest order that a text can stand for.
const LONGEST: usize = 10_000_000;

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Order, Error> {
        let mut choices = Vec::new();
        for part in text.trim().split('.') {
            let wrong = || format!("`{text}` is no order: `{part}` is neither a number nor like `0x12`");
            match part.strip_prefix("0x") {
                Some(count) => {
                    let count: usize = count.parse().with_context(wrong)?;
                    if count > LONGEST - choices.len() {
                        bail!("`{text}` is no order: it has more than {LONGEST} choices");
                    }
                    choices.extend(std::iter::repeat_n(0, count));
                }
                None => choices.push(part.parse().with_context(wrong)?),
            }
        }
        Ok(Order::new(choices))
    }
}

/// The kind of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The test panicked.
    Panic,
    /// The test returned an error. Schedulers report deadlocks this way.
    Error,
    /// The test left greenlets that have not ended.
    Leak,
    /// The check of the recording returned an error.
    Recording,
    /// The same choices did not lead to the same questions.
    NotDeterministic,
}

/// An order in which a test fails, the shortest one that was found.
///
/// It prints the error, the line that replays the order, and the recording of that run.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    pub(super) order: Order,
    pub(super) path: Vec<Step>,
    pub(super) found_at: u64,
    pub(super) recording: Recording,
}

impl Failure {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Returns the text of the panic or the error.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the order that leads to the failure.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// Returns which order of the search was the first to fail, from 1. What is reported is a shorter
    /// one, that was found afterwards.
    pub fn found_at(&self) -> u64 {
        self.found_at
    }

    /// Returns the recording of the run in that order.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    pub(super) fn describe(divergence: &Divergence) -> String {
        let Divergence { nth, before, now } = divergence;
        let now = match now {
            Some(now) => format!("the second time it has {now}"),
            None => "the second run ended before it".to_owned(),
        };
        format!(
            "the test is not deterministic: it ran twice in the same order, and choice number {nth} differed. The \
             first time it had {before}; {now}. The cause is something that the order does not decide: time, random \
             numbers, the order of a `HashMap`, another thread, or state that the run before has left"
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FailureKind::Panic => "panicked: ",
            FailureKind::Error | FailureKind::NotDeterministic => "",
            FailureKind::Leak => "leaked: ",
            FailureKind::Recording => "recording: ",
        };
        writeln!(f, "{what}{}", self.message.trim_end())?;
        writeln!(f, "found in order {} of the search", self.found_at)?;
        writeln!(
            f,
            "replay the shortest order found: GREENLET_ORDER={}",
            self.order
        )?;
        let deviations = self.path.iter().enumerate().filter(|(_, step)| step.picked != 0);
        for (index, step) in deviations {
            let nth = index + 1;
            writeln!(f, "  choice {nth}: {} of {}", step.picked, step.point)?;
        }
        if !self.recording.events().is_empty() {
            write!(f, "the recording of that run:\n{}", self.recording)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The result of a search: see [`Explore::run`](super::Explore::run).
///
/// It prints how much was covered, and the failure.
#[derive(Clone, Debug)]
#[must_use = "a report may have a failure"]
pub struct Report {
    pub(super) orders: u64,
    pub(super) cut: u64,
    pub(super) longest: usize,
    /// Set if the search is exhaustive: the part of all orders that it has covered.
    pub(super) covered: Option<f64>,
    pub(super) seed: Option<u64>,
    pub(super) time: Duration,
    pub(super) failure: Option<Failure>,
}

impl Report {
    /// Returns how many orders were run, without those of the shrinking.
    pub fn orders(&self) -> u64 {
        self.orders
    }

    /// Returns how many of them were cut off at [`max_choices`](super::Explore::max_choices).
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Returns the number of choices of the longest run.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Returns `true` if every order was run to its end, within the bounds on preemptions and faults.
    pub fn is_complete(&self) -> bool {
        self.failure.is_none() && self.cut == 0 && self.covered.is_some_and(|covered| covered >= 1.0)
    }

    /// Returns the seed of random orders.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Returns the time that the search took.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Returns the failure, if one was found.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64().max(1e-9);
        write!(f, "{} orders", self.orders)?;
        match self.covered {
            Some(covered) if covered >= 1.0 => f.write_str(", all of them")?,
            Some(covered) if covered < 1e-4 => f.write_str(", less than 0.01% of all")?,
            Some(covered) => write!(f, ", about {:.2}% of all", covered * 100.0)?,
            None => {}
        }
        if self.cut > 0 {
            write!(f, ", {} of them cut off at the bound of their choices", self.cut)?;
        }
        if let Some(seed) = self.seed {
            write!(f, ", seed {seed}")?;
        }
        write!(
            f,
            ", at most {} choices in one, {:.0} orders a second",
            self.longest,
            self.orders as f64 / seconds
        )?;
        match &self.failure {
            Some(failure) => write!(f, "\n{failure}"),
            None => Ok(()),
        }
    }
}
