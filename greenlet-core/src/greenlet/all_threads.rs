//! Errands: functions that every thread with greenlets is asked to run, at its next switch.
//!
//! For those who want to look at the greenlets of all threads: only a greenlet's own thread may touch it.
//!
//! How they get there: `thread/inbox.rs`.

#![forbid(unsafe_code)]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::greenlet::no_switch;
use crate::thread::inbox::{self, Request};
use crate::thread::{self, ThreadId, ThreadState, flag};

/// What must be left of a greenlet's stack for an task to be run on it, in bytes. A backtrace takes 7 KiB.
const ROOM: usize = 24 << 10;

/// Asks every thread that has greenlets to run `task` at its next switch, and returns at once.
///
/// A thread runs it where it was about to switch, throw, or start a greenlet, in the greenlet that was
/// about to, if 24 KiB of that one's stack are left: it may look at everything, but not switch. One that does not switch (because it waits for
/// something, or computes) does not run it; [`run_pending_broadcasts`] can be called there. A panic in it goes nowhere.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenlet_core::{run_on_all_threads, getcurrent, greenlets, run_pending_broadcasts};
///
/// let _main = getcurrent(); // so that this thread is one with greenlets
/// let task = run_on_all_threads(|| println!("{} greenlets here", greenlets().len()));
/// run_pending_broadcasts(); // or any switch
/// assert!(task.wait(Duration::from_secs(1)).is_empty());
/// ```
pub fn run_on_all_threads(task: impl Fn() + Send + Sync + 'static) -> Broadcast {
    Broadcast(Request::send_to_all(task))
}

/// Runs what [`run_on_all_threads`] has asked of this thread: for a loop that seldom switches.
///
/// It costs a look at a flag if there is nothing.
#[inline]
pub fn run_pending_broadcasts() {
    let thread = ThreadState::current();
    if thread.has_flag(flag::REMOTE_CALL) {
        run(thread);
    }
}

/// Something that all threads were asked to do: see [`run_on_all_threads`].
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
/// use greenlet_core::{ThreadId, run_on_all_threads, getcurrent};
///
/// let (ready, is_ready) = mpsc::channel();
/// let (sender, news) = mpsc::channel::<()>();
/// let waiting = std::thread::spawn(move || {
///     let _main = getcurrent(); // a thread with greenlets
///     ready.send(ThreadId::current()).unwrap();
///     let _ = news.recv(); // which does not switch
/// });
/// let thread = is_ready.recv()?;
/// let task = run_on_all_threads(|| println!("{} is here", ThreadId::current()));
/// assert_eq!(task.wait(Duration::from_millis(1)), [thread]);
/// drop(sender);
/// waiting.join().unwrap();
/// assert!(task.wait(Duration::MAX).is_empty()); // it has ended
/// # Ok::<(), mpsc::RecvError>(())
/// ```
#[must_use = "who does not wait does not know who has done it"]
pub struct Broadcast(Arc<Request>);

impl Broadcast {
    /// Waits until all threads have run it or have ended, but not longer than `limit`, and returns those that have not.
    ///
    /// The calling thread, if it is one of them, does not run it by waiting: call [`run_pending_broadcasts`] before.
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

/// Runs what is in this thread's inbox.
#[cold]
#[inline(never)]
pub(crate) fn run(thread: &ThreadState) {
    let usage = thread::current_greenlet().stack_usage();
    if usage.is_some_and(|usage| usage.size.saturating_sub(usage.used) < ROOM) {
        return; // the flag stays: another greenlet will have the room
    }
    thread.lower_flag(flag::REMOTE_CALL);
    while let Some(request) = inbox::next_request(thread) {
        // CAUTION: runs foreign code, which cannot switch.
        let outcome = no_switch::no_switch(|| catch_unwind(AssertUnwindSafe(|| (request.task)())));
        request.mark_done();
        drop(outcome);
    }
}
