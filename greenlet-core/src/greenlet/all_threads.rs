//! Errands: functions that every thread with greenlets is asked to run, at its next switch.
//!
//! For those who want to look at the greenlets of all threads: only a greenlet's own thread may touch it.
//!
//! ```text
//!   who asks                               each thread that has greenlets
//!     puts the task into each inbox        ... fast switches ...
//!     raises REMOTE_CALL in each `ThreadState::slow` ──►  the next switch sees a flag, and leaves the fast path:
//!     waits, reminds ...                       runs what is in its inbox, then switches
//! ```
//!
//! Nothing of this costs a switch anything: the flag is one of those that it looks at anyway.
//!
//! # Invariants
//!
//! - **A1** A pointer in the register points to the flags in the hub of a living thread of this process:
//!   a thread enters itself when its main greenlet is made, and strikes itself off, under the register's lock,
//!   before its thread-locals go. It is followed under that lock alone.
//! - **A2** Another thread does nothing with a hub but to raise a flag in [`SwitchFlags`], which is atomic.
//!
//! An task is in the inbox before the flag is raised, and the flag is lowered before the inbox is
//! emptied: so a flag that is lowered leaves nothing behind.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::greenlet::no_switch;
use crate::thread::{self, SwitchFlags, ThreadState, flag};

/// What must be left of a greenlet's stack for an task to be run on it, in bytes. A backtrace takes 7 KiB.
const ROOM: usize = 24 << 10;

/// The threads that have greenlets.
static REGISTRY: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    thread: ThreadId,
    /// The process that it is a thread of: after a fork, the child has the memory, but not the threads.
    process: u32,
    flags: *const SwitchFlags,
    inbox: Arc<Inbox>,
}

// SAFETY: A1, A2.
unsafe impl Send for Entry {}

/// What one thread is asked to run.
#[derive(Default)]
pub(crate) struct Inbox {
    errands: Mutex<VecDeque<Arc<Request>>>,
}

struct Request {
    task: Box<dyn Fn() + Send + Sync>,
    /// The threads that have not run it.
    missing: Mutex<Vec<ThreadId>>,
    one_less: Condvar,
}

impl Request {
    fn mark_done_by(&self, thread: ThreadId) {
        self.missing.lock().retain(|missing| *missing != thread);
        self.one_less.notify_all();
    }
}

/// How a thread is called in the answers of [`Broadcast::wait`].
///
/// # Examples
///
/// ```
/// use greenlet_core::ThreadId;
///
/// let other = std::thread::spawn(ThreadId::current).join().unwrap();
/// assert_ne!(other, ThreadId::current());
/// println!("thread {other} has ended");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThreadId {
    id: u64,
    os: Option<u64>,
}

impl ThreadId {
    /// The id of the calling thread.
    pub fn current() -> ThreadId {
        ThreadId {
            id: thread::id(),
            os: os_id(),
        }
    }

    /// The system's number of the thread, as debuggers and `top` show it. On Linux only.
    pub fn os(&self) -> Option<u64> {
        self.os
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.os {
            Some(os) => write!(f, "{os}"),
            None => write!(f, "#{}", self.id),
        }
    }
}

#[cfg(target_os = "linux")]
pub(crate) fn os_id() -> Option<u64> {
    // SAFETY: takes nothing, and always succeeds.
    let id = unsafe { libc::gettid() };
    u64::try_from(id).ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn os_id() -> Option<u64> {
    None
}

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
    let shared = Arc::new(Request {
        task: Box::new(task),
        missing: Mutex::new(Vec::new()),
        one_less: Condvar::new(),
    });
    let register = REGISTRY.lock();
    for entry in living(&register) {
        shared.missing.lock().push(entry.thread);
        entry.inbox.errands.lock().push_back(Arc::clone(&shared));
    }
    remind(&register);
    drop(register);
    Broadcast { shared }
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
pub struct Broadcast {
    shared: Arc<Request>,
}

impl Broadcast {
    /// Waits until all threads have run it or have ended, but not longer than `limit`, and returns those that have not.
    ///
    /// The calling thread, if it is one of them, does not run it by waiting: call [`run_pending_broadcasts`] before.
    pub fn wait(&self, limit: Duration) -> Vec<ThreadId> {
        /// Belt and braces: a flag once raised is not lost.
        const BETWEEN_REMINDERS: Duration = Duration::from_millis(5);
        let until = Instant::now().checked_add(limit);
        loop {
            let mut missing = self.shared.missing.lock();
            let left = until.map_or(Duration::MAX, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if missing.is_empty() || left.is_zero() {
                return missing.clone();
            }
            self.shared
                .one_less
                .wait_for(&mut missing, left.min(BETWEEN_REMINDERS));
            drop(missing);
            remind(&REGISTRY.lock());
        }
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast")
            .field("missing", &*self.shared.missing.lock())
            .finish_non_exhaustive()
    }
}

fn living(register: &[Entry]) -> impl Iterator<Item = &Entry> {
    let process = std::process::id();
    register.iter().filter(move |entry| entry.process == process)
}

/// Raises the flag of every thread that has something in its inbox.
fn remind(register: &[Entry]) {
    for entry in living(register) {
        if !entry.inbox.errands.lock().is_empty() {
            // SAFETY: A1: the register is locked, so the thread is alive. A2.
            unsafe { &*entry.flags }.raise(flag::REMOTE_CALL);
        }
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
    let Some(inbox) = thread.inbox.borrow().clone() else {
        return;
    };
    loop {
        let next = inbox.errands.lock().pop_front();
        let Some(shared) = next else { return };
        // CAUTION: runs foreign code, which cannot switch.
        let outcome = no_switch::no_switch(|| catch_unwind(AssertUnwindSafe(|| (shared.task)())));
        shared.mark_done_by(ThreadId::current());
        drop(outcome);
    }
}

/// Enters the calling thread into the register.
pub(crate) fn enter(thread: &ThreadState) {
    let inbox = Arc::new(Inbox::default());
    thread.inbox.replace(Some(Arc::clone(&inbox)));
    REGISTRY.lock().push(Entry {
        thread: ThreadId::current(),
        process: std::process::id(),
        flags: &raw const thread.flags,
        inbox,
    });
}

/// Strikes the calling thread off the register: it is about to end (A1).
pub(crate) fn leave(thread: &ThreadState) {
    let Some(inbox) = thread.inbox.take() else { return };
    REGISTRY.lock().retain(|entry| !Arc::ptr_eq(&entry.inbox, &inbox));
    // Nobody can add to it any more.
    let thread = ThreadId::current();
    for shared in inbox.errands.lock().drain(..) {
        shared.mark_done_by(thread);
    }
}
