//! A scheduler in virtual time, also for searches through all orders.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use greenlet::testing::explore::Choices;
use greenlet::{Greenlet, Scheduler, Ticket, getcurrent};

use crate::parts::{Tickets, Timers};

/// Runs tasks in turns. When none is ready, the time jumps to the next deadline.
///
/// All clones are the same scheduler.
///
/// # Examples
///
/// A search through the orders of tasks that use the toolkit:
///
/// ```
/// use greenlet::testing::explore::Explore;
/// use greenlet_toolkit::{Kit, Semaphore, VirtualTime};
///
/// let report = Explore::new().run(|choices| {
///     let scheduler = VirtualTime::explored(choices);
///     let kit = Kit::new(&scheduler);
///     let locks = [Semaphore::new(&kit, 1), Semaphore::new(&kit, 1)];
///     for (name, [first, second]) in [("ab", [0, 1]), ("ba", [1, 0])] {
///         let (first, second) = (locks[first].clone(), locks[second].clone());
///         let inside = kit.clone();
///         kit.spawn(name, move || {
///             let _first = first.hold()?;
///             inside.sleep(std::time::Duration::ZERO)?;
///             let _second = second.hold()?;
///             Ok(())
///         });
///     }
///     kit.run(|| scheduler.run())
/// });
/// let failure = report.failure().unwrap();
/// assert!(failure.message().contains("'ab' waits for a semaphore, which 'ba' holds"));
/// ```
#[derive(Clone, Default)]
pub struct VirtualTime {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    ready: RefCell<VecDeque<Greenlet>>,
    timers: Timers,
    tickets: Tickets,
    now: Cell<Duration>,
    choices: Option<Choices>,
}

impl VirtualTime {
    /// Creates a scheduler that asks the choices which ready task runs next.
    pub fn explored(choices: &Choices) -> VirtualTime {
        VirtualTime {
            shared: Rc::new(Shared {
                choices: Some(choices.clone()),
                ..Shared::default()
            }),
        }
    }

    /// Runs until no task is ready, and none waits for a time or a ticket.
    ///
    /// # Errors
    ///
    /// Returns an error that is thrown at the hub.
    #[track_caller]
    pub fn run(&self) -> Result<()> {
        while let Some(next) = self.next() {
            if !next.is_dead() {
                next.switch_owned::<()>(())?;
            }
        }
        Ok(())
    }

    #[track_caller]
    fn next(&self) -> Option<Greenlet> {
        let shared = &*self.shared;
        loop {
            let used = shared.tickets.take_used();
            shared.ready.borrow_mut().extend(used);
            let mut ready = shared.ready.borrow_mut();
            if !ready.is_empty() {
                let index = shared.choices.as_ref().map_or(0, |choices| choices.pick(&*ready));
                return ready.remove(index);
            }
            drop(ready);
            match shared.timers.next() {
                Some(time) => {
                    shared.now.set(time.max(shared.now.get()));
                    let due = shared.timers.take_due(time);
                    shared.ready.borrow_mut().extend(due);
                }
                None if shared.tickets.is_empty() => return None,
                None => shared.tickets.wait(None),
            }
        }
    }
}

impl Scheduler for VirtualTime {
    #[track_caller]
    fn park(&self, deadline: Option<Duration>) -> Result<()> {
        let _timer = deadline.map(|deadline| self.shared.timers.set(deadline, getcurrent()));
        self.hub().switch(())
    }

    fn make_ready(&self, greenlet: &Greenlet) {
        let mut ready = self.shared.ready.borrow_mut();
        if !ready.contains(greenlet) {
            ready.push_back(greenlet.clone());
        }
    }

    fn now(&self) -> Duration {
        self.shared.now.get()
    }

    fn ticket(&self, greenlet: &Greenlet) -> Ticket {
        self.shared.tickets.ticket(greenlet)
    }
}

impl fmt::Debug for VirtualTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualTime")
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}
