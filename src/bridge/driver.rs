//! What a spawned function's greenlets know of their driver, and the future on its way to it: a pointer into the
//! stack of the greenlet that awaits. The only `unsafe` of the bridge is in this file.
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
//!   `Phase::Running` only, which posting ends, and which begins again (`Driver::enter_running`) without a request.
//! - **R3** The driver and its greenlets are on one thread: handles are not `Send`.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet_core::{Greenlet, may_switch};

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its greenlets do not run: it has not been polled yet, it waits, or it polls a future.
    Parked,
    /// It is being polled, and one of its greenlets runs.
    Running,
    /// As that, but the root polls what it awaits, in place: nobody posts meanwhile.
    Polling,
    /// Its function has ended, or it was dropped.
    Over,
}

/// The part of a driver that is attached to its root greenlet, where `await_` finds it.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) phase: Cell<Phase>,
    /// The greenlet that polls: whoever awaits switches there. Outside a poll it is the main greenlet,
    /// so that a greenlet that polled once is not kept alive.
    pub(super) poller: RefCell<Option<Greenlet>>,
    /// [`leave`], for what the function returns.
    leave: Leave,
    /// The future that is awaited. It stands on the stack of the greenlet that awaits, and is withdrawn
    /// by that greenlet as soon as it is resumed, for whatever reason.
    request: Cell<Option<Request>>,
    /// How often something was awaited.
    pub(super) awaits: Cell<u64>,
    /// How often an await was refused because the driver is over.
    pub(super) refusals: Cell<u32>,
    /// Whether to stop at each await before what is awaited is polled: for tests.
    pub(super) stops: Cell<bool>,
    /// Whether the root polls first what it awaits: see [`Driver::poll_in_place`].
    pub(super) in_place: Cell<bool>,
    /// The task's waker, for such polls. Borrowed as long as one lasts, which may be suspended itself.
    waker: RefCell<Option<Waker>>,
    /// What was posted was polled in place just before, with the waker of this poll.
    pub(super) is_polled: Cell<bool>,
}

impl Driver {
    /// The driver of a function that returns a `T`, which `main` polls for the time being.
    #[inline]
    pub(super) fn new<T: 'static>(main: Greenlet) -> Driver {
        Driver {
            phase: Cell::new(Phase::Parked),
            poller: RefCell::new(Some(main)),
            leave: leave::<T>,
            request: Cell::new(None),
            awaits: Cell::new(0),
            refusals: Cell::new(0),
            stops: Cell::new(false),
            in_place: Cell::new(false),
            waker: RefCell::new(None),
            is_polled: Cell::new(false),
        }
    }

    /// One of the driver's greenlets is about to run, until what this returns is dropped. Whoever waits waits in
    /// vain from now on, or is the one that runs.
    #[inline]
    pub(super) fn enter_running(&self) -> Running<'_> {
        self.request.set(None);
        self.is_polled.set(false);
        self.phase.set(Phase::Running);
        Running(self)
    }

    /// Keeps the waker for polls in place.
    #[inline]
    pub(super) fn keep_waker(&self, waker: &Waker) {
        if self.in_place.get() {
            self.renew_waker(waker);
        }
    }

    fn renew_waker(&self, waker: &Waker) {
        let is_kept = |kept: &Option<Waker>| kept.as_ref().is_some_and(|kept| kept.will_wake(waker));
        if is_kept(&self.waker.borrow()) {
            return;
        }
        // CAUTION: runs foreign code, here and where the older one is dropped.
        let renewed = waker.clone();
        let older = match self.waker.try_borrow_mut() {
            Ok(mut kept) => kept.replace(renewed),
            Err(_) => {
                // A poll in place was left half-way, by a switch of its own: it goes on to use the older one.
                self.in_place.set(false);
                return;
            }
        };
        drop(older);
    }

    /// Lets go of the waker: whoever has a handle of the root does not keep the task.
    #[inline]
    pub(super) fn forget_waker(&self) {
        // Whether or not it polls in place: it may have done so before (`renew_waker`).
        let kept = self.waker.try_borrow_mut().ok().and_then(|mut kept| kept.take());
        // CAUTION: runs foreign code.
        drop(kept);
    }

    /// Polls what the root awaits on the root's own stack.
    ///
    /// The context is made of a waker that is borrowed from here, not of the executor's, which may end sooner: the
    /// poll may switch away, and the driver's poll may end meanwhile.
    #[inline]
    pub(super) fn poll_in_place<F: Future>(&self, future: Pin<&mut F>) -> Result<Poll<F::Output>> {
        let waker = self.waker.borrow();
        let Some(waker) = &*waker else {
            return Ok(Poll::Pending);
        };
        may_switch()?;
        // What is awaited inside of a poll finds no driver, here as elsewhere.
        self.phase.set(Phase::Polling);
        let polling = Polling(self);
        self.awaits.set(self.awaits.get() + 1); // also if the poll panics
        // CAUTION: runs foreign code.
        let polled = future.poll(&mut Context::from_waker(waker));
        // Where it left half-way, whom it has told to wake it may have been woken, in vain: it is polled once more.
        let has_stayed = self.phase.get() == Phase::Polling;
        drop(polling);
        if polled.is_pending() {
            self.awaits.set(self.awaits.get() - 1); // it is posted, which counts
            self.is_polled.set(has_stayed);
        }
        Ok(polled)
    }
}

