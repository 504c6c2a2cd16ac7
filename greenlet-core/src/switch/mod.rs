//! The transfer: how control and one message go from the running greenlet to another. All switching of
//! the library passes through [`switch_stacks`], or through [`exit_to`] when a greenlet finishes. (But for
//! inquiries, which nobody notices: see `probe.rs`.)
//!
//! ```text
//!   origin (runs)                                        target (suspended)
//!     switch_to: is there a way to it?
//!        yes: switch_stacks                                       its own switch_stacks returns a payload
//!        no:  transfer: refuse, resolve the dead,          receive: take the value out,
//!             start the pending, wrap in a Envelope         or open the Envelope and settle
//! ```
//!
//! # Invariants
//!
//! - **S1** `Inner::context.sp` of a greenlet that does not run is non-null exactly if it is suspended with an open gate; it
//!   then is the resume point that its own `switch_stacks` (or `start`) wrote. The one that runs may still have the one that
//!   it was resumed by, which nobody may use. (To clear it would be one more store in each switch, and it is stores that
//!   a switch waits for.) Where the backend echoes, the fast path need not look for that: a switch to itself writes a
//!   new one first, and comes right back with what it sent. Who finishes clears it. Nodes never leave their thread.
//! - **S2** Between looking at a resume point and switching to it no foreign code runs, and nothing is
//!   borrowed from the hub (T3).
//! - **S3** The greenlet that is switched to is active, so its node counts itself and lives (T1), and
//!   the greenlet that is left is active or finishing; a finishing one's stack is kept from others
//!   (`ThreadState::keep_last_stack`) until something else runs.
//! - **S4** Whoever arrives takes the payload out of the sender's frame before it calls foreign code (P2).

pub(crate) mod first_frame;
pub(crate) mod receive;
pub(crate) mod teardown;
pub(crate) mod trace;
pub(crate) mod unraisable;
pub(crate) mod unwind;

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;

use anyhow::Error;

