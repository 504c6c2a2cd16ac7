//! Keeps a value of one thread inside an error, which may go to any thread.
//!
//! `anyhow::Error` requires `Send`, and the values that greenlets exchange need not be. A refused
//! switch returns the value inside its error. Every thread may hold the error, but only the thread
//! that created it can use the value.
//!
//! # Invariants
//!
//! - **[own-thread]** `value` is read, moved and dropped only on the thread whose id is `thread`.
//!   If the last owner is on another thread, the value is leaked.
//! - **[ids-once]** No thread id is used twice (`thread/id.rs`).

use std::fmt;
use std::mem::ManuallyDrop;

use crate::thread;

pub(crate) struct ThreadBound<T> {
    value: ManuallyDrop<T>,
    thread: u64,
}

// SAFETY: other threads can move and drop the wrapper, which uses only `thread` there [own-thread].
// No later thread has the same id [ids-once].
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: a shared reference gives access to the value only on its own thread [own-thread].
unsafe impl<T> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    pub(crate) fn new(value: T) -> ThreadBound<T> {
        ThreadBound {
            value: ManuallyDrop::new(value),
            thread: thread::id(),
        }
    }

    fn is_at_home(&self) -> bool {
        self.thread == thread::id()
    }

    /// Borrows the value. Returns `None` on other threads.
    pub(crate) fn get(&self) -> Option<&T> {
        self.is_at_home().then(|| &*self.value)
    }

    /// Takes the value out. Returns the wrapper again on other threads.
    pub(crate) fn into_inner(self) -> Result<T, Self> {
        if !self.is_at_home() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: this is the value's thread [own-thread], and `this` is neither used nor dropped
        // again.
        Ok(unsafe { ManuallyDrop::take(&mut this.value) })
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        if self.is_at_home() {
            // SAFETY: this is the value's thread [own-thread], and nothing uses the value after the
            // drop.
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
