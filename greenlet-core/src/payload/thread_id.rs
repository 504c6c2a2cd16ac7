//! Ids of threads.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// 0 until it is asked for. It has no destructor, so it can be read until the thread is gone.
    static ID: Cell<u64> = const { Cell::new(0) };
}

/// Returns the id of the calling thread. No other thread of the process ever has the same id.
pub(crate) fn thread_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if ID.get() == 0 {
        ID.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    ID.get()
}
