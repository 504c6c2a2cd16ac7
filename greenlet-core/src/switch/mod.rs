//! Moving control: every stack switch of the library is made by [`switch_stacks`] or, when a greenlet ends, by
//! [`exit_to`]. (Backtraces of suspended greenlets are the exception, see `backtrace.rs`.)
//!
//! ```text
//!   origin (runs)                                   target (suspended)
//!     Greenlet::switch
//!       switch_to: find_ready                         is it suspended, and has the thread no flag?
//!         yes: switch_stacks ── backend::switch ──►     its own switch_stacks returns the payload
//!         no:  prepare_target: start it, or prefetch     receive: moves the value out, or `receive_slow`
//!              otherwise switch_slow: refuse, resolve a dead target, wrap in an envelope
//! ```
//!
//! # Invariants
//!
//! - **[suspended-sp]** `context.sp` of a greenlet that does not run is non-null exactly if the greenlet is suspended
//!   and anybody may resume it. It then is the resume point that its own `switch_stacks`, or `activate`, wrote. The
//!   running greenlet may still have the one that it was resumed by, which nobody may use: clearing it would cost each
//!   switch a store. A greenlet that ends clears it.
//! - **[ready-now]** Between [`find_ready`] and the switch no user code runs, and nothing of the thread is borrowed.
//! - **[target-alive]** The target of a switch is active, so its node counts itself and lives. The origin is active
//!   too, or ending; the stack of an ending one is kept from others until something else runs.

pub(crate) mod backtrace_request;
pub(crate) mod envelope;
pub(crate) mod finish;
pub(crate) mod first_frame;
pub(crate) mod receive;
pub(crate) mod teardown;
pub(crate) mod thread_exit;
pub(crate) mod trace;
pub(crate) mod unraisable;
pub(crate) mod unwind;

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;

use anyhow::Error;

