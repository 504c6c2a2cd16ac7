//! Ends of greenlets that have to wait.
//!
//! To end a greenlet, the thread switches to it. That is impossible while a panic unwinds, and
//! forbidden in a `no_switch` section. The end is queued here, and the next switch or the end of
//! the section runs it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::node::handle::Greenlet;
use crate::switch::teardown;
use crate::thread::{ThreadState, flag};

/// The end of a greenlet that had to wait.
pub(crate) enum Deferred {
    /// Its last handle was dropped.
    HandleDropped(Greenlet),
    /// Its owner called `Greenlet::end`.
    End(Greenlet),
    /// It belongs to code of the upper crate, which ends it.
    Owned(Box<dyn FnOnce()>),
}

impl ThreadState {
    /// Returns `true` if a greenlet can be ended now.
    pub(crate) fn can_end_greenlets(&self) -> bool {
        !std::thread::panicking() && !self.has_flag(flag::NO_SWITCH)
    }

    /// Queues an end for the next call of [`ThreadState::run_deferred`] that can run it.
    pub(crate) fn defer(&self, end: Deferred) {
        self.deferred.borrow_mut().push_back(end);
        self.raise_flag(flag::DEFERRED);
    }

    /// Runs the deferred ends, if greenlets can be ended now.
    pub(crate) fn run_deferred(&self) {
        if !self.has_flag(flag::DEFERRED) || !self.can_end_greenlets() {
            return;
        }
        loop {
            let mut deferred = self.deferred.borrow_mut();
            let Some(next) = deferred.pop_front() else { break };
            if deferred.is_empty() {
                // Frees the memory: the thread state has no destructor.
                *deferred = VecDeque::new();
                self.lower_flag(flag::DEFERRED);
            }
            drop(deferred); // [not-borrowed]
            // CAUTION: runs arbitrary user code.
            match next {
                // Ends the greenlet if nobody has made another handle since.
                Deferred::HandleDropped(greenlet) => drop(greenlet),
                Deferred::End(greenlet) => teardown::end_or_defer(&greenlet),
                Deferred::Owned(end) => end(),
            }
        }
    }
}