use crate::backend;
use crate::backend::asan;
use crate::greenlet::Greenlet;
use crate::greenlet::all_threads;
use crate::node::Inner;
use crate::node::closure::ClosureVTable;
use crate::node::record::{InnerRc, decrement_strong, increment_strong, strong_count};
use crate::payload::error::{
    AwaitInProgress, ParentError, StackError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
use crate::payload::exit::GreenletExit;
use crate::payload::value::Value;
use crate::payload::{Delivery, Envelope, Message, Payload, Thrown, TypeTag};
use crate::stack::Stack;
use crate::switch::receive::{Resumed, cold_path, open, receive_any};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;
use crate::switch::unraisable::Unraisable;
use crate::thread::prefetch;
use crate::thread::{ThreadState, flag};

/// Says whether there is nothing to do for a switch to `target` with a value of the type `carries` but to go to its context.
/// Else [`switch_slow`] does it.
///
/// # Safety
///
/// - The target lives, and the pointer comes from its [`InnerRc`] (K3). It is not the current greenlet, unless the backend
///   echoes.
#[inline(always)] // part of the fast path: two looks, which do not wait for each other
unsafe fn has_way_to(thread: &ThreadState, target: *const Inner, carries: TypeTag) -> bool {
    // SAFETY: the contract.
    let to = unsafe { (*target).context.sp.get() };
    if thread.flags.allows(to) {
        return !std::thread::panicking();
    }
    backend::keep_apart();
    // SAFETY: the contract.
    !std::thread::panicking() && unsafe { has_long_way_to(target, carries) }
}

/// [`has_way_to`], where the target is not simply suspended, or the thread has a flag. A pending one is started.
///
/// It does not switch itself, for its return would be one that the processor does not predict. Nor does it call anything on
/// its way, so it needs nothing of the stack.
///
/// # Safety
///
/// - As for [`has_way_to`]; and nothing unwinds.
#[cold] // leaves the fast path as it is
#[inline(never)]
unsafe fn has_long_way_to(target: *const Inner, carries: TypeTag) -> bool {
    let thread = ThreadState::current();
    // SAFETY: the contract.
    let node = unsafe { &*target };
    // First where it goes on: all else is in another line of the cache, and in a crowd not a near one.
    if !node.context.sp.get().is_null() {
        // SAFETY: the contract.
        return unsafe { has_way_in_crowd(thread, target) };
    }
    let is_ordinary =
        !thread.has_any_flag() && node.status.is_plain_pending() && node.parent.is_unlocked_main();
    if let Some(vtable) = node.vtable.get().filter(|_| is_ordinary) {
        if carries.ptr_eq(vtable.takes) {
            if let Some(stack) = thread.take_last_stack() {
                // SAFETY: the contract.
                unsafe { activate(target, vtable, stack) };
                return true;
            }
        }
    }
    // SAFETY: the contract.
    unsafe { has_way_into(target, carries) }
}

/// [`has_way_to`], where the target is suspended and its gate is open, or it is current, and the thread has flags.
///
/// # Safety
///
/// - As for [`has_way_to`].
#[inline(never)] // as `has_long_way_to` needs nothing of the stack
unsafe fn has_way_in_crowd(thread: &ThreadState, target: *const Inner) -> bool {
    // SAFETY: the contract.
    thread.allows_switch()
        && thread.current_ptr() != target
        && unsafe { has_way_to_suspended(thread, target) }
}

/// [`has_way_to`], where the target is pending and not an ordinary one, or there is no way.
///
/// # Safety
///
/// - As for [`has_way_to`].
#[inline(never)] // as `has_long_way_to` needs nothing of the stack
unsafe fn has_way_into(target: *const Inner, carries: TypeTag) -> bool {
    let thread = ThreadState::current();
    // SAFETY: the contract. It is not dropped, so it need not be counted.
    let node = ManuallyDrop::new(unsafe { InnerRc::from_raw(target) });
    let Some(vtable) = node
        .vtable
        .get()
        .filter(|_| thread.allows_switch() && node.status.is_pending())
    else {
        return false;
    };
    if !carries.is(vtable.takes) || !node.is_open_to_switches() {
        return false;
    }
    let Some(stack) = thread.take_cached_stack(node.stack_size()) else {
        return false;
    };
    // SAFETY: the contract.
    unsafe { activate(target, vtable, stack) };
    true
}

/// Says whether `target`, which is not current, is suspended, its gate open. The rules have
/// nothing to say about a switch there ([`ThreadState::allows_switch`]). Looks ahead in a crowd.
///
/// # Safety
///
/// - As for [`has_way_to`].
#[inline]
unsafe fn has_way_to_suspended(thread: &ThreadState, target: *const Inner) -> bool {
    // SAFETY: the contract.
    let to = unsafe { (*target).context.sp.get() };
    if to.is_null() {
        return false;
    }
    // SAFETY: the contract.
    unsafe { prefetch::record_and_prefetch(thread, target, to) };
    true
}

/// Hands a value over to `target`, if there is a way; the payload comes back as an error if there is more to do than to
/// switch there.
///
/// # Safety
///
/// - `origin` is the current greenlet. `target` lives, and is another one, unless the backend echoes. Both pointers come
///   from their [`InnerRc`]s (K3).
#[inline(always)] // the fast path: a call would cost as much as the switch
unsafe fn try_switch<T: 'static>(
    thread: &ThreadState,
    origin: *const Inner,
    target: *const Inner,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<Resumed, Payload> {
    let payload = Payload::new(value);
    // SAFETY: the contract.
    if unsafe { !has_way_to(thread, target, TypeTag::of::<T>()) } {
        return Err(payload.described_anew::<T>());
    }
    // SAFETY: the contract; S1; S3: no count of the target is needed, it is active.
    Ok(unsafe { switch_stacks(origin, target, payload.described_anew::<T>(), at) })
}

/// Hands a value over to `target` and receives what comes back.
#[inline(always)] // the fast path
pub(crate) fn switch_to<T: 'static, R: 'static>(
    target: &InnerRc,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    let thread = ThreadState::current();
    let target = target.as_ptr();
    let origin = thread.current_ptr();
    let unsent = if !backend::SELF_SWITCH_IS_NOOP && ptr::eq(origin, target) {
        Payload::new(value)
    } else {
        // SAFETY: T1: the target has a handle, so the hub is set up.
        match unsafe { try_switch(thread, origin, target, value, at) } {
            Ok(back) => return back.receive(),
            Err(unsent) => unsent,
        }
    };
    // SAFETY: the caller has the handle.
    cold_path(move || unsafe { switch_to_slow(target, unsent, at) })
}

/// Hands over what does not take the fast path.
///
/// # Safety
///
/// - The target has a handle that is held until this returns, and the pointer comes from it (K3).
unsafe fn switch_to_slow<R: 'static>(
    target: *const Inner,
    payload: Payload,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    // SAFETY: the contract: it stands for the handle.
    let target = ManuallyDrop::new(unsafe { InnerRc::from_raw(target) });
    receive_any(switch_slow(
        &target,
        Delivery::Payload(payload),
        at,
        Manners::Polite,
    )?)
}

