//! The transfer: how control and one message go from the running greenlet to another. All switching of
//! the library passes through [`depart`], or through [`depart_for_good`] when a greenlet finishes. (But for
//! inquiries, which nobody notices: see `probe.rs`.)
//!
//! ```text
//!   origin (runs)                                        target (suspended)
//!     hand_over: is there a way to it?
//!        yes: depart                                       its own depart returns a parcel
//!        no:  transfer: refuse, resolve the dead,          receive: take the value out,
//!             start the pending, wrap in a Control         or open the Control and settle
//! ```
//!
//! # Invariants
//!
//! - **S1** `Node::seat.sp` of a greenlet that does not run is non-null exactly if it is suspended with an open gate; it
//!   then is the resume point that its own `depart` (or `start`) wrote. The one that runs may still have the one that
//!   it was resumed by, which nobody may use. (To clear it would be one more store in each switch, and it is stores that
//!   a switch waits for.) Where the backend echoes, the fast path need not look for that: a switch to itself writes a
//!   new one first, and comes right back with what it sent. Who finishes clears it. Nodes never leave their thread.
//! - **S2** Between looking at a resume point and switching to it no foreign code runs, and nothing is
//!   borrowed from the hub (T3).
//! - **S3** The greenlet that is switched to is active, so its node counts itself and lives (T1), and
//!   the greenlet that is left is active or finishing; a finishing one's stack is kept from others
//!   (`Hub::retire`) until something else runs.
//! - **S4** Whoever arrives takes the parcel out of the sender's frame before it calls foreign code (P2).

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
use crate::node::Node;
use crate::node::closure::Calls;
use crate::node::record::{NodeRef, count, count_of, uncount};
use crate::payload::error::{
    Awaiting, ParentError, StackError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
use crate::payload::exit::GreenletExit;
use crate::payload::value::Value;
use crate::payload::{Content, Control, Descriptor, Message, Parcel, Thrown};
use crate::stack::Stack;
use crate::switch::receive::{Arrival, apart, open, receive_any};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;
use crate::switch::unraisable::Unraisable;
use crate::thread::prefetch;
use crate::thread::{Hub, slow};

/// Says whether there is nothing to do for a switch to `target` with a value of the type `carries` but to go to its seat.
/// Else [`transfer`] does it.
///
/// # Safety
///
/// - The target lives, and the pointer comes from its [`NodeRef`] (K3). It is not the current greenlet, unless the backend
///   echoes.
#[inline(always)] // part of the fast path: two looks, which do not wait for each other
unsafe fn has_way_to(hub: &Hub, target: *const Node, carries: Descriptor) -> bool {
    // SAFETY: the contract.
    let to = unsafe { (*target).seat.sp.get() };
    if hub.slow.let_pass(to) {
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
unsafe fn has_long_way_to(target: *const Node, carries: Descriptor) -> bool {
    let hub = Hub::get();
    // SAFETY: the contract.
    let node = unsafe { &*target };
    // First where it goes on: all else is in another line of the cache, and in a crowd not a near one.
    if !node.seat.sp.get().is_null() {
        // SAFETY: the contract.
        return unsafe { has_way_in_crowd(hub, target) };
    }
    let is_ordinary = !hub.has_any_flag() && node.standing.is_just_pending() && node.parent.is_open_main();
    if let Some(calls) = node.calls.get().filter(|_| is_ordinary) {
        if carries.is_surely(calls.takes) {
            if let Some(stack) = hub.default_stack_at_hand() {
                // SAFETY: the contract.
                unsafe { begin(target, calls, stack) };
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
unsafe fn has_way_in_crowd(hub: &Hub, target: *const Node) -> bool {
    // SAFETY: the contract.
    hub.is_free() && hub.current() != target && unsafe { has_way_to_suspended(hub, target) }
}

/// [`has_way_to`], where the target is pending and not an ordinary one, or there is no way.
///
/// # Safety
///
/// - As for [`has_way_to`].
#[inline(never)] // as `has_long_way_to` needs nothing of the stack
unsafe fn has_way_into(target: *const Node, carries: Descriptor) -> bool {
    let hub = Hub::get();
    // SAFETY: the contract. It is not dropped, so it need not be counted.
    let node = ManuallyDrop::new(unsafe { NodeRef::from_counted(target) });
    let Some(calls) = node
        .calls
        .get()
        .filter(|_| hub.is_free() && node.standing.is_pending())
    else {
        return false;
    };
    if !carries.is(calls.takes) || !node.has_open_gates() {
        return false;
    }
    let Some(stack) = hub.stack_at_hand(node.stack_size()) else {
        return false;
    };
    // SAFETY: the contract.
    unsafe { begin(target, calls, stack) };
    true
}

/// Says whether `target`, which is not current, is suspended, its gate open. The rules have
/// nothing to say about a switch there ([`Hub::is_free`]). Looks ahead in a crowd.
///
/// # Safety
///
/// - As for [`has_way_to`].
#[inline]
unsafe fn has_way_to_suspended(hub: &Hub, target: *const Node) -> bool {
    // SAFETY: the contract.
    let to = unsafe { (*target).seat.sp.get() };
    if to.is_null() {
        return false;
    }
    // SAFETY: the contract.
    unsafe { prefetch::pass(hub, target, to) };
    true
}

/// Hands a value over to `target`, if there is a way; the parcel comes back as an error if there is more to do than to
/// switch there.
///
/// # Safety
///
/// - `origin` is the current greenlet. `target` lives, and is another one, unless the backend echoes. Both pointers come
///   from their [`NodeRef`]s (K3).
#[inline(always)] // the fast path: a call would cost as much as the switch
unsafe fn try_to_hand_over<T: 'static>(
    hub: &Hub,
    origin: *const Node,
    target: *const Node,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<Arrival, Parcel> {
    let parcel = Parcel::new(value);
    // SAFETY: the contract.
    if unsafe { !has_way_to(hub, target, Descriptor::of::<T>()) } {
        return Err(parcel.described_anew::<T>());
    }
    // SAFETY: the contract; S1; S3: no count of the target is needed, it is active.
    Ok(unsafe { depart(origin, target, parcel.described_anew::<T>(), at) })
}

/// Hands a value over to `target` and receives what comes back.
#[inline(always)] // the fast path
pub(crate) fn hand_over<T: 'static, R: 'static>(
    target: &NodeRef,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    let hub = Hub::get();
    let target = target.as_ptr();
    let origin = hub.current();
    let unsent = if !backend::ECHOES && ptr::eq(origin, target) {
        Parcel::new(value)
    } else {
        // SAFETY: T1: the target has a handle, so the hub is set up.
        match unsafe { try_to_hand_over(hub, origin, target, value, at) } {
            Ok(back) => return back.receive(),
            Err(unsent) => unsent,
        }
    };
    // SAFETY: the caller has the handle.
    apart(move || unsafe { hand_over_otherwise(target, unsent, at) })
}

/// Hands over what does not take the fast path.
///
/// # Safety
///
/// - The target has a handle that is held until this returns, and the pointer comes from it (K3).
unsafe fn hand_over_otherwise<R: 'static>(
    target: *const Node,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    // SAFETY: the contract: it stands for the handle.
    let target = ManuallyDrop::new(unsafe { NodeRef::from_counted(target) });
    receive_any(transfer(&target, Content::Parcel(parcel), at, Manners::Polite)?)
}

/// As [`has_way_to`], for switches that are not on its fast path.
fn has_way_aside(hub: &Hub, target: &NodeRef) -> bool {
    let is_free = hub.is_free() && !hub.is_current(target) && !std::thread::panicking();
    // SAFETY: the reference counts it.
    is_free && unsafe { has_way_to_suspended(hub, target.as_ptr()) }
}

/// As [`hand_over`], and lets go of the handle on the way.
///
/// # Errors
///
/// Why it was refused.
pub(crate) fn hand_over_owned(
    target: Greenlet,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Result<Parcel, Error> {
    let hub = Hub::get();
    if !has_way_aside(hub, target.node()) {
        // The rare cases may need the handle: where it is the last one, the greenlet it belongs to is
        // dead or refuses, and it is let go of when control is back.
        let back = transfer(target.node(), Content::Parcel(parcel), at, Manners::Polite);
        return Ok(let_go(target, back?));
    }
    let origin = hub.current();
    let place = target.node().as_ptr();
    // As the bare counter: the greenlet is about to run, so it is not ended for want of a handle. It is
    // active and counts itself, so this is not the last count (S3).
    let target = target.into_node();
    if target.count() == COUNT_OF_LAST_HANDLE {
        hub.raise_flag(slow::UNHELD); // it is ended when it switches away
    }
    drop(target);
    // SAFETY: T1; S1; S3.
    Ok(unsafe { depart(origin, place, parcel, at) }.enter())
}

/// Hands a value over to the greenlet in `place`, without counting a handle of it, and receives what comes back. The
/// parcel comes back as an error where the fast path is not open, or nobody is there.
#[inline(always)] // the fast path of an await
pub(crate) fn hand_over_in<T: 'static, R: 'static>(
    place: &RefCell<Option<Greenlet>>,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<Result<R, Error>, Parcel> {
    let hub = Hub::get();
    let target = match &*place.borrow() {
        Some(target) if !hub.is_current(target.node()) => target.node().as_ptr(),
        _ => return Err(Parcel::new(value)),
    };
    // SAFETY: there is a handle, so T1; nothing has run since it was looked at.
    unsafe { try_to_hand_over(hub, hub.current(), target, value, at) }.map(Arrival::receive)
}

/// Hands a value over from the running greenlet to the parent of `child`, and receives what comes back. Where `child`
/// itself runs, no handle of the parent is counted: the link keeps it until control has left.
#[inline(always)] // the fast path
pub(crate) fn hand_over_to_parent<T: 'static, R: 'static>(
    child: &NodeRef,
    value: &mut ManuallyDrop<T>,
    at: &'static Location<'static>,
) -> Result<R, Error> {
    let hub = Hub::get();
    let parent = child.parent.as_ptr();
    let unsent = if !hub.is_current(child) || parent.is_null() {
        Parcel::new(value)
    } else {
        // SAFETY: L1: the link is a handle, and it is not changed before control has left; the child is current.
        match unsafe { try_to_hand_over(hub, child.as_ptr(), parent, value, at) } {
            Ok(back) => return back.receive(),
            Err(unsent) => unsent,
        }
    };
    apart(move || {
        let Some(parent) = child.parent_greenlet() else {
            drop(unsent.take_value());
            return Err(ParentError::main().into());
        };
        let back = transfer(parent.node(), Content::Parcel(unsent), at, Manners::Polite)?;
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
/// - `origin` is the current greenlet. Both live, and the pointers come from their [`NodeRef`]s (K3).
/// - The target is suspended, its gate open (S1); or it is `origin`, if the backend echoes.
/// - What the parcel points to stays in place until the other side has taken it (P1).
#[inline(always)]
unsafe fn depart(
    origin: *const Node,
    target: *const Node,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Arrival {
    let (word, data) = parcel.into_words();
    // SAFETY: S1, S2, S3; the words that come back are those of a parcel, since every switch of the
    // library carries one.
    unsafe {
        let (from, to) = (&raw const (*origin).seat, &raw const (*target).seat);
        let left = asan::leave_seat(from, to);
        let (own, word, data) = backend::switch(from, at, to, word, data);
        asan::arrive(left);
        Arrival::new(Node::of_seat(own), Parcel::from_words(word, data))
    }
}

/// Leaves the finished greenlet for `target`; its stack is free as soon as the other side runs.
///
/// # Safety
///
/// - The greenlet that runs is dead, and its stack has been retired; the target is suspended (S1), and lives.
/// - What the parcel points to may stand on the retired stack: the other side takes it first (S4).
#[inline(always)]
unsafe fn depart_for_good(target: *const Node, parcel: Parcel) -> ! {
    let (word, data) = parcel.into_words();
    // SAFETY: S1, S2, S3.
    unsafe {
        asan::leave_for_good((*target).seat.sp.get());
        backend::switch_final(&raw const (*target).seat, word, data)
    }
}

/// Hands anything over to any greenlet: everything that the fast path does not do.
///
/// # Errors
///
/// Why it was refused: then control has not left.
#[cold]
#[inline(never)]
pub(crate) fn transfer(
    target: &NodeRef,
    content: Content,
    at: &'static Location<'static>,
    manners: Manners,
) -> Result<Parcel, Error> {
    let hub = Hub::get();
    if manners == Manners::Polite {
        if let Some(refuse) = refusal(hub) {
            return Err(refuse(unsent(content)));
        }
    }
    let content = if manners == Manners::Polite {
        // Before anything is staged, so that what these run cannot get between (rule XD-5).
        let waiting = Waiting::new(content);
        if hub.has_flag(slow::ERRAND) {
            all_threads::run(hub);
        }
        // CAUTION: runs foreign code, which may unwind.
        hub.settle_debts();
        waiting.over()
    } else {
        content
    };

    let content = match content {
        // A dead greenlet eats an exit and passes it up as a value (rule TH-8).
        // CAUTION: runs foreign code (the exit's contexts are dropped): so it comes first.
        Content::Message(Message::Error(error)) if target.standing.is_dead() => {
            Content::Message(exit_to_value(error))
        }
        content => content,
    };
    let Some(living) = target.nearest_living() else {
        let error = ThreadExiting::new(unsent(content)).into();
        return Err(error);
    };

    if hub.is_current(&living) {
        return Ok(echo(hub, living, content));
    }
    if manners == Manners::Polite {
        let gate = if living.standing.is_pending() || hub.has_flag(slow::GATES) {
            living.closed_gate()
        } else {
            None
        };
        // G2; and G1: nothing may be between a greenlet and where it ends.
        let is_hidden = living.standing.is_active() && living.seat.sp.get().is_null();
        let gate = gate.or_else(|| is_hidden.then(|| living.clone()));
        if let Some(gate) = gate {
            let error = Awaiting::new(gate.label(), unsent(content)).into();
            drop((gate, living));
            teardown::count_refusal();
            return Err(error);
        }
    } else if living.seat.sp.get().is_null() {
        living.seat.sp.set(living.held.replace(ptr::null_mut()));
    }
    if living.standing.is_pending() {
        if let Err(error) = start(hub, &living, &content) {
            return Err(error.with(unsent(content)));
        }
    }
    Ok(send(hub, living, content, at))
}

/// Lets go of a handle that a transfer was by, when control is back.
///
/// That may run foreign code: the handle may be the last one of a greenlet, and the end of that can even use the stack that
/// what arrived still stands on. So that is taken first (S4).
pub(crate) fn let_go(handle: Greenlet, back: Parcel) -> Parcel {
    if handle.node().count() > COUNT_OF_LAST_HANDLE {
        return back; // there are others, so the end of this one is nothing
    }
    let message = open(back);
    // Should it unwind, the message goes as well.
    let waiting = Waiting::new(Content::Message(message));
    // CAUTION: runs foreign code.
    drop(handle);
    Control::local(waiting.over().into_message())
}

/// Throws an error at `target`.
///
/// # Errors
///
/// Why it was refused.
#[inline(always)] // a return after a switch is one that the processor does not predict
pub(crate) fn throw_at(
    target: &NodeRef,
    error: Error,
    at: &'static Location<'static>,
    manners: Manners,
) -> Result<Parcel, Error> {
    let hub = Hub::get();
    // No tracer is to see it, and the one who leaves has a handle.
    if !has_way_aside(hub, target) {
        return transfer(target, Content::Message(Message::Error(error)), at, manners);
    }
    let parcel = Thrown(error).into_parcel();
    // SAFETY: T1: the target has a handle, so the hub is set up; S1; S3.
    Ok(unsafe { depart(hub.current(), target.as_ptr(), parcel, at) }.enter())
}

/// What is to be sent, or has arrived, while foreign code runs: should that unwind, it is dropped.
struct Waiting(Option<Content>);

impl Waiting {
    fn new(content: Content) -> Waiting {
        Waiting(Some(content))
    }

    fn over(mut self) -> Content {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.take().map(Content::into_message));
    }
}

/// Switches to the active greenlet `target`.
fn send(hub: &Hub, target: NodeRef, content: Content, at: &'static Location<'static>) -> Parcel {
    let origin = hub.current();
    let traced = hub.has_flag(slow::TRACED);
    // SAFETY: T1.
    let is_last_moment = unsafe { count_of(origin) } == 1;
    let mut control;
    let parcel = match content {
        Content::Parcel(parcel) if !traced && !is_last_moment => parcel,
        content => {
            control = ManuallyDrop::new(Control {
                content,
                origin: (traced || is_last_moment).then(|| Greenlet::from_node(hub.current_node())),
                traced,
            });
            Parcel::new(&mut control)
        }
    };
    let place = target.as_ptr();
    prepare_for(hub, target);
    // SAFETY: T1; S1: `target` is suspended, or was just prepared by `start`; S3.
    unsafe { depart(origin, place, parcel, at) }.enter()
}

/// The answer to a switch or throw that reaches the greenlet that does it: nothing moves (rules SW-8,
/// SW-21, TH-10).
fn echo(hub: &Hub, current: NodeRef, content: Content) -> Parcel {
    // A handle, so that it is noticed if all others go meanwhile.
    let current = Greenlet::from_node(current);
    if !hub.has_flag(slow::TRACED) {
        return match content {
            Content::Parcel(parcel) => parcel,
            Content::Message(message) => Control::local(message),
        };
    }
    let message = trace::call(&current, content.into_message());
    Control::local(message)
}

/// Why the current greenlet may not switch, if so: makes the error from the value that stays.
fn refusal(hub: &Hub) -> Option<Box<dyn FnOnce(Option<Value>) -> Error>> {
    if std::thread::panicking() {
        return Some(Box::new(|value| Unwinding::new(value).into()));
    }
    if hub.has_flag(slow::EXITING) {
        return Some(Box::new(|value| ThreadExiting::new(value).into()));
    }
    let since = hub.forbidden_since.get()?;
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
/// use greenlet_core::{may_switch, no_switch};
///
/// assert!(may_switch().is_ok());
/// assert!(no_switch(may_switch).is_err());
/// ```
#[inline]
pub fn may_switch() -> Result<(), Error> {
    let hub = Hub::get();
    if hub.is_free() && !std::thread::panicking() {
        return Ok(());
    }
    refusal(hub).map_or(Ok(()), |refuse| Err(refuse(None)))
}

/// The value of a transfer that does not take place, to be put into the error that says so.
fn unsent(content: Content) -> Option<Value> {
    match content.into_message() {
        Message::Value(value) => Some(value),
        Message::Error(error) => Some(Value::new(error)),
        Message::Panic(_) | Message::Force => None,
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
fn start(hub: &Hub, node: &NodeRef, content: &Content) -> Result<(), StartError> {
    let calls = node.calls.get().expect("a pending greenlet has its function");
    if let Err(expected) = content.fits(calls.takes) {
        return Err(StartError::Type { expected });
    }
    let stack = hub.take_stack(node.stack_size()).map_err(StartError::Stack)?;
    // SAFETY: the reference counts it.
    unsafe { begin(node.as_ptr(), calls, stack) };
    Ok(())
}

/// Makes a pending greenlet an active one, suspended where it begins to run its function, on `stack`.
///
/// # Safety
///
/// - The node lives, and the pointer comes from its [`NodeRef`] (K3).
#[inline(always)] // the call would be a tenth of it
unsafe fn begin(node: *const Node, calls: &Calls, stack: Stack) {
    // SAFETY: the contract. An active greenlet counts itself, until it finishes: it needs no handle to exist.
    let node = unsafe {
        count(node);
        &*node
    };
    node.standing.begin();
    // SAFETY: the stack is fresh, large enough (`stack::MIN_SIZE`), aligned, and only ours. Y1: the entry uses the function up.
    unsafe { backend::init(stack.entry(), calls.entry, &node.seat) };
    node.stack.set(Some(stack));
}

/// Ends the current greenlet, which is `node`, with a value.
///
/// The ordinary end calls nothing, so whoever ends with it need not keep anything for it.
///
/// # Safety
///
/// - The node is the current one, and the pointer comes from its [`NodeRef`] (K3).
#[inline(always)] // the call would be a quarter of it
pub(crate) unsafe fn finish_with_value(node: *const Node, parcel: Parcel) -> ! {
    let hub = Hub::get();
    debug_assert!(ptr::eq(node, hub.current()));
    if !hub.has_any_flag() && !hub.has_retired_stack() {
        // SAFETY: the contract; and just looked.
        unsafe {
            if let Some(parent) = waiting_parent(node) {
                finish_into(hub, node, parent, parcel, Hub::retire_first)
            }
        }
    }
    finish_with_value_apart(parcel)
}

/// [`finish_with_value`], where there is more to do.
#[inline(never)]
fn finish_with_value_apart(parcel: Parcel) -> ! {
    let hub = Hub::get();
    let node = hub.current();
    // SAFETY: T1; and just looked.
    unsafe {
        match waiting_parent(node).filter(|_| hub.is_free()) {
            Some(parent) => finish_into(hub, node, parent, parcel, Hub::retire),
            None => finish(Content::Parcel(parcel)),
        }
    }
}

/// The parent of a greenlet, if it is suspended and its gate is open, and somebody has a handle of the greenlet.
///
/// # Safety
///
/// - The node lives, and the pointer comes from its [`NodeRef`] (K3).
#[inline(always)] // as `finish_with_value`
unsafe fn waiting_parent(node: *const Node) -> Option<*const Node> {
    // SAFETY: the contract.
    let (parent, has_handle) = unsafe { ((*node).parent.as_ptr(), count_of(node) > 1) };
    // SAFETY: L1.
    let is_suspended = unsafe { !parent.is_null() && !(*parent).seat.sp.get().is_null() };
    (has_handle && is_suspended).then_some(parent) // as it is in the link (K3)
}

/// Ends the current greenlet, which is `node`, with a value for its parent.
///
/// # Safety
///
/// - [`waiting_parent`] has just said that this is the one. The rules have nothing to say about it ([`Hub::is_free`]).
#[inline(always)] // as `finish_with_value`
unsafe fn finish_into(
    hub: &Hub,
    node: *const Node,
    parent: *const Node,
    parcel: Parcel,
    retire: impl FnOnce(&Hub, Option<Stack>),
) -> ! {
    // SAFETY: T1; `begin` gave the count away, and it is not the last one: somebody has a handle.
    unsafe {
        (*node).finish();
        retire(hub, (*node).stack.take());
        uncount(node);
    }
    // SAFETY: just finished and retired; the parent is suspended, so active, so alive (S1, S3).
    unsafe { depart_for_good(parent, parcel) }
}

/// Ends the current greenlet: delivers to its nearest living ancestor what it leaves.
#[cold]
#[inline(never)]
pub(crate) fn finish(content: Content) -> ! {
    let hub = Hub::get();
    // While the greenlet still is active, so that nothing gets between its end and its outcome (UD-5).
    settle_before_the_end(hub);
    let node = hub.current_node();
    node.finish();
    let mut content = content;
    let mut target = living_parent(&node);
    while target.standing.is_pending() {
        match start(hub, &target, &content) {
            Ok(()) => break,
            // The parent dies of the mistake, as a Python function does that is called with the wrong
            // arguments (rule RT-5); its own parent learns of it, with the value.
            Err(error @ StartError::Type { .. }) => {
                content = Content::Message(Message::Error(error.with(unsent(content))));
            }
            // It cannot be entered at all: it stays pending, and the next one gets the error (RT-6).
            Err(error @ StartError::Stack(_)) => {
                content = Content::Message(Message::Error(error.with(unsent(content))));
                target = living_parent(&target);
            }
        }
    }
    let traced = hub.has_flag(slow::TRACED);
    hub.retire(node.stack.take());
    // SAFETY: `begin` gave it away; not the last one: `node`.
    unsafe { uncount(node.as_ptr()) };
    let mut control = ManuallyDrop::new(Control {
        content,
        origin: Some(Greenlet::from_node(node)),
        traced,
    });
    let place = target.as_ptr();
    prepare_for(hub, target);
    // SAFETY: finished and retired; `target` is an active greenlet that is suspended (S1, S3).
    unsafe { depart_for_good(place, Parcel::new(&mut control)) }
}

/// What there is to do right before the switch to the suspended greenlet `target`.
fn prepare_for(hub: &Hub, target: NodeRef) {
    if hub.has_flag(slow::UNHELD) {
        hub.lower_flag(slow::UNHELD); // that was about the one who leaves
    }
    if target.seat.sp.get().is_null() {
        // What is behind a closed gate was refused; nothing below a closed gate runs (see `gate.rs`).
        unwind::abort("a switch to a greenlet that is not suspended");
    }
    // Not kept over the switch: it would look like a handle. The greenlet is active: S3.
    drop(target);
}

/// Settles what is owed in the last frames of a greenlet, which nothing may unwind (B3).
fn settle_before_the_end(hub: &Hub) {
    let settled = catch_unwind(AssertUnwindSafe(|| hub.settle_debts()));
    // The outcome of the greenlet goes before. That it is to be unwound by force is no news to it: it
    // is about to end.
    let Err(payload) = settled else { return };
    let greenlet = Greenlet::from_node(hub.current_node());
    let report = match unwind::caught_in_place(payload) {
        Message::Panic(payload) => Unraisable::of_panic(greenlet, payload),
        Message::Error(error) => Unraisable::of_error(greenlet, error),
        Message::Force | Message::Value(_) => return,
    };
    unraisable::call(&report);
    // CAUTION: runs foreign code (the destructor of what was reported).
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(report)));
    std::mem::forget(dropped); // what even that leaves is leaked, or there were no end
}

fn living_parent(node: &NodeRef) -> NodeRef {
    let parent = node.parent.node();
    parent
        .and_then(|parent| parent.nearest_living())
        .expect("while a greenlet runs, the main greenlet of its thread is active")
}
