//! Ends a generator that has not finished, and reports failures, which no code can receive.

#![forbid(unsafe_code)]

use std::panic::Location;

use crate::payload::message::Message;
use crate::segment::{Failure, Segment};
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind::{self, Unwound};
use crate::thread;

/// Ends the body of a segment, and reports failures. Returns `false`, and does nothing, if the body
/// runs or is in the middle of a switch.
///
/// # Panics
///
/// Continues an end of the running greenlet that reached it meanwhile.
pub(super) fn end<Y, S, R>(segment: &Segment<Y, S, R>) -> bool {
    let Some(created_at) = segment.created_at() else {
        return true;
    };
    let mut unwound = Unwound::default();
    let is_over = segment.end(&mut |failure| unwound.run(|| report(failure, created_at)));
    if !std::thread::panicking() {
        unwound.resume();
    }
    is_over
}

/// Reports a failure.
///
/// # Errors
///
/// Returns the payload of an end of the running greenlet itself.
#[cold]
#[inline(never)]
fn report(failure: Failure, created_at: &'static Location<'static>) -> std::thread::Result<()> {
    let consumer = thread::current_greenlet();
    let report = match failure {
        Failure::Error(error) => Unraisable::of_error(consumer, error),
        Failure::Unwound(payload) => match unwind::own_message(payload) {
            Message::Panic(payload) => Unraisable::of_panic(consumer, payload),
            Message::Error(error) => Unraisable::of_error(consumer, error),
            Message::ForcedUnwind => return Err(unwind::forced()),
            Message::Value(_) => unreachable!("no unwinding is a value"),
        },
        Failure::Refused => Unraisable::of_refusal(consumer),
    };
    unraisable::call(report.in_generator(created_at))
}
