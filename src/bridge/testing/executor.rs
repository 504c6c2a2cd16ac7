//! An executor for explored tests: it asks the choices which task it polls, and when a timer fires.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::future::Sleep;
use super::task::{Job, Shared, Slot, Task, Wakes};
use crate::bridge::spawn::SpawnBuilder;
use crate::testing::explore::Choices;

/// An executor of one thread in virtual time, for a test that [`Explore`](crate::testing::explore::Explore)
/// runs.
///
/// The choices decide which woken task is polled next, and whether a timer fires before that. So a wake-up
/// may be late, and a timeout may come at any step. Time passes only when a timer fires. Spurious
/// polls and ends of tasks are choices too, if you allow them: [`spurious`](Executor::spurious),
/// [`Task::may_end`].
///
/// All clones are the same executor.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, time::Duration};
/// use greenlet::await_;
/// use greenlet::bridge::testing::Executor;
/// use greenlet::testing::explore::Explore;
///
/// // A check and an act, with an await between them.
/// let report = Explore::new().run(|choices| {
///     let executor = Executor::new(choices);
///     let seats = Rc::new(Cell::new(1_i32));
///     for name in ["ann", "bob"] {
///         let (seats, inside) = (seats.clone(), executor.clone());
///         executor.spawn_function(name, move || {
///             if seats.get() > 0 {
///                 await_(inside.sleep(Duration::from_millis(1))); // pays
///                 seats.set(seats.get() - 1);
///             }
///             Ok(())
///         });
///     }
///     executor.run()?;
///     anyhow::ensure!(seats.get() >= 0, "overbooked");
///     Ok(())
/// });
/// assert_eq!(report.failure().unwrap().message(), "overbooked");
/// ```
#[derive(Clone)]
pub struct Executor {
    shared: Rc<Shared>,
}

/// The numbers of timers among the numbers of tasks.
const FIRST_TIMER: u64 = 1 << 32;

impl Executor {
    /// Creates an executor without tasks, at time 0.
    pub fn new(choices: &Choices) -> Executor {
        Executor {
            shared: Rc::new(Shared {
                choices: choices.clone(),
                tasks: RefCell::default(),
                timers: RefCell::default(),
                now: Cell::default(),
                timer_count: Cell::new(0),
                spurious_left: Cell::new(0),
                wake_count: Arc::default(),
            }),
        }
    }

    /// Allows up to `most` polls of tasks that nothing has woken.
    pub fn spurious(self, most: u32) -> Executor {
        self.shared.spurious_left.set(most);
        self
    }

    /// Adds a task. It can be polled from now on.
    #[track_caller]
    pub fn spawn(&self, name: &str, future: impl Future<Output = Result<()>> + 'static) -> Task {
        self.add(name, Job::Future(Box::pin(future)))
    }

    /// Adds a task that runs a function in a greenlet of that name: see
    /// [`greenlet_spawn`](crate::greenlet_spawn).
    #[track_caller]
    pub fn spawn_function(&self, name: &str, function: impl FnOnce() -> Result<()> + 'static) -> Task {
        let spawn = SpawnBuilder::new().name(name).spawn(function);
        self.add(name, Job::Function(spawn))
    }

    #[track_caller]
    fn add(&self, name: &str, job: Job) -> Task {
        let wakes = Arc::new(Wakes {
            woken: AtomicU64::new(0),
            count: Arc::clone(&self.shared.wake_count),
        });
        wakes.wake_by_ref();
        let mut tasks = self.shared.tasks.borrow_mut();
        tasks.push(Slot {
            name: name.to_owned(),
            spawned_at: Location::caller(),
            wakes,
            may_end: false,
            job: Some(job),
            is_over: false,
        });
        Task {
            shared: Rc::downgrade(&self.shared),
            index: tasks.len() - 1,
        }
    }

    /// Returns the choices that it asks.
    pub fn choices(&self) -> &Choices {
        &self.shared.choices
    }

    /// Returns the virtual time since the start.
    pub fn now(&self) -> Duration {
        self.shared.now.get()
    }

    /// Returns a future that is ready after a virtual time.
    pub fn sleep(&self, time: Duration) -> Sleep {
        Sleep {
            shared: Rc::downgrade(&self.shared),
            until: self.now() + time,
            timer: None,
        }
    }

    /// Runs all tasks to their ends.
    ///
    /// # Errors
    ///
    /// Returns the first error of a task, with its name. Returns an error if tasks are left, and nothing
    /// will wake them: a deadlock. The error lists them, with the places where they await. The tasks that
    /// are left are dropped.
    ///
    /// # Panics
    ///
    /// Panics with the panic of a task.
    #[track_caller]
    pub fn run(&self) -> Result<()> {
        let _cleared = Cleared(&self.shared);
        while self.step()? {}
        Ok(())
    }