use crate::backend::abort::abort;
use crate::backend::{self, asan};
use crate::node::Inner;
use crate::node::closure::ClosureVTable;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::payload::error::{
    AwaitInProgress, ParentError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
use crate::payload::exit::GreenletExit;
use crate::payload::message::{Delivery, Message};
use crate::payload::value::Value;
use crate::payload::{Payload, TypeTag};
use crate::stack::error::StackError;
use crate::stack::{self, Stack};
use crate::switch::envelope::Envelope;
use crate::switch::receive::{open, receive};
use crate::thread::{ThreadState, flag, inbox, prefetch};

/// A place in a user's source.
type Loc = &'static Location<'static>;

// ---- the fast path ----------------------------------------------------------------------------------

/// A greenlet that a bare stack switch can resume, until user code or a switch runs ([ready-now]).
pub(crate) struct Target(*const Inner);

/// Switches to `target` with a value, and returns what comes back.
#[inline(always)] // hot: a call costs as much as the switch, and its `ret` after the switch is mispredicted
pub(crate) fn switch_to<T: 'static, R: 'static>(
    target: &Inner,
    value: &mut ManuallyDrop<T>,
    at: Loc,
) -> Result<R, Error> {
    let payload = Payload::new(value);
    let back = match find_ready(target, payload.tag()) {
        // SAFETY: [ready-now]; the value stays in the caller's frame, which this switch suspends.
        Some(target) => unsafe { switch_stacks(target, payload, at) },
        None => switch_slow(target, Delivery::Payload(payload), at)?,
    };
    receive(back)
}

/// Returns `target` if a bare stack switch can resume it with a payload of type `carried`. A pending target is started
/// for that.
#[inline(always)] // hot, see `switch_to`
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

/// Suspends the running greenlet at `at` and resumes `target`. Returns what the next switch to the suspended one brings.
///
/// # Safety
///
/// - `target` was just found ready ([ready-now]).
/// - What the payload points to stays in place until the receiver has taken it ([payload-owned]).
#[inline(always)] // hot, see `switch_to`
unsafe fn switch_stacks(target: Target, payload: Payload, at: Loc) -> Payload {
    let thread = ThreadState::current();
    let (word, data) = payload.into_words();
    // SAFETY: [suspended-sp] and [target-alive] hold for the target, [target-alive] for the running greenlet. The words
    // that come back are a payload's: every switch carries one.
    unsafe {
        let (from, to) = (
            &raw const (*thread.current_ptr()).context,
            &raw const (*target.0).context,
        );
        let left = asan::leave(&thread.fibers, || {
            let is_self = ptr::eq(from, to);
            stack::bounds_at(if is_self {
                backend::stack_pointer()
            } else {
                (*to).sp.get()
            })
        });
        let (own, word, data) = backend::switch(from, at, to, word, data);
        asan::arrive(left);
        thread.set_current(Inner::of_context(own));
        Payload::from_words(word, data)
    }
}

/// Leaves the ended greenlet for `target`. Its stack is free as soon as the target runs.
///
/// # Safety
///
/// - The running greenlet has ended, and its stack is the thread's last stack.
/// - `target` was just found ready ([ready-now]). What the payload points to may be on the stack that is left: the
///   receiver takes it first ([take-first]).
#[inline]
unsafe fn exit_to(target: Target, payload: Payload) -> ! {
    let (word, data) = payload.into_words();
    // SAFETY: [suspended-sp], [target-alive].
    unsafe {
        asan::leave_for_good(&ThreadState::current().fibers, || {
            stack::bounds_at((*target.0).context.sp.get())
        });
        backend::switch_and_exit(&raw const (*target.0).context, word, data)
    }
}

/// Makes a target ready that is pending, or whose thread has a flag, if a bare stack switch can follow.
///
/// Returns before the switch, because a `ret` after it is mispredicted: a start takes 30 ns so, and 41 in
/// `switch_slow`. Runs no user code.
// It makes no call but tail calls, so it has no frame. A frame would be on another cache line of the running greenlet's
// stack: a ring of 100,000 greenlets takes 86 ns a hop then, instead of 18.
#[cold]
#[inline(never)]
fn prepare_target(target: &Inner, carried: TypeTag) -> bool {
    let thread = ThreadState::current();
    if !thread.allows_switch() {
        return false;
    }
    // Checked first: all else is on another cache line, probably not cached among many greenlets.
    if target.context.sp.get().is_null() {
        return prepare_pending(target, carried);
    }
    if thread.is_current(target) {
        return false;
    }
    prefetch::record_and_prefetch(thread, target);
    true
}

/// Starts a pending target with a stack of the thread's cache. Returns `false` if it is not pending, or needs more.
#[inline(never)] // keeps the frame out of `prepare_target`
fn prepare_pending(target: &Inner, carried: TypeTag) -> bool {
    let Some(vtable) = target.closure.vtable() else {
        return false;
    };
    if !carried.is(vtable.takes) || !target.is_open_to_switches() {
        return false;
    }
    let Some(stack) = ThreadState::current().take_cached_stack(target.stack_size()) else {
        return false;
    };
    activate(target, vtable, stack);
    true
}

/// Makes a pending greenlet active, suspended at the start of its function, on `stack`.
#[inline]
fn activate(node: &Inner, vtable: &ClosureVTable, stack: Stack) {
    // The greenlet counts itself from now on, until it ends: it needs no handle [own-count].
    node.to_rc().into_raw();
    node.status.activate();
    // SAFETY: the stack is fresh, large enough (`stack::MIN_SIZE`), aligned, and only ours. The entry consumes the
    // function of this node.
    unsafe { backend::init(stack.entry(), vtable.entry, &node.context) };
    node.stack.set(Some(stack));
}

// ---- the other entrances ----------------------------------------------------------------------------

/// Throws an error at `target`, and returns what comes back.
///
/// # Errors
///
/// Returns why the switch was refused.
#[inline(always)] // a `ret` after the switch is mispredicted
pub(crate) fn throw(target: &Inner, error: Error, at: Loc) -> Result<Payload, Error> {
    let payload = Payload::thrown(error);
    match find_ready(target, payload.tag()) {
        // SAFETY: [ready-now]; the error is in the payload itself.
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => switch_slow(target, Delivery::of_thrown(payload), at),
    }
}

/// As [`switch_to`], and drops the handle on the way: the target runs without it.
///
/// # Errors
///
/// Returns why the switch was refused.
pub(crate) fn switch_to_owned(target: Greenlet, payload: Payload, at: Loc) -> Result<Payload, Error> {
    let thread = ThreadState::current();
    let node = target.inner();
    let is_suspended = node.status.is_active() && !thread.is_current(node);
    let ready = if is_suspended {
        find_ready(node, payload.tag())
    } else {
        None
    };
    let Some(ready) = ready else {
        // The slow path may need the handle. If it is the last one, the greenlet is dead or the switch is refused.
        let back = switch_slow(node, Delivery::Payload(payload), at);
        return Ok(drop_handle(target, back?));
    };
    // Only the count goes: the greenlet is about to run, so it is not ended now.
    let node = target.into_inner();
    if node.has_one_handle() {
        thread.raise_flag(flag::NO_HANDLES);
    }
    drop(node);
    // SAFETY: [ready-now]: dropping a count that is not the last one runs no user code.
    Ok(unsafe { switch_stacks(ready, payload, at) })
}

/// Switches to the greenlet in `place`, without counting a handle of it.
///
/// # Errors
///
/// Returns the payload if a bare stack switch cannot do it, or `place` is empty.
#[inline(always)] // the fast path of an await
pub(crate) fn try_switch_in<T: 'static>(
    place: &RefCell<Option<Greenlet>>,
    value: &mut ManuallyDrop<T>,
    at: Loc,
) -> Result<Payload, Payload> {
    let payload = Payload::new(value);
    let target = place
        .borrow()
        .as_ref()
        .and_then(|target| find_ready(target.inner(), payload.tag()));
    match target {
        // SAFETY: [ready-now]: ending a borrow runs no user code.
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => Err(payload),
    }
}

