//! The receiving half of a switch.
//!
//! After the stack switch the resumed greenlet holds an `Arrival`: a `Payload`, and its own context,
//! which it makes the current one. In order of frequency it is:
//!   1. a value of the type that the caller asked for -> moved out and returned (one comparison)
//!   2. a thrown error                                -> returned as `Err`
//!   3. an `Envelope`                                 -> traced, its origin dropped, then delivered
//!   4. a value of another type                       -> a `TypeMismatch`, which owns the value
//!
//! Every function here takes the content out of the payload before it runs user code ([take-first],
//! see `payload`).

#![forbid(unsafe_code)]

use std::any::type_name;

use anyhow::Error;

use crate::payload::exit::GreenletExit;
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::payload::{Payload, TypeTag};
use crate::switch::envelope::Envelope;
use crate::switch::mismatch::Sender;
use crate::switch::{Arrival, backtrace_request, mismatch, trace, unwind};
use crate::thread::ThreadState;

/// Fails to compile for a type without values, which no switch can return.
///
/// In edition 2024, `child.switch(())?;` asks for a `!`, because nothing says which type is meant.
pub(crate) const fn assert_has_values<R>() {
    assert!(
        size_of::<Option<R>>() != 0, // that of a type without values has one value, `None`
        "this switch cannot return: its type has no values. Say which type it receives: `let () = child.switch(..)?;` or `child.switch::<()>(..)?;`"
    );
}

/// Makes the resumed greenlet the current one. Returns the value that arrived, if it is an `R`.
#[inline(always)] // hot: see "Inlining" in `switch`
pub(crate) fn receive<R: 'static>(arrival: Arrival) -> Result<R, Error> {
    let Arrival { payload, own } = arrival;
    // By `?`, since the caller knows then that the fast path succeeded: 27 instructions a switch
    // instead of 30.5.
    let value = match payload.downcast_fast() {
        Ok(value) => {
            ThreadState::current().set_current(own);
            value
        }
        Err(payload) => receive_slow(Arrival { payload, own })?,
    };
    Ok(value)
}

/// As [`receive`], for the first payload of a greenlet, which is the current one already.
#[inline(always)]
pub(crate) fn receive_first<A: 'static>(payload: Payload) -> Result<A, Error> {
    let value = match payload.downcast_fast() {
        Ok(value) => value,
        Err(payload) => receive_slow(Arrival::in_current(payload))?,
    };
    Ok(value)
}

#[cold]
#[inline(never)]
fn receive_slow<R: 'static>(Arrival { payload, own }: Arrival) -> Result<R, Error> {
    let thread = ThreadState::current();
    let payload = match payload.into_thrown() {
        Ok(error) => {
            thread.set_current(own);
            return Err(error);
        }
        Err(payload) => payload,
    };
    // Sender and receiver may have been compiled into different crates, with a tag each.
    let payload = match payload.downcast() {
        Ok(value) => {
            thread.set_current(own);
            return Ok(value);
        }
        Err(payload) => payload,
    };
    let (value, sender) = receive_any(Arrival { payload, own }, TypeTag::of::<R>())?;
    value
        .downcast()
        .map_err(|value| mismatch::of_arrival(sender, type_name::<R>(), value).into())
}

/// Returns the value that arrived. If it is not of the type `wanted`, also describes its sender.
fn receive_any(arrival: Arrival, wanted: TypeTag) -> Result<(Value, Option<Sender>), Error> {
    let arrival = backtrace_request::serve(arrival);
    let sender = ThreadState::current().current_ptr();
    let envelope = Envelope::open(arrival.settle()).unwrap_or_else(Envelope::plain);
    // Before user code runs, which may drop the sender's last handle.
    let is_wanted = envelope.delivery.check_type(wanted).is_ok();
    // `switch_to_owned` may have opened the payload and wrapped it again, in this greenlet.
    let sender = (!is_wanted && !envelope.is_local())
        .then(|| Sender::find(sender))
        .flatten();
    Ok((deliver(process(envelope))?, sender))
}

/// As [`receive`], of an `A` or a `B`.
#[inline(always)] // see "Inlining" in `switch`
pub(crate) fn receive_either<A: 'static, B: 'static>(arrival: Arrival) -> Result<Either<A, B>, Error> {
    let Arrival { payload, own } = arrival;
    let value = match payload.downcast_fast() {
        Ok(value) => Either::First(value),
        Err(payload) => match payload.downcast_fast() {
            Ok(value) => Either::Second(value),
            Err(payload) => return receive_either_slow(Arrival { payload, own }),
        },
    };
    ThreadState::current().set_current(own);
    Ok(value)
}

#[cold]
#[inline(never)]
fn receive_either_slow<A: 'static, B: 'static>(arrival: Arrival) -> Result<Either<A, B>, Error> {
    let (value, sender) = receive_any(arrival, TypeTag::of::<B>())?;
    Either::of(value, sender)
}

/// A value of one of two types.
#[derive(Debug)]
pub enum Either<A, B> {
    /// A value of the first type.
    First(A),
    /// A value of the second type.
    Second(B),
}

impl<A: 'static, B: 'static> Either<A, B> {
    /// Unwraps a value that has arrived.
    ///
    /// # Errors
    ///
    /// Returns a [`TypeMismatch`](crate::TypeMismatch) if it is neither an `A` nor a `B`.
    pub fn from_value(value: Value) -> Result<Either<A, B>, Error> {
        Either::of(value, None)
    }

    #[cold]
    fn of(value: Value, sender: Option<Sender>) -> Result<Either<A, B>, Error> {
        match value.downcast().map(Either::First) {
            Ok(first) => Ok(first),
            Err(value) => value
                .downcast()
                .map(Either::Second)
                .map_err(|value| mismatch::of_arrival(sender, type_name::<B>(), value).into()),
        }
    }
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

/// Returns the message that arrived, or `None` for a [`GreenletExit`]. Nearly all ended greenlets
/// deliver one, so this saves boxing it as a `Value`.
pub(crate) fn open_unless_exit(arrival: Arrival) -> Option<Message> {
    let Arrival { payload, own } = arrival;
    match payload.downcast::<GreenletExit>() {
        Ok(_) => {
            ThreadState::current().set_current(own);
            None
        }
        Err(payload) => Some(open(Arrival { payload, own })),
    }
}

/// Takes the message out of what arrived, and processes its envelope.
pub(crate) fn open(arrival: Arrival) -> Message {
    let payload = backtrace_request::serve(arrival).settle();
    process(Envelope::open(payload).unwrap_or_else(Envelope::plain))
}

/// Does what an envelope asks for: calls the tracer, and drops the origin's handle. Returns the
/// message.
fn process(envelope: Envelope) -> Message {
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
    unwind::run_holding(message, || drop(envelope.origin))
}
