//! Tasks: spawn, join, kill.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result};
use greenlet::{Greenlet, GreenletExit, getcurrent};

use crate::kit::Kit;
use crate::wait::{Record, Wait, WaitList, WaitsFor};

/// A function that runs in a greenlet of its own: gevent's `Greenlet`.
///
/// Dropping this does not end the task. All clones are the same task.
///
/// # Examples
///
/// ```
/// use greenlet_toolkit::{Kit, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let answer = kit.spawn("thinks", || Ok(42));
/// let asks = answer.clone();
/// kit.spawn("asks", move || {
///     assert_eq!(asks.get(None)?, Some(42));
///     Ok(())
/// });
/// kit.run(|| scheduler.run())?;
/// assert!(answer.is_successful());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Task<T> {
    kit: Kit,
    greenlet: Greenlet,
    end: Rc<End<T>>,
}

struct End<T> {
    outcome: RefCell<Option<Result<T, Failed>>>,
    /// The task has ended, or was killed before its start.
    is_over: Cell<bool>,
    joiners: WaitList<()>,
}

/// The error of a task, or of an [`AsyncResult`](crate::AsyncResult). Each reader gets the same one.
#[derive(Clone)]
pub struct Failed(pub(crate) Arc<Error>);

impl Failed {
    /// Returns the error.
    pub fn error(&self) -> &Error {
        &self.0
    }

    /// Returns `true` if it is the exit of a task that was killed.
    pub fn is_exit(&self) -> bool {
        GreenletExit::in_error(&self.0).is_some()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {}

impl Kit {
    /// Creates a task, which the scheduler starts later.
    #[track_caller]
    pub fn spawn<T: 'static>(&self, name: &str, run: impl FnOnce() -> Result<T> + 'static) -> Task<T> {
        let end = Rc::new(End {
            outcome: RefCell::new(None),
            is_over: Cell::new(false),
            joiners: WaitList::default(),
        });
        let ended = Ended {
            kit: self.clone(),
            end: Rc::clone(&end),
        };
        let builder = Greenlet::builder().name(name).parent(&self.scheduler().hub());
        let greenlet = builder.build(move |(): ()| {
            let killed = Record::of(&getcurrent()).and_then(|record| record.kill.take());
            let outcome = match killed {
                Some(error) => Err(error),
                None => run(),
            };
            ended
                .end
                .outcome
                .replace(Some(outcome.map_err(|error| Failed(Arc::new(error)))));
            drop(ended);
            Ok(())
        });
        greenlet.attach(Rc::new(Record::default()));
        self.add(&greenlet);
        self.scheduler().make_ready(&greenlet);
        Task {
            kit: self.clone(),
            greenlet,
            end,
        }
    }

    /// Waits until all of the tasks have ended, but not longer than `timeout`: gevent's `joinall`. Returns
    /// how many have ended.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn joinall<T>(&self, tasks: &[Task<T>], timeout: Option<Duration>) -> Result<usize> {
        let deadline = timeout.map(|timeout| self.now() + timeout);
        for task in tasks {
            task.join_until(deadline, Location::caller())?;
        }
        Ok(tasks.iter().filter(|task| task.is_dead()).count())
    }

    /// Kills all of the tasks, and waits until they have ended: gevent's `killall`.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn killall<T>(&self, tasks: &[Task<T>]) -> Result<()> {
        tasks.iter().for_each(Task::kill_later);
        tasks
            .iter()
            .try_for_each(|task| task.join_until(None, Location::caller()).map(drop))
    }
}

/// Wakes the joiners at the end of a task, however it ends.
struct Ended<T> {
    kit: Kit,
    end: Rc<End<T>>,
}

impl<T> Drop for Ended<T> {
    fn drop(&mut self) {
        self.end.is_over.set(true);
        self.end.joiners.grant_all(&self.kit);
    }
}

impl<T> Task<T> {
    /// Returns the greenlet of the task.
    pub fn greenlet(&self) -> &Greenlet {
        &self.greenlet
    }

