//! The kit: a scheduler, and the tasks that it runs.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use greenlet::{Greenlet, Scheduler, WeakGreenlet};

use crate::wait::{Record, Wait, WaitList, WaitsFor};

/// A scheduler with the toolkit: creates tasks, and runs them.
///
/// All clones are the same kit.
///
/// # Examples
///
/// See the [crate](crate).
#[derive(Clone)]
pub struct Kit {
    shared: Rc<Shared>,
}

struct Shared {
    scheduler: Box<dyn Scheduler>,
    tasks: RefCell<Vec<WeakGreenlet>>,
    next_number: Cell<u64>,
}

impl Kit {
    /// Creates a kit for a scheduler. The kit keeps a clone.
    pub fn new(scheduler: &(impl Scheduler + Clone + 'static)) -> Kit {
        Kit {
            shared: Rc::new(Shared {
                scheduler: Box::new(scheduler.clone()),
                tasks: RefCell::default(),
                next_number: Cell::new(1),
            }),
        }
    }

    /// Returns the scheduler.
    pub fn scheduler(&self) -> &dyn Scheduler {
        &*self.shared.scheduler
    }

    /// Returns the time since the scheduler's start.
    pub fn now(&self) -> Duration {
        self.scheduler().now()
    }

    /// Suspends the running task for a time. With a time of 0 the tasks that are ready run first.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let until = self.now() + time;
        let waits_for = self.waits_for("a time", Location::caller());
        match WaitList::<()>::default().wait(self, Some(until), waits_for)? {
            Wait::Interrupted(error, _) => Err(error),
            Wait::Granted(()) | Wait::TooLate => Ok(()),
        }
    }

    /// Runs a loop of the scheduler, and then ends the tasks that are left.
    ///
    /// # Errors
    ///
    /// Returns the error of the loop. Returns a report if tasks are left, and wait for ever.
    pub fn run<R>(&self, run_loop: impl FnOnce() -> Result<R>) -> Result<R> {
        let ended = EndTasks(self);
        let outcome = run_loop()?;
        let report = self.waiting();
        drop(ended);
        if !report.is_empty() {
            bail!("deadlock: no task is ready, and these wait for ever:{report}");
        }
        Ok(outcome)
    }

    /// Lists each task that waits: what it waits for, which task holds that, and the line. Empty if none waits.
    pub fn waiting(&self) -> String {
        let mut list = String::new();
        for greenlet in self.tasks() {
            let Some(waits_for) = Record::of(&greenlet).and_then(|record| record.waits_for.borrow().clone())
            else {
                continue;
            };
            write!(list, "\n  {} waits for {}", name(&greenlet), waits_for.what).expect("a String grows");
            let holders: Vec<String> = waits_for
                .holders
                .iter()
                .filter_map(WeakGreenlet::upgrade)
                .map(|holder| name(&holder))
                .collect();
            if !holders.is_empty() {
                write!(list, ", which {} holds", holders.join(" and ")).expect("a String grows");
            }
            write!(list, ", at {}", waits_for.at).expect("a String grows");
        }
        list
    }

    /// Returns the tasks that have not ended.
    fn tasks(&self) -> Vec<Greenlet> {
        let tasks = self.shared.tasks.borrow();
        let alive = tasks.iter().filter_map(WeakGreenlet::upgrade);
        alive.filter(|task| !task.is_dead()).collect()
    }

    pub(crate) fn add(&self, task: &Greenlet) {
        let mut tasks = self.shared.tasks.borrow_mut();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_dead());
        }
        tasks.push(task.downgrade());
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.shared.next_number.replace(self.shared.next_number.get() + 1)
    }

    pub(crate) fn waits_for(&self, what: &str, at: &'static Location<'static>) -> WaitsFor {
        WaitsFor {
            what: what.into(),
            holders: Vec::new(),
            at,
        }
    }
}

/// Returns the name of a task in a report.
fn name(greenlet: &Greenlet) -> String {
    match greenlet.name() {
        Some(name) => format!("'{name}'"),
        None => format!("greenlet {}", greenlet.id()),
    }
}

/// Ends the tasks that are left. Each may wait for another one, and hold a handle of it.
struct EndTasks<'a>(&'a Kit);

impl Drop for EndTasks<'_> {
    fn drop(&mut self) {
        self.0.tasks().iter().for_each(Greenlet::end);
    }
}

impl fmt::Debug for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kit")
            .field("tasks", &self.tasks().len())
            .finish_non_exhaustive()
    }
}
