//! Runs a test in every order of its greenlets, or in many random ones.
//!
//! The test gets a source of [`Choices`]. Its scheduler asks it which of the ready greenlets runs next,
//! and [`Explore`] runs the test again and again, each time with other answers. If it fails, the report has
//! the shortest order that fails, as one line that replays it.
//!
//! ```
//! use std::{cell::Cell, rc::Rc};
//! use greenlet::{Greenlet, getparent, testing::explore::Explore};
//!
//! // Two tasks add 1 to a counter. Each reads it, gives way, and writes it.
//! let report = Explore::new().run(|choices| {
//!     let counter = Rc::new(Cell::new(0));
//!     let mut ready: Vec<Greenlet> = Vec::new();
//!     for _ in 0..2 {
//!         let counter = counter.clone();
//!         ready.push(Greenlet::new(move |(): ()| {
//!             let read = counter.get();
//!             getparent().unwrap().switch::<()>(())?;
//!             counter.set(read + 1);
//!             Ok(())
//!         }));
//!     }
//!     while !ready.is_empty() {
//!         let next = ready.swap_remove(choices.pick(&ready));
//!         next.switch::<()>(())?;
//!         ready.extend(Some(next).filter(|task| !task.is_dead()));
//!     }
//!     anyhow::ensure!(counter.get() == 2, "the counter is {}", counter.get());
//!     Ok(())
//! });
//! let failure = report.failure().expect("the update can be lost");
//! assert_eq!(failure.message(), "the counter is 1");
//! println!("{failure}"); // replay the shortest order found: GREENLET_ORDER=...
//! ```
//!
//! A test is run as a stateless model checker runs it (Godefroid, "Model checking for programming
//! languages using VeriSoft", POPL 1997): from its start, each time. So it must be deterministic: apart
//! from the choices, each run must do the same. A run that does not repeat the choices of an earlier
//! one is reported, with the first choice that differs.
//!
//! `docs/testing.md` begins with a scheduler's bug. For code that awaits, `bridge::testing::Executor` asks the
//! choices.

#![forbid(unsafe_code)]

use anyhow::Result;

use super::recorder::Recording;

mod choices;
mod quiet;
mod random;
mod report;
mod search;
mod shrink;
mod step;
mod strategy;

pub use choices::Choices;
pub use report::{Failure, FailureKind, Order, Report};

use search::{CheckRecording, How, Search};
use step::Bounds;

/// A search through the orders of a test: see the [module](self).
///
/// # Examples
///
/// ```
/// use greenlet::testing::explore::Explore;
///
/// let test = |choices: &greenlet::testing::explore::Choices| {
///     choices.choose(3);
///     Ok(())
/// };
/// assert!(Explore::new().check(test).is_complete());
/// let _ = Explore::random(1000).check(test); // from a new seed, which the report prints
/// let _ = Explore::random(1000).seed(7).check(test);
/// let _ = Explore::pct(1000, 3).check(test); // bugs that need three ordered steps
/// let _ = Explore::new().replay("2").check(test); // one order
/// ```
#[derive(Clone, Debug)]
#[must_use = "a search runs nothing before `check` or `run`"]
pub struct Explore {
    how: How,
    max_orders: u64,
    bounds: Bounds,
}

impl Default for Explore {
    fn default() -> Explore {
        Explore::new()
    }
}

impl Explore {
    /// Creates an exhaustive search: all orders, depth first, the scheduler's own order first. It stops at
    /// 100,000 orders: see [`max_orders`](Explore::max_orders).
    pub fn new() -> Explore {
        Explore {
            how: How::Exhaustive,
            max_orders: 100_000,
            bounds: Bounds {
                preemptions: u32::MAX,
                faults: 1,
                choices: 10_000,
            },
        }
    }

    /// Creates a search of `orders` random orders, in which every alternative is as likely.
    pub fn random(orders: u64) -> Explore {
        Explore {
            how: How::Random { seed: new_seed() },
            max_orders: orders,
            ..Explore::new()
        }
    }

    /// Creates a search of `orders` random orders by probabilistic concurrency testing (Burckhardt et al.,
    /// "A randomized scheduler with probabilistic guarantees of finding bugs", ASPLOS 2010). It finds
    /// bugs that need `depth` steps in the right order with a known probability: in a program of `n` greenlets
    /// and `k` choices with at least `1 / (n * k^(depth - 1))`.
    pub fn pct(orders: u64, depth: u32) -> Explore {
        Explore {
            how: How::Pct {
                seed: new_seed(),
                depth: depth.max(1),
            },
            max_orders: orders,
            ..Explore::new()
        }
    }