    /// Polls a task, fires a timer, or ends a task. Returns `false` if all tasks have ended.
    #[track_caller]
    fn step(&self) -> Result<bool> {
        let shared = &self.shared;
        let mut woken = Vec::new();
        let mut asleep = Vec::new();
        let mut may_end = Vec::new();
        for (index, slot) in shared.tasks.borrow().iter().enumerate() {
            let is_cancelled = match &slot.job {
                None => continue,
                Some(job) => matches!(job, Job::Cancelled(_)),
            };
            match slot.wakes.woken.load(Ordering::SeqCst) {
                0 => asleep.push(index as u64),
                nth => woken.push((nth, index as u64)),
            }
            if slot.may_end && !is_cancelled {
                may_end.push(index);
            }
        }
        if woken.is_empty() && asleep.is_empty() {
            return Ok(false);
        }
        if shared.choices.has_faults_left() && !may_end.is_empty() {
            let fault = shared.choices.fault(2 * may_end.len());
            if fault > 0 {
                let task = self.task(may_end[(fault - 1) / 2]);
                match fault % 2 {
                    1 => task.end(),
                    _ => task.cancel(),
                }
                return Ok(true);
            }
        }
        woken.sort_unstable();
        let mut next: Vec<u64> = woken.iter().map(|(_, index)| *index).collect();
        let timers = shared.timers.borrow();
        let first = timers.first_key_value().map(|((time, _), _)| *time);
        let due = timers.keys().take_while(|(time, _)| Some(*time) == first);
        next.extend(due.map(|(_, nth)| FIRST_TIMER + nth));
        drop(timers);
        if next.is_empty() {
            bail!("deadlock: nothing will wake {}", self.waiting());
        }
        let ordinary = next.len();
        if shared.spurious_left.get() > 0 {
            next.extend(asleep);
        }
        let picked = shared.choices.pick_id(&mut next.iter().copied());
        if picked >= ordinary {
            shared.spurious_left.set(shared.spurious_left.get() - 1);
        }
        match next[picked].checked_sub(FIRST_TIMER) {
            Some(timer) => self.fire(timer),
            None => self.poll(next[picked] as usize)?,
        }
        Ok(true)
    }

    fn fire(&self, timer: u64) {
        let mut timers = self.shared.timers.borrow_mut();
        let (time, _) = *timers.keys().find(|(_, nth)| *nth == timer).expect("it is set");
        let waker = timers.remove(&(time, timer)).expect("it is set");
        drop(timers);
        self.shared.now.set(time);
        // CAUTION: runs arbitrary user code.
        waker.wake();
    }

    fn poll(&self, index: usize) -> Result<()> {
        let (job, wakes) = {
            let slot = &mut self.shared.tasks.borrow_mut()[index];
            (slot.job.take(), Arc::clone(&slot.wakes))
        };
        let mut job = job.expect("a task that can be polled has a job");
        wakes.woken.store(0, Ordering::SeqCst);
        let waker = Waker::from(wakes);
        let mut cx = Context::from_waker(&waker);
        // CAUTION: runs arbitrary user code.
        let polled = match &mut job {
            Job::Future(future) => future.as_mut().poll(&mut cx),
            Job::Function(spawn) => Pin::new(spawn).poll(&mut cx),
            // A function that was cancelled may end with any error.
            Job::Cancelled(spawn) => Pin::new(spawn).poll(&mut cx).map(|_| Ok(())),
        };
        let (slot_name, unused) = {
            let slot = &mut self.shared.tasks.borrow_mut()[index];
            match polled.is_pending() && !slot.is_over {
                true => {
                    slot.job = Some(job);
                    return Ok(());
                }
                false => {
                    slot.is_over = true;
                    (slot.name.clone(), job)
                }
            }
        };
        // CAUTION: runs arbitrary user code.
        drop(unused);
        match polled {
            Poll::Ready(result) => result.with_context(|| format!("the task {slot_name:?} failed")),
            Poll::Pending => Ok(()),
        }
    }

    fn task(&self, index: usize) -> Task {
        Task {
            shared: Rc::downgrade(&self.shared),
            index,
        }
    }

    /// Lists the tasks that have not ended.
    fn waiting(&self) -> String {
        let tasks = self.shared.tasks.borrow();
        let waiting = tasks.iter().filter_map(|slot| {
            let awaits_at = match slot.job.as_ref()? {
                Job::Function(spawn) => spawn.awaits_at(),
                _ => None,
            };
            Some(match awaits_at {
                Some(at) => format!("{:?}, which awaits at {at}", slot.name),
                None => format!("{:?}, spawned at {}", slot.name, slot.spawned_at),
            })
        });
        waiting.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

/// Drops the tasks at the end of a run. They may own the executor, which owns them.
struct Cleared<'a>(&'a Shared);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let jobs: Vec<Job> = self
            .0
            .tasks
            .borrow_mut()
            .iter_mut()
            .filter_map(|slot| slot.job.take())
            .collect();
        let timers = self.0.timers.take();
        // CAUTION: runs arbitrary user code.
        drop((jobs, timers));
    }
}
