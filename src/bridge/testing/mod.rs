//! Helpers for tests of bridged code. An executor runs it in every order. Others step it by hand, and end
//! it at each of its awaits.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use anyhow::Result;

use super::nested_polls::with_stops;
use super::spawn::{Spawn, SpawnResult, greenlet_spawn};
use crate::testing::explore::Explore;
use crate::testing::leaks::assert_no_leaks;

mod executor;
mod future;
mod task;

pub use executor::Executor;
pub use future::{Sleep, or_fault};
pub use task::Task;

/// A spawned function that a test steps from await to await.
///
/// Each [`step`](Stepper::step) polls the awaited future once. If that is ready, the function runs
/// to its next await, and stops there before that future is polled. So the test chooses the order
/// in which several functions run.
///
/// # Examples
///
/// ```
/// use greenlet::await_;
/// use greenlet::bridge::testing::{Step, Stepper};
///
/// let mut stepper = Stepper::new(|| await_(async { 20 }) + await_(async { 22 }));
/// assert!(matches!(stepper.step(), Step::Awaits { nth: 1, .. }));
/// assert!(matches!(stepper.step(), Step::Awaits { nth: 2, .. }));
/// assert!(matches!(stepper.step(), Step::Returned(42)));
/// ```
pub struct Stepper<T: 'static> {
    future: Stepped<T>,
    wakes: Arc<Wakes>,
    waker: Waker,
}

enum Stepped<T: 'static> {
    Running(Spawn<T>),
    Cancelled(SpawnResult<T>),
    Ended,
}

/// The result of a [`Stepper::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The function was resumed, and now awaits a future that has not been polled yet.
    Awaits {
        /// The number of that await, from 1.
        nth: u64,
        /// The place of the await.
        at: &'static Location<'static>,
    },
    /// The awaited future was polled, and is not ready.
    Pending,
    /// The function has returned.
    Returned(T),
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl<T: 'static> Stepper<T> {
    /// Spawns a function for stepping. Nothing runs yet.
    #[track_caller]
    pub fn new(function: impl FnOnce() -> T + 'static) -> Stepper<T> {
        Stepper::of(greenlet_spawn(function))
    }

    /// Wraps a spawn for stepping, such as one with options.
    pub fn of(spawn: Spawn<T>) -> Stepper<T> {
        spawn.stop_at_awaits(true);
        let wakes = Arc::new(Wakes::default());
        Stepper {
            future: Stepped::Running(spawn),
            waker: Waker::from(Arc::clone(&wakes)),
            wakes,
        }
    }

    /// Returns how often the waker of the polls was called.
    pub fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::SeqCst)
    }

    /// Runs one step.
    ///
    /// # Panics
    ///
    /// Panics with the panic of the function, and if the function has ended.
    pub fn step(&mut self) -> Step<T> {
        let Stepped::Running(spawn) = &mut self.future else {
            panic!("cannot step: the function has ended or was cancelled");
        };
        let before = spawn.awaits();
        match Pin::new(&mut *spawn).poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(output) => {
                self.future = Stepped::Ended;
                Step::Returned(output)
            }
            Poll::Pending if spawn.awaits() == before => Step::Pending,
            Poll::Pending => Step::Awaits {
                nth: spawn.awaits(),
                at: spawn.awaits_at().unwrap_or_else(|| spawn.greenlet().created_at()),
            },
        }
    }

    /// Cancels the function ([`Spawn::cancel`]), and polls its clean-up until it has ended.
    ///
    /// # Errors
    ///
    /// Returns the error of the future of `cancel`: the exit, if the function returns no value.
    ///
    /// # Panics
    ///
    /// Panics with the panic of the function, and if the function has ended. Panics if the clean-up
    /// awaits a future that is not ready and has not called the waker.
    pub fn cancel(&mut self) -> Result<T> {
        let spawn = match std::mem::replace(&mut self.future, Stepped::Ended) {
            Stepped::Running(spawn) => spawn,
            _ => panic!("cannot cancel: the function has ended or was cancelled"),
        };
        spawn.stop_at_awaits(false);
        self.future = Stepped::Cancelled(spawn.cancel());
        loop {
            let wakes = self.wakes();
            let Stepped::Cancelled(future) = &mut self.future else {
                unreachable!("set above");
            };
            match Pin::new(future).poll(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(result) => {
                    self.future = Stepped::Ended;
                    return result;
                }
                Poll::Pending => assert!(
                    self.wakes() > wakes,
                    "the clean-up awaits a future that is not ready and has not called its waker; make it ready before `cancel`"
                ),
            }
        }
    }
}