/// As [`has_way_to`], for switches that are not on its fast path.
fn has_way_aside(thread: &ThreadState, target: &InnerRc) -> bool {
    let allows_switch = thread.allows_switch() && !thread.is_current(target) && !std::thread::panicking();
    // SAFETY: the reference counts it.
    allows_switch && unsafe { has_way_to_suspended(thread, target.as_ptr()) }
}

/// As [`switch_to`], and lets go of the handle on the way.
///
/// # Errors
///
/// Why it was refused.
pub(crate) fn switch_to_owned(
    target: Greenlet,
    payload: Payload,
    at: &'static Location<'static>,
) -> Result<Payload, Error> {
    let thread = ThreadState::current();
    if !has_way_aside(thread, target.inner()) {
        // The rare cases may need the handle: where it is the last one, the greenlet it belongs to is
        // dead or refuses, and it is let go of when control is back.
        let back = switch_slow(target.inner(), Delivery::Payload(payload), at, Manners::Polite);
        return Ok(let_go(target, back?));
    }
    let origin = thread.current_ptr();
    let place = target.inner().as_ptr();
    // As the bare counter: the greenlet is about to run, so it is not ended for want of a handle. It is
    // active and counts itself, so this is not the last count (S3).
    let target = target.into_inner();
    if target.strong_count() == COUNT_OF_LAST_HANDLE {
        thread.raise_flag(flag::NO_HANDLES); // it is ended when it switches away
    }
    drop(target);
    // SAFETY: T1; S1; S3.
    Ok(unsafe { switch_stacks(origin, place, payload, at) }.make_current())
}

/// Hands a value over to the greenlet in `place`, without counting a handle of it, and receives what comes back. The
/// payload comes back as an error where the fast path is not open, or nobody is there.
#[inline(always)] // the fast path of an await
pub(crate) fn switch_to_in<T: 'static, R: 'static>(
    place: &RefCell<Option<Greenlet>>,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<Result<R, Error>, Payload> {
    let thread = ThreadState::current();
    let target = match &*place.borrow() {
        Some(target) if !thread.is_current(target.inner()) => target.inner().as_ptr(),
        _ => return Err(Payload::new(value)),
    };
    // SAFETY: there is a handle, so T1; nothing has run since it was looked at.
    unsafe { try_switch(thread, thread.current_ptr(), target, value, at) }.map(Resumed::receive)
}

/// Hands a value over from the running greenlet to the parent of `child`, and receives what comes back. Where `child`
/// itself runs, no handle of the parent is counted: the link keeps it until control has left.
#[inline(always)] // the fast path
pub(crate) fn switch_to_parent_of<T: 'static, R: 'static>(
    child: &InnerRc,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    let thread = ThreadState::current();
    let parent = child.parent.as_ptr();
    let unsent = if !thread.is_current(child) || parent.is_null() {
        Payload::new(value)
    } else {
        // SAFETY: L1: the link is a handle, and it is not changed before control has left; the child is current.
        match unsafe { try_switch(thread, child.as_ptr(), parent, value, at) } {
            Ok(back) => return back.receive(),
            Err(unsent) => unsent,
        }
    };
    cold_path(move || {
        let Some(parent) = child.parent_greenlet() else {
            drop(unsent.into_value());
            return Err(ParentError::main().into());
        };
        let back = switch_slow(parent.inner(), Delivery::Payload(unsent), at, Manners::Polite)?;
        receive_any(let_go(parent, back))
    })
}

/// Whether a transfer asks before it acts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// A user's switch or throw: refused where the rules say so.
    Polite,
    /// The library ends a greenlet: closed gates do not refuse it. The caller knows that nothing unwinds.
    Firm,
}

