//! The hub: an event loop on `mio` with timers, whose tasks are greenlets.
//!
//! ```text
//!   main greenlet: run ── switch ──► a task runs until it waits
//!        ▲                             │ for a socket, a time, or another thread
//!        └───────── switch ────────────┘
//! ```
//!
//! A task first tries an operation, and waits if it would block. mio reports changes once, so the
//! loop remembers the changes that no task waited for. The timers and the tickets for other threads are
//! the toolkit's, and its events, queues and timeouts work in this hub.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet::{Greenlet, GreenletExit, Scheduler, Ticket, getcurrent, getmain};
use greenlet_toolkit::{Tickets, Timers};
use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};

/// The kinds of events on a socket that a task can wait for.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// One direction of a socket.
#[derive(Default)]
enum Side {
    /// Nothing has changed since the last check.
    #[default]
    Quiet,
    /// Something has changed, and no task has checked yet.
    Changed,
    /// The other side has closed it: it will not block again, and there are no more changes.
    Ended,
    /// A task waits for a change.
    Waiting(Greenlet),
}

/// The token of the waker. The token of a socket is its index in the hub's list.
const REMOTE: Token = Token(usize::MAX);

pub(crate) struct Hub {
    poll: RefCell<Poll>,
    ready: RefCell<VecDeque<Greenlet>>,
    /// Two sides for each socket.
    sockets: RefCell<Vec<[Side; 2]>>,
    /// Free indices in the list of sockets.
    free: RefCell<Vec<usize>>,
    timers: Timers,
    /// The tasks that wait for another thread.
    tickets: Tickets,
    start: Instant,
}

impl Hub {
    pub(crate) fn new() -> io::Result<Rc<Hub>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), REMOTE)?;
        // An error means that the loop is gone, together with the tasks that wait in it.
        let wake = move || drop(waker.wake());
        Ok(Rc::new(Hub {
            poll: RefCell::new(poll),
            ready: RefCell::default(),
            sockets: RefCell::default(),
            free: RefCell::default(),
            timers: Timers::default(),
            tickets: Tickets::waking(wake),
            start: Instant::now(),
        }))
    }

    /// Adds a task, which the loop starts later.
    pub(crate) fn spawn(&self, name: &str, task: impl FnOnce() -> Result<()> + 'static) -> Greenlet {
        let builder = Greenlet::builder().name(name).parent(&getmain());
        let task = builder.build(move |(): ()| {
            task().or_else(|error| {
                if error.is::<GreenletExit>() {
                    return Err(error); // the task must end
                }
                eprintln!("a task failed: {error:#}");
                Ok(())
            })
        });
        self.ready.borrow_mut().push_back(task.clone());
        task
    }

    /// Runs `first` and all other tasks until `first` has ended, and returns what it returned.
    pub(crate) fn run<R: 'static>(&self, first: impl FnOnce() -> Result<R> + 'static) -> Result<R> {
        let outcome = Rc::new(RefCell::new(None));
        let slot = outcome.clone();
        let first = self.spawn("first", move || {
            let result = first();
            slot.replace(Some(result));
            Ok(())
        });
        self.run_until(|| first.is_dead())?;
        outcome.take().expect("it has ended")
    }

    /// Runs all tasks until none is ready, and none waits for a socket, a time or another thread.
    pub(crate) fn run_all(&self) -> Result<()> {
        self.run_until(|| {
            let waits = |side: &Side| matches!(side, Side::Waiting(_));
            let is_idle =
                self.ready.borrow().is_empty() && self.timers.next().is_none() && self.tickets.is_empty();
            is_idle && !self.sockets.borrow().iter().flatten().any(waits)
        })
    }

    fn run_until(&self, is_over: impl Fn() -> bool) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            // Tasks that become ready meanwhile run after the next poll of the sockets.
            for task in self.ready.take() {
                if !task.is_dead() {
                    task.switch_owned::<()>(())?;
                }
            }
            if is_over() {
                return Ok(());
            }
            let timeout = match self.timers.next() {
                _ if !self.ready.borrow().is_empty() => Some(Duration::ZERO),
                next => next.map(|time| time.saturating_sub(self.now())),
            };
            match self.poll.borrow_mut().poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            for event in &events {
                if event.token() == REMOTE {
                    continue;
                }
                let (is_broken, Token(place)) = (event.is_error(), event.token());
                if event.is_readable() || event.is_read_closed() || is_broken {
                    self.change(place, Direction::Read, event.is_read_closed() || is_broken);
                }
                if event.is_writable() || event.is_write_closed() || is_broken {
                    self.change(place, Direction::Write, event.is_write_closed() || is_broken);
                }
            }
            let used = self.tickets.take_used();
            let due = self.timers.take_due(self.now());
            self.ready.borrow_mut().extend(used.into_iter().chain(due));
        }
    }

    /// Records an event of mio for one side of a socket.
    fn change(&self, place: usize, direction: Direction, has_ended: bool) {
        let side = &mut self.sockets.borrow_mut()[place][direction as usize];
        let next = match side {
            _ if has_ended => Side::Ended,
            Side::Waiting(_) => Side::Quiet, // the waiting task will check
            _ => Side::Changed,
        };
        if let Side::Waiting(task) = mem::replace(side, next) {
            self.ready.borrow_mut().push_back(task);
        }
    }

    /// Registers a socket for everything, once.
    pub(crate) fn register(self: &Rc<Self>, socket: &mut impl Source) -> io::Result<Registration> {
        let free = self.free.borrow_mut().pop();
        let place = free.unwrap_or_else(|| {
            let mut sockets = self.sockets.borrow_mut();
            sockets.push(Default::default());
            sockets.len() - 1
        });
        let registration = Registration {
            hub: self.clone(),
            place,
        };
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .borrow()
            .registry()
            .register(socket, Token(place), interests)?;
        Ok(registration)
    }

    /// Suspends the running task for a time.
    #[track_caller]
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = self.now() + time;
        loop {
            self.park(Some(until))?;
            if self.now() >= until {
                return Ok(());
            }
        }
    }

    /// Drops all waiting tasks, which ends them.
    pub(crate) fn clear(&self) {
        // Take them out first, and drop them with nothing borrowed: an ending task may call the
        // hub.
        drop(self.ready.take());
        let sides: Vec<Side> = self
            .sockets
            .borrow_mut()
            .iter_mut()
            .flatten()
            .map(mem::take)
            .collect();
        drop(sides);
        let waiting = self.timers.take_due(Duration::MAX);
        drop(waiting);
    }
}

