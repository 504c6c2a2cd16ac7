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
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::ptr;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet_core::{Greenlet, GreenletExit, check_switch_allowed, getcurrent, greenlets, is_end, raw};

/// What a driver is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// None of its greenlets runs, and it is not being polled.
    Suspended,
    /// It is being polled, and one of its greenlets runs.
    Running,
    /// The same, and the spawn was cancelled.
    Ending,
    /// It is being polled, and has control. No greenlet can post a request meanwhile.
    Polling,
    /// The root polls its own future in place. No greenlet can post a request meanwhile.
    InPlace,
    /// The function has ended, or the driver was dropped.
    Over,
}

/// The reason of the exit that a cancel throws.
pub(super) const CANCELLED: &str = "the spawn was cancelled";

/// How often `await_` unwinds a cancelled function that catches the exit.
const REFUSALS: u32 = 100;

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
    /// Set if a spawn was pending in the last poll of the awaited future.
    pub(super) has_nested: Cell<bool>,
    /// Set when the spawn has been cancelled.
    pub(super) is_cancelled: Cell<bool>,
    /// How many awaits [`Driver::exit_again`] has refused.
    refused: Cell<u32>,
    /// The id of the greenlet whose stack an `await_` has unwound last with an exit, or 0.
    pub(super) raised_in: Cell<u64>,
}

thread_local! {
    /// Set when the poll of a spawn returns `Pending`: see `Driver::has_nested`.
    static HAS_PENDING: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// While a cancelled spawn polls what it awaits: the address of the waker of that poll. Spawns
    /// that are polled with it cancel themselves. One with another waker belongs to another task.
    static CANCELLED_TASK: Cell<Option<NonZeroUsize>> = const { Cell::new(None) };
    /// How many polls of such spawns have found that their clean-up still waits.
    static BUSY_CLEAN_UPS: Cell<u64> = const { Cell::new(0) };
    /// How many awaits have stopped before their first poll, for tests. `None`: they do not stop.
    static STOPS: Cell<Option<u64>> = const { Cell::new(None) };
}

thread_local! {
    /// How many polls of spawns run on this thread, one inside the other.
    static NESTED_POLLS: Cell<u32> = const { Cell::new(0) };
}

/// Up to this depth, polls do not ask how much of the stack is left.
const SHALLOW: u32 = 32;

/// Counts the poll of a spawn, until it is dropped.
pub(super) struct NestedPoll(());

impl NestedPoll {
    /// Enters a poll. Fails if little is left of the stack on which many polls are nested.
    #[inline]
    pub(super) fn enter() -> Result<NestedPoll> {
        let depth = NESTED_POLLS.get();
        if depth >= SHALLOW {
            check_stack(depth)?;
        }
        NESTED_POLLS.set(depth.wrapping_add(1));
        Ok(NestedPoll(()))
    }
}

impl Drop for NestedPoll {
    #[inline]
    fn drop(&mut self) {
        NESTED_POLLS.set(NESTED_POLLS.get().wrapping_sub(1));
    }
}

#[cold]
fn check_stack(depth: u32) -> Result<()> {
    let Some(usage) = raw::running_stack() else {
        return Ok(()); // the system does not say
    };
    let left = usage.size.saturating_sub(usage.used);
    // Enough for the poll of the innermost future, and for the backtrace of a panic.
    if left >= (usage.size / 8).min(32 << 10) {
        return Ok(());
    }
    anyhow::bail!(
        "{depth} spawned functions await each other, and the stack that polls them has {left} of {} bytes left; \
         poll them on a thread with a larger stack, or give the inner ones to the executor as tasks",
        usage.size
    )
}

fn task_of(cx: &Context<'_>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(ptr::from_ref(cx.waker()).addr())
}

/// Polls the future of a cancelled spawn by `poll`, with spawns in that future cancelled. Returns
/// `true` if the clean-up of one still waits.
#[cold]
pub(super) fn cancel_nested(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Polled) -> bool {
    let before = BUSY_CLEAN_UPS.get();
    let _restored = Restored(CANCELLED_TASK.replace(task_of(cx)));
    poll(cx) == Polled::Pending && BUSY_CLEAN_UPS.get() != before
}

/// Returns `true` if the running poll belongs to a cancelled spawn, which waits for the clean-up.
#[inline]
pub(super) fn is_cancelled_from_outside(cx: &Context<'_>) -> bool {
    CANCELLED_TASK.get().is_some_and(|task| task_of(cx) == Some(task))
}