/// Leaves the greenlet `origin`, which runs, for `target`; returns with what the next switch to `origin` brings.
///
/// # Safety
///
/// - `origin` is the current greenlet. Both live, and the pointers come from their [`InnerRc`]s (K3).
/// - The target is suspended, its gate open (S1); or it is `origin`, if the backend echoes.
/// - What the payload points to stays in place until the other side has taken it (P1).
#[inline(always)]
unsafe fn switch_stacks(
    origin: *const Inner,
    target: *const Inner,
    payload: Payload,
    at: &'static Location<'static>,
) -> Resumed {
    let (word, data) = payload.into_words();
    // SAFETY: S1, S2, S3; the words that come back are those of a payload, since every switch of the
    // library carries one.
    unsafe {
        let (from, to) = (&raw const (*origin).context, &raw const (*target).context);
        let left = asan::leave_seat(from, to);
        let (own, word, data) = backend::switch(from, at, to, word, data);
        asan::arrive(left);
        Resumed::new(Inner::of_context(own), Payload::from_words(word, data))
    }
}

/// Leaves the finished greenlet for `target`; its stack is free as soon as the other side runs.
///
/// # Safety
///
/// - The greenlet that runs is dead, and its stack has been retired; the target is suspended (S1), and lives.
/// - What the payload points to may stand on the retired stack: the other side takes it first (S4).
#[inline(always)]
unsafe fn exit_to(target: *const Inner, payload: Payload) -> ! {
    let (word, data) = payload.into_words();
    // SAFETY: S1, S2, S3.
    unsafe {
        asan::leave_for_good((*target).context.sp.get());
        backend::switch_and_exit(&raw const (*target).context, word, data)
    }
}

/// Hands anything over to any greenlet: everything that the fast path does not do.
///
/// # Errors
///
/// Why it was refused: then control has not left.
#[cold]
#[inline(never)]
pub(crate) fn switch_slow(
    target: &InnerRc,
    delivery: Delivery,
    at: &'static Location<'static>,
    manners: Manners,
) -> Result<Payload, Error> {
    let thread = ThreadState::current();
    if manners == Manners::Polite {
        if let Some(refuse) = refusal(thread) {
            return Err(refuse(unsent(delivery)));
        }
    }
    let delivery = if manners == Manners::Polite {
        // Before anything is staged, so that what these run cannot get between (rule XD-5).
        let guard = DropGuard::new(delivery);
        if thread.has_flag(flag::REMOTE_CALL) {
            all_threads::run(thread);
        }
        // CAUTION: runs foreign code, which may unwind.
        thread.run_deferred();
        guard.into_inner()
    } else {
        delivery
    };

    let delivery = match delivery {
        // A dead greenlet eats an exit and passes it up as a value (rule TH-8).
        // CAUTION: runs foreign code (the exit's contexts are dropped): so it comes first.
        Delivery::Message(Message::Error(error)) if target.status.is_dead() => {
            Delivery::Message(exit_to_value(error))
        }
        delivery => delivery,
    };
    let Some(living) = target.nearest_living() else {
        let error = ThreadExiting::new(unsent(delivery)).into();
        return Err(error);
    };

    if thread.is_current(&living) {
        return Ok(echo(thread, living, delivery));
    }
    if manners == Manners::Polite {
        let locked = if living.status.is_pending() || thread.has_flag(flag::AWAIT_LOCKS) {
            living.await_locked_ancestor()
        } else {
            None
        };
        // G2; and G1: nothing may be between a greenlet and where it ends.
        let is_hidden = living.status.is_active() && living.context.sp.get().is_null();
        let locked = locked.or_else(|| is_hidden.then(|| living.clone()));
        if let Some(locked) = locked {
            let error = AwaitInProgress::new(locked.label(), unsent(delivery)).into();
            drop((locked, living));
            teardown::count_refusal();
            return Err(error);
        }
    } else if living.context.sp.get().is_null() {
        living.context.sp.set(living.hidden_sp.replace(ptr::null_mut()));
    }
    if living.status.is_pending() {
        if let Err(error) = start(thread, &living, &delivery) {
            return Err(error.with(unsent(delivery)));
        }
    }
    Ok(send(thread, living, delivery, at))
}

