//! An executor for explored tests: it asks the choices which task it polls, and when a timer fires.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::bridge::spawn::{Spawn, SpawnBuilder, SpawnResult};
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

struct Shared {
    choices: Choices,
    tasks: RefCell<Vec<Slot>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    now: Cell<Duration>,
    /// How many timers there were.
    timer_count: Cell<u64>,
    spurious_left: Cell<u32>,
    wake_count: Arc<AtomicU64>,
}

struct Slot {
    name: String,
    spawned_at: &'static Location<'static>,
    wakes: Arc<Wakes>,
    may_end: bool,
    /// `None` while it is being polled, and after its end.
    job: Option<Job>,
    is_over: bool,
}

enum Job {
    Future(Pin<Box<dyn Future<Output = Result<()>>>>),
    Function(Spawn<Result<()>>),
    Cancelled(SpawnResult<Result<()>>),
}

/// When a task was woken: the number of that wake-up, or 0.
struct Wakes {
    woken: AtomicU64,
    count: Arc<AtomicU64>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let nth = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        // A second wake-up before the poll changes nothing.
        let _ = self
            .woken
            .compare_exchange(0, nth, Ordering::SeqCst, Ordering::SeqCst);
    }
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

/// A task of an [`Executor`]. Dropping this does not end the task.
#[derive(Clone)]
pub struct Task {
    shared: Weak<Shared>,
    index: usize,
}

impl Task {
    /// Allows that the task ends early, as a fault: that its future is dropped, or, if it is a function,
    /// cancelled ([`Spawn::cancel`]). This may happen at every step between two polls. See
    /// [`Explore::faults`](crate::testing::explore::Explore::faults).
    pub fn may_end(self) -> Task {
        if let Some(shared) = self.shared.upgrade() {
            shared.tasks.borrow_mut()[self.index].may_end = true;
        }
        self
    }

    /// Returns `true` if the task has ended.
    pub fn is_finished(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_none_or(|shared| shared.tasks.borrow()[self.index].is_over)
    }

    /// Ends the task: drops its future. If the task calls it, that happens at the end of the poll.
    pub fn end(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let job = {
            let slot = &mut shared.tasks.borrow_mut()[self.index];
            slot.is_over = true;
            slot.job.take()
        };
        // CAUTION: runs arbitrary user code.
        drop(job);
    }

    /// Cancels the function of the task ([`Spawn::cancel`]). A task that is a future is ended.
    pub fn cancel(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let job = {
            let slot = &mut shared.tasks.borrow_mut()[self.index];
            match slot.job.take() {
                Some(Job::Function(spawn)) => {
                    slot.job = Some(Job::Cancelled(spawn.cancel()));
                    slot.wakes.wake_by_ref();
                    return;
                }
                job => job,
            }
        };
        match job {
            Some(Job::Cancelled(spawn)) => {
                shared.tasks.borrow_mut()[self.index].job = Some(Job::Cancelled(spawn));
            }
            job => {
                // CAUTION: runs arbitrary user code.
                drop(job);
                self.end();
            }
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// A future that is ready after a virtual time: see [`Executor::sleep`]. Dropping it removes the timer.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    shared: Weak<Shared>,
    until: Duration,
    /// The number of the timer that is set.
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else {
            return Poll::Pending; // the executor is gone, and its time with it
        };
        if shared.now.get() >= self.until {
            return Poll::Ready(());
        }
        let timer = self
            .timer
            .unwrap_or_else(|| shared.timer_count.replace(shared.timer_count.get() + 1));
        self.timer = Some(timer);
        // CAUTION: cloning a waker runs arbitrary user code.
        let waker = cx.waker().clone();
        let replaced = shared.timers.borrow_mut().insert((self.until, timer), waker);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(timer), Some(shared)) = (self.timer, self.shared.upgrade()) {
            let waker = shared.timers.borrow_mut().remove(&(self.until, timer));
            drop(waker);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Awaits a future, or fails instead: a fault of the choices. Use it in the fake of a server, a disk or a
/// database.
///
/// # Errors
///
/// Returns the error of the future, or `error()` if the choice says so.
///
/// # Examples
///
/// ```
/// use greenlet::bridge::testing::{Executor, or_fault};
/// use greenlet::testing::explore::Explore;
///
/// let report = Explore::new().run(|choices| {
///     let executor = Executor::new(choices);
///     let choices = choices.clone();
///     executor.spawn("client", async move {
///         or_fault(&choices, async { Ok(()) }, || anyhow::anyhow!("connection reset")).await
///     });
///     executor.run()
/// });
/// let message = report.failure().unwrap().message();
/// assert_eq!(message, r#"the task "client" failed: connection reset"#);
/// ```
#[track_caller]
pub fn or_fault<T, E>(
    choices: &Choices,
    future: impl Future<Output = Result<T, E>>,
    error: impl FnOnce() -> E,
) -> impl Future<Output = Result<T, E>> {
    async move {
        match choices.fault(1) {
            0 => future.await,
            _ => Err(error()),
        }
    }
}
