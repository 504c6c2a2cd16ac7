//! The public id of a thread.

use std::fmt;

use crate::payload::thread_id::thread_id;

/// Identifies a thread in the result of [`Broadcast::wait`](crate::Broadcast::wait).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::ThreadId;
/// let other = std::thread::spawn(ThreadId::current).join().unwrap();
/// assert_ne!(other, ThreadId::current());
/// println!("thread {other} has ended");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThreadId {
    id: u64,
    os: Option<u64>, // read by tools/greenlet-gdb.py
}

impl ThreadId {
    /// Returns the id of the calling thread.
    pub fn current() -> ThreadId {
        ThreadId {
            id: thread_id(),
            os: os_id(),
        }
    }

    /// Returns the system's number of the thread, as debuggers and `top` show it. `None` except on
    /// Linux.
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
fn os_id() -> Option<u64> {
    // SAFETY: the call has no arguments and cannot fail.
    let id = unsafe { libc::gettid() };
    u64::try_from(id).ok()
}

#[cfg(not(target_os = "linux"))]
fn os_id() -> Option<u64> {
    None
}

/// Returns `true` on the thread that the process started with.
pub(crate) fn is_first_of_process() -> bool {
    match os_id() {
        Some(id) => id == u64::from(std::process::id()),
        None => std::thread::current().name() == Some("main"), // the standard library's name for it
    }
}
