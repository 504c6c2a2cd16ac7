//! A value whose type is known only when it runs: what a switch carries when the receiver asks for
//! anything.

#![forbid(unsafe_code)]

use std::any::{Any, TypeId, type_name};
use std::fmt;

use crate::payload::exit::GreenletExit;

/// Any value, with its type.
///
/// A switch that asks for a `Value` takes whatever is sent; one that asks for another type takes that
/// type only. Sending a `Value` sends what is in it: a receiver that asks for `i32` takes a
/// `Value` that holds one.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, Value};
///
/// let echo = Greenlet::new(|first: Value| Ok(first));
/// let back: Value = echo.switch(41)?;
/// assert!(back.is::<i32>());
/// assert_eq!(back.downcast::<i32>().unwrap(), 41);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Value {
    inner: Box<dyn Any>,
    type_name: &'static str,
}

impl Value {
    /// Wraps a value. A value of type `Value` is not wrapped again.
    pub fn new<T: 'static>(value: T) -> Value {
        if TypeId::of::<T>() == TypeId::of::<Value>() {
            let mut value = Some(value);
            let value: &mut dyn Any = &mut value;
            let value: &mut Option<Value> = value.downcast_mut().expect("the two types are the same");
            return value.take().expect("it was put there three lines above");
        }
        Value {
            inner: Box::new(value),
            type_name: type_name::<T>(),
        }
    }

    /// Takes the value out, if it is a `T`.
    ///
    /// # Errors
    ///
    /// Returns the whole `Value` again if it is of another type.
    pub fn downcast<T: 'static>(self) -> Result<T, Value> {
        if TypeId::of::<T>() == TypeId::of::<Value>() {
            let any: Box<dyn Any> = Box::new(self);
            return Ok(*any.downcast::<T>().expect("the two types are the same"));
        }
        let type_name = self.type_name;
        match self.inner.downcast::<T>() {
            Ok(value) => Ok(*value),
            Err(inner) => Err(Value { inner, type_name }),
        }
    }

    /// Borrows the value, if it is a `T`.
    pub fn downcast_ref<T: 'static>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// Says whether the value is a `T`.
    pub fn is<T: 'static>(&self) -> bool {
        self.inner.is::<T>()
    }

    /// Says whether the value is a [`GreenletExit`]: what a greenlet that ended by exit gives its parent.
    pub fn is_exit(&self) -> bool {
        self.is::<GreenletExit>()
    }

    /// The name of the value's type, for messages. As [`std::any::type_name`], it promises nothing else.
    pub fn type_name(&self) -> &'static str {
        self.type_name
    }

    /// The value and its type's name, as the transfer of a switch made them.
    pub(crate) fn from_parts(inner: Box<dyn Any>, type_name: &'static str) -> Value {
        Value { inner, type_name }
    }

    /// The type of what is inside.
    pub(crate) fn type_id_inside(&self) -> TypeId {
        (*self.inner).type_id()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.type_name)
    }
}
