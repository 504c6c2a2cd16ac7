//! Switching between greenlets. [`switch_stacks`] makes every switch, except the last one of a
//! greenlet that ends ([`exit_to`]).
//!
//! ```text
//!   origin (runs)                                      target (suspended)
//!     Greenlet::switch
//!       switch_to: find_ready: is the target suspended, and has the thread no flag?
//!         yes: switch_stacks ── backend::switch ─────►  its own switch_stacks returns the payload
//!         no:  prepare_target: start it, or prefetch    receive: moves the value out,
//!         otherwise switch_slow: refuse, resolve a                or receive_slow
//!              dead target, wrap in an envelope
//! ```
//!
//! # Inlining
//!
//! The functions between a public call and the switch are `inline(always)`. A `ret` that is
//! executed after a switch is mispredicted, and each call costs as much as the switch: 1.6 ns
//! inline, 2.9 as one call.
//!
//! # Invariants
//!
//! - **[suspended-sp]** `context.sp` of a greenlet that does not run is non-null exactly if the
//!   greenlet is suspended and not hidden (`hidden_sp`). It then is the resume point that its last
//!   `switch_stacks`, or `activate`, stored. In the running greenlet it may be the used one,
//!   because clearing it would cost each switch a store. A greenlet that ends clears it.
//! - **[ready-now]** Between [`find_ready`] and the switch no user code runs, and nothing of the
//!   thread is borrowed.
//! - **[target-alive]** The target of a switch is active, so its node is in use [active-kept]. So
//!   is the origin's, unless it ends. The stack of one that ends is not reused before the target
//!   runs.

pub(crate) mod backtrace_request;
mod deferred;
pub(crate) mod envelope;
pub(crate) mod finish;
pub(crate) mod first_frame;
mod mismatch;
pub(crate) mod receive;
mod start;
pub(crate) mod teardown;
pub(crate) mod thread_exit;
pub(crate) mod trace;
pub(crate) mod unraisable;
pub(crate) mod unwind;

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;

use anyhow::Error;

use crate::backend::abort::abort;
use crate::backend::{self, SavedContext, asan};
use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::payload::error::{AwaitInProgress, SwitchForbidden, ThreadExiting, Unwinding};
use crate::payload::message::{Delivery, Message};
use crate::payload::value::Value;
use crate::payload::{Payload, TypeTag};
use crate::stack;
use crate::switch::envelope::Envelope;
use crate::switch::receive::open;
use crate::switch::start::{prepare_pending, prepare_pending_slow, start};
use crate::thread::{self, ThreadState, flag, inbox, prefetch};

/// A place in a user's source.
type Loc = &'static Location<'static>;

// ---- the fast path

/// A greenlet that a bare stack switch can resume, until user code or a switch runs ([ready-now]).
pub(crate) struct Target(*const Inner);

/// What control comes back with: a payload, in a greenlet that is not the current one yet.
///
/// `current` still is the sender, so that an error can name it.
#[must_use = "the greenlet is to become the current one"]
pub(crate) struct Arrival {
    pub(crate) payload: Payload,
    /// The context of the greenlet that runs now.
    pub(crate) own: *const SavedContext,
}

impl Arrival {
    /// Returns the arrival of a payload in the current greenlet.
    pub(crate) fn in_current(payload: Payload) -> Arrival {
        Arrival {
            payload,
            own: Inner::context_of(ThreadState::current().current_ptr()),
        }
    }

    /// Makes the greenlet the current one. Returns the payload.
    #[inline]
    pub(crate) fn settle(self) -> Payload {
        ThreadState::current().set_current(self.own);
        self.payload
    }
}

/// Switches to `target` with a payload. Returns the payload of the switch back. `wanted` is the type
/// that the caller asks for.
///
/// # Errors
///
/// Returns why the switch was refused.
#[inline(always)] // hot: see "Inlining"
pub(crate) fn switch_to(
    target: &Inner,
    payload: Payload,
    at: Loc,
    wanted: TypeTag,
) -> Result<Arrival, Error> {
    match find_ready(target, payload.tag()) {
        // SAFETY: nothing runs between `find_ready` and the switch [ready-now]. A value that the
        // payload points to is in the caller's frame, which this switch suspends.
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => switch_slow(target, payload, at, wanted),
    }
}