/// Lets go of a handle that a transfer was by, when control is back.
///
/// That may run foreign code: the handle may be the last one of a greenlet, and the end of that can even use the stack that
/// what arrived still stands on. So that is taken first (S4).
pub(crate) fn let_go(handle: Greenlet, back: Payload) -> Payload {
    if handle.inner().strong_count() > COUNT_OF_LAST_HANDLE {
        return back; // there are others, so the end of this one is nothing
    }
    let message = open(back);
    // Should it unwind, the message goes as well.
    let guard = DropGuard::new(Delivery::Message(message));
    // CAUTION: runs foreign code.
    drop(handle);
    Envelope::local(guard.into_inner().into_message())
}

/// Throws an error at `target`.
///
/// # Errors
///
/// Why it was refused.
#[inline(always)] // a return after a switch is one that the processor does not predict
pub(crate) fn throw_at(
    target: &InnerRc,
    error: Error,
    at: &'static Location<'static>,
    manners: Manners,
) -> Result<Payload, Error> {
    let thread = ThreadState::current();
    // No tracer is to see it, and the one who leaves has a handle.
    if !has_way_aside(thread, target) {
        return switch_slow(target, Delivery::Message(Message::Error(error)), at, manners);
    }
    let payload = Thrown(error).into_payload();
    // SAFETY: T1: the target has a handle, so the hub is set up; S1; S3.
    Ok(unsafe { switch_stacks(thread.current_ptr(), target.as_ptr(), payload, at) }.make_current())
}

/// What is to be sent, or has arrived, while foreign code runs: should that unwind, it is dropped.
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

/// Switches to the active greenlet `target`.
fn send(
    thread: &ThreadState,
    target: InnerRc,
    delivery: Delivery,
    at: &'static Location<'static>,
) -> Payload {
    let origin = thread.current_ptr();
    let traced = thread.has_flag(flag::TRACED);
    // SAFETY: T1.
    let is_last_moment = unsafe { strong_count(origin) } == 1;
    let mut envelope;
    let payload = match delivery {
        Delivery::Payload(payload) if !traced && !is_last_moment => payload,
        delivery => {
            envelope = ManuallyDrop::new(Envelope {
                delivery,
                origin: (traced || is_last_moment).then(|| Greenlet::from_inner(thread.current_inner())),
                traced,
            });
            Payload::new(&mut envelope)
        }
    };
    let place = target.as_ptr();
    prepare_for(thread, target);
    // SAFETY: T1; S1: `target` is suspended, or was just prepared by `start`; S3.
    unsafe { switch_stacks(origin, place, payload, at) }.make_current()
}

/// The answer to a switch or throw that reaches the greenlet that does it: nothing moves (rules SW-8,
/// SW-21, TH-10).
fn echo(thread: &ThreadState, current: InnerRc, delivery: Delivery) -> Payload {
    // A handle, so that it is noticed if all others go meanwhile.
    let current = Greenlet::from_inner(current);
    if !thread.has_flag(flag::TRACED) {
        return match delivery {
            Delivery::Payload(payload) => payload,
            Delivery::Message(message) => Envelope::local(message),
        };
    }
    let message = trace::call(&current, delivery.into_message());
    Envelope::local(message)
}

/// Why the current greenlet may not switch, if so: makes the error from the value that stays.
fn refusal(thread: &ThreadState) -> Option<Box<dyn FnOnce(Option<Value>) -> Error>> {
    if std::thread::panicking() {
        return Some(Box::new(|value| Unwinding::new(value).into()));
    }
    if thread.has_flag(flag::EXITING) {
        return Some(Box::new(|value| ThreadExiting::new(value).into()));
    }
    let since = thread.no_switch_since.get()?;
    Some(Box::new(move |value| SwitchForbidden::new(since, value).into()))
}

/// Says whether the running greenlet may switch at all, whatever the target.
///
/// # Errors
///
/// What a switch from here would return: [`Unwinding`], [`ThreadExiting`] or [`SwitchForbidden`].
///
/// # Examples
///
/// ```
/// use greenlet_core::{check_switch_allowed, no_switch};
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
    refusal(thread).map_or(Ok(()), |refuse| Err(refuse(None)))
}

