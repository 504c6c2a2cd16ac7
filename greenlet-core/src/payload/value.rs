//! `Value`: a value of any type, for receivers that do not know the type in advance.

#![forbid(unsafe_code)]

use std::any::{Any, TypeId, type_name};
use std::fmt;

use crate::payload::exit::GreenletExit;

/// A value of any type.
///
/// A switch that asks for a `Value` accepts every type. One that asks for an `i32` also accepts a
/// `Value` of an `i32`.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, Value};
/// let echo = Greenlet::new(|first: Value| Ok(first));
/// let back: Value = echo.switch(41)?;
/// assert_eq!(back.downcast::<i32>().unwrap(), 41);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Value {
    inner: Box<dyn Any>,
    type_name: &'static str,
}

impl Value {
    /// Wraps a value. A `Value` is not wrapped again.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Value;
    /// assert!(Value::new(Value::new(7_u32)).is::<u32>());
    /// ```
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

    /// Unwraps the value if it is a `T`.
    ///
    /// # Errors
    ///
    /// Returns the `Value` unchanged if it is of another type.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Value;
    /// let text = Value::new(7_u32).downcast::<String>().unwrap_err();
    /// assert_eq!(text.downcast::<u32>().unwrap(), 7);
    /// ```
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

    /// Borrows the value if it is a `T`.
    pub fn downcast_ref<T: 'static>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// Returns `true` if the value is a `T`.
    pub fn is<T: 'static>(&self) -> bool {
        self.inner.is::<T>()
    }

    /// Returns `true` if the value is a [`GreenletExit`], which a greenlet that ended by exit sends
    /// to its parent.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{GreenletExit, Value};
    /// assert!(Value::new(GreenletExit::new()).is_exit());
    /// assert!(!Value::new(7_u32).is_exit());
    /// ```
    pub fn is_exit(&self) -> bool {
        self.is::<GreenletExit>()
    }

    /// Returns the name of the value's type, for messages. It may differ between compilers: see
    /// [`std::any::type_name`].
    pub fn type_name(&self) -> &'static str {
        self.type_name
    }

    /// Creates a value from its parts, as a payload has them.
    pub(crate) fn from_parts(inner: Box<dyn Any>, type_name: &'static str) -> Value {
        Value { inner, type_name }
    }

    /// Returns the type of the value inside.
    pub(crate) fn type_id_inside(&self) -> TypeId {
        (*self.inner).type_id()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.type_name)
    }
}
