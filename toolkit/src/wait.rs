//! Waiting: lists of greenlets that wait, and how a wait ends.
//!
//! A wait ends by a grant, by its deadline, by a [`Timeout`](crate::Timeout), or by a kill. A grant is handed
//! to the first waiter of a list, so nobody can overtake it. A waiter that is killed with a grant gives it
//! back. Whatever ends a wait, the waiter leaves the list.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Error, Result, ensure};
use greenlet::{Greenlet, WeakGreenlet, getcurrent};

use crate::kit::Kit;
use crate::timeout::TimedOut;

/// What the toolkit knows of a task. It is attached to the task's greenlet.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) waits_for: RefCell<Option<WaitsFor>>,
    /// The error of a kill that has not been delivered yet.
    pub(crate) kill: RefCell<Option<Error>>,
    /// The timeouts that run, each with its number and its deadline.
    pub(crate) timeouts: RefCell<Vec<(u64, Duration)>>,
}

impl Record {
    pub(crate) fn of(greenlet: &Greenlet) -> Option<Rc<Record>> {
        greenlet.attached()
    }

    /// Returns the error that ends the wait of the task now.
    fn interruption(&self, now: Duration) -> Option<Error> {
        if let Some(kill) = self.kill.take() {
            return Some(kill);
        }
        let mut timeouts = self.timeouts.borrow_mut();
        let expired = |(_, deadline): &&(u64, Duration)| *deadline <= now;
        let first = *timeouts
            .iter()
            .filter(expired)
            .min_by_key(|(_, deadline)| *deadline)?;
        timeouts.retain(|timeout| *timeout != first);
        Some(TimedOut { number: first.0 }.into())
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.timeouts.borrow().iter().map(|(_, deadline)| *deadline).min()
    }
}

/// What a task waits for, for the report of a deadlock.
#[derive(Clone)]
pub(crate) struct WaitsFor {
    pub(crate) what: Rc<str>,
    pub(crate) holders: Vec<WeakGreenlet>,
    pub(crate) at: &'static Location<'static>,
}

struct Waiter<G> {
    greenlet: Greenlet,
    grant: Cell<Option<G>>,
}

/// A list of greenlets that wait for a `G`.
pub(crate) struct WaitList<G> {
    waiters: RefCell<VecDeque<Rc<Waiter<G>>>>,
}

impl<G> Default for WaitList<G> {
    fn default() -> WaitList<G> {
        WaitList {
            waiters: RefCell::default(),
        }
    }
}

/// How a wait ended.
pub(crate) enum Wait<G> {
    Granted(G),
    /// The deadline was reached.
    TooLate,
    /// A kill or a timeout ended it. A grant that came before is given back.
    Interrupted(Error, Option<G>),
}

impl<G> WaitList<G> {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.borrow().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiters.borrow().len()
    }

    /// Hands a value to the first waiter, and makes it ready.
    ///
    /// # Errors
    ///
    /// Returns the value if nobody waits.
    pub(crate) fn grant(&self, kit: &Kit, grant: G) -> Result<(), G> {
        let Some(first) = self.waiters.borrow_mut().pop_front() else {
            return Err(grant);
        };
        first.grant.set(Some(grant));
        kit.scheduler().make_ready(&first.greenlet);
        Ok(())
    }

    /// Waits for a grant, as the last in the list.
    pub(crate) fn wait(&self, kit: &Kit, deadline: Option<Duration>, waits_for: WaitsFor) -> Result<Wait<G>> {
        self.wait_unless(kit, deadline, waits_for, || false)
    }

    /// Does the same, and ends the wait as too late when `is_over` returns `true`.
    pub(crate) fn wait_unless(
        &self,
        kit: &Kit,
        deadline: Option<Duration>,
        waits_for: WaitsFor,
        mut is_over: impl FnMut() -> bool,
    ) -> Result<Wait<G>> {
        let current = getcurrent();
        ensure!(
            current != kit.scheduler().hub(),
            "the greenlet that runs the scheduler cannot wait; spawn a task that does"
        );
        let record = Record::of(&current);
        let record = record.ok_or_else(|| {
            anyhow::anyhow!("{current:?} cannot wait: it is no task of a kit; create it with `Kit::spawn`")
        })?;
        let waiter = Rc::new(Waiter {
            greenlet: current,
            grant: Cell::new(None),
        });
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        let waiting = Waiting {
            list: self,
            waiter,
            record: Rc::clone(&record),
        };
        record.waits_for.replace(Some(waits_for));
        loop {
            let next = [deadline, record.next_deadline()].into_iter().flatten().min();
            kit.scheduler().park(next)?;
            let grant = waiting.waiter.grant.take();
            let now = kit.scheduler().now();
            if let Some(kill) = record.kill.take() {
                return Ok(Wait::Interrupted(kill, grant));
            }
            if let Some(grant) = grant {
                return Ok(Wait::Granted(grant));
            }
            if let Some(error) = record.interruption(now) {
                return Ok(Wait::Interrupted(error, None));
            }
            if deadline.is_some_and(|deadline| deadline <= now) || is_over() {
                return Ok(Wait::TooLate);
            }
        }
    }
}

impl WaitList<()> {
    /// Hands a grant to all waiters.
    pub(crate) fn grant_all(&self, kit: &Kit) {
        for waiter in self.waiters.take() {
            waiter.grant.set(Some(()));
            kit.scheduler().make_ready(&waiter.greenlet);
        }
    }
}

/// Takes a waiter out of its list at the end of its wait, also if the end of its greenlet unwinds it.
struct Waiting<'a, G> {
    list: &'a WaitList<G>,
    waiter: Rc<Waiter<G>>,
    record: Rc<Record>,
}

impl<G> Drop for Waiting<'_, G> {
    fn drop(&mut self) {
        let mut waiters = self.list.waiters.borrow_mut();
        waiters.retain(|other| !Rc::ptr_eq(other, &self.waiter));
        drop(waiters);
        self.record.waits_for.replace(None);
    }
}
