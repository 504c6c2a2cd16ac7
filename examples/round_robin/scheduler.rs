//! The scheduler: a queue of ready tasks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet::{Greenlet, Scheduler, Ticket, getcurrent};
use greenlet_toolkit::{Tickets, Timers};

/// Runs tasks in turns. All clones are the same scheduler.
#[derive(Clone)]
pub(crate) struct RoundRobin {
    shared: Rc<Shared>,
}

struct Shared {
    ready: RefCell<VecDeque<Greenlet>>,
    timers: Timers,
    tickets: Tickets,
    start: Instant,
}

impl RoundRobin {
    pub(crate) fn new() -> RoundRobin {
        RoundRobin {
            shared: Rc::new(Shared {
                ready: RefCell::default(),
                timers: Timers::default(),
                tickets: Tickets::default(),
                start: Instant::now(),
            }),
        }
    }

    fn pop(&self) -> Option<Greenlet> {
        self.shared.ready.borrow_mut().pop_front()
    }

    /// Lets the other tasks run first: switches directly to the next one.
    #[track_caller]
    pub(crate) fn pause(&self) -> Result<()> {
        self.shared.ready.borrow_mut().push_back(getcurrent());
        let next = self.pop().expect("the caller is there, if nobody else is");
        next.switch_owned(())
    }

    /// Runs tasks until none is ready, and none waits for a time or another thread. Each task resumes this
    /// loop when it ends, because the loop's greenlet is its parent.
    pub(crate) fn run(&self) -> Result<()> {
        loop {
            self.wake();
            match self.pop() {
                Some(task) if task.is_dead() => {}
                Some(task) => task.switch_owned::<()>(())?,
                None if self.shared.timers.next().is_none() && self.shared.tickets.is_empty() => {
                    return Ok(());
                }
                None => {
                    let next = self.shared.timers.next();
                    self.shared
                        .tickets
                        .wait(next.map(|time| time.saturating_sub(self.now())));
                }
            }
        }
    }

    /// Makes the tasks ready whose time has come, and those that another thread wakes.
    fn wake(&self) {
        let due = self.shared.timers.take_due(self.now());
        let used = self.shared.tickets.take_used();
        self.shared.ready.borrow_mut().extend(due.chain(used));
    }
}

impl Scheduler for RoundRobin {
    #[track_caller]
    fn park(&self, deadline: Option<Duration>) -> Result<()> {
        let _timer = deadline.map(|deadline| self.shared.timers.set(deadline, getcurrent()));
        self.wake(); // the loop may not run for long
        let next = self.pop().filter(|task| !task.is_dead());
        next.unwrap_or_else(|| self.hub()).switch_owned(())
    }

    fn make_ready(&self, task: &Greenlet) {
        self.shared.ready.borrow_mut().push_back(task.clone());
    }

    fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    fn ticket(&self, task: &Greenlet) -> Ticket {
        self.shared.tickets.ticket(task)
    }
}
