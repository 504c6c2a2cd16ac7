//! The hub: an event loop on `mio` with timers, whose tasks are greenlets.
//!
//! ```text
//!   main greenlet: run ── switch ──► a task runs until it waits
//!        ▲                             │ for a socket, a time, or another thread
//!        └───────── switch ────────────┘
//! ```
//!
//! A task first tries an operation, and waits if it would block. mio reports changes once, so the
//! loop remembers the changes that no task waited for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet::{Greenlet, GreenletExit, getcurrent, getmain};
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
    timers: RefCell<BTreeMap<(Instant, u64), Greenlet>>,
    /// The tasks that wait for a signal of another thread.
    signals: RefCell<HashMap<u64, Greenlet>>,
    next: Cell<u64>,
    remote: Remote,
}

/// A handle of a hub for other threads: it stores the number of a signal, and wakes the loop.
#[derive(Clone)]
pub(crate) struct Remote {
    raised: Arc<Mutex<Vec<u64>>>,
    waker: Arc<Waker>,
}

impl Remote {
    pub(crate) fn raise(&self, signal: u64) {
        self.raised.lock().expect("nobody panics with it").push(signal);
        // An error means that the loop is gone, together with the tasks that wait in it.
        let _ = self.waker.wake();
    }
}

impl Hub {
    pub(crate) fn new() -> io::Result<Rc<Hub>> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), REMOTE)?);
        let raised = Arc::default();
        Ok(Rc::new(Hub {
            poll: RefCell::new(poll),
            ready: RefCell::default(),
            sockets: RefCell::default(),
            free: RefCell::default(),
            timers: RefCell::default(),
            signals: RefCell::default(),
            next: Cell::new(1),
            remote: Remote { raised, waker },
        }))
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
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
        self.run_until(&first)?;
        outcome.take().expect("it has ended")
    }

    fn run_until(&self, task: &Greenlet) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            // Tasks that become ready meanwhile run after the next poll of the sockets.
            for task in self.ready.take() {
                task.switch_owned::<()>(())?;
            }
            if task.is_dead() {
                return Ok(());
            }
            let timeout = match self.time_left() {
                _ if !self.ready.borrow().is_empty() => Some(Duration::ZERO),
                time_left => time_left,
            };
            match self.poll.borrow_mut().poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            for event in &events {
                if event.token() == REMOTE {
                    self.answer_signals();
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
            self.answer_timers();
        }
    }

    fn time_left(&self) -> Option<Duration> {
        let timers = self.timers.borrow();
        let ((time, _), _) = timers.first_key_value()?;
        Some(time.saturating_duration_since(Instant::now()))
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

    fn answer_signals(&self) {
        let raised = mem::take(&mut *self.remote.raised.lock().expect("nobody panics with it"));
        let mut signals = self.signals.borrow_mut();
        let tasks = raised.iter().filter_map(|signal| signals.remove(signal));
        self.ready.borrow_mut().extend(tasks);
    }

    fn answer_timers(&self) {
        let mut timers = self.timers.borrow_mut();
        let later = timers.split_off(&(Instant::now(), u64::MAX));
        self.ready
            .borrow_mut()
            .extend(mem::replace(&mut *timers, later).into_values());
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
        self.sleep_until(Instant::now() + time)
    }

    #[track_caller]
    pub(crate) fn sleep_until(&self, time: Instant) -> Result<()> {
        let moment = (time, self.next_number());
        self.timers.borrow_mut().insert(moment, getcurrent());
        getmain().switch(())
    }

    /// Suspends the running task until another thread has raised the signal.
    #[track_caller]
    pub(crate) fn wait_for_signal(&self, signal: u64) -> Result<()> {
        self.signals.borrow_mut().insert(signal, getcurrent());
        getmain().switch(())
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
        drop(self.timers.take());
        drop(self.signals.take());
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
