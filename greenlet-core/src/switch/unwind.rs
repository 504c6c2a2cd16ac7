//! Unwinding a greenlet's stack without a panic.
//!
//! [`raise`] returns an error from code that does not return a `Result`. [`force`] is the second
//! stage of an end. Neither calls the panic hook. Each has its own payload type, which the
//! greenlet's first frame catches.

#![forbid(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Error;

use crate::payload::exit::{GreenletExit, reason};
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::thread::ThreadState;

/// The payload of [`raise`].
struct Raised(Error);

/// The payload of [`force`].
struct Forced;

/// Ends the running greenlet with an error, from code that cannot return one. Return the error if
/// you can.
///
/// The stack is unwound, and the greenlet ends as if its function had returned the error.
///
/// # Panics
///
/// Unwinds like a panic, without calling the panic hook. Do not catch it with
/// `std::panic::catch_unwind`. In the main greenlet it ends the thread. A destructor that switches
/// or awaits meanwhile gets [`Unwinding`](crate::Unwinding).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, raise};
///
/// fn deep() -> u32 {
///     raise(anyhow::anyhow!("no number today"))
/// }
/// let child = Greenlet::new(|(): ()| Ok(deep()));
/// assert_eq!(child.switch::<u32>(()).unwrap_err().to_string(), "no number today");
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn raise(error: impl Into<Error> + 'static) -> ! {
    resume_unwind(Box::new(Raised(into_error(error))))
}

/// Converts what a user throws or raises. An exit becomes an error of the cache, which captures no
/// backtrace.
#[inline]
pub(crate) fn into_error<E: Into<Error> + 'static>(error: E) -> Error {
    let mut error = Some(error);
    let any: &mut dyn Any = &mut error;
    if let Some(exit) = any.downcast_mut().and_then(Option::<GreenletExit>::take) {
        return ThreadState::current().exit_cache.error(exit);
    }
    // CAUTION: runs arbitrary user code.
    error.expect("it is no exit, so it was not taken").into()
}

/// Unwinds the running greenlet to its first frame: the second stage of an exit.
pub(crate) fn force() -> ! {
    resume_unwind(Box::new(Forced))
}

/// Converts the payload of a greenlet that has unwound into the message for its parent.
pub(crate) fn parent_message(payload: Box<dyn Any + Send>) -> Message {
    let payload = match payload.downcast::<Raised>() {
        Ok(raised) => {
            return match exit_of(raised.0) {
                Ok(exit) => Message::Value(Value::new(exit)),
                Err(message) => message,
            };
        }
        Err(payload) => payload,
    };
    match payload.downcast::<Forced>() {
        Ok(_) => Message::Value(Value::new(GreenletExit::because(reason::ENDED))),
        Err(payload) => Message::Panic(payload),
    }
}

/// Takes the exit out of the error that a greenlet ends with. Drops its contexts, without
/// unwinding.
///
/// # Errors
///
/// Returns the message for the parent if it is no exit, or if a context panicked when it was
/// dropped.
#[inline]
pub(crate) fn exit_of(error: Error) -> Result<GreenletExit, Message> {
    ThreadState::current()
        .exit_cache
        .exit_of(error)
        .or_else(exit_slow)
}

/// [`exit_of`] of an error with contexts.
#[cold]
#[inline(never)]
fn exit_slow(error: Error) -> Result<GreenletExit, Message> {
    // CAUTION: runs arbitrary user code.
    match catch_unwind(AssertUnwindSafe(|| error.downcast::<GreenletExit>())) {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(error)) => Err(Message::Error(error)),
        Err(payload) => Err(parent_message(payload)),
    }
}

/// Converts a caught payload into the message for the greenlet that caught it.
pub(crate) fn own_message(payload: Box<dyn Any + Send>) -> Message {
    let payload = match payload.downcast::<Raised>() {
        Ok(raised) => return Message::Error(raised.0),
        Err(payload) => payload,
    };
    match payload.downcast::<Forced>() {
        Ok(_) => Message::ForcedUnwind,
        Err(payload) => Message::Panic(payload),
    }
}
