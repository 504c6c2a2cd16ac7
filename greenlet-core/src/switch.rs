//! The transfer: how control and one message go from the running greenlet to another. All switching of
//! the library passes through [`depart`], or through [`depart_for_good`] when a greenlet finishes. (But for
//! inquiries, which nobody notices: see `probe.rs`.)
//!
//! ```text
//!   origin (runs)                                        target (suspended)
//!     hand_over: may it take the fast path?
//!        yes: depart                                       its own depart returns a parcel
//!        no:  transfer: refuse, resolve the dead,          receive: take the value out,
//!             start the pending, wrap in a Control         or open the Control and settle
//! ```
//!
//! # Invariants
//!
//! - **S1** `Node::resume` is non-null exactly for a suspended greenlet with an open gate; it then is
//!   the resume point that its own `depart` (or `start`) wrote. It is cleared by whoever switches to it, before the
//!   switch, so no resume point is used twice (B1). Nodes never leave their thread.
//! - **S2** Between taking a resume point out and switching to it no foreign code runs, and nothing is
//!   borrowed from the hub (T3).
//! - **S3** The greenlet that is switched to is active, so its node counts itself and lives (T1), and
//!   the greenlet that is left is active or finishing; a finishing one's stack is kept from others
//!   (`Hub::retire`) until something else runs.
//! - **S4** Whoever arrives takes the parcel out of the sender's frame before it calls foreign code (P2).

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use anyhow::Error;

