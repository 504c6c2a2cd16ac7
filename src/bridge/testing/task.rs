//! The tasks of the executor of explored tests.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Weak;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use anyhow::Result;

use crate::bridge::spawn::{Spawn, SpawnResult};
use crate::testing::explore::Choices;

/// The state of an executor.
pub(super) struct Shared {
    pub(super) choices: Choices,
    pub(super) tasks: RefCell<Vec<Slot>>,
    pub(super) timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    pub(super) now: Cell<Duration>,
    /// How many timers there were.
    pub(super) timer_count: Cell<u64>,
    pub(super) spurious_left: Cell<u32>,
    pub(super) wake_count: Arc<AtomicU64>,
}

pub(super) struct Slot {
    pub(super) name: String,
    pub(super) spawned_at: &'static Location<'static>,
    pub(super) wakes: Arc<Wakes>,
    pub(super) may_end: bool,
    /// `None` while it is being polled, and after its end.
    pub(super) job: Option<Job>,
    pub(super) is_over: bool,
}

pub(super) enum Job {
    Future(Pin<Box<dyn Future<Output = Result<()>>>>),
    Function(Spawn<Result<()>>),
    Cancelled(SpawnResult<Result<()>>),
}

/// When a task was woken: the number of that wake-up, or 0.
pub(super) struct Wakes {
    pub(super) woken: AtomicU64,
    pub(super) count: Arc<AtomicU64>,
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

/// A task of an [`Executor`](crate::testing::Executor). Dropping this does not end the task.
#[derive(Clone)]
pub struct Task {
    pub(super) shared: Weak<Shared>,
    pub(super) index: usize,
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