/// A poll in place. The root goes on as before, also if it panics; unless the poll has left, and the driver's has
/// ended meanwhile.
struct Polling<'a>(&'a Driver);

impl Drop for Polling<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.0.phase.get() == Phase::Polling {
            self.0.phase.set(Phase::Running);
        }
    }
}

/// The time in which a driver's greenlets run: to its end they find a driver that takes what they await. Also if
/// a panic comes out of the function, so what it has left behind finds none.
pub(super) struct Running<'a>(&'a Driver);

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.phase.set(Phase::Parked);
    }
}

/// What the greenlets of a function that returns a `T` send to its driver.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// A future is to be polled; `None` if the root greenlet itself waits for it.
    Await(Option<Greenlet>),
    /// The function has returned.
    Done(T),
}

/// What the driver sends to a greenlet whose future is ready.
#[derive(Debug)]
pub(super) struct Ready;

/// Leaves for the poller of a driver, to wait for what was posted. The outer error is that of a refused switch.
///
/// Behind a pointer, because who awaits does not know the function's type.
type Leave = fn(&Driver, Option<Greenlet>, &'static Location<'static>) -> Result<Result<Ready>>;

fn leave<T: 'static>(
    driver: &Driver,
    waiter: Option<Greenlet>,
    at: &'static Location<'static>,
) -> Result<Result<Ready>> {
    // No handle of the poller is on this stack meanwhile: it would keep it alive.
    Greenlet::switch_in(&driver.poller, Event::<T>::Await(waiter), at)
}

/// What became of a future: its output, or the payload of its panic.
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// A pinned future, and room for what becomes of it.
pub(super) struct Slot<'a, F: Future> {
    future: Pin<&'a mut F>,
    outcome: Option<Outcome<F::Output>>,
}

/// A pointer to a [`Slot`] of any type.
#[derive(Clone, Copy, Debug)]
struct Request {
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
    Withdrawn,
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
        // Only its own: one that was given up (`Driver::enter_running`) may have been followed by others.
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
            return Polled::Withdrawn;
        };
        if request.posted_by != waiter.id() {
            return Polled::Withdrawn; // R2
        }
        let is_done = waiter.keep_suspended(|| {
            // SAFETY: R1: the request is there, so the slot stands on the stack of the greenlet that
            // posted it, which is suspended below it; R2: and stays so; R3.
            unsafe { (request.poll)(request.slot, cx) }
        });
        match self.request.get() {
            None => Polled::Withdrawn,
            Some(_) if is_done => Polled::Ready,
            Some(_) => Polled::Pending,
        }
    }
}
