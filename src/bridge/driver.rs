//! The part of the driver that the greenlets of a spawned function share with it.
//!
//! A greenlet that awaits posts a request: a pointer to the future on its own stack. The driver
//! polls the future through that pointer. This file has the only `unsafe` code of the bridge.
//!
//! ```text
//!   greenlet that awaits                      driver
//!   ├──────────────────────┤
//!   │ future: F (pinned)   │
//!   │ Slot: Head, &mut F,  │◄─ driver.request ─ head.poll(cx): polls F, writes the output
//!   │       output         │
//!   │ Posted               │
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
//!   (`raw::Held`). So the future is not dropped during its `poll`. To this end the
//!   request names its greenlet, and there is one request at a time: posting requires and ends
//!   `Phase::Running`, and `Driver::enter_running` starts that phase without a request.
//! - **[one-thread]** The driver and its greenlets are on one thread, because handles are not
//!   `Send`.
//! - **[root-owns]** A driver is attached to its root, which owns it for good. So the driver is alive
//!   while the root runs. No other greenlet of the thread ever has the root's id.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet_core::{Greenlet, GreenletExit, check_switch_allowed, getcurrent, greenlets, is_end, raw};

use super::nested_polls::{NestedPoll, count_stop, has_stops};

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

/// The payload of a panic.
type Payload = Box<dyn Any + Send>;

/// The reason of the exit that a cancel throws.
pub(super) const CANCELLED: &str = "the spawn was cancelled";

/// How often `await_` unwinds a cancelled function that catches the exit.
const REFUSALS: u32 = 100;

/// The part of a driver that is attached to its root greenlet, where `await_` finds it.
pub(super) struct Driver {
    /// The id of its root.
    root: u64,
    pub(super) phase: Cell<Phase>,
    /// The greenlet that polls. A greenlet that awaits switches to it. Outside of a poll this is
    /// the main greenlet, so that the driver does not keep a former poller alive.
    pub(super) poller: raw::Place,
    /// The awaited future, on the stack of the greenlet that awaits. That greenlet takes it back as
    /// soon as it is resumed, for any reason [posted].
    request: Cell<Option<NonNull<Head>>>,
    /// The panics of awaited futures, until the greenlets that await them take them. Mostly there is
    /// none. A tracer that awaits where a greenlet is resumed can add a second one.
    panics: Cell<Vec<(Option<NonNull<Head>>, Payload)>>,
    /// The number of awaits.
    pub(super) awaits: Cell<u64>,
    /// Set to return `Pending` at each await before its future is polled: for tests.
    pub(super) stops: Cell<bool>,
    /// Set to poll futures on the root's own stack first: see [`Driver::poll_in_place`].
    pub(super) in_place: Cell<bool>,
    /// The task's waker, for polls in place. Borrowed during such a poll, which may be suspended
    /// itself.
    waker: RefCell<Option<Waker>>,
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
    /// The root of the innermost spawn that is being polled, by its id, and its driver [root-owns].
    /// No greenlet has the first id here.
    static POLLED: Cell<(u64, *const Driver)> = const { Cell::new((u64::MAX, ptr::null())) };
    /// Set when the poll of a spawn returns `Pending`: see `Driver::has_nested`.
    static HAS_PENDING: Cell<bool> = const { Cell::new(false) };
}

/// The poll of a spawn, until it is dropped.
pub(super) struct InPoll {
    /// The previous value of `POLLED`.
    outer: (u64, *const Driver),
    _depth: NestedPoll,
}

impl Drop for InPoll {
    #[inline]
    fn drop(&mut self) {
        POLLED.set(self.outer);
    }
}

/// Notes that the poll of a spawn returns `Pending`.
#[inline]
pub(super) fn note_pending_spawn() {
    HAS_PENDING.set(true);
}

impl Driver {
    /// Creates a driver, and attaches it to its root [root-owns]. Its first poller is `main`.
    ///
    /// # Panics
    ///
    /// Panics if something is attached to the root.
    #[inline]
    pub(super) fn attach(root: &Greenlet, main: Greenlet) -> Rc<Driver> {
        let driver = Rc::new(Driver {
            root: root.id(),
            phase: Cell::new(Phase::Suspended),
            poller: raw::Place::new(main),
            request: Cell::new(None),
            panics: Cell::default(),
            awaits: Cell::new(0),
            stops: Cell::new(false),
            in_place: Cell::new(false),
            waker: RefCell::new(None),
            has_nested: Cell::new(false),
            is_cancelled: Cell::new(false),
            refused: Cell::new(0),
            raised_in: Cell::new(0),
        });
        assert!(root.attach(Rc::clone(&driver)));
        driver
    }