    /// Runs one order only: the line that a failure has printed.
    ///
    /// The environment variable `GREENLET_ORDER` does this for every search of the process.
    ///
    /// # Panics
    ///
    /// Panics if the text is no order.
    #[track_caller]
    pub fn replay(mut self, order: &str) -> Explore {
        self.how = match order.parse() {
            Ok(order) => How::Replay(order),
            Err(error) => panic!("{error:#}"),
        };
        self
    }

    /// Sets the seed of random orders. Without it each search has a new one, which its report prints.
    pub fn seed(mut self, new: u64) -> Explore {
        if let How::Random { seed } | How::Pct { seed, .. } = &mut self.how {
            *seed = new;
        }
        self
    }

    /// Sets the largest number of preemptions in an order. Without it there is no bound.
    ///
    /// Most bugs need two or fewer, and the number of orders grows exponentially with the bound (Musuvathi
    /// and Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", PLDI 2007).
    /// A preemption is what [`Choices::pick`] says. PCT ignores the bound.
    pub fn preemptions(mut self, most: u32) -> Explore {
        self.bounds.preemptions = most;
        self
    }

    /// Sets the largest number of faults in an order: see [`Choices::fault`]. It is 1 at first.
    pub fn faults(mut self, most: u32) -> Explore {
        self.bounds.faults = most;
        self
    }

    /// Sets the number of orders at which the search stops.
    pub fn max_orders(mut self, most: u64) -> Explore {
        self.max_orders = most;
        self
    }

    /// Sets the number of choices at which an order is cut off. It is 10,000 at first. An order that is
    /// cut off is counted, and neither passes nor fails.
    pub fn max_choices(mut self, most: usize) -> Explore {
        self.bounds.choices = most;
        self
    }

    /// Searches, and panics at the first order that fails.
    ///
    /// An order fails if the test panics, returns an error, or leaves greenlets that have not ended. If
    /// an exhaustive search stops at a bound, a line on standard error says how much it has covered.
    ///
    /// # Panics
    ///
    /// Panics with the failure.
    #[track_caller]
    pub fn check(&self, test: impl FnMut(&Choices) -> Result<()>) -> Report {
        self.run(test).passed()
    }

    /// Searches, and also records each run and fails if `check` returns an error for the recording.
    ///
    /// # Panics
    ///
    /// Panics with the failure.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::testing::{explore::Explore, recorder::note};
    ///
    /// let _ = Explore::new().check_recorded(
    ///     |choices| Ok(note(format!("chose {}", choices.choose(2)))),
    ///     |recording| {
    ///         anyhow::ensure!(recording.events().len() == 1);
    ///         Ok(())
    ///     },
    /// );
    /// ```
    #[track_caller]
    pub fn check_recorded(
        &self,
        test: impl FnMut(&Choices) -> Result<()>,
        mut check: impl FnMut(&Recording) -> Result<()>,
    ) -> Report {
        self.search(test, Some(&mut check)).passed()
    }

    /// Searches until an order fails, and returns what was covered and found.
    ///
    /// The first search of a process installs a panic hook. It prints nothing for a thread that searches,
    /// and calls the previous hook for all others.
    pub fn run(&self, test: impl FnMut(&Choices) -> Result<()>) -> Report {
        self.search(test, None)
    }

    fn search(&self, test: impl FnMut(&Choices) -> Result<()>, check: Option<CheckRecording<'_>>) -> Report {
        let mut how = self.how.clone();
        if let Ok(order) = std::env::var("GREENLET_ORDER") {
            how = match order.parse() {
                Ok(order) => How::Replay(order),
                Err(error) => panic!("the environment variable GREENLET_ORDER: {error:#}"),
            };
        }
        let mut search = Search::new(test, check, self.bounds.clone());
        quiet::quietly(|| search.all(&how, self.max_orders))
    }
}

impl Report {
    #[track_caller]
    fn passed(self) -> Report {
        if self.failure.is_some() {
            panic!("{self}");
        }
        if self.covered.is_some() && !self.is_complete() {
            eprintln!("the search stopped at its bound: {self}");
        }
        self
    }
}

/// Returns a seed that differs between processes and calls. `RandomState` has its keys from the system.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
