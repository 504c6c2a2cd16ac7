//! A watchdog that reports spawned functions that block their thread.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::panic::{Location, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
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
/// once more, with the time and the place. An await of a future that is ready does not return to
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
    running: Mutex<Option<Running>>,
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
}

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
            Some(Stop::Await(place)) => write!(f, ", until its await at {place}"),
            Some(Stop::End) => f.write_str(", until its end"),
            None => Ok(()),
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

impl Drop for Shared {
    fn drop(&mut self) {
        self.unparker.unpark();
    }
}

/// The body of the watchdog's thread.
fn watch(parker: &Parker, shared: &Weak<Shared>) {
    while let Some(strong) = shared.upgrade() {
        let all: Vec<Arc<Watched>> = lock(&strong.watched).values().cloned().collect();
        for watched in all {
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
            let mut running = lock(&self.running);
            match running.as_mut() {
                Some(running) if !running.is_reported && running.since.elapsed() > shared.bound => {
                    running.is_reported = true;
                    *running
                }
                _ => return,
            }
        };
        self.report(shared, found, None);
    }

    fn report(&self, shared: &Shared, running: Running, stop: Option<Stop>) {
        let overrun = Overrun {
            greenlet: self.greenlet.clone(),
            created_at: self.created_at,
            after: running.after,
            time: running.since.elapsed(),
            ready_awaits: running.ready_awaits,
            stop,
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
        let Some(running) = lock(&watched.running).take() else {
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
                running: Mutex::default(),
            });
            lock(&self.shared.watched).insert(Arc::as_ptr(&watched).addr(), Arc::clone(&watched));
            watched
        });
        let mut running = lock(&watched.running);
        match &mut *running {
            Some(running) => running.ready_awaits += 1,
            None => {
                *running = Some(Running {
                    since: Instant::now(),
                    after: greenlet.suspended_at(),
                    ready_awaits: 0,
                    is_reported: false,
                });
            }
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