/// Switches to the parent of `child`, without counting a handle of it: the link keeps the parent until control has
/// left.
///
/// # Errors
///
/// Returns the payload if a bare stack switch cannot do it, or `child` is the main greenlet.
#[inline(always)] // a `ret` after the switch is mispredicted
pub(crate) fn try_switch_to_parent<T: 'static>(
    child: &Inner,
    value: &mut ManuallyDrop<T>,
    at: Loc,
) -> Result<Payload, Payload> {
    let payload = Payload::new(value);
    let parent = child.parent.as_ptr();
    // SAFETY: the link keeps the parent, and nothing has changed it since [node-alive].
    let target = unsafe { parent.as_ref() }.and_then(|parent| find_ready(parent, payload.tag()));
    match target {
        // SAFETY: [ready-now].
        Some(target) => Ok(unsafe { switch_stacks(target, payload, at) }),
        None => Err(payload),
    }
}

/// [`try_switch_to_parent`], where a bare stack switch does not do it.
///
/// # Errors
///
/// Returns why the switch was refused.
#[cold]
pub(crate) fn switch_to_parent_slow(child: &Inner, payload: Payload, at: Loc) -> Result<Payload, Error> {
    let Some(parent) = child.parent_greenlet() else {
        drop(payload.into_value());
        return Err(ParentError::main().into());
    };
    let back = switch_slow(parent.inner(), Delivery::Payload(payload), at)?;
    Ok(drop_handle(parent, back))
}

// ---- the slow path ----------------------------------------------------------------------------------