    /// Enters a poll of this spawn, until the guard is dropped. Fails if little is left of the stack
    /// on which many polls are nested.
    #[inline]
    pub(super) fn enter_poll(&self) -> Result<InPoll> {
        let _depth = NestedPoll::enter()?;
        let outer = POLLED.replace((self.root, self));
        Ok(InPoll { outer, _depth })
    }

    /// Calls `look` with the driver whose root runs, and with the root's id, if that spawn is the
    /// innermost one that is being polled.
    ///
    /// Counts no reference, so that none is on the stack while `look` switches.
    ///
    /// # Safety
    ///
    /// - `look` returns, or unwinds, before the running greenlet ends. It may switch greenlets,
    ///   which keeps this greenlet active. It must not run user code that may leave `look`
    ///   suspended in another way: a coroutine of another library that runs on the stack of this
    ///   greenlet can be suspended and outlive it.
    #[inline(always)] // the processor mispredicts a return that follows a switch; `look` makes one
    pub(super) unsafe fn with_polled<R>(look: impl FnOnce(&Driver, u64) -> R) -> Option<R> {
        let (root, driver) = POLLED.get();
        if !raw::is_running(root) {
            return None;
        }
        // SAFETY: the root of the driver runs, and lives until `look` returns, says the caller. So
        // does the driver [root-owns].
        Some(look(unsafe { &*driver }, root))
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
            match raw::switch_in(&self.poller, Await(waiter), at) {
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
            .map(|driver| driver.poller.get().id())
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
        self.phase.set(phase);
        Running(self)
    }

    /// Returns `true` if the root runs, and polls futures on its own stack first.
    pub(super) fn polls_in_place(&self) -> bool {
        self.phase.get() == Phase::Running && self.in_place.get()
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
    ///
    /// # Errors
    ///
    /// If the future is pending, returns whether it will wake this poll of the driver.
    #[inline]
    pub(super) fn poll_in_place<F: Future>(&self, future: Pin<&mut F>) -> Result<Result<F::Output, bool>> {
        let waker = self.waker.borrow();
        let Some(waker) = waker.as_ref().filter(|_| !has_stops()) else {
            return Ok(Err(false));
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
        Ok(match polled {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => {
                self.awaits.set(self.awaits.get() - 1); // the driver counts it when it is posted
                self.has_nested.set(HAS_PENDING.get());
                Err(has_stayed)
            }
        })
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

/// A message to the driver: poll the posted future. The greenlet waits for it; `None` is the root.
#[derive(Debug)]
pub(super) struct Await(pub(super) Option<Greenlet>);

/// A message to the driver: the function has returned.
#[derive(Debug)]
pub(super) struct Done<T>(pub(super) T);

/// A message from the greenlets of a function that returns a `T` to its driver.
pub(super) type Event<T> = raw::Either<Await, Done<T>>;

/// The message from the driver to a greenlet whose future is done.
#[derive(Debug)]
pub(super) struct Ready;

/// The first part of every [`Slot`].
struct Head {
    /// Polls the future of the slot with this head. Returns `true` if it is done.
    poll: unsafe fn(NonNull<Head>, &mut Context<'_>) -> bool,
    /// The id of the greenlet that has posted it.
    posted_by: u64,
    /// Set if the future was polled in place just before, with the waker of this poll.
    is_polled: bool,
}

/// A pinned future, with space for its output.
#[repr(C)] // a pointer to a slot is one to its head
pub(super) struct Slot<'a, F: Future> {
    head: Head,
    future: Pin<&'a mut F>,
    output: Option<F::Output>,
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
/// - `head` points to the head of a live `Slot<F>` that no other code uses during the call.
unsafe fn poll_slot<F: Future>(head: NonNull<Head>, cx: &mut Context<'_>) -> bool {
    // SAFETY: the caller promises a live slot of this type, without other uses.
    let slot = unsafe { head.cast::<Slot<'_, F>>().as_mut() };
    // CAUTION: runs arbitrary user code.
    match slot.future.as_mut().poll(cx) {
        Poll::Pending => false,
        Poll::Ready(output) => {
            slot.output = Some(output);
            true
        }
    }
}

impl<'a, F: Future> Slot<'a, F> {
    /// Creates a slot in the greenlet with the id `posted_by`, which runs.
    #[inline]
    pub(super) fn new(future: Pin<&'a mut F>, posted_by: u64, is_polled: bool) -> Slot<'a, F> {
        let head = Head {
            poll: poll_slot::<F>,
            posted_by,
            is_polled,
        };
        Slot {
            head,
            future,
            output: None,
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
        waiter: Option<Greenlet>,
        at: &'static Location<'static>,
    ) -> Result<F::Output> {
        debug_assert!(driver.is_running());
        let slot = NonNull::from(&mut self).cast();
        driver.request.set(Some(slot));
        driver.phase.set(Phase::Polling); // [kept]
        let posted = Posted { driver, slot };
        // No handle of the poller may be on this stack meanwhile: it would keep the poller alive.
        match raw::switch_in(&driver.poller, Await(waiter), at) {
            Ok(Ok(Ready)) => drop(posted), // [posted]
            Ok(Err(thrown)) => {
                drop(posted);
                return Err(thrown);
            }
            Err(refused) => {
                drop(posted);
                driver.phase.set(driver.running_phase()); // as it was before the post
                return Err(refused);
            }
        }
        match self.output {
            Some(output) => Ok(output),
            None => driver.resume_panic(slot),
        }
    }
}

/// Takes the request back when its greenlet is resumed [posted].
struct Posted<'a> {
    driver: &'a Driver,
    slot: NonNull<Head>,
}

impl Drop for Posted<'_> {
    #[inline]
    fn drop(&mut self) {
        // Only its own: `Driver::enter_running` may have withdrawn it, and others may have been
        // posted since.
        if self.driver.request.get() == Some(self.slot) {
            self.driver.request.set(None);
        }
    }
}

impl Driver {
    /// Polls a future that `waiter` has just posted. It does not, if the future was just polled in
    /// place, or to stop there for a test.
    #[inline(never)]
    pub(super) fn poll_first(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        // SAFETY: [posted] the slot is live.
        let is_polled = |head: NonNull<Head>| unsafe { head.as_ref() }.is_polled;
        if self.stops.get() || self.request.get().is_some_and(is_polled) {
            self.awaits.set(self.awaits.get() + 1);
            count_stop(cx);
            return Polled::Pending;
        }
        self.poll_request(true, waiter, cx)
    }

    /// Returns `true` if every future that the root posts is polled at once.
    pub(super) fn polls_at_once(&self) -> bool {
        !self.stops.get() && !self.in_place.get()
    }

    /// Polls the awaited future again.
    #[inline(always)] // nested polls have one frame less each
    pub(super) fn poll_again(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        self.poll_request(false, waiter, cx)
    }

    /// Stores the panic of the posted future. It propagates in the greenlet that awaits it.
    ///
    /// # Panics
    ///
    /// Continues the end of the greenlet that polls.
    #[cold]
    #[inline(never)]
    fn keep_panic(&self, payload: Payload) {
        if is_end(&*payload) {
            self.phase.set(Phase::Suspended);
            resume_unwind(payload);
        }
        let mut panics = self.panics.take();
        panics.push((self.request.get(), payload));
        self.panics.set(panics);
    }

    /// Continues the panic of the future in `slot`, in the greenlet that awaits it.
    #[cold]
    fn resume_panic(&self, slot: NonNull<Head>) -> ! {
        let mut panics = self.panics.take();
        // The last one: a greenlet that was ended has left its panic, and another slot may be where its
        // slot was.
        let found = panics.iter().rposition(|(of, _)| *of == Some(slot));
        let panic = found.map(|found| panics.remove(found).1);
        self.panics.set(panics);
        resume_unwind(panic.expect("a greenlet is resumed when its future is done"))
    }

    /// Polls the awaited future. Keeps `waiter`, which has posted it, suspended meanwhile. `is_first`
    /// says that it has just done so.
    // A call would be a tenth of an await of a ready future. A debug build would have the temporaries
    // on the stack of each nested poll.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn poll_request(&self, is_first: bool, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        self.awaits.set(self.awaits.get() + u64::from(is_first));
        let Some(head) = self.request.get() else {
            return Polled::Withdrawn;
        };
        // SAFETY: [posted] the slot is live.
        let Head { posted_by, poll, .. } = *unsafe { head.as_ref() };
        // A tracer may run in the waiter, between its resumption and its next step [posted].
        if posted_by != waiter.id() || waiter.is_current() {
            return Polled::Withdrawn; // [kept]
        }
        HAS_PENDING.set(false);
        let held = raw::Held::begin(waiter);
        // SAFETY: [posted] the request is posted, so its greenlet is suspended and the slot is
        // live on its stack; [kept] `waiter` is that greenlet and is kept suspended during the
        // call; [one-thread] it is on this thread.
        let polled = catch_unwind(AssertUnwindSafe(|| unsafe { poll(head, cx) }));
        let is_done = polled.unwrap_or_else(|payload| {
            self.keep_panic(payload);
            true
        });
        let is_to_end = held.release();
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
