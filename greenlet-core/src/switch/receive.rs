//! The arrival: what a receiver makes of what a switch brings it.
//!
//! ```text
//!   payload of the type that is asked for      the value: one comparison
//!   payload of another type                    an error that has the value
//!   an error that was thrown                  the error
//!   a Envelope                                 opened (`open`): what it says is done first, then delivered
//! ```
//!
//! Whoever arrives takes the payload out of the sender's frame before it calls foreign code (P2 in `transfer.rs`, S4 in
//! `switch.rs`): each function here does, and whoever has a payload and something else to do calls [`open`] first.

use anyhow::Error;

use crate::greenlet::backtrace;
use crate::node::Inner;
use crate::payload::error::TypeMismatch;
use crate::payload::exit::GreenletExit;
use crate::payload::value::Value;
use crate::payload::{Envelope, Message, Payload, Thrown};
use crate::switch::trace;
use crate::switch::unwind;
use crate::thread::ThreadState;

/// Who is back from a switch, and what it brought.
///
/// Who arrives says that it is the current one, not who leaves; and says so once it has looked at what arrived, which on
/// the fast path is the last thing. So the compiler knows at the next switch who switches, and need not read what
/// was just written: a switch takes 1.54 ns where that is so, and else 1.85.
#[must_use = "who is back is to be current"]
pub(crate) struct Resumed {
    own: *const Inner,
    payload: Payload,
}

impl Resumed {
    /// # Safety
    ///
    /// - `own` is the greenlet that runs from now on, and the payload is what the switch brought it.
    #[inline(always)] // nothing
    pub(crate) unsafe fn new(own: *const Inner, payload: Payload) -> Resumed {
        Resumed { own, payload }
    }

    /// Makes who is back the current greenlet.
    #[inline(always)] // one store
    pub(crate) fn make_current(self) -> Payload {
        ThreadState::current().set_current(self.own);
        self.payload
    }

    /// Takes what arrived as a value of the type that is asked for.
    #[inline(always)] // the fast path: one comparison
    pub(crate) fn receive<R: 'static>(self) -> Result<R, Error> {
        if self.payload.is_fast::<R>() {
            // SAFETY: just looked.
            return Ok(unsafe { self.make_current().take() });
        }
        let payload = self.make_current();
        cold_path(move || receive_slow(payload))
    }
}

/// [`Resumed::receive`], where the greenlet is current already.
#[inline(always)] // the fast path: one comparison
pub(crate) fn receive<R: 'static>(payload: Payload) -> Result<R, Error> {
    if payload.is_fast::<R>() {
        // SAFETY: just looked.
        return Ok(unsafe { payload.take() });
    }
    cold_path(move || receive_slow(payload))
}

/// Does what there is to do on a rare path that meets the fast one again.
///
/// What the two have to say would be one value, and the compiler would look at that again, every time; so of this path it is
/// left in a place. What the fast one has just written of who runs would be unknown again; so this path writes it as well.
#[inline(always)] // for that
pub(crate) fn cold_path<M>(cold: impl FnOnce() -> Result<M, Error>) -> Result<M, Error> {
    let mut place = None;
    let error = leave_in(&mut place, cold);
    ThreadState::current().repeat_current();
    match error {
        None => Ok(place.expect("there is no error")),
        Some(error) => Err(error),
    }
}

#[cold]
#[inline(never)]
fn leave_in<M>(place: &mut Option<M>, cold: impl FnOnce() -> Result<M, Error>) -> Option<Error> {
    match cold() {
        Ok(made) => {
            *place = Some(made);
            None
        }
        Err(error) => Some(error),
    }
}

/// Takes what arrived when it is not a plain value of the type asked for.
fn receive_slow<R: 'static>(payload: Payload) -> Result<R, Error> {
    if payload.is_thrown() {
        // SAFETY: just looked.
        return Err(unsafe { payload.take::<Thrown>() }.0);
    }
    let value = deliver(open(payload))?;
    value
        .downcast()
        .map_err(|value| TypeMismatch::of::<R>(value).into())
}

/// Does what a message says.
pub(crate) fn deliver(message: Message) -> Result<Value, Error> {
    match message {
        Message::Value(value) => Ok(value),
        Message::Error(error) => Err(error),
        Message::Panic(payload) => std::panic::resume_unwind(payload),
        Message::ForcedUnwind => unwind::force(),
    }
}

/// [`receive`], on a rare path.
pub(crate) fn receive_any<R: 'static>(payload: Payload) -> Result<R, Error> {
    if payload.is::<R>() {
        // SAFETY: just looked.
        return Ok(unsafe { payload.take() });
    }
    receive_slow(payload)
}

/// As [`open`], but an exit that left a greenlet as a value is dropped, without a box for it: that is how
/// nearly all greenlets answer to being ended.
#[inline]
pub(crate) fn open_unless_exit(payload: Payload) -> Option<Message> {
    if payload.is::<GreenletExit>() {
        // SAFETY: just looked.
        drop(unsafe { payload.take::<GreenletExit>() });
        return None;
    }
    Some(open(payload))
}

/// Takes what arrived, and does what there is to do before it is delivered. First it is taken out of the sender's frame (S4), and
/// what is no message is answered.
pub(crate) fn open(payload: Payload) -> Message {
    let payload = backtrace::serve(payload);
    if payload.is::<Thrown>() {
        // SAFETY: just looked.
        return Message::Error(unsafe { payload.take::<Thrown>() }.0);
    }
    let envelope = match Envelope::open(payload) {
        Ok(envelope) => envelope,
        Err(payload) => return Message::Value(payload.into_value()),
    };
    let mut message = envelope.delivery.into_message();
    if envelope.traced {
        let origin = envelope
            .origin
            .as_ref()
            .expect("a traced transfer names its origin");
        message = trace::call(origin, message);
    }
    // CAUTION: runs foreign code: where it was the last handle, the greenlet is ended (rule DE-15).
    drop(envelope.origin);
    message
}
