//! The envelope: the payload of a switch whose receiver must do more than take a value.

#![forbid(unsafe_code)]

use std::mem::ManuallyDrop;

use crate::node::handle::Greenlet;
use crate::payload::Payload;
use crate::payload::message::{Delivery, Message};

/// A delivery, and the receiver's duties before it. Users cannot name this type, so the receiver's
/// fast path never matches it.
pub(crate) struct Envelope {
    pub(crate) delivery: Delivery,
    /// The greenlet that switched or ended. The receiver shows it to the tracer, then drops the
    /// handle. If that is the last one, the greenlet is ended (rule DE-15).
    pub(crate) origin: Option<Greenlet>,
    /// Set if the receiver must call the tracer. There is an origin then.
    pub(crate) traced: bool,
}

impl Envelope {
    /// Wraps a message that the running greenlet receives itself.
    pub(crate) fn local(message: Message) -> Payload {
        let envelope = Box::new(Envelope {
            delivery: Delivery::Message(message),
            origin: None,
            traced: false,
        });
        // A box fits into the payload's word, so the payload does not point to this frame.
        Payload::new(&mut ManuallyDrop::new(envelope))
    }

    /// Wraps a payload that came without an envelope.
    pub(crate) fn plain(payload: Payload) -> Envelope {
        Envelope {
            delivery: Delivery::of(payload),
            origin: None,
            traced: false,
        }
    }

    /// Returns `true` if the receiver itself has wrapped the message.
    pub(crate) fn is_local(&self) -> bool {
        self.origin.is_none() && matches!(self.delivery, Delivery::Message(_))
    }

    /// Takes the envelope out of a payload, or returns the payload if it is a plain value.
    pub(crate) fn open(payload: Payload) -> Result<Envelope, Payload> {
        payload
            .downcast::<Envelope>()
            .or_else(|payload| payload.downcast::<Box<Envelope>>().map(|envelope| *envelope))
    }
}
