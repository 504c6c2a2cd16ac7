//! The receiving half of a switch.
//!
//! After the stack switch the resumed greenlet holds a `Payload`. In order of frequency it is:
//!   1. a value of the type that the caller asked for -> moved out and returned (one comparison)
//!   2. a thrown error                                -> returned as `Err`
//!   3. an `Envelope`                                 -> traced, its origin dropped, then delivered
//!   4. a value of another type                       -> a `TypeMismatch`, which owns the value
//!
//! Every function here takes the content out of the payload before it runs user code ([take-first],
//! see `payload`).

#![forbid(unsafe_code)]

use anyhow::Error;

use crate::payload::Payload;
use crate::payload::error::TypeMismatch;
use crate::payload::exit::GreenletExit;
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::switch::envelope::Envelope;
use crate::switch::{backtrace_request, trace, unwind};

/// Fails to compile for a type without values, which no switch can return.
///
/// In edition 2024, `child.switch(())?;` asks for a `!`, because nothing says which type is meant.
pub(crate) const fn assert_has_values<R>() {
    assert!(
        size_of::<Option<R>>() != 0, // that of a type without values has one value, `None`
        "this switch cannot return: its type has no values. Say which type it receives: `let () = child.switch(..)?;` or `child.switch::<()>(..)?;`"
    );
}

/// Returns the value of a payload if it is an `R`.
#[inline(always)] // hot: see "Inlining" in `switch`
pub(crate) fn receive<R: 'static>(payload: Payload) -> Result<R, Error> {
    // By `?`, since the caller knows then that the fast path succeeded: 27 instructions a switch instead of 30.5.
    let value = match payload.downcast_fast() {
        Ok(value) => value,
        Err(payload) => receive_slow(payload)?,
    };
    Ok(value)
}

#[cold]
#[inline(never)]
fn receive_slow<R: 'static>(payload: Payload) -> Result<R, Error> {
    let payload = match payload.into_thrown() {
        Ok(error) => return Err(error),
        Err(payload) => payload,
    };
    // Sender and receiver may have been compiled into different crates, with a tag each.
    let payload = match payload.downcast() {
        Ok(value) => return Ok(value),
        Err(payload) => payload,
    };
    deliver(open(payload))?
        .downcast()
        .map_err(|value| TypeMismatch::of::<R>(value).into())
}

/// Returns the value or the error of a message, or unwinds.
pub(crate) fn deliver(message: Message) -> Result<Value, Error> {
    match message {
        Message::Value(value) => Ok(value),
        Message::Error(error) => Err(error),
        Message::Panic(payload) => std::panic::resume_unwind(payload),
        Message::ForcedUnwind => unwind::force(),
    }
}

/// Returns the message of a payload, or `None` for a [`GreenletExit`]. Nearly all ended greenlets
/// deliver one, so this saves boxing it as a `Value`.
pub(crate) fn open_unless_exit(payload: Payload) -> Option<Message> {
    match payload.downcast::<GreenletExit>() {
        Ok(_) => None,
        Err(payload) => Some(open(payload)),
    }
}

/// Takes the message out of a payload. Processes its envelope: calls the tracer, and drops the
/// origin's handle.
pub(crate) fn open(payload: Payload) -> Message {
    let envelope = match Envelope::open(backtrace_request::serve(payload)) {
        Ok(envelope) => envelope,
        Err(payload) => {
            return match payload.into_thrown() {
                Ok(error) => Message::Error(error),
                Err(payload) => Message::Value(payload.into_value()),
            };
        }
    };
    let mut message = envelope.delivery.into_message();
    if envelope.traced {
        let origin = envelope
            .origin
            .as_ref()
            .expect("a traced switch names its origin");
        // CAUTION: runs arbitrary user code (the tracer).
        message = trace::call(origin, message);
    }
    // CAUTION: runs arbitrary user code: dropping the last handle ends the greenlet (rule DE-15).
    drop(envelope.origin);
    message
}
