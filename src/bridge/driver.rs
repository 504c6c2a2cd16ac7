//! The part of the driver that the greenlets of a spawned function share with it.
//!
//! A greenlet that awaits posts a request: a pointer to the future on its own stack. The driver
//! polls the future through that pointer. This file has the only `unsafe` code of the bridge.
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
//! - **[posted]** `Driver::request` holds a request only while its greenlet is suspended in
//!   [`Slot::wait`]. `Posted` is on the same stack as the slot. It takes the request back as the
//!   first act of the resumed greenlet, whether `wait` returns or unwinds. A greenlet that is never
//!   resumed keeps its stack unchanged.
//! - **[kept]** The driver polls only the request of the greenlet that it keeps suspended meanwhile
//!   (`raw::keep_suspended`). So the future is not dropped during its `poll`. To this end the
//!   request names its greenlet, and there is one request at a time: posting requires and ends
//!   `Phase::Running`, and `Driver::enter_running` starts that phase without a request.
//! - **[one-thread]** The driver and its greenlets are on one thread, because handles are not
//!   `Send`.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet_core::{Greenlet, check_switch_allowed, raw};

/// What a driver is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// None of its greenlets runs: it was not polled yet, it waits, or it polls a future.
    Suspended,
    /// It is being polled, and one of its greenlets runs.
    Running,
    /// The root polls its own future in place. No greenlet can post a request meanwhile.
    Polling,
    /// The function has ended, or the driver was dropped.
    Over,
}

/// The part of a driver that is attached to its root greenlet, where `await_` finds it.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) phase: Cell<Phase>,
    /// The greenlet that polls. A greenlet that awaits switches to it. Outside of a poll this is
    /// the main greenlet, so that the driver does not keep a former poller alive.
    pub(super) poller: RefCell<Option<Greenlet>>,
    /// [`leave`], for the return type of the function.
    leave: Leave,
    /// The awaited future, on the stack of the greenlet that awaits. That greenlet takes it back as
    /// soon as it is resumed, for any reason [posted].
    request: Cell<Option<Request>>,
    /// The number of awaits.
    pub(super) awaits: Cell<u64>,
    /// Set to return `Pending` at each await before its future is polled: for tests.
    pub(super) stops: Cell<bool>,
    /// Set to poll futures on the root's own stack first: see [`Driver::poll_in_place`].
    pub(super) in_place: Cell<bool>,
    /// The task's waker, for polls in place. Borrowed during such a poll, which may be suspended
    /// itself.
    waker: RefCell<Option<Waker>>,
    /// Set if the posted future was polled in place just before, with the waker of this poll.
    pub(super) is_polled: Cell<bool>,
}

impl Driver {
    /// Creates the driver of a function that returns a `T`. `main` is its first poller.
    #[inline]
    pub(super) fn new<T: 'static>(main: Greenlet) -> Driver {
        Driver {
            phase: Cell::new(Phase::Suspended),
            poller: RefCell::new(Some(main)),
            leave: leave::<T>,
            request: Cell::new(None),
            awaits: Cell::new(0),
            stops: Cell::new(false),
            in_place: Cell::new(false),
            waker: RefCell::new(None),
            is_polled: Cell::new(false),
        }
    }

    /// Starts the phase in which one of the driver's greenlets runs. It ends when the guard is
    /// dropped.
    ///
    /// Withdraws the request, if there is one: its greenlet is about to be resumed, or is not
    /// polled any more.
    #[inline]
    pub(super) fn enter_running(&self) -> Running<'_> {
        self.request.set(None);
        self.is_polled.set(false);
        self.phase.set(Phase::Running);
        Running(self)
    }

    /// Stores the waker for polls in place.
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
        // CAUTION: runs arbitrary user code, here and in the drop of the older waker.
        let renewed = waker.clone();
        let older = match self.waker.try_borrow_mut() {
            Ok(mut kept) => kept.replace(renewed),
            Err(_) => {
                // A poll in place has switched away and still borrows the older waker.
                self.in_place.set(false);
                return;
            }
        };
        drop(older);
    }

    /// Drops the waker, so that a handle of the root does not keep the task alive.
    #[inline]
    pub(super) fn forget_waker(&self) {
        // Also if `in_place` is not set now: `renew_waker` may have cleared it.
        let kept = self.waker.try_borrow_mut().ok().and_then(|mut kept| kept.take());
        // CAUTION: runs arbitrary user code.
        drop(kept);
    }

    /// Polls a future of the root on the root's own stack.
    ///
    /// The context uses the stored waker. The executor's context may not live long enough: the poll
    /// may switch away, and the driver's own poll may return meanwhile.
    #[inline]
    pub(super) fn poll_in_place<F: Future>(&self, future: Pin<&mut F>) -> Result<Poll<F::Output>> {
        let waker = self.waker.borrow();
        let Some(waker) = &*waker else {
            return Ok(Poll::Pending);
        };
        check_switch_allowed()?;
        // An await inside of this poll must find no driver, as in every other poll.
        self.phase.set(Phase::Polling);
        let polling = Polling(self);
        self.awaits.set(self.awaits.get() + 1); // also if the poll panics
        // CAUTION: runs arbitrary user code.
        let polled = future.poll(&mut Context::from_waker(waker));
        // If the poll has switched away, its wake-up may already have fired and been lost: poll
        // once more.
        let has_stayed = self.phase.get() == Phase::Polling;
        drop(polling);
        if polled.is_pending() {
            self.awaits.set(self.awaits.get() - 1); // the driver counts it when it is posted
            self.is_polled.set(has_stayed);
        }
        Ok(polled)
    }
}

