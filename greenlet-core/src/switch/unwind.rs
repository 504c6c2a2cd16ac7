//! Leaving a greenlet by unwinding: panics that are no panics.
//!
//! Two things unwind a stack without the panic hook being called: [`raise`], which is how code that
//! does not return a `Result` lets an error out of its greenlet, and the second stage of an exit.
//! Each has a payload type of its own, which `entry.rs` catches at the greenlet's first frame.

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
/// The stack is unwound, and the greenlet ends as if its function had returned the error. If the
/// error is a [`GreenletExit`], the parent receives it as an ordinary value.
///
/// # Panics
///
/// Unwinds like a panic, without calling the panic hook. `std::panic::catch_unwind` catches it,
/// which you should not do. In the main greenlet it ends the thread. A destructor that switches or
/// awaits meanwhile gets [`Unwinding`](crate::Unwinding).
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
pub fn raise(error: impl Into<Error>) -> ! {
    resume_unwind(Box::new(Raised(error.into())))
}

/// Unwinds the running greenlet to its first frame: the second stage of an exit.
pub(crate) fn force() -> ! {
    resume_unwind(Box::new(Forced))
}

/// What a caught unwinding leaves for the parent.
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

/// Takes the exit out of an error that leaves its greenlet, or says what goes to the parent in its place.
///
/// The contexts of the exit are dropped here, in the greenlet's last frames, which nothing may unwind.
#[inline]
pub(crate) fn exit_of(error: Error) -> Result<GreenletExit, Message> {
    ThreadState::current()
        .exit_cache
        .exit_of(error)
        .or_else(exit_slow)
}

/// [`exit_of`], where the error has contexts.
#[cold]
#[inline(never)]
fn exit_slow(error: Error) -> Result<GreenletExit, Message> {
    // CAUTION: runs foreign code.
    match catch_unwind(AssertUnwindSafe(|| error.downcast::<GreenletExit>())) {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(error)) => Err(Message::Error(error)),
        Err(payload) => Err(parent_message(payload)),
    }
}

/// What a caught unwinding delivers in place of something else, to whom it was caught in.
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
