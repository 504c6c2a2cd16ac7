//! What the holder of a handle asks of a function that another thread runs.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

/// A request to a function of a pool. A later one replaces an earlier one if it is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Request {
    None,
    /// End the function, and let it clean up.
    Cancel,
    /// End the function at once: nobody waits for it any more.
    End,
}

/// The request, and the waker of the task that obeys it.
#[derive(Debug)]
pub(super) struct Control {
    request: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl Control {
    pub(super) const fn new() -> Control {
        Control {
            request: AtomicU8::new(Request::None as u8),
            task: Mutex::new(None),
        }
    }

    fn exchange(&self, waker: Option<Waker>) -> Option<Waker> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut task, waker)
    }

    /// Makes a request, from any thread.
    pub(super) fn ask(&self, request: Request) {
        self.request.fetch_max(request as u8, Ordering::SeqCst);
        if let Some(waker) = self.exchange(None) {
            waker.wake();
        }
    }

    pub(super) fn request(&self) -> Request {
        match self.request.load(Ordering::SeqCst) {
            0 => Request::None,
            1 => Request::Cancel,
            _ => Request::End,
        }
    }

    /// Returns the request. A later one wakes the task of `cx`.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Request {
        let kept = self.exchange(None);
        let waker = kept.filter(|kept| kept.will_wake(cx.waker()));
        let previous = self.exchange(Some(waker.unwrap_or_else(|| cx.waker().clone())));
        drop(previous);
        self.request() // afterwards: a request in between has found no waker, or this one
    }
}
