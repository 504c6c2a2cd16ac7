//! Parts of a scheduler: timers, and tickets for other threads.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use greenlet::{Greenlet, Ticket};

/// The greenlets that wait for a time.
#[derive(Default)]
pub struct Timers {
    entries: RefCell<BTreeMap<(Duration, u64), Greenlet>>,
    next: Cell<u64>,
}

impl Timers {
    /// Adds a greenlet, until its time has come or the guard is dropped.
    #[must_use = "the guard removes the timer when it is dropped"]
    pub fn set(&self, deadline: Duration, greenlet: Greenlet) -> impl Drop + '_ {
        let key = (deadline, self.next.replace(self.next.get() + 1));
        self.entries.borrow_mut().insert(key, greenlet);
        Timer { of: self, key }
    }

    /// Returns the time of the first timer.
    pub fn next(&self) -> Option<Duration> {
        self.entries
            .borrow()
            .first_key_value()
            .map(|((time, _), _)| *time)
    }

    /// Takes out the greenlets whose time has come, the first one first.
    pub fn take_due(&self, now: Duration) -> impl Iterator<Item = Greenlet> {
        let mut entries = self.entries.borrow_mut();
        let later = entries.split_off(&(now, u64::MAX));
        std::mem::replace(&mut *entries, later).into_values()
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers")
            .field("next", &self.next())
            .finish_non_exhaustive()
    }
}

struct Timer<'a> {
    of: &'a Timers,
    key: (Duration, u64),
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let removed = self.of.entries.borrow_mut().remove(&self.key);
        drop(removed); // with nothing borrowed
    }
}

/// The tickets of a scheduler: see [`greenlet::Scheduler::ticket`].
#[derive(Default)]
pub struct Tickets {
    mailbox: Arc<Mailbox>,
    waiting: RefCell<HashMap<u64, Greenlet>>,
    next: Cell<u64>,
}

#[derive(Default)]
struct Mailbox {
    used: Mutex<Vec<u64>>,
    is_used: Condvar,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Tickets {
    /// Creates tickets for a scheduler whose sleep `wake` ends. Without it, sleep in [`wait`](Tickets::wait).
    pub fn waking(wake: impl Fn() + Send + Sync + 'static) -> Tickets {
        Tickets {
            mailbox: Arc::new(Mailbox {
                wake: Some(Box::new(wake)),
                ..Mailbox::default()
            }),
            ..Tickets::default()
        }
    }

    /// Creates a ticket for a greenlet.
    pub fn ticket(&self, greenlet: &Greenlet) -> Ticket {
        let number = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().insert(number, greenlet.clone());
        let mailbox = Arc::clone(&self.mailbox);
        Ticket::new(move || {
            let mut used = mailbox.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.push(number);
            drop(used);
            mailbox.is_used.notify_one();
            if let Some(wake) = &mailbox.wake {
                wake();
            }
        })
    }

    /// Returns `true` if no ticket is out.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Takes out the greenlets whose tickets were used.
    pub fn take_used(&self) -> Vec<Greenlet> {
        let used = std::mem::take(&mut *self.mailbox.used.lock().unwrap_or_else(PoisonError::into_inner));
        let mut waiting = self.waiting.borrow_mut();
        used.iter().filter_map(|number| waiting.remove(number)).collect()
    }

    /// Blocks the thread until a ticket is used, but not longer than `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) {
        let used = self.mailbox.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unused = |used: &mut Vec<u64>| used.is_empty();
        // A poisoned mutex is no reason to fail: its value is a list of numbers.
        match timeout {
            Some(timeout) => drop(self.mailbox.is_used.wait_timeout_while(used, timeout, is_unused)),
            None => drop(self.mailbox.is_used.wait_while(used, is_unused)),
        }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets")
            .field("waiting", &self.waiting.borrow().len())
            .finish_non_exhaustive()
    }
}
