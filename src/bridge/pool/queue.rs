//! The functions of a pool: those that run, those that wait, and what is decided when one comes or
//! ends.
//!
//! ```text
//!   submit ──► max_running not reached ──► start on the thread with the least to do
//!      ├─────► max_waiting not reached ──► queue ──── a function ends ────► start
//!      └─────► otherwise refused
//! ```
//!
//! The lock is never held while user code runs, or is dropped.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::control::{Control, Request};
use super::error::PoolError;
use super::worker::Worker;

/// Starts a function on the thread that calls it. The function ends when the [`Running`] is dropped.
pub(super) type Job = Box<dyn FnOnce(Running) + Send>;

/// The functions and the threads of one pool.
pub(super) struct Queue {
    workers: Box<[Worker]>,
    max_running: usize,
    max_waiting: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    is_shut_down: bool,
    running: BTreeMap<u64, Arc<Control>>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    id: u64,
    control: Arc<Control>,
    job: Job,
}

impl Queue {
    pub(super) fn new(workers: Box<[Worker]>, max_running: usize, max_waiting: usize) -> Queue {
        Queue {
            workers,
            max_running,
            max_waiting,
            state: Mutex::default(),
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a function, or lets it wait. Returns its id.
    pub(super) fn submit(self: &Arc<Queue>, control: Arc<Control>, job: Job) -> Result<u64, PoolError> {
        let mut state = self.state();
        if state.is_shut_down {
            return Err(PoolError::shut_down());
        }
        let id = state.next_id;
        state.next_id += 1;
        if state.running.len() < self.max_running {
            state.running.insert(id, control);
            drop(state);
            self.start(id, job);
        } else if state.waiting.len() < self.max_waiting {
            state.waiting.push_back(Waiting { id, control, job });
        } else {
            return Err(PoolError::full(state.running.len(), state.waiting.len()));
        }
        Ok(id)
    }

    /// Starts a function that is counted as running, on the thread with the least to do.
    fn start(self: &Arc<Queue>, id: u64, job: Job) {
        let workers = self.workers.iter().enumerate();
        let (index, worker) = workers
            .min_by_key(|(_, worker)| worker.business())
            .expect("a pool has at least one thread");
        worker.add_load();
        let running = Running {
            queue: Arc::clone(self),
            id,
            index,
        };
        worker.send(Box::new(move || job(running)));
    }

    /// Removes a function that has ended, and starts the one that has waited for longest.
    fn ended(self: &Arc<Queue>, id: u64) {
        let mut state = self.state();
        state.running.remove(&id);
        let next = match state.running.len() < self.max_running {
            true => state.waiting.pop_front(),
            false => None,
        };
        let next = next.map(|Waiting { id, control, job }| {
            state.running.insert(id, control);
            (id, job)
        });
        let is_over = state.is_over();
        drop(state);
        if let Some((id, job)) = next {
            self.start(id, job);
        }
        if is_over {
            self.workers.iter().for_each(Worker::close);
        }
    }

    /// Drops a function that still waits.
    pub(super) fn remove(&self, id: u64) {
        let mut state = self.state();
        let index = state.waiting.iter().position(|waiting| waiting.id == id);
        let removed = index.and_then(|index| state.waiting.remove(index));
        drop(state);
        // CAUTION: runs arbitrary user code.
        drop(removed);
    }

    /// Refuses functions from now on, and ends the threads after the last one.
    pub(super) fn shut_down(&self) {
        let mut state = self.state();
        state.is_shut_down = true;
        let is_over = state.is_over();
        drop(state);
        if is_over {
            self.workers.iter().for_each(Worker::close);
        }
    }

    /// Cancels all functions.
    pub(super) fn cancel_all(&self) {
        let mut state = self.state();
        let running: Vec<_> = state.running.values().cloned().collect();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for control in running {
            control.ask(Request::Cancel);
        }
        for Waiting { control, job, .. } in waiting {
            control.ask(Request::Cancel);
            // CAUTION: runs arbitrary user code.
            drop(job);
        }
    }
}

impl State {
    /// Returns `true` if nothing runs, and nothing will.
    fn is_over(&self) -> bool {
        self.is_shut_down && self.running.is_empty() && self.waiting.is_empty()
    }
}

/// Counts a function as running, until it is dropped.
pub(super) struct Running {
    queue: Arc<Queue>,
    id: u64,
    index: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.workers[self.index].remove_load();
        self.queue.ended(self.id);
    }
}
