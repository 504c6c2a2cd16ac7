//! Ends of greenlets that have to wait.
//!
//! To end a greenlet, the thread switches to it. That is impossible while a panic unwinds, and
//! forbidden in a `no_switch` section. The end is queued here, and the next switch or the end of
//! the section runs it. An end that would interrupt another one waits here, too.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::node::handle::Greenlet;
use crate::switch::teardown;
use crate::thread::{Cause, Deferred, ThreadState, flag};

impl ThreadState {
    /// Returns `true` if a greenlet can be ended now.
    pub(crate) fn can_end_greenlets(&self) -> bool {
        !std::thread::panicking() && !self.has_flag(flag::NO_SWITCH)
    }

    /// Queues an end for the next call of [`ThreadState::run_deferred`] that can run it.
    pub(crate) fn defer(&self, greenlet: &Greenlet, cause: Cause) {
        self.defer_by(greenlet, cause, None);
    }

    /// Queues an end that `by` carries out, if there is one.
    pub(crate) fn defer_by(&self, greenlet: &Greenlet, cause: Cause, by: Option<Box<dyn FnOnce()>>) {
        let greenlet = greenlet.clone();
        let end = Deferred { greenlet, cause, by };
        self.deferred.borrow_mut().push_back(end);
        self.raise_flag(flag::DEFERRED);
    }

    /// Runs the deferred ends, if greenlets can be ended now. Each runs to its very end before the
    /// next one begins: inside an end, this does nothing.
    pub(crate) fn run_deferred(&self) {
        // Asked each time: one of them may end the running greenlet.
        let can_run = || self.can_end_greenlets() && !self.current_inner().is_in_an_end();
        while self.has_flag(flag::DEFERRED) && can_run() {
            let Some(next) = self.next_deferred() else { return };
            // CAUTION: runs arbitrary user code.
            match (next.by, next.cause) {
                (Some(end), _) => end(),
                // Ends the greenlet if nobody has made another handle since.
                (None, Cause::HandleDropped) => drop(next.greenlet),
                (None, Cause::Ended) => teardown::end_or_defer(&next.greenlet),
            }
        }
    }

    /// Takes the first end that can run: the running greenlet cannot end itself.
    fn next_deferred(&self) -> Option<Deferred> {
        let mut deferred = self.deferred.borrow_mut(); // until the return [not-borrowed]
        let is_current = |end: &Deferred| end.cause == Cause::Ended && self.is_current(end.greenlet.inner());
        let first = deferred.iter().position(|end| !is_current(end))?;
        let next = deferred.remove(first);
        if deferred.is_empty() {
            // Frees the memory: the thread state has no destructor.
            *deferred = VecDeque::new();
            self.lower_flag(flag::DEFERRED);
        }
        next
    }
}