/// Returns `target` if a bare stack switch can resume it with a payload of type `carried`. Starts a
/// pending target.
#[inline(always)] // hot: see "Inlining"
fn find_ready(target: &Inner, carried: TypeTag) -> Option<Target> {
    let thread = ThreadState::current();
    if !backend::SELF_SWITCH_IS_NOOP && thread.is_current(target) {
        return None;
    }
    if std::thread::panicking() {
        return None;
    }
    let is_ready = thread.flags.allows(target.context.sp.get()) || prepare_target(target, carried);
    is_ready.then_some(Target(target))
}

/// Suspends the running greenlet at `at` and resumes `target`. Returns the payload of the next
/// switch to the suspended greenlet.
///
/// # Safety
///
/// - `target` was just found ready ([ready-now]).
/// - What the payload points to stays in place until the receiver has taken it ([payload-owned]).
#[inline(always)] // hot: see "Inlining"
unsafe fn switch_stacks(target: Target, payload: Payload, at: Loc) -> Arrival {
    let thread = ThreadState::current();
    let (word, data) = payload.into_words();
    let from = Inner::context_of(thread.current_ptr());
    let to = Inner::context_of(target.0);
    let left = asan::leave(&thread.fibers, || {
        let is_self = ptr::eq(from, to);
        stack::bounds_at(if is_self {
            backend::stack_pointer()
        } else {
            // SAFETY: the target's node is alive [target-alive].
            unsafe { (*to).sp.get() }
        })
    });
    // SAFETY: both nodes are alive [target-alive]. The target's `sp` is an unused resume point
    // [suspended-sp], or the target is the running greenlet. Only a switch to this greenlet uses
    // its stack again.
    let (own, word, data) = unsafe { backend::switch(from, at, to, word, data) };
    asan::arrive(left);
    // SAFETY: every switch carries the words of a payload, and these have just arrived.
    let payload = unsafe { Payload::from_words(word, data) };
    Arrival { payload, own }
}

/// Resumes `target` and gives up the stack of the running greenlet, which has ended.
///
/// # Safety
///
/// - The running greenlet has ended, and its stack is the thread's last stack.
/// - `target` was just found ready ([ready-now]).
#[inline]
unsafe fn exit_to(target: Target, payload: Payload) -> ! {
    let (word, data) = payload.into_words();
    let to = Inner::context_of(target.0);
    asan::leave_for_good(&ThreadState::current().fibers, || {
        // SAFETY: the target's node is alive [target-alive].
        stack::bounds_at(unsafe { (*to).sp.get() })
    });
    // SAFETY: the target's node is alive [target-alive], and its `sp` is an unused resume point
    // [suspended-sp]. The payload may point to this stack, since the receiver takes the value first
    // [take-first].
    unsafe { backend::switch_and_exit(to, word, data) }
}

/// Returns `true` if a bare stack switch to `target` can follow, though it is pending or the thread
/// has a flag. Starts a pending target. Runs no user code.
///
/// It returns before the switch, because a `ret` after the switch is mispredicted: a start takes 30
/// ns, and 41 in `switch_slow`.
// All its calls are tail calls, so it has no frame. A frame would be on another cache line of the
// running greenlet's stack: a ring of 100,000 greenlets would take 86 ns a hop instead of 18.
#[cold]
#[inline(never)]
fn prepare_target(target: &Inner, carried: TypeTag) -> bool {
    let thread = ThreadState::current();
    if !thread.allows_switch() {
        return false;
    }
    // The status is on the cache line of the stack pointer. All else of a node is on another one,
    // probably not cached if there are many greenlets.
    if target.status.is_plain_pending() {
        return prepare_pending(target, carried);
    }
    if target.context.sp.get().is_null() {
        return prepare_pending_slow(target, carried);
    }
    if thread.is_current(target) {
        return false;
    }
    prefetch::record_and_prefetch(thread, target);
    true
}

