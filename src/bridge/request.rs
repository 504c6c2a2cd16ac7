//! The future on its way to the driver: a pointer into the stack of the greenlet that awaits. The only
//! `unsafe` of the bridge is in this file.
//!
//! ```text
//!   greenlet that awaits                      driver
//!   ├──────────────────────┤
//!   │ future: F (pinned)   │
//!   │ Slot: &mut F, output │◄──── Request ────  poll(cx): polls F, writes the output
//!   │ Posted               │      (driver.request)
//!   ├──────────────────────┤
//! ```
//!
//! # Invariants
//!
//! - **R1** A request is in `Driver::request` only while its greenlet is suspended in [`Slot::wait`]:
//!   `Posted`, which stands on the same stack above the slot, takes it out as the first thing that
//!   happens when the greenlet is resumed, by a return or by unwinding. A greenlet that is never resumed
//!   keeps its stack as it is, for good.
//! - **R2** While a request is polled its greenlet is kept suspended (`Greenlet::keep_suspended`), so
//!   the future is not dropped under the hands of its `poll`.
//! - **R3** The driver and its greenlets are on one thread: handles are not `Send`.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use greenlet_core::Greenlet;

use super::driver::Driver;

/// What became of a future: its output, or the payload of its panic.
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// A pinned future, and room for what becomes of it.
pub(super) struct Slot<'a, F: Future> {
    future: Pin<&'a mut F>,
    outcome: Option<Outcome<F::Output>>,
}

/// A pointer to a [`Slot`] of any type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    slot: *mut (),
    poll: unsafe fn(*mut (), &mut Context<'_>) -> bool,
}

/// Polls the future of a slot; says whether it is done.
///
/// # Safety
///
/// - `slot` points to a living `Slot<F>` that nothing else uses meanwhile.
unsafe fn poll_slot<F: Future>(slot: *mut (), cx: &mut Context<'_>) -> bool {
    // SAFETY: the contract.
    let slot = unsafe { &mut *slot.cast::<Slot<'_, F>>() };
    // A panic of the future belongs to whoever awaits it.
    let polled = catch_unwind(AssertUnwindSafe(|| slot.future.as_mut().poll(cx)));
    slot.outcome = match polled {
        Ok(Poll::Pending) => return false,
        Ok(Poll::Ready(output)) => Some(Ok(output)),
        Err(payload) => Some(Err(payload)),
    };
    true
}

impl<'a, F: Future> Slot<'a, F> {
    pub(super) fn new(future: Pin<&'a mut F>) -> Slot<'a, F> {
        Slot {
            future,
            outcome: None,
        }
    }

    /// Posts the future to the driver, suspends by `suspend`, and returns the future's output.
    ///
    /// A panic of the future goes on here. What `suspend` returns as an error is returned.
    #[inline]
    pub(super) fn wait<E>(
        mut self,
        driver: &Driver,
        suspend: impl FnOnce() -> Result<(), E>,
    ) -> Result<F::Output, E> {
        let request = Request {
            slot: (&raw mut self).cast(),
            poll: poll_slot::<F>,
        };
        driver.request.set(Some(request));
        let posted = Posted { driver };
        let suspended = suspend();
        drop(posted); // R1
        suspended?;
        match self
            .outcome
            .expect("a greenlet is resumed when its future is done")
        {
            Ok(output) => Ok(output),
            Err(payload) => resume_unwind(payload),
        }
    }
}

/// Takes the request back when the greenlet is resumed (R1).
struct Posted<'a> {
    driver: &'a Driver,
}

impl Drop for Posted<'_> {
    #[inline]
    fn drop(&mut self) {
        self.driver.request.set(None);
    }
}

impl Driver {
    /// Polls the future that is awaited, if there is one, keeping `waiter` suspended; says whether it is
    /// done.
    ///
    /// `waiter` is the greenlet that posted it.
    #[inline]
    pub(super) fn poll_request(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> bool {
        let Some(request) = self.request.get() else {
            return false;
        };
        waiter.keep_suspended(|| {
            // SAFETY: R1: the request is there, so the slot stands on the stack of the greenlet that
            // posted it, which is suspended below it; R2: and stays so; R3.
            unsafe { (request.poll)(request.slot, cx) }
        })
    }
}