/// The value of a transfer that does not take place, to be put into the error that says so.
fn unsent(delivery: Delivery) -> Option<Value> {
    match delivery.into_message() {
        Message::Value(value) => Some(value),
        Message::Error(error) => Some(Value::new(error)),
        Message::Panic(_) | Message::ForcedUnwind => None,
    }
}

/// An exit becomes an ordinary value where it leaves a greenlet; any other error stays one (rule EX-2).
pub(crate) fn exit_to_value(error: Error) -> Message {
    match error.downcast::<GreenletExit>() {
        Ok(exit) => Message::Value(Value::new(exit)),
        Err(error) => Message::Error(error),
    }
}

/// Why a pending greenlet was not started. It is pending still.
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

/// Gives a pending greenlet its stack, so that it can be switched to. On an error nothing has changed.
fn start(thread: &ThreadState, node: &InnerRc, delivery: &Delivery) -> Result<(), StartError> {
    let vtable = node.vtable.get().expect("a pending greenlet has its function");
    if let Err(expected) = delivery.fits(vtable.takes) {
        return Err(StartError::Type { expected });
    }
    let stack = thread.take_stack(node.stack_size()).map_err(StartError::Stack)?;
    // SAFETY: the reference counts it.
    unsafe { activate(node.as_ptr(), vtable, stack) };
    Ok(())
}

/// Makes a pending greenlet an active one, suspended where it begins to run its function, on `stack`.
///
/// # Safety
///
/// - The node lives, and the pointer comes from its [`InnerRc`] (K3).
#[inline(always)] // the call would be a tenth of it
unsafe fn activate(node: *const Inner, vtable: &ClosureVTable, stack: Stack) {
    // SAFETY: the contract. An active greenlet counts itself, until it finishes: it needs no handle to exist.
    let node = unsafe {
        increment_strong(node);
        &*node
    };
    node.status.activate();
    // SAFETY: the stack is fresh, large enough (`stack::MIN_SIZE`), aligned, and only ours. Y1: the entry uses the function up.
    unsafe { backend::init(stack.entry(), vtable.entry, &node.context) };
    node.stack.set(Some(stack));
}

/// Ends the current greenlet, which is `node`, with a value.
///
/// The ordinary end calls nothing, so whoever ends with it need not keep anything for it.
///
/// # Safety
///
/// - The node is the current one, and the pointer comes from its [`InnerRc`] (K3).
#[inline(always)] // the call would be a quarter of it
pub(crate) unsafe fn finish_with_value(node: *const Inner, payload: Payload) -> ! {
    let thread = ThreadState::current();
    debug_assert!(ptr::eq(node, thread.current_ptr()));
    if !thread.has_any_flag() && !thread.has_last_stack() {
        // SAFETY: the contract; and just looked.
        unsafe {
            if let Some(parent) = suspended_parent(node) {
                finish_into(thread, node, parent, payload, ThreadState::keep_only_stack)
            }
        }
    }
    finish_with_value_slow(payload)
}

/// [`finish_with_value`], where there is more to do.
#[inline(never)]
fn finish_with_value_slow(payload: Payload) -> ! {
    let thread = ThreadState::current();
    let node = thread.current_ptr();
    // SAFETY: T1; and just looked.
    unsafe {
        match suspended_parent(node).filter(|_| thread.allows_switch()) {
            Some(parent) => finish_into(thread, node, parent, payload, ThreadState::keep_last_stack),
            None => finish(Delivery::Payload(payload)),
        }
    }
}

/// The parent of a greenlet, if it is suspended and its gate is open, and somebody has a handle of the greenlet.
///
/// # Safety
///
/// - The node lives, and the pointer comes from its [`InnerRc`] (K3).
#[inline(always)] // as `finish_with_value`
unsafe fn suspended_parent(node: *const Inner) -> Option<*const Inner> {
    // SAFETY: the contract.
    let (parent, has_handle) = unsafe { ((*node).parent.as_ptr(), strong_count(node) > 1) };
    // SAFETY: L1.
    let is_suspended = unsafe { !parent.is_null() && !(*parent).context.sp.get().is_null() };
    (has_handle && is_suspended).then_some(parent) // as it is in the link (K3)
}