/// Returns to `Phase::Running` at the end of a poll in place, also if it panics. Does nothing if
/// the poll has switched away and the driver has left that phase meanwhile.
struct Polling<'a>(&'a Driver);

impl Drop for Polling<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.0.phase.get() == Phase::Polling {
            self.0.phase.set(Phase::Running);
        }
    }
}

/// Ends `Phase::Running`, also if a panic unwinds. Greenlets that the function leaves behind then
/// find no driver.
pub(super) struct Running<'a>(&'a Driver);

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.phase.set(Phase::Suspended);
    }
}

/// A message from the greenlets of a function that returns a `T` to its driver.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// Poll the posted future. The greenlet waits for it; `None` is the root.
    Await(Option<Greenlet>),
    /// The function has returned.
    Done(T),
}

/// The message from the driver to a greenlet whose future is ready.
#[derive(Debug)]
pub(super) struct Ready;

/// Switches to the poller of a driver, and waits for the posted future. The outer error is that of
/// a refused switch.
///
/// A function pointer, because the code that awaits does not know the function's return type.
type Leave = fn(&Driver, Option<Greenlet>, &'static Location<'static>) -> Result<Result<Ready>>;

fn leave<T: 'static>(
    driver: &Driver,
    waiter: Option<Greenlet>,
    at: &'static Location<'static>,
) -> Result<Result<Ready>> {
    // No handle of the poller may be on this stack meanwhile: it would keep the poller alive.
    raw::switch_in(&driver.poller, Event::<T>::Await(waiter), at)
}

/// The output of a future, or the payload of its panic.
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// A pinned future, with space for its outcome.
pub(super) struct Slot<'a, F: Future> {
    future: Pin<&'a mut F>,
    outcome: Option<Outcome<F::Output>>,
}

/// A pointer to a [`Slot`] of any type.
#[derive(Clone, Copy, Debug)]
struct Request {
    slot: *mut (),
    poll: unsafe fn(*mut (), &mut Context<'_>) -> bool,
    /// The id of the greenlet that has posted it.
    posted_by: u64,
}

/// The result of polling an awaited future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polled {
    Pending,
    /// The future is done, and the greenlet can be resumed.
    Ready,
    /// The greenlet does not wait for a future any more.
    Withdrawn,
}

/// Polls the future of a slot. Returns `true` if it is done.
///
/// # Safety
///
/// - `slot` points to a live `Slot<F>` that no other code uses during the call.
unsafe fn poll_slot<F: Future>(slot: *mut (), cx: &mut Context<'_>) -> bool {
    // SAFETY: the caller promises a live slot of this type, without other uses.
    let slot = unsafe { &mut *slot.cast::<Slot<'_, F>>() };
    // A panic of the future propagates in the greenlet that awaits it.
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

    /// Posts the future to the driver, switches to the poller, and returns the output when the
    /// future is ready.
    ///
    /// A panic of the future propagates here. Returns an error that is thrown at the greenlet, and
    /// the error of a refused switch.
    #[inline(always)] // the processor mispredicts each return that it executes after a switch
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
        driver.phase.set(Phase::Suspended); // [kept]
        let posted = Posted { driver, slot };
        let left = (driver.leave)(driver, waiter, at);
        drop(posted); // [posted]
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

/// Takes the request back when its greenlet is resumed [posted].
struct Posted<'a> {
    driver: &'a Driver,
    slot: *mut (),
}

impl Drop for Posted<'_> {
    #[inline]
    fn drop(&mut self) {
        // Only its own: `Driver::enter_running` may have withdrawn it, and others may have been
        // posted since.
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
    /// Polls the awaited future. Keeps `waiter`, which has posted it, suspended meanwhile.
    #[inline]
    pub(super) fn poll_request(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        let Some(request) = self.request.get() else {
            return Polled::Withdrawn;
        };
        if request.posted_by != waiter.id() {
            return Polled::Withdrawn; // [kept]
        }
        let is_done = raw::keep_suspended(waiter, || {
            // SAFETY: [posted] the request is posted, so its greenlet is suspended and the slot is
            // live on its stack; [kept] `waiter` is that greenlet and is kept suspended during the
            // call; [one-thread] it is on this thread.
            unsafe { (request.poll)(request.slot, cx) }
        });
        match self.request.get() {
            None => Polled::Withdrawn,
            Some(_) if is_done => Polled::Ready,
            Some(_) => Polled::Pending,
        }
    }
}
