//! Runs orders one after the other, until one fails or none is left, and explains the failure.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet_core::{Caught, catch, greenlets, stacks_in_use};

use super::choices::{Choices, Run, Stop};
use super::quiet;
use super::random::Random;
use super::report::{Failure, FailureKind, Order, Report};
use super::shrink;
use super::step::{Bounds, Step};
use super::strategy::{Pct, Strategy, advance, covered};
use crate::testing::recorder::{Recorder, Recording};

/// How many orders the shrinking of a failure may run.
const SHRINK_RUNS: usize = 1000;

/// What a search runs.
#[derive(Clone, Debug)]
pub(super) enum How {
    Exhaustive,
    Random { seed: u64 },
    Pct { seed: u64, depth: u32 },
    Replay(Order),
}

pub(super) type CheckRecording<'a> = &'a mut dyn FnMut(&Recording) -> Result<()>;

/// What a run came to.
enum Outcome {
    Passed,
    Cut,
    Failed(FailureKind, String),
}

pub(super) struct Search<'a, T> {
    choices: Choices,
    test: T,
    check: Option<CheckRecording<'a>>,
    /// The greenlets that existed before the search.
    before: HashSet<u64>,
    stacks_before: usize,
}

impl<'a, T: FnMut(&Choices) -> Result<()>> Search<'a, T> {
    pub(super) fn new(test: T, check: Option<CheckRecording<'a>>, bounds: Bounds) -> Search<'a, T> {
        Search {
            choices: Choices::new(Run::new(Strategy::First, bounds)),
            test,
            check,
            before: greenlets().iter().map(|greenlet| greenlet.id()).collect(),
            stacks_before: stacks_in_use(),
        }
    }

    /// Runs orders until one fails or none is left.
    pub(super) fn all(&mut self, how: &How, max_orders: u64) -> Report {
        let start = Instant::now();
        let mut progress = start;
        let is_exhaustive = matches!(how, How::Exhaustive);
        let mut report = Report {
            orders: 0,
            cut: 0,
            longest: 0,
            covered: is_exhaustive.then_some(0.0),
            seed: match how {
                How::Random { seed } | How::Pct { seed, .. } => Some(*seed),
                _ => None,
            },
            time: Duration::ZERO,
            failure: None,
        };
        while report.orders < max_orders {
            self.choices.with_run(|run| {
                match how {
                    // The path says what to repeat.
                    How::Exhaustive => return,
                    How::Replay(order) => run.strategy = Strategy::Given(order.choices().to_vec()),
                    How::Random { seed } => run.strategy = Strategy::Random(of_order(*seed, report.orders)),
                    How::Pct { seed, depth } => {
                        let random = of_order(*seed, report.orders);
                        run.strategy = Strategy::Pct(Pct::new(random, *depth, report.longest));
                    }
                }
                run.path.clear();
            });
            let (outcome, _) = self.one(self.check.is_some());
            report.orders += 1;
            report.longest = report.longest.max(self.choices.with_run(|run| run.path.len()));
            match outcome {
                Outcome::Passed => {}
                Outcome::Cut => report.cut += 1,
                Outcome::Failed(kind, message) => {
                    report.failure = Some(self.explain(kind, message, report.orders));
                    break;
                }
            }
            if let How::Replay(order) = how {
                report.failure = self.misfit(order);
                break;
            }
            if is_exhaustive {
                let (is_over, part) = self.choices.with_run(|run| {
                    let is_over = !advance(&mut run.path, &run.bounds);
                    (is_over, covered(&run.path))
                });
                report.covered = Some(if is_over { 1.0 } else { part });
                if is_over {
                    break;
                }
            }
            // Reading the clock each time would slow short tests down.
            if (report.orders < 64 || report.orders % 64 == 0) && progress.elapsed() > Duration::from_secs(1)
            {
                progress = Instant::now();
                report.time = start.elapsed();
                eprintln!("exploring: {report}");
            }
        }
        report.time = start.elapsed();
        report
    }

    /// Runs the test once, in the order that the run's path and strategy give.
    fn one(&mut self, records: bool) -> (Outcome, Option<Recording>) {
        self.choices.with_run(Run::rewind);
        let _ = quiet::take_last_panic();
        let recorder = records.then(Recorder::start);
        // CAUTION: runs arbitrary user code.
        let result = catch(|| (self.test)(&self.choices));
        let recording = recorder.map(Recorder::finish);
        let stop = self.choices.with_run(|run| {
            run.finish();
            run.stop
        });
        let left = self.end_what_is_left();
        let outcome = match (stop, result) {
            (Some(Stop::Bound), _) => Outcome::Cut,
            (Some(Stop::Diverged(divergence)), _) => {
                Outcome::Failed(FailureKind::NotDeterministic, Failure::describe(&divergence))
            }
            (None, Ok(Ok(()))) => match (left, &recording, &mut self.check) {
                (Some(left), _, _) => Outcome::Failed(FailureKind::Leak, left),
                (None, Some(recording), Some(check)) => match check(recording) {
                    Ok(()) => Outcome::Passed,
                    Err(error) => Outcome::Failed(FailureKind::Recording, format!("{error:#}")),
                },
                _ => Outcome::Passed,
            },
            (None, Ok(Err(error))) | (None, Err(Caught::Raised(error))) => {
                Outcome::Failed(FailureKind::Error, format!("{error:#}"))
            }
            (None, Err(Caught::Panic(_))) => {
                let text =
                    quiet::take_last_panic().unwrap_or_else(|| "with a payload that is no text".to_owned());
                Outcome::Failed(FailureKind::Panic, text)
            }
        };
        (outcome, recording)
    }

    /// Ends the greenlets that a run has left, and returns their list if there are any. Otherwise the next
    /// run would find them.
    fn end_what_is_left(&self) -> Option<String> {
        if stacks_in_use() <= self.stacks_before {
            return None;
        }
        let mut list = String::new();
        for greenlet in greenlets() {
            if greenlet.is_active() && !greenlet.is_main() && !self.before.contains(&greenlet.id()) {
                let created_at = greenlet.created_at();
                list += &format!("\n  {greenlet:?}, created at {created_at}");
                // CAUTION: runs arbitrary user code.
                let _ = catch(|| greenlet.end());
            }
        }
        Some(format!(
            "greenlets have not ended, and none will switch to them:{list}"
        ))
    }

    /// Returns a failure if the last run could not take the choices of an order: it is that of another test.
    fn misfit(&mut self, order: &Order) -> Option<Failure> {
        let taken = self.choices.with_run(|run| Order::of(&run.path));
        let message = format!(
            "the order {order} is not one of this test: the choices that it led to are {taken}. It may be that of \
             another test, or the test has changed"
        );
        (taken != *order).then(|| self.failure(FailureKind::NotDeterministic, message, order.clone(), 1))
    }

    /// Finds the shortest order that fails in the same way, and records it.
    fn explain(&mut self, kind: FailureKind, message: String, found_at: u64) -> Failure {
        let found = self.choices.with_run(|run| std::mem::take(&mut run.path));
        let mut order = Order::of(&found);
        if kind != FailureKind::NotDeterministic {
            // The same order again: it must lead to the same choices, and to a failure.
            let (again, _) = self.repeat(found.clone());
            match again {
                Outcome::Failed(same, _) if same == kind => {
                    order = shrink::shrink(order, SHRINK_RUNS, |candidate| self.fails_with(kind, candidate));
                }
                Outcome::Failed(FailureKind::NotDeterministic, differs) => {
                    return self.failure(FailureKind::NotDeterministic, differs, order, found_at);
                }
                _ => {
                    let differs = format!(
                        "the test is not deterministic: it failed once, and did not when it ran again in the same order, \
                         with the same choices. The failure was: {message}"
                    );
                    return self.failure(FailureKind::NotDeterministic, differs, order, found_at);
                }
            }
        }
        self.failure(kind, message, order, found_at)
    }

    fn failure(&mut self, kind: FailureKind, message: String, order: Order, found_at: u64) -> Failure {
        self.choices.with_run(|run| {
            run.path.clear();
            run.strategy = Strategy::Given(order.choices().to_vec());
        });
        let (outcome, recording) = self.one(true);
        // The shortest order may fail with another text.
        let message = match outcome {
            Outcome::Failed(same, shortest) if same == kind && kind != FailureKind::NotDeterministic => {
                shortest
            }
            _ => message,
        };
        Failure {
            kind,
            message,
            order,
            path: self.choices.with_run(|run| run.path.clone()),
            found_at,
            recording: recording.expect("it was recorded"),
        }
    }

    /// Runs a path again, and compares each choice.
    fn repeat(&mut self, path: Vec<Step>) -> (Outcome, Option<Recording>) {
        self.choices.with_run(|run| {
            run.path = path;
            run.strategy = Strategy::First;
        });
        self.one(self.check.is_some())
    }

    fn fails_with(&mut self, kind: FailureKind, candidate: Vec<u32>) -> Option<Order> {
        self.choices.with_run(|run| {
            run.path.clear();
            run.strategy = Strategy::Given(candidate);
        });
        match self.one(self.check.is_some()).0 {
            Outcome::Failed(same, _) if same == kind => {
                Some(self.choices.with_run(|run| Order::of(&run.path)))
            }
            _ => None,
        }
    }
}

/// Returns the random numbers of one order. They do not depend on the orders before it.
fn of_order(seed: u64, order: u64) -> Random {
    let mut random = Random::new(seed ^ order.wrapping_mul(0xd134_2543_de82_ef95));
    Random::new(random.next())
}
