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
//! - **R2** The request that is polled is that of the greenlet that is kept suspended meanwhile
//!   (`Greenlet::keep_suspended`), so the future is not dropped under the hands of its `poll`. For that,
//!   the request names its greenlet, and there is one request at a time: it is posted in
//!   `Phase::Running` only, which posting ends, and which begins again (`Driver::go`) without a request.
//! - **R3** The driver and its greenlets are on one thread: handles are not `Send`.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use greenlet_core::Greenlet;

use super::driver::{Driver, Phase, Ready};

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
    /// The id of the greenlet that posted it.
    posted_by: u64,
}

/// What a poll of what is awaited came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polled {
    Pending,
    /// It is done, and the greenlet can be resumed.
    Ready,
    /// There is nothing to poll: the greenlet does not wait any more.
    Gone,
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

    /// Posts the future to the driver, which runs, and leaves for it until the future is ready; returns
    /// the future's output.
    ///
    /// A panic of the future goes on here. An error that is thrown here is returned, and one that refuses the switch.
    #[inline(always)] // each return after a switch is one that the processor does not predict
    pub(super) fn wait(
        mut self,
        driver: &Driver,
        id: u64,
        waiter: Option<Greenlet>,
        at: &'static Location<'static>,
    ) -> Result<F::Output> {
        debug_assert_eq!(driver.phase.get(), Phase::Running);
        let slot = (&raw mut self).cast();
        driver.request.set(Some(Request {
            slot,
            poll: poll_slot::<F>,
            posted_by: id,
        }));
        driver.phase.set(Phase::Parked); // R2
        let posted = Posted { driver, slot };
        let left = (driver.leave)(driver, waiter, at);
        drop(posted); // R1
        let Ready = match left {
            Ok(resumed) => resumed?,
            Err(refused) => {
                driver.phase.set(Phase::Running); // as it was before the post
                driver.is_polled.set(false);
                return Err(refused);
            }
        };
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
    slot: *mut (),
}

impl Drop for Posted<'_> {
    #[inline]
    fn drop(&mut self) {
        // Only its own: one that was given up (`Driver::go`) may have been followed by others.
        if self
            .driver
            .request
            .get()
            .is_some_and(|request| request.slot == self.slot)
        {
            self.driver.request.set(None);
        }
    }
}

impl Driver {
    /// Polls the future that is awaited, keeping `waiter`, which posted it, suspended.
    #[inline]
    pub(super) fn poll_request(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        let Some(request) = self.request.get() else {
            return Polled::Gone;
        };
        if request.posted_by != waiter.id() {
            return Polled::Gone; // R2
        }
        let is_done = waiter.keep_suspended(|| {
            // SAFETY: R1: the request is there, so the slot stands on the stack of the greenlet that
            // posted it, which is suspended below it; R2: and stays so; R3.
            unsafe { (request.poll)(request.slot, cx) }
        });
        match self.request.get() {
            None => Polled::Gone,
            Some(_) if is_done => Polled::Ready,
            Some(_) => Polled::Pending,
        }
    }
}
