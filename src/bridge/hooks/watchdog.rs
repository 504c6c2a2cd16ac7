//! A watchdog that reports spawned functions that block their thread.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::panic::{Location, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_utils::sync::{Parker, Unparker};
use greenlet_core::{Greenlet, catch, raw, run_to_end};

use super::SpawnHooks;

/// Reports spawned functions that run for longer than a bound without awaiting. It is an aid for
/// debugging.
///
/// Such a function blocks all other tasks of its thread: it calls blocking code, computes for long,
/// or hangs. The watchdog checks on its own thread, so it also reports a function that never
/// returns. When the function returns to its executor or ends after all, the watchdog reports it
/// once more, with the time and the place. The report of a function that still runs names functions
/// that wait on the same thread, since one of them may hold the lock that blocks it. An await of a future that is ready does not return to
/// the executor: a function that awaits nothing else blocks its thread, too.
///
/// A report that panics is lost, and the watchdog continues.
///
/// Each watched function costs two locks and two clock reads per await. The watchdog's thread ends
/// with the last clone of the watchdog and the last watched function.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use std::time::{Duration, Instant};
/// use greenlet::{SpawnBuilder, Watchdog};
///
/// let (sender, reports) = mpsc::channel();
/// let watchdog = Watchdog::new(Duration::from_millis(5), move |overrun| {
///     sender.send(overrun.to_string()).unwrap();
/// });
/// let spawned = SpawnBuilder::new().name("sums").hooks(watchdog.hooks()).spawn(|| {
///     let start = Instant::now();
///     while start.elapsed() < Duration::from_millis(20) {} // computes
/// });
/// futures::executor::block_on(spawned);
/// assert!(reports.recv().unwrap().starts_with("greenlet 'sums'"));
/// ```
#[derive(Clone)]
pub struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    bound: Duration,
    /// By the addresses of their contents. The hooks of a function remove it.
    watched: Mutex<HashMap<usize, Arc<Watched>>>,
    report: Box<dyn Fn(&Overrun) + Send + Sync>,
    unparker: Unparker,
}

/// One watched function.
struct Watched {
    greenlet: String,
    created_at: &'static Location<'static>,
    thread: ThreadId,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Has not started, or has ended.
    #[default]
    Idle,
    Running(Running),
    /// Waits for the future that it awaits there.
    Waiting(&'static Location<'static>),
}

#[derive(Clone, Copy)]
struct Running {
    since: Instant,
    after: Option<&'static Location<'static>>,
    ready_awaits: u64,
    is_reported: bool,
}

/// A run of a spawned function that took longer than a [`Watchdog`] allows.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenlet::watchdog::{Stop, Watchdog};
///
/// let _watchdog = Watchdog::new(Duration::from_secs(1), |overrun| match overrun.stop {
///     None => eprintln!("{} still runs, after {:?}", overrun.greenlet, overrun.time),
///     Some(Stop::Await(place)) => eprintln!("{} awaited at last, at {place}", overrun.greenlet),
///     Some(_) => eprintln!("{overrun}"),
/// });
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overrun {
    /// The name of the greenlet, or its id if it has none.
    pub greenlet: String,
    /// Where the greenlet was created.
    pub created_at: &'static Location<'static>,
    /// Where it last waited. `None` if it has not waited yet.
    pub after: Option<&'static Location<'static>>,
    /// How long it has been running since then.
    pub time: Duration,
    /// How many futures it has awaited since then. All were ready, so no other task ran.
    pub ready_awaits: u64,
    /// How the run has stopped. `None` if the function is still running.
    pub stop: Option<Stop>,
    /// The functions that wait on the same thread: their greenlets, and where they wait. Empty if
    /// the function has stopped.
    waiting: Vec<(String, &'static Location<'static>)>,
}

/// The number of waiting functions that a report names.
const NAMED: usize = 3;

/// How a run has stopped: see [`Overrun`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The function waits for a future, at this place.
    Await(&'static Location<'static>),
    /// The function has ended.
    End,
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, created_at, time) = (&self.greenlet, self.created_at, self.time);
        write!(f, "greenlet {who}, created at {created_at}, ")?;
        f.write_str(if self.stop.is_some() {
            "ran"
        } else {
            "has been running"
        })?;
        write!(f, " for {time:?} without ")?;
        match self.ready_awaits {
            0 => f.write_str("awaiting, since ")?,
            ready => write!(f, "waiting ({ready} awaits of ready futures), since ")?,
        }
        match self.after {
            Some(place) => write!(f, "its await at {place}")?,
            None => f.write_str("its start")?,
        }
        match self.stop {
            Some(Stop::Await(place)) => write!(f, ", until its await at {place}")?,
            Some(Stop::End) => f.write_str(", until its end")?,
            None => {}
        }
        for (number, (who, place)) in self.waiting.iter().take(NAMED).enumerate() {
            f.write_str(match number {
                0 => "; it may need what these hold, which wait on the same thread: ",
                _ => ", ",
            })?;
            write!(f, "{who} at {place}")?;
        }
        match self.waiting.len().saturating_sub(NAMED) {
            0 => Ok(()),
            others => write!(f, ", and {others} more"),
        }
    }
}