/// Runs `clean_up`, in which polls of spawns are ordinary ones. If `waits` returns `true` for the
/// result, the clean-up still waits.
#[cold]
pub(super) fn clean_up_nested<T>(clean_up: impl FnOnce() -> T, waits: impl FnOnce(&T) -> bool) -> T {
    let restored = Restored(CANCELLED_TASK.take());
    let before = BUSY_CLEAN_UPS.get();
    // CAUTION: runs arbitrary user code.
    let result = clean_up();
    drop(restored);
    // Those that it has polled itself do not count: it waits for them, or has left them.
    BUSY_CLEAN_UPS.set(before.wrapping_add(u64::from(waits(&result))));
    result
}

struct Restored(Option<NonZeroUsize>);

impl Drop for Restored {
    fn drop(&mut self) {
        CANCELLED_TASK.set(self.0);
    }
}

/// Runs `step`, in which every await of every spawn stops before its first poll. Returns how many
/// have stopped.
pub(super) fn with_stops<T>(step: impl FnOnce() -> T) -> (T, u64) {
    struct Reset(Option<u64>);
    impl Drop for Reset {
        fn drop(&mut self) {
            STOPS.set(self.0);
        }
    }
    let _reset = Reset(STOPS.replace(Some(0)));
    let value = step();
    (value, STOPS.get().unwrap_or_default())
}

/// Returns `true` while a step of [`with_stops`] runs.
#[inline]
pub(super) fn has_stops() -> bool {
    STOPS.get().is_some()
}

/// Counts a stop of [`with_stops`].
pub(super) fn count_stop(cx: &Context<'_>) {
    if let Some(stops) = STOPS.get() {
        STOPS.set(Some(stops + 1));
        cx.waker().wake_by_ref(); // an outer future may poll this one only then
    }
}

/// Notes that the poll of a spawn returns `Pending`.
#[inline]
pub(super) fn note_pending_spawn() {
    HAS_PENDING.set(true);
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
            has_nested: Cell::new(false),
            is_cancelled: Cell::new(false),
            refused: Cell::new(0),
            raised_in: Cell::new(0),
        }
    }

    /// Returns the phase in which its greenlets run.
    pub(super) fn running_phase(&self) -> Phase {
        match self.is_cancelled.get() {
            true => Phase::Ending,
            false => Phase::Running,
        }
    }

    /// Returns `true` if a greenlet has posted a request.
    pub(super) fn has_request(&self) -> bool {
        self.request.get().is_some()
    }

    /// Returns `true` if it is being polled, and one of its greenlets runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase.get(), Phase::Running | Phase::Ending)
    }

    /// Returns the exit of a cancel for an `await_` whose function has caught it before.
    ///
    /// If the function catches it again and again, this switches to the driver, which ends the
    /// function. `at` is the place of the `await_`.
    #[cold]
    pub(super) fn exit_again(
        &self,
        waiter: Option<Greenlet>,
        at: &'static Location<'static>,
    ) -> anyhow::Error {
        self.refused.set(self.refused.get().saturating_add(1));
        if self.gives_up() {
            self.phase.set(Phase::Suspended);
            // Without a request. The driver ends the function.
            match (self.leave)(self, waiter, at) {
                Ok(Err(thrown)) => return thrown,
                // Refused, or resumed in another way.
                Ok(Ok(Ready)) | Err(_) if self.phase.get() == Phase::Suspended => {
                    self.phase.set(Phase::Ending);
                }
                _ => {}
            }
        }
        GreenletExit::with_reason(CANCELLED).into()
    }

    /// Returns `true` if the function has caught the exit of a cancel too often.
    pub(super) fn gives_up(&self) -> bool {
        self.refused.get() > REFUSALS
    }

    /// Returns `true` if the running code belongs to a spawned function, and can await.
    pub(super) fn runs_here() -> bool {
        let driver = getcurrent().nearest_attached::<Driver>();
        driver.is_some_and(|driver| driver.is_running())
    }

    /// Returns `true` if the running code is in the poll of a future that a spawned function of
    /// this thread awaits.
    #[cold]
    pub(super) fn is_polled_by_one() -> bool {
        let alive = greenlets().into_iter().filter(|greenlet| !greenlet.is_dead());
        let drivers = alive.filter_map(|root| root.attached::<Driver>());
        let polling: Vec<u64> = drivers
            .filter(|driver| driver.phase.get() == Phase::Polling)
            .filter_map(|driver| Some(driver.poller.try_borrow().ok()?.as_ref()?.id()))
            .collect();
        let mut lineage = std::iter::successors(Some(getcurrent()), Greenlet::parent);
        !polling.is_empty() && lineage.any(|greenlet| polling.contains(&greenlet.id()))
    }

    /// Starts the phase in which one of the driver's greenlets runs. It ends when the guard is
    /// dropped.
    ///
    /// Withdraws the request, if there is one: its greenlet is about to be resumed, or is not
    /// polled any more.
    #[inline]
    pub(super) fn enter_running(&self) -> Running<'_> {
        self.enter(Phase::Running)
    }

    /// Does the same for a spawn that may have been cancelled.
    pub(super) fn enter_running_or_ending(&self) -> Running<'_> {
        self.enter(self.running_phase())
    }

    #[inline(always)] // `phase` is mostly a constant
    fn enter(&self, phase: Phase) -> Running<'_> {
        self.request.set(None);
        self.is_polled.set(false);
        self.phase.set(phase);
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
        let Some(waker) = waker.as_ref().filter(|_| STOPS.get().is_none()) else {
            return Ok(Poll::Pending);
        };
        check_switch_allowed()?;
        // An await inside of this poll must find no driver, as in every other poll.
        self.phase.set(Phase::InPlace);
        let polling = Polling(self);
        self.awaits.set(self.awaits.get() + 1); // also if the poll panics
        HAS_PENDING.set(false);
        // CAUTION: runs arbitrary user code.
        let polled = future.poll(&mut Context::from_waker(waker));
        // If the poll has switched away, its wake-up may already have fired and been lost: poll
        // once more.
        let has_stayed = self.phase.get() == Phase::InPlace;
        drop(polling);
        if polled.is_pending() {
            self.awaits.set(self.awaits.get() - 1); // the driver counts it when it is posted
            self.is_polled.set(has_stayed);
            self.has_nested.set(HAS_PENDING.get());
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
        if self.0.phase.get() == Phase::InPlace {
            self.0.phase.set(Phase::Running);
        }
    }
}