use crate::ahead;
use crate::asan;
use crate::backend::{self, ResumePoint};
use crate::end::COUNT_OF_LAST_HANDLE;
use crate::entry::Start;
use crate::errand;
use crate::error::{
    Awaiting, ParentError, StackError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
use crate::exit::GreenletExit;
use crate::greenlet::Greenlet;
use crate::probe;
use crate::report::{self, Unraisable};
use crate::thread::{Hub, count_of, slow};
use crate::trace;
use crate::transfer::{Content, Control, Message, Parcel};
use crate::tree::Node;
use crate::unwind;
use crate::value::Value;

/// Says whether a switch to `target`, which is suspended at `to` if that is not null, can take the fast path.
#[inline(always)] // part of the fast path: three looks, none of which waits for another
fn is_open(hub: &Hub, target: &Node, to: *mut u8) -> bool {
    (hub.is_plain() && !to.is_null() && !std::thread::panicking()) || ahead::passes(target, to)
}

/// Hands a value over to `target` and returns what comes back, to be given to [`receive`].
#[inline(always)] // the fast path: a call would cost as much as the switch
pub(crate) fn hand_over(target: &Rc<Node>, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
    let hub = Hub::get();
    let origin = hub.current();
    let to = target.resume_ahead();
    if !is_open(hub, target, to) {
        return enter(target, parcel, at);
    }
    hub.set_current(Rc::as_ptr(target));
    target.resume.set(ptr::null_mut());
    // SAFETY: T1; S1.
    unsafe { depart(&*origin, NonNull::new_unchecked(to), parcel, at) }
}

/// Starts `target` with a value, if it is pending and a switch to it is an ordinary one. Everything else is
/// left to [`transfer`], which starts greenlets too, but has much to ask before.
#[cold]
#[inline(never)]
fn enter(target: &Rc<Node>, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
    let hub = Hub::get();
    let content = Content::Parcel(parcel);
    let is_ordinary = hub.is_free() && !std::thread::panicking();
    if !is_ordinary || !target.lifecycle.is_pending() || !target.has_open_gates() {
        return transfer(target, content, at, Manners::Polite);
    }
    let origin = hub.current();
    if let Err(error) = start(hub, target, &content) {
        return Control::local(Message::Error(error.with(unsent(content))));
    }
    let Content::Parcel(parcel) = content else {
        unreachable!("it was made a few lines above")
    };
    hub.set_current(Rc::as_ptr(target));
    let to = target.resume.replace(ptr::null_mut());
    // SAFETY: T1: a pending greenlet has an ancestor that runs or is suspended, so the hub is set up;
    // S1: `start` has just prepared it; S3.
    unsafe { depart(&*origin, NonNull::new_unchecked(to), parcel, at) }
}

/// As [`hand_over`], and lets go of the handle on the way.
pub(crate) fn hand_over_owned(target: Greenlet, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
    let hub = Hub::get();
    let origin = hub.current();
    let to = target.node().resume_ahead();
    if !is_open(hub, target.node(), to) {
        // The rare cases may need the handle: where it is the last one, the greenlet it belongs to is
        // dead or refuses, and it is let go of when control is back.
        return transfer(target.node(), Content::Parcel(parcel), at, Manners::Polite);
    }
    hub.set_current(Rc::as_ptr(target.node()));
    target.node().resume.set(ptr::null_mut());
    // As the bare counter: the greenlet is about to run, so it is not ended for want of a handle. It is
    // active and counts itself, so this is not the last count (S3).
    let target = target.into_node();
    if Rc::strong_count(&target) == COUNT_OF_LAST_HANDLE {
        hub.raise_flag(slow::UNHELD); // it is ended when it switches away
    }
    drop(target);
    // SAFETY: T1; S1; S3.
    unsafe { depart(&*origin, NonNull::new_unchecked(to), parcel, at) }
}

/// Hands a value over to the greenlet in `place`, without counting a handle of it. The parcel comes back
/// as an error where the fast path is not open, or nobody is there.
#[inline(always)] // the fast path of an await
pub(crate) fn hand_over_in(
    place: &RefCell<Option<Greenlet>>,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Result<Parcel, Parcel> {
    let hub = Hub::get();
    let origin = hub.current();
    let to = match &*place.borrow() {
        Some(target) => {
            let to = target.node().resume_ahead();
            if !is_open(hub, target.node(), to) {
                return Err(parcel);
            }
            hub.set_current(Rc::as_ptr(target.node()));
            target.node().resume.set(ptr::null_mut());
            to
        }
        None => return Err(parcel),
    };
    // SAFETY: T1: there was a handle, so `origin` points to a living node; S1; S3: no count of the target
    // is needed, it is active.
    Ok(unsafe { depart(&*origin, NonNull::new_unchecked(to), parcel, at) })
}

/// Hands a value over to `child`, whose parent the running greenlet is. Where that is another one, or the
/// fast path is not open, the parcel comes back as an error.
///
/// It is [`hand_over`] for those who know who runs: the origin is read from the link, which has not
/// changed for long, and only compared with what the last switch has written; and that link is a handle, so the count
/// needs no look.
#[inline(always)] // the fast path of a generator's step
pub(crate) fn hand_over_to_child(
    child: &Node,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Result<Parcel, Parcel> {
    let hub = Hub::get();
    let parent: *const Node = match &*child.parent.borrow() {
        Some(parent) => Rc::as_ptr(parent.node()),
        None => return Err(parcel),
    };
    let to = child.resume_ahead();
    if hub.current() != parent || !is_open(hub, child, to) {
        return Err(parcel);
    }
    hub.set_current(child);
    child.resume.set(ptr::null_mut());
    // SAFETY: `parent` was current, so it lives (T1); S1.
    Ok(unsafe { depart(&*parent, NonNull::new_unchecked(to), parcel, at) })
}

/// Hands a value over from `child`, which runs, to its parent, without counting a handle of the parent: the
/// link keeps it until control has left. The rest is as for [`hand_over_to_child`].
#[inline(always)] // the fast path of a generator's yield
pub(crate) fn hand_over_to_parent(
    child: &Rc<Node>,
    parcel: Parcel,
    at: &'static Location<'static>,
) -> Parcel {
    let hub = Hub::get();
    let to = match &*child.parent.borrow() {
        Some(parent) if hub.is_current(child) => {
            let to = parent.node().resume_ahead();
            if is_open(hub, parent.node(), to) {
                hub.set_current(Rc::as_ptr(parent.node()));
                parent.node().resume.set(ptr::null_mut());
                to
            } else {
                ptr::null_mut()
            }
        }
        _ => ptr::null_mut(),
    };
    let Some(to) = NonNull::new(to) else {
        return transfer_to_parent(child, parcel, at);
    };
    // SAFETY: `child` was current; S1; S3: no count of the parent is needed, it is active.
    unsafe { depart(child, to, parcel, at) }
}

#[cold]
#[inline(never)]
fn transfer_to_parent(child: &Node, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
    match child.parent_greenlet() {
        // The handle goes on living over the switch, on the stack of who leaves: no longer than the
        // link of `child` keeps the parent anyway, unless the child gets another one meanwhile.
        Some(parent) => transfer(parent.node(), Content::Parcel(parcel), at, Manners::Polite),
        None => {
            drop(parcel.take_value());
            Control::local(Message::Error(ParentError::main().into()))
        }
    }
}

/// Whether a transfer asks before it acts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// A user's switch or throw: refused where the rules say so.
    Polite,
    /// The library ends a greenlet: neither gates nor the end of the thread are in its way. The caller
    /// knows that nothing unwinds.
    Firm,
}

/// Leaves the greenlet `origin`, which runs, for the one that is suspended at `to`; returns with what the
/// next switch to `origin` brings.
///
/// # Safety
///
/// - `origin` was the current greenlet, and the target, another one, was just made it.
/// - `to` was the target's `resume`, which is null now (S1).
/// - What the parcel points to stays in place until the other side has taken it (P1).
#[inline(always)]
unsafe fn depart(origin: &Node, to: ResumePoint, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
    let (word, data) = parcel.into_words();
    origin.parked_at.set(Some(at));
    // SAFETY: S1, S2, S3; the words that come back are those of a parcel, since every switch of the
    // library carries one.
    unsafe {
        let left = asan::leave();
        let (word, data) = backend::switch(origin.resume.as_ptr(), to, word, data);
        asan::arrive(left);
        Parcel::from_words(word, data)
    }
}

/// Leaves the finished greenlet for `target`; its stack is free as soon as the other side runs.
///
/// # Safety
///
/// - The greenlet that runs is dead, and its stack has been retired; the target was just made the current one.
/// - `to` was the target's `resume`, which is null now (S1).
/// - What the parcel points to may stand on the retired stack: the other side takes it first (S4).
#[inline(always)]
unsafe fn depart_for_good(to: ResumePoint, parcel: Parcel) -> ! {
    let (word, data) = parcel.into_words();
    asan::leave_for_good();
    // SAFETY: S1, S2, S3.
    unsafe { backend::switch_final(to, word, data) }
}

/// Hands anything over to any greenlet: everything that the fast path does not do.
#[cold]
#[inline(never)]
pub(crate) fn transfer(
    target: &Rc<Node>,
    content: Content,
    at: &'static Location<'static>,
    manners: Manners,
) -> Parcel {
    let hub = Hub::get();
    if manners == Manners::Polite {
        if let Some(refuse) = refusal(hub) {
            let error = refuse(unsent(content));
            if hub.has_flag(slow::EXITING) && hub.is_out_of_patience() {
                drop(error);
                unwind::force();
            }
            return Control::local(Message::Error(error));
        }
    }
    let content = if manners == Manners::Polite {
        // Before anything is staged, so that what these run cannot get between (rule XD-5).
        let waiting = Waiting(Some(content));
        if hub.has_flag(slow::ERRAND) {
            errand::run(hub);
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
        Content::Message(Message::Error(error)) if target.lifecycle.is_dead() => {
            Content::Message(exit_to_value(error))
        }
        content => content,
    };
    let Some(living) = target.nearest_living() else {
        let error = ThreadExiting::new(unsent(content)).into();
        return Control::local(Message::Error(error));
    };

    if hub.is_current(&living) {
        return echo(hub, living, content);
    }
    if manners == Manners::Polite {
        let gate = if living.lifecycle.is_pending() || hub.has_flag(slow::GATES) {
            living.closed_gate()
        } else {
            None
        };
        // G2; and G1: nothing may be between a greenlet and where it ends.
        let is_hidden = living.lifecycle.is_active() && living.resume.get().is_null();
        let gate = gate.or_else(|| is_hidden.then(|| Rc::clone(&living)));
        if let Some(gate) = gate {
            let error = Awaiting::new(gate.label(), unsent(content)).into();
            return Control::local(Message::Error(error));
        }
    } else if living.resume.get().is_null() {
        living.resume.set(living.held.replace(ptr::null_mut()));
    }
    if living.lifecycle.is_pending() {
        if let Err(error) = start(hub, &living, &content) {
            return Control::local(Message::Error(error.with(unsent(content))));
        }
    }
    send(hub, living, content, at)
}

/// What is to be sent, while foreign code runs: should that unwind, it is dropped.
struct Waiting(Option<Content>);

impl Waiting {
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
fn send(hub: &Hub, target: Rc<Node>, content: Content, at: &'static Location<'static>) -> Parcel {
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
    let to = make_current(hub, target);
    // SAFETY: T1; S1: `target` is suspended, or was just prepared by `start`; S3.
    unsafe { depart(&*origin, to, parcel, at) }
}

/// The answer to a switch or throw that reaches the greenlet that does it: nothing moves (rules SW-8,
/// SW-21, TH-10).
fn echo(hub: &Hub, current: Rc<Node>, content: Content) -> Parcel {
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
fn start(hub: &Hub, node: &Rc<Node>, content: &Content) -> Result<(), StartError> {
    {
        let body = node.body.borrow();
        let body = body.as_ref().expect("a pending greenlet has its function");
        if let Err(expected) = content.fits(body.takes()) {
            return Err(StartError::Type { expected });
        }
    }
    let stack = hub.take_stack(node.stack_size).map_err(StartError::Stack)?;
    // SAFETY: the stack is fresh, large enough (`stack::MIN_SIZE`), aligned, and only ours.
    let resume = unsafe { backend::init::<Start>(stack.entry()) };
    node.stack.set(Some(stack));
    node.itself.set(Some(Rc::clone(node)));
    node.lifecycle.begin();
    node.resume.set(resume.as_ptr());
    Ok(())
}

/// Ends the current greenlet with a value.
#[inline]
pub(crate) fn finish_with_value(parcel: Parcel) -> ! {
    let hub = Hub::get();
    // SAFETY: T1: a greenlet runs.
    let node = unsafe { &*hub.current() };
    // SAFETY: T1.
    let has_handle = unsafe { count_of(node) } > 1;
    if hub.is_free() && has_handle {
        let parent = match &*node.parent.borrow() {
            Some(parent) => NonNull::new(parent.node().resume.replace(ptr::null_mut()))
                .map(|to| (to, Rc::as_ptr(parent.node()))),
            None => None,
        };
        if let Some((to, parent)) = parent {
            node.lifecycle.finish();
            // Not the last count: `has_handle`.
            drop(node.itself.take());
            hub.retire(node.stack.take());
            hub.set_current(parent);
            // SAFETY: just finished and retired; `parent` is suspended, so active, so alive (S1, S3).
            unsafe { depart_for_good(to, parcel) }
        }
    }
    finish(Content::Parcel(parcel))
}

/// Ends the current greenlet: delivers to its nearest living ancestor what it leaves.
#[cold]
#[inline(never)]
pub(crate) fn finish(content: Content) -> ! {
    let hub = Hub::get();
    // While the greenlet still is active, so that nothing gets between its end and its outcome (UD-5).
    settle_before_the_end(hub);
    let node = hub.current_node();
    node.lifecycle.finish();
    let mut content = content;
    let mut target = living_parent(&node);
    while target.lifecycle.is_pending() {
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
    let itself = node.itself.take();
    hub.retire(node.stack.take());
    drop(itself); // not the last: `node`
    let mut control = ManuallyDrop::new(Control {
        content,
        origin: Some(Greenlet::from_node(node)),
        traced,
    });
    let to = make_current(hub, target);
    // SAFETY: finished and retired; `target` is an active greenlet that is suspended (S1, S3).
    unsafe { depart_for_good(to, Parcel::new(&mut control)) }
}

/// Makes the suspended greenlet `target` the current one, right before the switch to it, and takes out its
/// resume point.
fn make_current(hub: &Hub, target: Rc<Node>) -> ResumePoint {
    if hub.has_flag(slow::UNHELD) {
        hub.lower_flag(slow::UNHELD); // that was about the one who leaves
    }
    hub.set_current(Rc::as_ptr(&target));
    let Some(to) = NonNull::new(target.resume.replace(ptr::null_mut())) else {
        // What is behind a closed gate was refused; nothing below a closed gate runs (see `gate.rs`).
        unwind::abort("a switch to a greenlet that is not suspended");
    };
    // Not kept over the switch: it would look like a handle. The greenlet is active: S3.
    drop(target);
    to
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
    report::call(&report);
    // CAUTION: runs foreign code (the destructor of what was reported).
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(report)));
    std::mem::forget(dropped); // what even that leaves is leaked, or there were no end
}

fn living_parent(node: &Rc<Node>) -> Rc<Node> {
    let parent = node
        .parent
        .borrow()
        .as_ref()
        .map(|parent| Rc::clone(parent.node()));
    parent
        .and_then(|parent| parent.nearest_living())
        .expect("while a greenlet runs, the main greenlet of its thread is active")
}

/// Takes what arrived as a value of the type that is asked for.
#[inline(always)]
pub(crate) fn receive<R: 'static>(parcel: Parcel) -> Result<R, Error> {
    // The second look is not left to the cold path: where sender and receiver were compiled into different
    // units, as they often are by default, their descriptors differ (P3), and it is this that decides, every time.
    // One way out for both, so that the compiler need not look at the result again.
    if !parcel.is_surely::<R>() && !parcel.is::<R>() {
        return receive_other(parcel);
    }
    // SAFETY: just looked.
    Ok(unsafe { parcel.take() })
}

/// Takes what arrived when it is not, or does not seem to be, a plain value of the type asked for.
#[cold]
#[inline(never)]
fn receive_other<R: 'static>(parcel: Parcel) -> Result<R, Error> {
    if parcel.is::<R>() {
        // SAFETY: just looked.
        return Ok(unsafe { parcel.take() });
    }
    match open(parcel) {
        Message::Value(value) => value
            .downcast()
            .map_err(|value| TypeMismatch::new(std::any::type_name::<R>(), value).into()),
        Message::Error(error) => Err(error),
        Message::Panic(payload) => std::panic::resume_unwind(payload),
        Message::Force => unwind::force(),
    }
}

/// As [`open`], but an exit that left a greenlet as a value is dropped, without a box for it: that is how
/// nearly all greenlets answer to being ended.
pub(crate) fn open_unless_exit(parcel: Parcel) -> Option<Message> {
    if parcel.is::<GreenletExit>() {
        // SAFETY: just looked.
        drop(unsafe { parcel.take::<GreenletExit>() });
        return None;
    }
    Some(open(parcel))
}

/// Takes what arrived out of the sender's frame (and first answers what is no message), then does what there is to do before it is delivered.
pub(crate) fn open(parcel: Parcel) -> Message {
    let parcel = probe::answer(parcel);
    let control = match Control::open(parcel) {
        Ok(control) => control,
        Err(parcel) => return Message::Value(parcel.take_value()),
    };
    let mut message = control.content.into_message(); // S4
    if control.traced {
        let origin = control
            .origin
            .as_ref()
            .expect("a traced transfer names its origin");
        message = trace::call(origin, message);
    }
    // CAUTION: runs foreign code: where it was the last handle, the greenlet is ended (rule DE-15).
    drop(control.origin);
    message
}