// ---- other kinds of switches

/// As [`switch_to`], but drops the handle before the target runs.
///
/// # Errors
///
/// Returns why the switch was refused.
pub(crate) fn switch_to_owned(
    target: Greenlet,
    payload: Payload,
    at: Loc,
    wanted: TypeTag,
) -> Result<Arrival, Error> {
    let thread = ThreadState::current();
    let node = target.inner();
    let is_suspended = node.status.is_active() && !thread.is_current(node);
    let Some(ready) = is_suspended.then(|| find_ready(node, payload.tag())).flatten() else {
        // The slow path may need the handle, so it is dropped afterwards.
        let back = switch_slow(node, payload, at, wanted)?;
        return Ok(drop_handle(target, back));
    };
    // Dropping the reference and not the handle does not end the greenlet, which is about to run.
    let node = target.into_inner();
    if node.has_one_handle() {
        thread.raise_flag(flag::NO_HANDLES);
    }
    drop(node);
    // SAFETY: between `find_ready` and the switch only a count was dropped, which runs no user code
    // because the active target needs no reference [ready-now].
    Ok(unsafe { switch_stacks(ready, payload, at) })
}

/// Switches to the greenlet in `place`, without another handle of it.
///
/// # Errors
///
/// Returns the payload if a bare stack switch cannot do it.
#[inline(always)] // see "Inlining"
pub(crate) fn try_switch_in(place: &Cell<Greenlet>, payload: Payload, at: Loc) -> Result<Arrival, Payload> {
    // SAFETY: nothing changes the place while `find_ready` uses the node.
    match find_ready(unsafe { &*place.as_ptr() }.inner(), payload.tag()) {
        // SAFETY: nothing runs between `find_ready` and the switch [ready-now].
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => Err(payload),
    }
}

/// Switches to the parent of the running greenlet, without a handle of it.
///
/// # Errors
///
/// Returns the payload if a bare stack switch cannot do it.
#[inline(always)] // see "Inlining"
pub(crate) fn try_switch_to_parent(payload: Payload, at: Loc) -> Result<Arrival, Payload> {
    let target = thread::with_current_inner(|node| find_ready(&*node.parent.get()?, payload.tag()));
    match target {
        // SAFETY: between `find_ready` and the switch only a count was dropped, which runs no user
        // code, because the parent link has another [ready-now].
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => Err(payload),
    }
}

// ---- the slow path

/// Makes a switch or throw that needs more than a bare stack switch.
///
/// # Errors
///
/// Returns why the switch was refused.
#[cold]
#[inline(never)]
fn switch_slow(target: &Inner, payload: Payload, at: Loc, wanted: TypeTag) -> Result<Arrival, Error> {
    let thread = ThreadState::current();
    let mut delivery = Delivery::of(payload);
    if let Some(refusal) = Refusal::of(thread) {
        if let Refusal::NoSwitch(_) = refusal {
            teardown::note_refusal(thread);
        }
        return Err(refusal.into_error(unsent(delivery)));
    }
    // Before the checks below, because this may change their results (rule XD-5).
    if thread.has_flag(flag::REMOTE_CALL | flag::DEFERRED) {
        delivery = Delivery::Message(unwind::run_holding(delivery.into_message(), || {
            inbox::run_requests(thread);
            // CAUTION: runs arbitrary user code, which may unwind.
            thread.run_deferred();
        }));
    }
    if target.status.is_dead() {
        // CAUTION: runs arbitrary user code (destructors of the exit's contexts), so it precedes
        // the look for a live target.
        delivery = exit_to_value(delivery);
    }

    let Some(live) = target.nearest_living() else {
        return Err(ThreadExiting::new(unsent(delivery)).into());
    };
    if thread.is_current(&live) {
        return echo(thread, live, delivery, wanted)
            .map_err(|unwanted| mismatch::of_echo(target, at, wanted.name(), unwanted).into());
    }
    if let Some(locked) = find_await_lock(thread, &live) {
        let error = AwaitInProgress::new(locked.label(), unsent(delivery)).into();
        drop((locked, live)); // `count_refusal` may never return
        teardown::count_refusal();
        return Err(error);
    }
    if live.status.is_pending() {
        if let Err(error) = start(thread, &live, &delivery) {
            return Err(error.with(unsent(delivery), |expected, value| {
                mismatch::of_pending(&live, at, expected, value)
            }));
        }
    }
    Ok(send(thread, live, delivery, at))
}