/// Ignores poisoning: every critical section here writes its data in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    /// Starts a watchdog. It calls `report` for each run that takes longer than `bound`, on its own
    /// thread or on that of the function.
    ///
    /// # Panics
    ///
    /// Panics if the system cannot start a thread.
    pub fn new(bound: Duration, report: impl Fn(&Overrun) + Send + Sync + 'static) -> Watchdog {
        let parker = Parker::new();
        let shared = Arc::new(Shared {
            bound,
            watched: Mutex::default(),
            report: Box::new(report),
            unparker: parker.unparker().clone(),
        });
        let weak = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("greenlet-watchdog".into())
            .spawn(move || run_to_end(|| watch(&parker, &weak)))
            .expect("the watchdog needs a thread");
        Watchdog { shared }
    }

    /// Creates hooks that watch one spawned function: see
    /// [`SpawnBuilder::hooks`](crate::SpawnBuilder::hooks).
    pub fn hooks(&self) -> impl SpawnHooks + use<> {
        WatchdogHooks {
            shared: Arc::clone(&self.shared),
            watched: None,
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = lock(&self.shared.watched).len();
        write!(f, "Watchdog({:?}, {watched} watched)", self.shared.bound)
    }
}

impl Shared {
    fn all_watched(&self) -> Vec<Arc<Watched>> {
        lock(&self.watched).values().cloned().collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.unparker.unpark();
    }
}

/// The body of the watchdog's thread.
fn watch(parker: &Parker, shared: &Weak<Shared>) {
    while let Some(strong) = shared.upgrade() {
        for watched in strong.all_watched() {
            watched.check(&strong);
        }
        let pause = strong.bound / 2;
        drop(strong);
        parker.park_timeout(pause.max(Duration::from_millis(1)));
    }
}

impl Watched {
    /// Reports the function if it has been running for too long.
    fn check(&self, shared: &Shared) {
        let found = {
            match &mut *lock(&self.state) {
                State::Running(running) if !running.is_reported && running.since.elapsed() > shared.bound => {
                    running.is_reported = true;
                    *running
                }
                _ => return,
            }
        };
        self.report(shared, found, None);
    }

    /// Returns the greenlets of this thread that wait, and where, sorted by name.
    fn waiting_beside(&self, shared: &Shared) -> Vec<(String, &'static Location<'static>)> {
        let all = shared.all_watched();
        let others = all.iter().filter(|other| other.thread == self.thread);
        let mut waiting: Vec<_> = others
            .filter_map(|other| match *lock(&other.state) {
                State::Waiting(place) => Some((other.greenlet.clone(), place)),
                _ => None,
            })
            .collect();
        waiting.sort_unstable();
        waiting
    }

    fn report(&self, shared: &Shared, running: Running, stop: Option<Stop>) {
        let overrun = Overrun {
            greenlet: self.greenlet.clone(),
            created_at: self.created_at,
            after: running.after,
            time: running.since.elapsed(),
            ready_awaits: running.ready_awaits,
            stop,
            waiting: match stop {
                None => self.waiting_beside(shared),
                Some(_) => Vec::new(),
            },
        };
        // CAUTION: runs arbitrary user code. The panic hook has reported a panic.
        let reported = catch(|| (shared.report)(&overrun));
        // CAUTION: runs arbitrary user code. The destructor of a panic's payload may panic, too.
        if let Err(end) = raw::discard(reported) {
            resume_unwind(end);
        }
    }
}

struct WatchdogHooks {
    shared: Arc<Shared>,
    watched: Option<Arc<Watched>>,
}

impl WatchdogHooks {
    /// Ends the run, and reports it if it was too long.
    fn stop(&self, stop: Stop) {
        let Some(watched) = &self.watched else { return };
        let next = match stop {
            Stop::Await(place) => State::Waiting(place),
            Stop::End => State::Idle,
        };
        let State::Running(running) = std::mem::replace(&mut *lock(&watched.state), next) else {
            return;
        };
        if running.since.elapsed() > self.shared.bound {
            watched.report(&self.shared, running, Some(stop));
        }
    }
}

impl SpawnHooks for WatchdogHooks {
    fn resume(&mut self, greenlet: &Greenlet) {
        let watched = self.watched.get_or_insert_with(|| {
            let watched = Arc::new(Watched {
                greenlet: match greenlet.name() {
                    Some(name) => format!("'{name}'"),
                    None => greenlet.id().to_string(),
                },
                created_at: greenlet.created_at(),
                thread: thread::current().id(),
                state: Mutex::default(),
            });
            lock(&self.shared.watched).insert(Arc::as_ptr(&watched).addr(), Arc::clone(&watched));
            watched
        });
        let mut state = lock(&watched.state);
        if let State::Running(running) = &mut *state {
            running.ready_awaits += 1;
        } else {
            *state = State::Running(Running {
                since: Instant::now(),
                after: greenlet.suspended_at(),
                ready_awaits: 0,
                is_reported: false,
            });
        }
    }

    fn suspend(&mut self, greenlet: &Greenlet) {
        if greenlet.suspended_at().is_none() {
            self.stop(Stop::End);
        }
    }

    fn pending(&mut self, greenlet: &Greenlet) {
        self.stop(greenlet.suspended_at().map_or(Stop::End, Stop::Await));
    }
}

impl Drop for WatchdogHooks {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            lock(&self.shared.watched).remove(&Arc::as_ptr(watched).addr());
        }
    }
}
