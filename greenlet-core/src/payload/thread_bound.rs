//! Keeps a value of one thread inside an error, which may go to any thread.
//!
//! `anyhow::Error` wants its errors `Send`; the values that greenlets exchange need not be. A refused
//! or mismatched switch gives the value back inside the error, so the value is put in here: any thread
//! may hold the error, only the thread that made it can reach the value.
//!
//! # Invariants
//!
//! - **V1** `value` is touched (read, moved, dropped) only on the thread whose id is `thread`. Where the
//!   last owner is on another thread, the value is leaked.
//! - **V2** Thread ids are never used twice ([`thread_id`]).

use std::fmt;
use std::mem::ManuallyDrop;

use crate::payload::thread_id::thread_id;

pub(crate) struct ThreadBound<T> {
    value: ManuallyDrop<T>,
    thread: u64,
}

// SAFETY: V1, V2: other threads can move and drop the wrapper, which touches `thread` alone.
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: V1: a shared reference gives access to the value on its own thread only.
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

    /// Borrows the value; `None` on any thread but its own.
    pub(crate) fn get(&self) -> Option<&T> {
        self.is_at_home().then(|| &*self.value)
    }

    /// Takes the value out; the wrapper again on any thread but its own.
    pub(crate) fn into_inner(self) -> Result<T, Self> {
        if !self.is_at_home() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: this thread is the value's (V1), and `this` is neither used nor dropped again.
        Ok(unsafe { ManuallyDrop::take(&mut this.value) })
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        if self.is_at_home() {
            // SAFETY: this thread is the value's (V1), and nothing comes after the drop.
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
