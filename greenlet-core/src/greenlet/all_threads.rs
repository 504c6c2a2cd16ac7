//! Functions that every thread with greenlets runs at its next switch: `thread/inbox.rs` brings
//! them there.

#![forbid(unsafe_code)]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::greenlet::no_switch::no_switch;
use crate::thread::inbox::{self, Request};
use crate::thread::{ThreadId, ThreadState};

/// Asks every thread that has greenlets to run `task`, and returns at once.
///
/// Each thread runs it at its next switch, in the greenlet that is about to switch. That greenlet
/// must have 24 KiB of free stack; otherwise the next one with more runs it. The task may look at
/// all greenlets of the thread, but may not switch. A panic in it is caught and dropped. A thread
/// that does not switch must call [`run_pending_broadcasts`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::time::Duration;
/// use greenlet::{getcurrent, greenlets, run_on_all_threads, run_pending_broadcasts};
/// let _main = getcurrent(); // this thread has greenlets from now on
/// let broadcast = run_on_all_threads(|| println!("{} greenlets here", greenlets().len()));
/// run_pending_broadcasts(); // or any switch
/// assert!(broadcast.wait(Duration::from_secs(1)).is_empty());
/// ```
pub fn run_on_all_threads(task: impl Fn() + Send + Sync + 'static) -> Broadcast {
    // CAUTION: runs arbitrary user code, which cannot switch.
    let task = move || no_switch(|| catch_unwind(AssertUnwindSafe(&task)));
    Broadcast(Request::send_to_all(task))
}

/// Runs what [`run_on_all_threads`] has asked of the calling thread. For loops that rarely switch:
/// if there is nothing to run, it only checks a flag.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::run_pending_broadcasts;
/// for _chunk in 0..1000 {
///     // ... compute ...
///     run_pending_broadcasts();
/// }
/// ```
#[inline]
pub fn run_pending_broadcasts() {
    inbox::run_requests(ThreadState::current());
}

/// A task that all threads were asked to run: see [`run_on_all_threads`].
#[must_use = "only `wait` tells which threads have run the task"]
pub struct Broadcast(Arc<Request>);

impl Broadcast {
    /// Blocks until every thread has run the task or has ended, but at most for `limit`. Returns
    /// the threads that have done neither.
    ///
    /// It does not run the task in the calling thread: call [`run_pending_broadcasts`] first.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::time::Duration;
    /// use greenlet::{ThreadId, getcurrent, run_on_all_threads, run_pending_broadcasts};
    /// let _main = getcurrent(); // this thread has greenlets from now on
    /// let broadcast = run_on_all_threads(|| {});
    /// assert_eq!(broadcast.wait(Duration::ZERO), [ThreadId::current()]);
    /// run_pending_broadcasts();
    /// assert!(broadcast.wait(Duration::ZERO).is_empty());
    /// ```
    pub fn wait(&self, limit: Duration) -> Vec<ThreadId> {
        self.0.wait(limit)
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast")
            .field("missing", &self.0.missing())
            .finish_non_exhaustive()
    }
}