impl<T: 'static> fmt::Debug for Stepper<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.future {
            Stepped::Running(spawn) => f.debug_tuple("Stepper").field(spawn).finish(),
            Stepped::Cancelled(spawn) => f.debug_tuple("Stepper").field(spawn).finish(),
            Stepped::Ended => f.write_str("Stepper(ended)"),
        }
    }
}

/// Creates the witnesses whose destructors [`end_at_each_await`] counts.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    made: Rc<Cell<usize>>,
    dropped: Rc<Cell<usize>>,
}

impl Witnesses {
    /// Creates a witness for the code under test to own. It must be dropped before the function has
    /// ended.
    pub fn make(&self) -> Witness {
        self.made.set(self.made.get() + 1);
        Witness { all: self.clone() }
    }

    /// Returns `true` if every witness has been dropped.
    pub fn all_dropped(&self) -> bool {
        self.dropped.get() == self.made.get()
    }
}

/// A value whose drop is counted: see [`Witnesses::make`].
#[derive(Debug)]
pub struct Witness {
    all: Witnesses,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.all.dropped.set(self.all.dropped.get() + 1);
    }
}

/// Runs a function repeatedly, and ends it at each of its awaits in turn: once by dropping its
/// future, and once by cancelling it. Returns the number of its awaits.
///
/// Each run asserts that no greenlet and no stack is left, and that every [`Witness`] was dropped,
/// whether the code held it in a local variable, in a future or in a capture. `make` creates the
/// function for each run.
///
/// There is no executor: each awaited future must be ready when it is polled, or call its waker.
///
/// # Panics
///
/// Panics if anything is left, and names the await. Panics with any panic of the function.
///
/// # Examples
///
/// ```
/// use greenlet::bridge::testing::end_at_each_await;
/// use greenlet::try_await_;
///
/// let awaits = end_at_each_await(|witnesses| {
///     let witnesses = witnesses.clone();
///     move || -> anyhow::Result<()> {
///         let _transaction = witnesses.make();
///         try_await_(async {})?; // the first statement
///         try_await_(async {}) // the second
///     }
/// });
/// assert_eq!(awaits, 2);
/// ```
#[track_caller]
pub fn end_at_each_await<T, F>(mut make: impl FnMut(&Witnesses) -> F) -> u64
where
    T: 'static,
    F: FnOnce() -> T + 'static,
{
    let awaits = Cell::new(0);
    let _ = Explore::new().max_orders(u64::MAX).max_choices(usize::MAX).check(|choices| {
        let witnesses = Witnesses::default();
        let function = make(&witnesses);
        let mut reached = 0;
        let mut end = "its return";
        assert_no_leaks(|| {
            let mut stepper = Stepper::new(function);
            loop {
                match choices.fault(2) {
                    1 => {
                        end = "Drop";
                        return drop(stepper);
                    }
                    2 => {
                        end = "Cancel";
                        return drop(stepper.cancel());
                    }
                    _ => {}
                }
                let wakes = stepper.wakes();
                // Those of nested spawns count, too.
                let (step, stops) = with_stops(|| stepper.step());
                reached += stops;
                match step {
                    Step::Awaits { .. } => {}
                    Step::Pending => assert!(
                        stepper.wakes() > wakes,
                        "await number {reached} is not ready and has not called its waker; without an executor it never will"
                    ),
                    Step::Returned(_) => return awaits.set(reached),
                }
            }
        });
        assert_eq!(
            witnesses.dropped.get(),
            witnesses.made.get(),
            "the numbers of dropped and of created witnesses differ: the function was ended at await number {reached} by {end}"
        );
        Ok(())
    });
    awaits.get()
}
