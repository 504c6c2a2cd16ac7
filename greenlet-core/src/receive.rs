//! The arrival: what a receiver makes of what a switch brings it.
//!
//! ```text
//!   parcel of the type that is asked for      the value: one comparison
//!   parcel of another type                    the receiver's wish says whether that is an error
//!   an error that was thrown                  the error
//!   a Control                                 opened (`open`): what it says is done first, then delivered
//! ```
//!
//! Whoever arrives takes the parcel out of the sender's frame before it calls foreign code (P2 in `transfer.rs`, S4 in
//! `switch.rs`): each function here does, and whoever has a parcel and something else to do calls [`open`] first.

use anyhow::Error;

use crate::error::TypeMismatch;
use crate::exit::GreenletExit;
use crate::probe;
use crate::trace;
use crate::transfer::{Control, Message, Parcel, Thrown};
use crate::unwind;
use crate::value::Value;

/// What a receiver that asks for an `R` makes of what arrives.
pub(crate) trait Wish<R> {
    type Made;
    fn asked(value: R) -> Self::Made;
    fn other(value: Value) -> Result<Self::Made, Error>;
}

/// A value of another type is an error.
pub(crate) struct Exactly;

impl<R: 'static> Wish<R> for Exactly {
    type Made = R;

    #[inline(always)] // nothing
    fn asked(value: R) -> R {
        value
    }

    fn other(value: Value) -> Result<R, Error> {
        Err(TypeMismatch::of::<R>(value).into())
    }
}

/// A value of another type is as good.
pub(crate) struct OrAnother;

impl<R: 'static> Wish<R> for OrAnother {
    type Made = Result<R, Value>;

    #[inline(always)] // nothing
    fn asked(value: R) -> Result<R, Value> {
        Ok(value)
    }

    fn other(value: Value) -> Result<Result<R, Value>, Error> {
        Ok(Err(value))
    }
}

/// Takes what arrived as a value of the type that is asked for.
#[inline(always)] // the fast path: one comparison
pub(crate) fn receive<R: 'static>(parcel: Parcel) -> Result<R, Error> {
    receive_as::<R, Exactly>(parcel)
}

#[inline(always)] // as `receive`
pub(crate) fn receive_as<R: 'static, W: Wish<R>>(parcel: Parcel) -> Result<W::Made, Error> {
    // The second look is not left to the cold path: where sender and receiver were compiled into different
    // units, as they often are by default, their descriptors differ (P3), and it is this that decides, every time.
    if parcel.is_surely::<R>() || (!parcel.is_thrown() && parcel.is_after_all::<R>()) {
        // SAFETY: just looked.
        return Ok(W::asked(unsafe { parcel.take() }));
    }
    receive_apart(|place| receive_other::<R, W>(parcel, place))
}

/// Does what a cold function does that leaves a value in a place, or returns an error.
///
/// As a `Result`, what it returns would be one value with what the fast path has, and the compiler would look at that
/// again, every time.
#[inline(always)] // for that
pub(crate) fn receive_apart<M>(cold: impl FnOnce(&mut Option<M>) -> Option<Error>) -> Result<M, Error> {
    let mut place = None;
    match cold(&mut place) {
        None => Ok(place.expect("there is no error")),
        Some(error) => Err(error),
    }
}

/// Takes what arrived when it is not a plain value of the type asked for.
#[cold]
#[inline(never)]
fn receive_other<R: 'static, W: Wish<R>>(parcel: Parcel, place: &mut Option<W::Made>) -> Option<Error> {
    if parcel.is_thrown() {
        // SAFETY: just looked.
        return Some(unsafe { parcel.take::<Thrown>() }.0);
    }
    let made = match open(parcel) {
        Message::Value(value) => match value.downcast() {
            Ok(value) => Ok(W::asked(value)),
            Err(value) => W::other(value),
        },
        Message::Error(error) => Err(error),
        Message::Panic(payload) => std::panic::resume_unwind(payload),
        Message::Force => unwind::force(),
    };
    match made {
        Ok(made) => {
            *place = Some(made);
            None
        }
        Err(error) => Some(error),
    }
}

/// [`receive_as`], on a cold path.
#[cold]
#[inline(never)]
pub(crate) fn receive_any<R: 'static, W: Wish<R>>(
    parcel: Parcel,
    place: &mut Option<W::Made>,
) -> Option<Error> {
    if parcel.is::<R>() {
        // SAFETY: just looked.
        *place = Some(W::asked(unsafe { parcel.take() }));
        return None;
    }
    receive_other::<R, W>(parcel, place)
}

/// As [`open`], but an exit that left a greenlet as a value is dropped, without a box for it: that is how
/// nearly all greenlets answer to being ended.
#[inline]
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
    if parcel.is::<Thrown>() {
        // SAFETY: just looked.
        return Message::Error(unsafe { parcel.take::<Thrown>() }.0);
    }
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
