//! What events, queues and timeouts need of a scheduler: one trait, and a ticket for other threads.

#![forbid(unsafe_code)]

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use greenlet_core::{Greenlet, getmain};

/// A scheduler of greenlets, as a toolkit of events, queues and timeouts sees it.
///
/// With this trait such a toolkit is written once, and works in a round robin, in virtual time and in
/// an I/O loop. The tasks are greenlets whose parent is the [`hub`](Scheduler::hub).
///
/// # Examples
///
/// A scheduler with one queue, whose only time is the number of its turns:
///
/// ```
/// use std::{cell::{Cell, RefCell}, collections::VecDeque, rc::Rc, time::Duration};
/// use greenlet::{Greenlet, Scheduler, Ticket, getcurrent};
///
/// #[derive(Default)]
/// struct Turns {
///     ready: RefCell<VecDeque<Greenlet>>,
///     turn: Cell<u64>,
/// }
///
/// impl Scheduler for Turns {
///     fn park(&self, deadline: Option<Duration>) -> anyhow::Result<()> {
///         if deadline.is_some() {
///             self.ready.borrow_mut().push_back(getcurrent()); // returns early, which is allowed
///         }
///         self.hub().switch(())
///     }
///     fn make_ready(&self, greenlet: &Greenlet) {
///         self.ready.borrow_mut().push_back(greenlet.clone());
///     }
///     fn now(&self) -> Duration {
///         Duration::from_secs(self.turn.get())
///     }
///     fn ticket(&self, _: &Greenlet) -> Ticket {
///         unimplemented!("this scheduler has one thread")
///     }
/// }
///
/// let turns = Rc::new(Turns::default());
/// let inside = turns.clone();
/// turns.make_ready(&Greenlet::new(move |(): ()| {
///     inside.make_ready(&getcurrent());
///     inside.park(None)
/// }));
/// while let Some(next) = { let next = turns.ready.borrow_mut().pop_front(); next } {
///     turns.turn.set(turns.turn.get() + 1);
///     next.switch_owned::<()>(())?;
/// }
/// assert_eq!(turns.now().as_secs(), 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub trait Scheduler {
    /// Suspends the current greenlet until [`make_ready`](Scheduler::make_ready) names it, or until
    /// [`now`](Scheduler::now) has reached the deadline. It may return early, so callers wait in a loop.
    ///
    /// The scheduler keeps no handle of a greenlet that is parked without a deadline.
    ///
    /// # Errors
    ///
    /// Returns an error that is thrown at the greenlet, such as the exit that ends it.
    fn park(&self, deadline: Option<Duration>) -> Result<()>;

    /// Makes a greenlet run later, after those that are ready now. It is parked, or has not started.
    ///
    /// A greenlet that is ready already may run once or twice. A dead one is ignored.
    fn make_ready(&self, greenlet: &Greenlet);

    /// Returns the time since the scheduler's start, real or virtual.
    fn now(&self) -> Duration;

    /// Returns a ticket by which another thread makes the greenlet ready. While it exists, the scheduler
    /// keeps a handle of the greenlet, and waits for the ticket when nothing else is to be done.
    fn ticket(&self, greenlet: &Greenlet) -> Ticket;

    /// Returns the greenlet that runs the loop of the scheduler. Tasks end into it. By default it is the
    /// main greenlet.
    fn hub(&self) -> Greenlet {
        getmain()
    }
}

impl<S: Scheduler + ?Sized> Scheduler for Rc<S> {
    #[track_caller]
    fn park(&self, deadline: Option<Duration>) -> Result<()> {
        (**self).park(deadline)
    }

    fn make_ready(&self, greenlet: &Greenlet) {
        (**self).make_ready(greenlet);
    }

    fn now(&self) -> Duration {
        (**self).now()
    }

    fn ticket(&self, greenlet: &Greenlet) -> Ticket {
        (**self).ticket(greenlet)
    }

    fn hub(&self) -> Greenlet {
        (**self).hub()
    }
}

/// Makes a greenlet ready, from any thread: see [`Scheduler::ticket`].
///
/// Greenlets stay on their thread, and only the ticket goes to another one. It makes the greenlet ready
/// when it is dropped. So a thread that panics wakes the greenlet, too.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use greenlet::Ticket;
///
/// let (sender, mailbox) = mpsc::channel();
/// let ticket = Ticket::new(move || sender.send("greenlet 7 is ready").unwrap());
/// std::thread::spawn(move || ticket.make_ready()).join().unwrap();
/// assert_eq!(mailbox.recv(), Ok("greenlet 7 is ready"));
/// ```
#[must_use = "a ticket that is dropped makes its greenlet ready"]
pub struct Ticket {
    make_ready: Option<Box<dyn FnOnce() + Send>>,
}

impl Ticket {
    /// Creates a ticket that calls a closure once. For schedulers: the closure puts a number into the
    /// scheduler's mailbox, and ends its sleep. It must not panic.
    pub fn new(make_ready: impl FnOnce() + Send + 'static) -> Ticket {
        Ticket {
            make_ready: Some(Box::new(make_ready)),
        }
    }

    /// Makes the greenlet ready.
    pub fn make_ready(self) {}
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(make_ready) = self.make_ready.take() {
            // CAUTION: runs arbitrary user code.
            make_ready();
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}
