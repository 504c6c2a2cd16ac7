//! Creates the errors for values of a wrong type. Their texts name both greenlets, and both places.

#![forbid(unsafe_code)]

use std::panic::Location;
use std::ptr;

use crate::node::Inner;
use crate::payload::error::TypeMismatch;
use crate::payload::value::Value;
use crate::thread::{self, ThreadState};

type Loc = &'static Location<'static>;

/// The greenlet that a value of a wrong type came from.
pub(super) struct Sender {
    label: String,
    /// Where it is suspended. `None` if it has ended.
    place: Option<Loc>,
    is_receiver: bool,
}

impl Sender {
    /// Describes the greenlet of this thread whose node is at the address. `None` if there is none.
    pub(super) fn find(address: *const Inner) -> Option<Sender> {
        let thread = ThreadState::current();
        let is_it = |node: &Inner| ptr::eq(node, address).then(|| node.to_rc());
        let node = thread.pool.find(is_it)?;
        Some(Sender {
            label: node.short_label(),
            place: (!node.status.is_dead())
                .then(|| node.context.suspended_at.get())
                .flatten(),
            is_receiver: thread.is_current(&node),
        })
    }
}

/// The value arrived in the current greenlet, which had switched to another one, or to itself.
pub(super) fn of_arrival(sender: Option<Sender>, expected: &'static str, value: Value) -> TypeMismatch {
    let found = value.type_name();
    let (receiver, asked_at) =
        thread::with_current_inner(|inner| (inner.short_label(), inner.context.suspended_at.get()));
    let asked_at = asked_at.map_or_else(String::new, |place| format!(" at {place}"));
    let asked = format!("{receiver} asked for a value of type `{expected}`{asked_at}");
    let text = match sender {
        None => format!("{asked}, but a `{found}` was sent"),
        Some(Sender {
            is_receiver: true, ..
        }) => format!("{asked}, and sent itself a `{found}`"),
        Some(Sender {
            label, place: None, ..
        }) => format!("{asked}, but {label} ended with a `{found}`"),
        Some(Sender {
            label,
            place: Some(place),
            ..
        }) => {
            format!("{asked}, but {label} sent a `{found}` at {place}")
        }
    };
    TypeMismatch::new(text, expected, value)
}

/// The value came back to its sender, because `target` is dead, or the sender itself.
#[cold]
pub(super) fn of_echo(target: &Inner, place: Loc, expected: &'static str, value: Value) -> TypeMismatch {
    let found = value.type_name();
    let label = target.short_label();
    let why = if ThreadState::current().is_current(target) {
        "switched to itself"
    } else {
        "is dead"
    };
    let text = format!(
        "{label} {why}, so the value came back to the caller at {place}: a `{found}`, where a value of type \
         `{expected}` was asked for"
    );
    TypeMismatch::new(text, expected, value)
}

/// The function of the pending greenlet `target` does not take the value.
#[cold]
pub(super) fn of_pending(target: &Inner, place: Loc, expected: &'static str, value: Value) -> TypeMismatch {
    let sender = thread::with_current_inner(Inner::short_label);
    let text = format!(
        "{} starts with a value of type `{expected}`, but {sender} sent a `{}` at {place}; it is still pending",
        target.short_label(),
        value.type_name()
    );
    TypeMismatch::new(text, expected, value)
}

/// The function of the pending `ancestor` does not take the value that the greenlet `ended` leaves.
#[cold]
pub(super) fn of_pending_ancestor(
    ancestor: &Inner,
    ended: &Inner,
    expected: &'static str,
    value: Value,
) -> TypeMismatch {
    let text = format!(
        "{} starts with a value of type `{expected}`, but {} ended with a `{}`, so it ends too, with this error",
        ancestor.short_label(),
        ended.short_label(),
        value.type_name()
    );
    TypeMismatch::new(text, expected, value)
}
