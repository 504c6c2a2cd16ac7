//! Blocks a thread until a future is ready, and marks the code whose awaits do that.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_utils::sync::{Parker, Unparker};
use greenlet_core::{Greenlet, getcurrent};

thread_local! {
    /// The ids of the greenlets that are in a [`Section`].
    static SECTIONS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Code of a greenlet whose awaits block the thread, until it is dropped.
pub(super) struct Section {
    greenlet: u64,
}

impl Section {
    pub(super) fn enter() -> Section {
        let greenlet = getcurrent().id();
        SECTIONS.with_borrow_mut(|sections| sections.push(greenlet));
        Section { greenlet }
    }

    /// Returns `true` if the running code is in a section: of its greenlet, or of an ancestor.
    #[cold]
    pub(super) fn is_here() -> bool {
        let sections = SECTIONS.with_borrow(Vec::clone);
        let mut lineage = std::iter::successors(Some(getcurrent()), Greenlet::parent);
        !sections.is_empty() && lineage.any(|greenlet| sections.contains(&greenlet.id()))
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        SECTIONS.with_borrow_mut(|sections| {
            let last = sections.iter().rposition(|id| *id == self.greenlet);
            last.map(|index| sections.remove(index));
        });
    }
}

/// The future is pending, and has kept no waker.
pub(super) struct NoWaker;

/// Polls a future until it is ready. Parks the thread between wake-ups.
pub(super) fn block<F: Future>(mut future: Pin<&mut F>) -> Result<F::Output, NoWaker> {
    let parker = Parker::new();
    let unpark = Arc::new(Unpark {
        unparker: parker.unparker().clone(),
        is_called: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        let wakers = Arc::strong_count(&unpark);
        fence(Ordering::Acquire); // a waker that is gone may have been called
        // `unpark` and `waker` are two.
        if wakers == 2 && !unpark.is_called.load(Ordering::SeqCst) {
            return Err(NoWaker);
        }
        parker.park();
        unpark.is_called.store(false, Ordering::SeqCst);
    }
}

/// Unparks a thread. The parker remembers an unpark that comes before the park, so no wake-up is
/// lost.
struct Unpark {
    unparker: Unparker,
    /// Set when it is called, until the next poll.
    is_called: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_called.store(true, Ordering::SeqCst);
        self.unparker.unpark();
    }
}
