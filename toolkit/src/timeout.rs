//! Timeouts: an error at the wait that takes too long.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use greenlet::getcurrent;

use crate::kit::Kit;
use crate::wait::Record;

/// A limit for the time of what a task does: gevent's `Timeout`.
///
/// When the time is over, the wait in which the task is, or its next one, returns a [`TimedOut`] as its
/// error. Dropping the timeout stops it. Timeouts nest.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenlet_toolkit::{Event, Kit, Timeout, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let (inside, never) = (kit.clone(), Event::new(&kit));
/// kit.spawn("waits", move || {
///     let timeout = Timeout::start(&inside, Duration::from_secs(5))?;
///     let error = never.wait(None).unwrap_err();
///     assert!(timeout.is_cause_of(&error));
///     Ok(())
/// });
/// kit.run(|| scheduler.run())?;
/// assert_eq!(kit.now().as_secs(), 5);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[must_use = "a timeout stops when it is dropped"]
pub struct Timeout {
    record: Rc<Record>,
    number: u64,
}

impl Timeout {
    /// Starts a timeout for the running task.
    ///
    /// # Errors
    ///
    /// Returns an error outside of a task.
    pub fn start(kit: &Kit, time: Duration) -> Result<Timeout> {
        let record = Record::of(&getcurrent()).ok_or_else(|| anyhow!("only a task has timeouts"))?;
        let number = kit.next_number();
        record.timeouts.borrow_mut().push((number, kit.now() + time));
        Ok(Timeout { record, number })
    }

    /// Runs a function for at most a time. Returns `None` if that was too short: gevent's `with_timeout`.
    ///
    /// # Errors
    ///
    /// Returns the error of the function, unless it is that of this timeout.
    pub fn with<R>(kit: &Kit, time: Duration, run: impl FnOnce() -> Result<R>) -> Result<Option<R>> {
        let timeout = Timeout::start(kit, time)?;
        match run() {
            Err(error) if timeout.is_cause_of(&error) => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    /// Returns `true` if an error is that of this timeout, and not of another one.
    pub fn is_cause_of(&self, error: &Error) -> bool {
        let timed_out = error.downcast_ref::<TimedOut>();
        timed_out.is_some_and(|timed_out| timed_out.number == self.number)
    }

    /// Returns `true` if the timeout has neither expired nor been stopped: gevent's `pending`.
    pub fn is_pending(&self) -> bool {
        self.record
            .timeouts
            .borrow()
            .iter()
            .any(|(number, _)| *number == self.number)
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        self.record
            .timeouts
            .borrow_mut()
            .retain(|(number, _)| *number != self.number);
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout")
            .field("is_pending", &self.is_pending())
            .finish()
    }
}

/// The error of a wait that a [`Timeout`] has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut {
    pub(crate) number: u64,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for TimedOut {}