    /// Returns `true` if the task has ended: gevent's `dead` and `ready()`.
    pub fn is_dead(&self) -> bool {
        self.end.is_over.get() || self.greenlet.is_dead()
    }

    /// Returns `true` if the task has returned a value, or was killed: gevent's `successful()`.
    pub fn is_successful(&self) -> bool {
        match &*self.end.outcome.borrow() {
            Some(Ok(_)) => true,
            Some(Err(failed)) => failed.is_exit(),
            None => false,
        }
    }

    /// Returns the error of the task, if it has failed: gevent's `exception`.
    pub fn error(&self) -> Option<Failed> {
        match &*self.end.outcome.borrow() {
            Some(Err(failed)) if !failed.is_exit() => Some(failed.clone()),
            _ => None,
        }
    }

    /// Waits until the task has ended, but not longer than `timeout`. Returns `true` if it has.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout of the running task, not of this one.
    #[track_caller]
    pub fn join(&self, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        self.join_until(deadline, Location::caller())
    }

    fn join_until(&self, deadline: Option<Duration>, at: &'static Location<'static>) -> Result<bool> {
        if self.is_dead() {
            return Ok(true);
        }
        let waits_for = WaitsFor {
            what: "the end of a task".into(),
            holders: vec![self.greenlet.downgrade()],
            at,
        };
        match self.end.joiners.wait(&self.kit, deadline, waits_for)? {
            Wait::Granted(()) => Ok(true),
            Wait::TooLate => Ok(false),
            Wait::Interrupted(error, _) => Err(error),
        }
    }

    /// Waits for the value of the task, but not longer than `timeout`. Returns `None` if that was too short.
    ///
    /// # Errors
    ///
    /// Returns the task's error, and the exit of a task that was killed. Returns the error of a kill or a
    /// timeout of the running task.
    #[track_caller]
    pub fn get(&self, timeout: Option<Duration>) -> Result<Option<T>>
    where
        T: Clone,
    {
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        if !self.join_until(deadline, Location::caller())? {
            return Ok(None);
        }
        match &*self.end.outcome.borrow() {
            Some(Ok(value)) => Ok(Some(value.clone())),
            Some(Err(failed)) if failed.is_exit() => Err(GreenletExit::new().into()),
            Some(Err(failed)) => Err(failed.clone().into()),
            None => Err(GreenletExit::new().into()), // ended from outside
        }
    }

    /// Kills the task, and waits until it has ended: gevent's `kill()`. The wait of the task returns a
    /// [`GreenletExit`]. A task that has not started never does.
    ///
    /// # Errors
    ///
    /// Returns the exit at once if a task kills itself. Returns the error of a kill or a timeout of the
    /// running task.
    #[track_caller]
    pub fn kill(&self) -> Result<()> {
        self.kill_with(GreenletExit::new())?;
        self.join_until(None, Location::caller()).map(drop)
    }

    /// Kills the task with an error of your own, and does not wait.
    ///
    /// # Errors
    ///
    /// Returns the error if a task kills itself.
    pub fn kill_with(&self, error: impl Into<Error>) -> Result<()> {
        if self.greenlet.is_current() {
            return Err(error.into());
        }
        self.interrupt(error.into());
        Ok(())
    }

    /// Kills the task, and does not wait: gevent's `kill(block=False)`. A task that kills itself ends at its
    /// next wait.
    pub fn kill_later(&self) {
        self.interrupt(GreenletExit::new().into());
    }

    fn interrupt(&self, error: Error) {
        let Some(record) = Record::of(&self.greenlet).filter(|_| !self.is_dead()) else {
            return;
        };
        let is_first = record.kill.borrow().is_none();
        if is_first {
            record.kill.replace(Some(error));
        }
        self.kit.scheduler().make_ready(&self.greenlet);
    }
}

impl<T> Clone for Task<T> {
    fn clone(&self) -> Task<T> {
        Task {
            kit: self.kit.clone(),
            greenlet: self.greenlet.clone(),
            end: Rc::clone(&self.end),
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Task").field(&self.greenlet).finish()
    }
}