impl Scheduler for Hub {
    #[track_caller]
    fn park(&self, deadline: Option<Duration>) -> Result<()> {
        let _timer = deadline.map(|deadline| self.timers.set(deadline, getcurrent()));
        getmain().switch(())
    }

    fn make_ready(&self, task: &Greenlet) {
        self.ready.borrow_mut().push_back(task.clone());
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn ticket(&self, task: &Greenlet) -> Ticket {
        self.tickets.ticket(task)
    }
}

/// The registration of a socket in a hub. Drop it after the socket.
pub(crate) struct Registration {
    hub: Rc<Hub>,
    place: usize,
}

impl Registration {
    /// Runs `operation`, and suspends the running task as long as it would block.
    #[track_caller]
    pub(crate) fn wait_for<R>(
        &self,
        direction: Direction,
        mut operation: impl FnMut() -> io::Result<R>,
    ) -> Result<R> {
        loop {
            match operation() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(direction)?,
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Suspends the running task until there is a change that it has not seen.
    ///
    /// Saves a system call if the caller knows that the operation would block now.
    #[track_caller]
    pub(crate) fn wait(&self, direction: Direction) -> Result<()> {
        let before = {
            let side = &mut self.hub.sockets.borrow_mut()[self.place][direction as usize];
            match side {
                Side::Ended => return Ok(()),
                Side::Changed => {
                    *side = Side::Quiet;
                    return Ok(());
                }
                Side::Quiet | Side::Waiting(_) => mem::replace(side, Side::Waiting(getcurrent())),
            }
        };
        // Only one task waits for a side. Drop a previous one, with nothing borrowed.
        drop(before);
        getmain().switch(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let sides = mem::take(&mut self.hub.sockets.borrow_mut()[self.place]);
        self.hub.free.borrow_mut().push(self.place);
        drop(sides);
    }
}