/// Ends the current greenlet, which is `node`, with a value for its parent.
///
/// # Safety
///
/// - [`suspended_parent`] has just said that this is the one. The rules have nothing to say about it ([`ThreadState::allows_switch`]).
#[inline(always)] // as `finish_with_value`
unsafe fn finish_into(
    thread: &ThreadState,
    node: *const Inner,
    parent: *const Inner,
    payload: Payload,
    keep_last_stack: impl FnOnce(&ThreadState, Option<Stack>),
) -> ! {
    // SAFETY: T1; `begin` gave the count away, and it is not the last one: somebody has a handle.
    unsafe {
        (*node).finish();
        keep_last_stack(thread, (*node).stack.take());
        decrement_strong(node);
    }
    // SAFETY: just finished and retired; the parent is suspended, so active, so alive (S1, S3).
    unsafe { exit_to(parent, payload) }
}

/// Ends the current greenlet: delivers to its nearest living ancestor what it leaves.
#[cold]
#[inline(never)]
pub(crate) fn finish(delivery: Delivery) -> ! {
    let thread = ThreadState::current();
    // While the greenlet still is active, so that nothing gets between its end and its outcome (UD-5).
    run_deferred_before_end(thread);
    let node = thread.current_inner();
    node.finish();
    let mut delivery = delivery;
    let mut target = nearest_live_ancestor(&node);
    while target.status.is_pending() {
        match start(thread, &target, &delivery) {
            Ok(()) => break,
            // The parent dies of the mistake, as a Python function does that is called with the wrong
            // arguments (rule RT-5); its own parent learns of it, with the value.
            Err(error @ StartError::Type { .. }) => {
                delivery = Delivery::Message(Message::Error(error.with(unsent(delivery))));
            }
            // It cannot be entered at all: it stays pending, and the next one gets the error (RT-6).
            Err(error @ StartError::Stack(_)) => {
                delivery = Delivery::Message(Message::Error(error.with(unsent(delivery))));
                target = nearest_live_ancestor(&target);
            }
        }
    }
    let traced = thread.has_flag(flag::TRACED);
    thread.keep_last_stack(node.stack.take());
    // SAFETY: `begin` gave it away; not the last one: `node`.
    unsafe { decrement_strong(node.as_ptr()) };
    let mut envelope = ManuallyDrop::new(Envelope {
        delivery,
        origin: Some(Greenlet::from_inner(node)),
        traced,
    });
    let place = target.as_ptr();
    prepare_for(thread, target);
    // SAFETY: finished and retired; `target` is an active greenlet that is suspended (S1, S3).
    unsafe { exit_to(place, Payload::new(&mut envelope)) }
}

/// What there is to do right before the switch to the suspended greenlet `target`.
fn prepare_for(thread: &ThreadState, target: InnerRc) {
    if thread.has_flag(flag::NO_HANDLES) {
        thread.lower_flag(flag::NO_HANDLES); // that was about the one who leaves
    }
    if target.context.sp.get().is_null() {
        // What is behind a closed gate was refused; nothing below a closed gate runs (see `gate.rs`).
        unwind::abort("a switch to a greenlet that is not suspended");
    }
    // Not kept over the switch: it would look like a handle. The greenlet is active: S3.
    drop(target);
}

/// Settles what is owed in the last frames of a greenlet, which nothing may unwind (B3).
fn run_deferred_before_end(thread: &ThreadState) {
    let settled = catch_unwind(AssertUnwindSafe(|| thread.run_deferred()));
    // The outcome of the greenlet goes before. That it is to be unwound by force is no news to it: it
    // is about to end.
    let Err(payload) = settled else { return };
    let greenlet = Greenlet::from_inner(thread.current_inner());
    let report = match unwind::own_message(payload) {
        Message::Panic(payload) => Unraisable::of_panic(greenlet, payload),
        Message::Error(error) => Unraisable::of_error(greenlet, error),
        Message::ForcedUnwind | Message::Value(_) => return,
    };
    unraisable::call(&report);
    // CAUTION: runs foreign code (the destructor of what was reported).
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(report)));
    std::mem::forget(dropped); // what even that leaves is leaked, or there were no end
}

fn nearest_live_ancestor(node: &InnerRc) -> InnerRc {
    let parent = node.parent.get();
    parent
        .and_then(|parent| parent.nearest_living())
        .expect("while a greenlet runs, the main greenlet of its thread is active")
}