/// Ends `Phase::Running` when the driver has control again, also if a panic unwinds. Greenlets that
/// the function leaves behind then find no driver.
pub(super) struct Running<'a>(&'a Driver);

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.phase.set(Phase::Polling);
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
    /// The greenlet was to be ended during the poll. The caller must end it and poll again.
    ToEnd,
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
        // The end of the greenlet that polls.
        Err(payload) if is_end(&*payload) => resume_unwind(payload),
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
        debug_assert!(driver.is_running());
        let slot = (&raw mut self).cast();
        driver.request.set(Some(Request {
            slot,
            poll: poll_slot::<F>,
            posted_by: id,
        }));
        driver.phase.set(Phase::Polling); // [kept]
        let posted = Posted { driver, slot };
        let left = (driver.leave)(driver, waiter, at);
        drop(posted); // [posted]
        let Ready = match left {
            Ok(resumed) => resumed?,
            Err(refused) => {
                driver.phase.set(driver.running_phase()); // as it was before the post
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
        // A tracer may run in the waiter, between its resumption and its next step [posted].
        if request.posted_by != waiter.id() || waiter.is_current() {
            return Polled::Withdrawn; // [kept]
        }
        HAS_PENDING.set(false);
        let (is_done, is_to_end) = raw::hold(waiter, || {
            let unwinding = Unwound(self);
            // SAFETY: [posted] the request is posted, so its greenlet is suspended and the slot is
            // live on its stack; [kept] `waiter` is that greenlet and is kept suspended during the
            // call; [one-thread] it is on this thread.
            let is_done = unsafe { (request.poll)(request.slot, cx) };
            std::mem::forget(unwinding);
            is_done
        });
        match is_done {
            _ if is_to_end => Polled::ToEnd,
            true => Polled::Ready,
            false => {
                self.has_nested.set(HAS_PENDING.get());
                Polled::Pending
            }
        }
    }
}

/// Ends `Phase::Polling` if the end of the poller unwinds the poll.
struct Unwound<'a>(&'a Driver);

impl Drop for Unwound<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.phase.set(Phase::Suspended);
    }
}
