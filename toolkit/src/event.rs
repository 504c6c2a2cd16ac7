//! Events, and values that come later.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result};

use crate::kit::Kit;
use crate::task::Failed;
use crate::wait::{Wait, WaitList};

/// A flag that tasks wait for: gevent's `Event`.
///
/// All clones are the same event.
///
/// # Examples
///
/// ```
/// use greenlet_toolkit::{Event, Kit, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let bread = Event::new(&kit);
/// let waits = bread.clone();
/// let guest = kit.spawn("guest", move || waits.wait(None));
/// kit.spawn("baker", move || Ok(bread.set()));
/// kit.run(|| scheduler.run())?;
/// assert!(guest.is_successful());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone)]
pub struct Event {
    kit: Kit,
    shared: Rc<(Cell<bool>, WaitList<()>)>,
}

impl Event {
    /// Creates an event that is not set.
    pub fn new(kit: &Kit) -> Event {
        Event {
            kit: kit.clone(),
            shared: Rc::default(),
        }
    }

    /// Returns `true` if the event is set.
    pub fn is_set(&self) -> bool {
        self.shared.0.get()
    }

    /// Sets the event, and wakes all waiters. They return `true` even if it is cleared before they run.
    pub fn set(&self) {
        self.shared.0.set(true);
        self.shared.1.grant_all(&self.kit);
    }

    /// Clears the event.
    pub fn clear(&self) {
        self.shared.0.set(false);
    }

    /// Waits until the event is set, but not longer than `timeout`. Returns `true` if it was.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        if self.is_set() {
            return Ok(true);
        }
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        let waits_for = self.kit.waits_for("an event", Location::caller());
        match self.shared.1.wait(&self.kit, deadline, waits_for)? {
            Wait::Granted(()) => Ok(true),
            Wait::TooLate => Ok(self.is_set()),
            Wait::Interrupted(error, _) => Err(error),
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("is_set", &self.is_set()).finish()
    }
}

/// A value or an error that comes once, for all who wait for it: gevent's `AsyncResult`.
///
/// All clones are the same one.
///
/// # Examples
///
/// ```
/// use greenlet_toolkit::{AsyncResult, Kit, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let answer = AsyncResult::new(&kit);
/// let waits = answer.clone();
/// let asks = kit.spawn("asks", move || waits.get(None));
/// kit.spawn("answers", move || Ok(answer.set(42)));
/// kit.run(|| scheduler.run())?;
/// assert!(asks.is_successful());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct AsyncResult<T> {
    event: Event,
    outcome: Rc<RefCell<Option<Result<T, Failed>>>>,
}

impl<T> AsyncResult<T> {
    /// Creates one without a value.
    pub fn new(kit: &Kit) -> AsyncResult<T> {
        AsyncResult {
            event: Event::new(kit),
            outcome: Rc::default(),
        }
    }

    /// Returns `true` if there is a value or an error: gevent's `ready()`.
    pub fn is_ready(&self) -> bool {
        self.event.is_set()
    }

    /// Returns `true` if there is a value: gevent's `successful()`.
    pub fn is_successful(&self) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(_)))
    }

    /// Sets the value, and wakes all waiters. A later value replaces it.
    pub fn set(&self, value: T) {
        self.set_outcome(Ok(value));
    }

    /// Sets an error, which each waiter gets as a [`Failed`], and wakes all waiters.
    pub fn set_error(&self, error: impl Into<Error>) {
        self.set_outcome(Err(Failed(Arc::new(error.into()))));
    }

    fn set_outcome(&self, outcome: Result<T, Failed>) {
        let replaced = self.outcome.replace(Some(outcome));
        self.event.set();
        drop(replaced);
    }

    /// Waits until there is a value or an error, but not longer than `timeout`. Returns `true` if there is.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        self.event.wait(timeout)
    }
}

impl<T: Clone> AsyncResult<T> {
    /// Waits for the value, but not longer than `timeout`. Returns `None` if that was too short.
    ///
    /// # Errors
    ///
    /// Returns the error that was set, and that of a kill or a timeout.
    #[track_caller]
    pub fn get(&self, timeout: Option<Duration>) -> Result<Option<T>> {
        if !self.event.wait(timeout)? {
            return Ok(None);
        }
        match &*self.outcome.borrow() {
            Some(Ok(value)) => Ok(Some(value.clone())),
            Some(Err(failed)) => Err(failed.clone().into()),
            None => Ok(None),
        }
    }
}

impl<T> Clone for AsyncResult<T> {
    fn clone(&self) -> AsyncResult<T> {
        AsyncResult {
            event: self.event.clone(),
            outcome: Rc::clone(&self.outcome),
        }
    }
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult")
            .field("is_ready", &self.is_ready())
            .finish()
    }
}
