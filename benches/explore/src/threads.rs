//! The world of Shuttle's threads.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::thread::{self, JoinHandle, Thread};
use shuttle::{Config, Runner};

use crate::World;

pub(crate) struct Threads;

thread_local! {
    /// The handles of a run. All threads of Shuttle share one system thread.
    static HANDLES: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
    /// The threads that wait. Shuttle wakes parked threads spuriously, too, which the other world does not.
    static PARKED: RefCell<HashSet<TaskId>> = RefCell::default();
}

impl World for Threads {
    type Id = (TaskId, Thread);

    fn spawn(task: impl FnOnce() + Send + 'static) {
        let handle = thread::spawn(task);
        HANDLES.with_borrow_mut(|handles| handles.push(handle));
    }

    fn pause() {
        thread::sleep(std::time::Duration::ZERO); // a switch point, without the hint of `yield_now`
    }

    fn park() {
        PARKED.with_borrow_mut(|parked| parked.insert(shuttle::current::me()));
        thread::park();
    }

    fn wake((id, thread): (TaskId, Thread)) {
        PARKED.with_borrow_mut(|parked| parked.remove(&id));
        thread.unpark();
    }

    fn me() -> (TaskId, Thread) {
        (shuttle::current::me(), thread::current())
    }

    fn join_all() {
        for handle in HANDLES.take() {
            handle.join().expect("no thread panics");
        }
    }
}

/// Counts the decisions of another scheduler.
#[derive(Debug)]
struct Counting {
    inner: RandomScheduler,
    points: Arc<AtomicU64>,
}

impl Scheduler for Counting {
    fn new_execution(&mut self) -> Option<Schedule> {
        PARKED.take();
        self.inner.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        self.points.fetch_add(1, Ordering::Relaxed);
        PARKED.with_borrow(|parked| {
            if parked.is_empty() {
                return self.inner.next_task(runnable, current, is_yielding);
            }
            let is_awake = |task: &&&Task| !parked.contains(&task.id());
            let awake: Vec<&Task> = runnable.iter().filter(is_awake).copied().collect();
            self.inner.next_task(&awake, current, is_yielding)
        })
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}

/// Runs random orders of a program, and returns the number of their switch points.
pub(crate) fn run(seed: u64, orders: u64, program: fn()) -> u64 {
    let points = Arc::new(AtomicU64::new(0));
    let scheduler = Counting {
        inner: RandomScheduler::new_from_seed(seed, orders as usize),
        points: Arc::clone(&points),
    };
    let ran = Runner::new(scheduler, Config::new()).run(program);
    assert_eq!(ran as u64, orders);
    points.load(Ordering::Relaxed)
}