/// Delivers one stage of an end to an active greenlet that does not run. The checks of a user's
/// switch do not apply.
///
/// The caller has released the greenlet's await lock, and knows that no panic unwinds.
#[inline(always)] // see "Inlining"
pub(crate) fn deliver_stage(target: &Inner, message: Message, at: Loc) -> Arrival {
    let thread = ThreadState::current();
    if target.context.sp.get().is_null() {
        target.context.sp.set(target.hidden_sp.replace(ptr::null_mut()));
        if target.context.sp.get().is_null() {
            abort("the end of a greenlet that is not suspended");
        }
    }
    match message {
        // SAFETY: the target has a resume point, no flag is set, and nothing ran since [ready-now].
        // The error is in the payload itself.
        Message::Error(error) if thread.allows_switch() => unsafe {
            switch_stacks(Target(target), Payload::thrown(error), at)
        },
        message => send(thread, target.to_rc(), Delivery::Message(message), at),
    }
}

/// Returns the greenlet whose await prevents a switch to `live`, if there is one.
fn find_await_lock(thread: &ThreadState, live: &Inner) -> Option<InnerRc> {
    let locked = if live.status.is_pending() || thread.has_flag(flag::AWAIT_LOCKS) {
        live.await_locked_below(thread.current_ptr())
    } else {
        None
    };
    let is_hidden = live.status.is_active() && live.context.sp.get().is_null();
    locked.or_else(|| is_hidden.then(|| live.to_rc()))
}

/// Resumes the active greenlet `target`. Uses an envelope if the receiver must do more than take a
/// value.
#[inline(never)]
fn send(thread: &ThreadState, target: InnerRc, delivery: Delivery, at: Loc) -> Arrival {
    let traced = thread.has_flag(flag::TRACED);
    // SAFETY: the running greenlet is active, so its node is in use [active-kept].
    let has_handle = unsafe { &*thread.current_ptr() }.has_handles();
    let mut envelope;
    let payload = match delivery {
        Delivery::Payload(payload) if !traced && has_handle => payload,
        delivery => {
            envelope = ManuallyDrop::new(Envelope {
                delivery,
                origin: (traced || !has_handle).then(|| Greenlet::from_inner(thread.current_inner())),
                traced,
            });
            Payload::new(&mut envelope)
        }
    };
    // SAFETY: `into_target` checks that the target is suspended, and nothing runs in between
    // [ready-now]. The envelope is in this frame, which the switch suspends.
    unsafe { switch_stacks(into_target(thread, target), payload, at) }
}

/// Drops the reference to a suspended greenlet, right before the switch to it. During the switch it
/// would look like a handle. The greenlet is active, so it needs none ([target-alive]).
fn into_target(thread: &ThreadState, target: InnerRc) -> Target {
    if thread.has_flag(flag::NO_HANDLES) {
        thread.lower_flag(flag::NO_HANDLES); // `send` or `finish` has taken care of the origin
    }
    if target.context.sp.get().is_null() {
        abort("a switch to a greenlet that is not suspended");
    }
    Target(target.as_ptr())
}

