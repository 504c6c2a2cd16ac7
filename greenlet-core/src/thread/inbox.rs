//! Requests that other threads make of a thread: functions to run at its next switch.
//!
//! Only a greenlet's own thread may touch the greenlet. So a thread that wants to know something of
//! all greenlets asks every thread that has some.
//!
//! ```text
//!   the asking thread                                 each thread that has greenlets
//!     Request::send_to_all:                             ... fast switches ...
//!       puts the request into each inbox
//!       raises REMOTE_CALL in each `SwitchFlags` ────►  the next switch takes the cold path:
//!     Request::wait                                     it runs its requests, then switches
//! ```
//!
//! A switch pays nothing for this: it checks the flags in any case.
//!
//! # Invariants
//!
//! - **[registered-alive]** `Entry::flags` points into the thread state of a living thread of the
//!   process `Entry::process`. The thread adds its entry when it creates its main greenlet, and
//!   removes it, under the lock of [`REGISTRY`], before its thread-locals are gone. The pointer is
//!   used only under that lock.
//! - **[flags-only]** Another thread uses nothing of a thread state except [`SwitchFlags`], which
//!   is atomic.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::backend;
use crate::stack::Around;
use crate::thread::{SwitchFlags, ThreadId, ThreadState, flag};

/// The free stack that a greenlet must have to run a request, in bytes. A backtrace uses 7 KiB.
const ROOM: usize = 24 << 10;

/// The threads that have greenlets. Read by tools/greenlet-gdb.py.
static REGISTRY: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    thread: ThreadId,
    /// A fork copies the entries, but not the threads.
    process: u32,
    flags: *const SwitchFlags,
    inbox: Arc<Inbox>,
}

// SAFETY: the other fields are `Send`, and the pointer may be used from any thread:
// [registered-alive] says when, and [flags-only] that the target is made for it.
unsafe impl Send for Entry {}

/// The requests that one thread has not run yet.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<VecDeque<Arc<Request>>>);

/// A function that all threads are asked to run.
pub(crate) struct Request {
    /// Must not switch. What it returns is dropped.
    task: Box<dyn Fn() -> std::thread::Result<()> + Send + Sync>,
    /// The threads that have not run it.
    missing: Mutex<Vec<ThreadId>>,
    /// Notified when `missing` gets shorter.
    done: Condvar,
}

impl Request {
    /// Asks all threads that have greenlets to run `task`, which must not switch.
    pub(crate) fn send_to_all(
        task: impl Fn() -> std::thread::Result<()> + Send + Sync + 'static,
    ) -> Arc<Request> {
        let request = Arc::new(Request {
            task: Box::new(task),
            missing: Mutex::new(Vec::new()),
            done: Condvar::new(),
        });
        let process = std::process::id();
        let registry = REGISTRY.lock();
        for entry in registry.iter().filter(|entry| entry.process == process) {
            request.missing.lock().push(entry.thread);
            entry.inbox.0.lock().push_back(Arc::clone(&request));
            // SAFETY: the registry is locked, so the thread cannot have removed its entry and
            // ended. [registered-alive]
            let flags = unsafe { &*entry.flags };
            flags.raise(flag::REMOTE_CALL);
        }
        request
    }

    /// Removes the calling thread from those that have not run the request.
    fn mark_done(&self) {
        let thread = ThreadId::current();
        self.missing.lock().retain(|missing| *missing != thread);
        self.done.notify_all();
    }

    /// Returns the threads that have neither run the request nor ended.
    pub(crate) fn missing(&self) -> Vec<ThreadId> {
        self.missing.lock().clone()
    }

    /// Waits until no thread is missing, but not longer than `limit`, and returns the missing ones.
    pub(crate) fn wait(&self, limit: Duration) -> Vec<ThreadId> {
        let mut missing = self.missing.lock();
        self.done
            .wait_while_for(&mut missing, |missing| !missing.is_empty(), limit);
        missing.clone()
    }
}

/// Adds the calling thread to the registry, with an empty inbox.
pub(crate) fn register(thread: &ThreadState) {
    let inbox = Arc::new(Inbox::default());
    thread.inbox.replace(Some(Arc::clone(&inbox)));
    REGISTRY.lock().push(Entry {
        thread: ThreadId::current(),
        process: std::process::id(),
        flags: &raw const thread.flags,
        inbox,
    });
}

/// Removes the calling thread, which is about to end, from the registry. [registered-alive]
/// Returns the requests that it has not run.
pub(crate) fn unregister(thread: &ThreadState) -> VecDeque<Arc<Request>> {
    let Some(inbox) = thread.inbox.take() else {
        return VecDeque::new();
    };
    REGISTRY.lock().retain(|entry| !Arc::ptr_eq(&entry.inbox, &inbox));
    // No thread can add to the inbox any more.
    let requests = std::mem::take(&mut *inbox.0.lock());
    requests.iter().for_each(|request| request.mark_done());
    requests
}

/// Runs the requests in the calling thread's inbox. Costs one look at a flag if there is none.
#[inline]
pub(crate) fn run_requests(thread: &ThreadState) {
    if thread.has_flag(flag::REMOTE_CALL) {
        run_requests_slow(thread);
    }
}

#[cold]
#[inline(never)]
fn run_requests_slow(thread: &ThreadState) {
    let here = backend::stack_pointer();
    let usage = Around::of(here).map(|stack| stack.usage(here));
    if usage.is_some_and(|(used, size)| size.saturating_sub(used) < ROOM) {
        return; // the flag stays raised for a greenlet with more room
    }
    thread.lower_flag(flag::REMOTE_CALL);
    let (mut done, mut unwound) = (Vec::new(), None);
    for request in take_requests(thread) {
        // CAUTION: runs arbitrary user code, which cannot switch. Ends that the task defers run
        // after it, and may unwind.
        let outcome = catch_unwind(AssertUnwindSafe(|| (request.task)()));
        request.mark_done();
        let outcome = outcome.unwrap_or_else(|payload| match unwound {
            Some(_) => Err(payload),
            None => {
                unwound = Some(payload);
                Ok(())
            }
        });
        done.push((request, outcome));
    }
    // Last: a destructor may switch, and would run the remaining requests inside itself.
    // CAUTION: runs arbitrary user code: destructors of what tasks captured, and of payloads.
    done.into_iter().for_each(drop);
    if let Some(payload) = unwound {
        resume_unwind(payload);
    }
}

fn take_requests(thread: &ThreadState) -> VecDeque<Arc<Request>> {
    let inbox = thread.inbox.borrow();
    let Some(inbox) = &*inbox else {
        return VecDeque::new();
    };
    std::mem::take(&mut *inbox.0.lock())
}
