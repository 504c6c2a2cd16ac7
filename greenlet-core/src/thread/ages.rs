//! When the greenlets of a thread were created, for `Greenlet::age`.
//!
//! Off by default: reading the clock and storing the time takes nearly as long as creating a
//! greenlet.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::node::Inner;
use crate::thread::ThreadState;

static TRACK_AGES: AtomicBool = AtomicBool::new(false);

/// Sets whether all threads record when they create greenlets.
pub(crate) fn track_ages(track: bool) {
    TRACK_AGES.store(track, Ordering::Relaxed);
}

impl ThreadState {
    /// Returns `true` if creation times are recorded.
    #[inline]
    pub(crate) fn tracks_ages(&self) -> bool {
        TRACK_AGES.load(Ordering::Relaxed)
    }

    /// Records that the greenlet is created now.
    #[cold]
    pub(crate) fn record_creation(&self, node: &Inner) {
        self.creation_times.borrow_mut().insert(node.id(), Instant::now());
    }

    /// Returns when the greenlet was created, if that was recorded.
    pub(crate) fn creation_time(&self, node: &Inner) -> Option<Instant> {
        self.creation_times.borrow().get(&node.id()).copied()
    }

    #[inline]
    pub(super) fn forget_creation(&self, node: &Inner) {
        let mut times = self.creation_times.borrow_mut();
        if !times.is_empty() {
            times.remove(&node.id());
        }
    }
}
