//! Keeps a value of one thread inside an error, which may go to any thread.
//!
//! `anyhow::Error` requires errors that are `Send`; the values that greenlets exchange need not be.
//!
//! - **[home-thread]** `value` is read, moved and dropped only on the thread whose id is `thread`.
//!   No other thread ever has that id ([`thread_id`]). If another thread drops the wrapper, the
//!   value is leaked.

use std::fmt;
use std::mem::ManuallyDrop;

use crate::payload::thread_id::thread_id;

/// A value that only the thread that created the wrapper can reach.
pub(crate) struct ThreadBound<T> {
    value: ManuallyDrop<T>,
    thread: u64,
}

// SAFETY: other threads can move and drop the wrapper, which then uses `thread` alone.
// [home-thread]
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: a shared reference gives access to the value on its own thread only. [home-thread]
unsafe impl<T> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    pub(crate) fn new(value: T) -> ThreadBound<T> {
        ThreadBound {
            value: ManuallyDrop::new(value),
            thread: thread_id(),
        }
    }

    fn is_at_home(&self) -> bool {
        self.thread == thread_id()
    }

    /// Borrows the value. Returns `None` on any thread except its own.
    pub(crate) fn get(&self) -> Option<&T> {
        self.is_at_home().then(|| &*self.value)
    }

    /// Takes the value out. Returns the wrapper again on any thread except its own.
    pub(crate) fn into_inner(self) -> Result<T, Self> {
        if !self.is_at_home() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: this is the value's thread, and `this` is neither used nor dropped again.
        // [home-thread]
        Ok(unsafe { ManuallyDrop::take(&mut this.value) })
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        if self.is_at_home() {
            // SAFETY: this is the value's thread, and nothing uses the value after the drop.
            // [home-thread]
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for ThreadBound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(value) => value.fmt(f),
            None => f.write_str("(a value of another thread)"),
        }
    }
}
