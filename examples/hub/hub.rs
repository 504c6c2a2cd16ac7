//! The hub: an event loop on `mio` with timers, whose tasks are greenlets.
//!
//! ```text
//!   main greenlet: run ── switch ──► a task runs until it waits
//!        ▲                             │ for a socket, a time, or another thread
//!        └───────── switch ────────────┘
//! ```
//!
//! An operation is tried first, and waited for if it would block: mio tells of changes, once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getmain};
use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};

/// What a task waits for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// The token of the waker; sockets have the others.
const REMOTE: Token = Token(0);

pub(crate) struct Hub {
    poll: RefCell<Poll>,
    ready: RefCell<VecDeque<Greenlet>>,
    sockets: RefCell<HashMap<(Token, Direction), Greenlet>>,
    timers: RefCell<BTreeMap<(Instant, u64), Greenlet>>,
    /// Those that wait for a signal of another thread.
    signals: RefCell<HashMap<u64, Greenlet>>,
    next: Cell<u64>,
    remote: Remote,
}

/// How another thread gets at a hub: it leaves the number of a signal, and wakes the loop.
#[derive(Clone)]
pub(crate) struct Remote {
    raised: Arc<Mutex<Vec<u64>>>,
    waker: Arc<Waker>,
}

impl Remote {
    pub(crate) fn raise(&self, signal: u64) {
        self.raised.lock().expect("nobody panics with it").push(signal);
        // An error would mean that the loop is gone, and those who wait in it.
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

    /// Starts a task, which runs when the loop comes to it.
    pub(crate) fn spawn(&self, task: impl FnOnce() -> Result<()> + 'static) -> Greenlet {
        let task = Greenlet::builder().parent(&getmain()).build(move |(): ()| {
            if let Err(error) = task() {
                eprintln!("a task failed: {error:#}");
            }
            Ok(())
        });
        self.ready.borrow_mut().push_back(task.clone());
        task
    }

    /// Runs `first` and all other tasks until `first` has ended, and returns what it returned.
    pub(crate) fn run<R: 'static>(&self, first: impl FnOnce() -> Result<R> + 'static) -> Result<R> {
        let outcome = Rc::new(RefCell::new(None));
        let slot = outcome.clone();
        let first = self.spawn(move || {
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
            // Those that get ready meanwhile come after the next look at the sockets.
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
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.make_ready(event.token(), Direction::Read);
                }
                if event.is_writable() || event.is_write_closed() || event.is_error() {
                    self.make_ready(event.token(), Direction::Write);
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

    fn make_ready(&self, token: Token, direction: Direction) {
        let task = self.sockets.borrow_mut().remove(&(token, direction));
        self.ready.borrow_mut().extend(task);
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
    pub(crate) fn register(&self, socket: &mut impl Source) -> io::Result<Token> {
        let number = usize::try_from(self.next_number()).expect("fewer sockets than addresses");
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .borrow()
            .registry()
            .register(socket, Token(number), interests)?;
        Ok(Token(number))
    }

    /// Does `operation`; suspends the running task as long as it would block.
    pub(crate) fn wait_for<R>(
        &self,
        token: Token,
        direction: Direction,
        mut operation: impl FnMut() -> io::Result<R>,
    ) -> Result<R> {
        loop {
            match operation() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.sockets.borrow_mut().insert((token, direction), getcurrent());
                    getmain().switch::<()>(())?;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Suspends the running task for a time.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let moment = (Instant::now() + time, self.next_number());
        self.timers.borrow_mut().insert(moment, getcurrent());
        getmain().switch(())
    }

    /// Suspends the running task until another thread has raised the signal.
    pub(crate) fn wait_for_signal(&self, signal: u64) -> Result<()> {
        self.signals.borrow_mut().insert(signal, getcurrent());
        getmain().switch(())
    }

    /// Lets go of all tasks that wait: they are ended.
    pub(crate) fn clear(&self) {
        // Taken out first, and dropped with nothing borrowed: what ends may come back here.
        drop(self.ready.take());
        drop(self.sockets.take());
        drop(self.timers.take());
        drop(self.signals.take());
    }
}