/// Does every switch and throw that needs more than a bare stack switch.
///
/// # Errors
///
/// Returns why the switch was refused. Control has not left then.
#[cold]
#[inline(never)]
pub(crate) fn switch_slow(target: &Inner, delivery: Delivery, at: Loc) -> Result<Payload, Error> {
    let thread = ThreadState::current();
    if let Some(refusal) = Refusal::of(thread) {
        return Err(refusal.into_error(unsent(delivery)));
    }
    // First, so that what these run cannot get between (rule XD-5).
    let guard = DropGuard::new(delivery);
    inbox::run_requests(thread);
    // CAUTION: runs arbitrary user code, which may unwind.
    thread.run_deferred();
    let delivery = match guard.into_inner() {
        // A dead greenlet passes an exit up as a value (rule TH-8).
        // CAUTION: runs arbitrary user code (destructors of the exit's contexts), so it comes before the target is
        // looked for.
        Delivery::Message(Message::Error(error)) if target.status.is_dead() => {
            Delivery::Message(exit_to_value(error))
        }
        delivery => delivery,
    };

    let Some(live) = target.nearest_living() else {
        return Err(ThreadExiting::new(unsent(delivery)).into());
    };
    if thread.is_current(&live) {
        return Ok(echo(thread, live, delivery));
    }
    if let Some(locked) = find_await_lock(thread, &live) {
        let error = AwaitInProgress::new(locked.label(), unsent(delivery)).into();
        drop((locked, live)); // the count may leave this stack for good
        teardown::count_refusal();
        return Err(error);
    }
    if live.status.is_pending() {
        if let Err(error) = start(thread, &live, &delivery) {
            return Err(error.with(unsent(delivery)));
        }
    }
    Ok(send(thread, live, delivery, at))
}

/// Delivers one stage of an end to an active greenlet that does not run. None of the checks of a user's switch apply.
///
/// The caller has released the greenlet from its await lock, and knows that no panic unwinds.
#[inline(always)] // a `ret` after the switch is mispredicted: of a kill's 54 ns
pub(crate) fn deliver_stage(target: &Inner, message: Message, at: Loc) -> Payload {
    let thread = ThreadState::current();
    if target.context.sp.get().is_null() {
        target.context.sp.set(target.hidden_sp.replace(ptr::null_mut()));
        if target.context.sp.get().is_null() {
            abort("the end of a greenlet that is not suspended");
        }
    }
    match message {
        // SAFETY: as in `throw`; nothing but the flags of users' switches could be in the way, and there are none.
        Message::Error(error) if thread.allows_switch() => unsafe {
            switch_stacks(Target(target), Payload::thrown(error), at)
        },
        message => send(thread, target.to_rc(), Delivery::Message(message), at),
    }
}

/// Returns the greenlet whose await is in progress and keeps `live` from being resumed, if there is one.
fn find_await_lock(thread: &ThreadState, live: &Inner) -> Option<InnerRc> {
    let locked = if live.status.is_pending() || thread.has_flag(flag::AWAIT_LOCKS) {
        live.await_locked_ancestor()
    } else {
        None
    };
    let is_hidden = live.status.is_active() && live.context.sp.get().is_null();
    locked.or_else(|| is_hidden.then(|| live.to_rc()))
}

/// Resumes the active greenlet `target`, with an envelope where the receiver has more to do than to take a value.
#[inline(never)]
fn send(thread: &ThreadState, target: InnerRc, delivery: Delivery, at: Loc) -> Payload {
    let traced = thread.has_flag(flag::TRACED);
    // SAFETY: the running greenlet's node lives [own-count].
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
    // SAFETY: [ready-now]; the envelope is in this frame, which the switch suspends.
    unsafe { switch_stacks(into_target(thread, target), payload, at) }
}

/// Releases the reference to a suspended greenlet, right before the switch to it. Kept over the switch, it would look
/// like a handle. The greenlet is active, so it counts itself ([target-alive]).
fn into_target(thread: &ThreadState, target: InnerRc) -> Target {
    if thread.has_flag(flag::NO_HANDLES) {
        thread.lower_flag(flag::NO_HANDLES); // it was about the origin
    }
    if target.context.sp.get().is_null() {
        abort("a switch to a greenlet that is not suspended");
    }
    Target(target.as_ptr())
}

