//! What a switch delivers: in the sender a [`Delivery`], in the receiver a [`Message`].

#![forbid(unsafe_code)]

use std::any::{Any, TypeId};

use anyhow::Error;

use crate::payload::value::Value;
use crate::payload::{Payload, TypeTag};

/// A delivery that no longer uses the sender's frame.
#[derive(Debug)]
pub(crate) enum Message {
    /// `switch` returns it.
    Value(Value),
    /// `switch` returns it as `Err`.
    Error(Error),
    /// The panic of a child: `switch` resumes it.
    Panic(Box<dyn Any + Send>),
    /// The second stage of an end: `switch` unwinds, without calling the panic hook.
    ForcedUnwind,
}

impl Message {
    /// Returns `true` if Python calls the delivery a "throw".
    pub(crate) fn is_throw(&self) -> bool {
        !matches!(self, Message::Value(_))
    }
}

/// The content of a slow switch.
pub(crate) enum Delivery {
    /// A value, which may be in the sender's frame.
    Payload(Payload),
    Message(Message),
}

impl Delivery {
    /// Wraps a payload. A [thrown](Payload::thrown) error becomes a message.
    pub(crate) fn of(payload: Payload) -> Delivery {
        match payload.into_thrown() {
            Ok(error) => Delivery::Message(Message::Error(error)),
            Err(payload) => Delivery::Payload(payload),
        }
    }

    /// Moves the content out of the sender's frame.
    pub(crate) fn into_message(self) -> Message {
        match self {
            Delivery::Payload(payload) => Message::Value(payload.into_value()),
            Delivery::Message(message) => message,
        }
    }

    /// Checks that this can start a function that takes a value of type `taken`. A thrown error can
    /// start any.
    ///
    /// # Errors
    ///
    /// Returns the name of the type that the function takes.
    pub(crate) fn check_type(&self, taken: TypeTag) -> Result<(), &'static str> {
        let found = match self {
            Delivery::Payload(payload) => payload.type_id(),
            Delivery::Message(Message::Value(value)) => value.type_id_inside(),
            Delivery::Message(_) => return Ok(()),
        };
        let takes_any = taken.id() == TypeId::of::<Value>();
        if takes_any || found == taken.id() {
            Ok(())
        } else {
            Err(taken.name())
        }
    }
}
