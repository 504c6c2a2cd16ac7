//! The envelope: what a switch carries when the receiver has more to do than to take a value.

#![forbid(unsafe_code)]

use crate::node::handle::Greenlet;
use crate::payload::Payload;
use crate::payload::message::{Delivery, Message};

/// A delivery with what the receiver must do first. No user can ask for this type, so the receiver's fast path never
/// takes it for a value.
pub(crate) struct Envelope {
    pub(crate) delivery: Delivery,
    /// The greenlet that control comes from. The receiver shows it to the tracer, then drops the handle. If it is the
    /// last one, that ends the greenlet (rule DE-15).
    pub(crate) origin: Option<Greenlet>,
    /// Set if the receiver must call the tracer. There is an origin then.
    pub(crate) traced: bool,
}

impl Envelope {
    /// Wraps a message that never leaves this stack: the answer to a switch to oneself.
    pub(crate) fn local(message: Message) -> Payload {
        Payload::boxed(Box::new(Envelope {
            delivery: Delivery::Message(message),
            origin: None,
            traced: false,
        }))
    }

    /// Takes the envelope out of a payload.
    ///
    /// # Errors
    ///
    /// Returns the payload again if it is a plain value.
    pub(crate) fn open(payload: Payload) -> Result<Envelope, Payload> {
        payload
            .downcast::<Envelope>()
            .or_else(|payload| payload.downcast::<Box<Envelope>>().map(|envelope| *envelope))
    }
}