/// Drops the handle that a slow switch used, after the switch back.
///
/// Dropping the last handle ends the greenlet, which runs user code. So the payload is opened first
/// ([take-first]).
fn drop_handle(handle: Greenlet, back: Arrival) -> Arrival {
    if handle.inner().has_other_handles() {
        return back;
    }
    let message = open(back);
    // CAUTION: runs arbitrary user code.
    let message = unwind::run_holding(message, || drop(handle));
    Arrival::in_current(Envelope::local(message))
}

/// Answers a switch or throw of the running greenlet to itself (rules SW-8, SW-21, TH-10).
///
/// # Errors
///
/// Returns a value that is not of the type `wanted`.
fn echo(
    thread: &ThreadState,
    current: InnerRc,
    mut delivery: Delivery,
    wanted: TypeTag,
) -> Result<Arrival, Value> {
    // Take a handle: losing the last other one while the tracer runs must be detected.
    let current = Greenlet::from_inner(current);
    if thread.has_flag(flag::TRACED) {
        // CAUTION: runs arbitrary user code (the tracer).
        delivery = Delivery::Message(trace::call(&current, delivery.into_message()));
    }
    let is_wanted = delivery.check_type(wanted).is_ok();
    let payload = match delivery {
        Delivery::Payload(payload) if is_wanted => payload,
        delivery => match delivery.into_message() {
            Message::Value(value) if !is_wanted => return Err(value),
            message => Envelope::local(message),
        },
    };
    Ok(Arrival::in_current(payload))
}

// ---- refusals

/// Why the running greenlet may not switch at all.
enum Refusal {
    Unwinding,
    ThreadExiting,
    /// In a `no_switch` section, whose outermost one began there.
    NoSwitch(&'static Location<'static>),
}

impl Refusal {
    fn of(thread: &ThreadState) -> Option<Refusal> {
        if std::thread::panicking() {
            Some(Refusal::Unwinding)
        } else if thread.has_flag(flag::EXITING) {
            Some(Refusal::ThreadExiting)
        } else {
            thread.no_switch_since.get().map(Refusal::NoSwitch)
        }
    }

    /// Returns the error for the sender, with the value that was not sent.
    fn into_error(self, unsent: Option<Value>) -> Error {
        match self {
            Refusal::Unwinding => Unwinding::new(unsent).into(),
            Refusal::ThreadExiting => ThreadExiting::new(unsent).into(),
            Refusal::NoSwitch(since) => SwitchForbidden::new(since, unsent).into(),
        }
    }
}

/// Checks that the running greenlet may switch, whatever the target.
///
/// # Errors
///
/// Returns the error that a switch would return: [`Unwinding`], [`ThreadExiting`] or
/// [`SwitchForbidden`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{check_switch_allowed, no_switch};
/// assert!(check_switch_allowed().is_ok());
/// assert!(no_switch(check_switch_allowed).is_err());
/// ```
#[inline]
pub fn check_switch_allowed() -> Result<(), Error> {
    let thread = ThreadState::current();
    if thread.allows_switch() && !std::thread::panicking() {
        return Ok(());
    }
    Refusal::of(thread).map_or(Ok(()), |refusal| Err(refusal.into_error(None)))
}

/// Returns the content of a refused delivery, for the error. Drops nothing: in a greenlet that has
/// ended, the destructor of a panic's payload must not run.
fn unsent(delivery: Delivery) -> Option<Value> {
    match delivery.into_message() {
        Message::Value(value) => Some(value),
        Message::Error(error) => Some(Value::new(error)),
        Message::Panic(payload) => Some(Value::new(payload)),
        Message::ForcedUnwind => None,
    }
}

/// Turns a thrown exit into a value: a dead greenlet passes it up so (rules TH-8, EX-2).
fn exit_to_value(delivery: Delivery) -> Delivery {
    Delivery::Message(match delivery {
        Delivery::Message(Message::Error(error)) => match unwind::take_exit(error) {
            Ok(exit) => Message::Value(Value::new(exit)),
            Err(error) => Message::Error(error),
        },
        other => return other,
    })
}