/// Drops a handle that a slow switch was made by, after control is back.
///
/// That may run user code: it ends the greenlet if the handle is the last one. So the payload is opened first
/// ([take-first]).
pub(crate) fn drop_handle(handle: Greenlet, back: Payload) -> Payload {
    if handle.inner().has_other_handles() {
        return back;
    }
    let guard = DropGuard::new(Delivery::Message(open(back)));
    // CAUTION: runs arbitrary user code.
    drop(handle);
    Envelope::local(guard.into_inner().into_message())
}

/// Answers a switch or throw that reaches the greenlet that makes it: control stays (rules SW-8, SW-21, TH-10).
fn echo(thread: &ThreadState, current: InnerRc, delivery: Delivery) -> Payload {
    // As a handle: losing the last other one while the tracer runs must be detected.
    let current = Greenlet::from_inner(current);
    if thread.has_flag(flag::TRACED) {
        // CAUTION: runs arbitrary user code (the tracer).
        return Envelope::local(trace::call(&current, delivery.into_message()));
    }
    match delivery {
        Delivery::Payload(payload) => payload,
        Delivery::Message(message) => Envelope::local(message),
    }
}

/// Owns a delivery while user code runs, and drops it if that unwinds.
struct DropGuard(Option<Delivery>);

impl DropGuard {
    fn new(delivery: Delivery) -> DropGuard {
        DropGuard(Some(delivery))
    }

    fn into_inner(mut self) -> Delivery {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for DropGuard {
    fn drop(&mut self) {
        drop(self.0.take().map(Delivery::into_message));
    }
}

// ---- refusals ---------------------------------------------------------------------------------------

/// Why the running greenlet may not switch at all.
enum Refusal {
    Unwinding,
    ThreadExiting,
    /// Since the outermost `no_switch` section began there.
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
/// Returns the error of a switch that were made here: [`Unwinding`], [`ThreadExiting`] or [`SwitchForbidden`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{check_switch_allowed, no_switch};
///
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

/// Returns the value of a delivery that is not made, for the error that says so.
fn unsent(delivery: Delivery) -> Option<Value> {
    match delivery.into_message() {
        Message::Value(value) => Some(value),
        Message::Error(error) => Some(Value::new(error)),
        Message::Panic(_) | Message::ForcedUnwind => None,
    }
}

/// Turns an exit into the value that it becomes where it leaves a greenlet. Other errors stay errors (rule EX-2).
fn exit_to_value(error: Error) -> Message {
    match error.downcast::<GreenletExit>() {
        Ok(exit) => Message::Value(Value::new(exit)),
        Err(error) => Message::Error(error),
    }
}

/// Why a pending greenlet was not started. It stays pending.
enum StartError {
    Type { expected: &'static str },
    Stack(StackError),
}

impl StartError {
    fn with(self, value: Option<Value>) -> Error {
        match (self, value) {
            (StartError::Type { expected }, Some(value)) => TypeMismatch::new(expected, value).into(),
            (StartError::Type { .. }, None) => unreachable!("only values have a wrong type"),
            (StartError::Stack(error), value) => error.carrying(value).into(),
        }
    }
}

/// Gives a pending greenlet its stack and makes it active. After an error nothing has changed.
fn start(thread: &ThreadState, node: &Inner, delivery: &Delivery) -> Result<(), StartError> {
    let vtable = node
        .closure
        .vtable()
        .expect("a pending greenlet has its function");
    delivery
        .check_type(vtable.takes)
        .map_err(|expected| StartError::Type { expected })?;
    let stack = thread.take_stack(node.stack_size()).map_err(StartError::Stack)?;
    activate(node, vtable, stack);
    Ok(())
}
