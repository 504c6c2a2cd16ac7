//! The error of a switch that cannot get a stack.

#![forbid(unsafe_code)]

use std::{fmt, io};

use crate::payload::error::{Carried, carries_value};
use crate::payload::thread_bound::ThreadBound;
use crate::payload::value::Value;

/// A greenlet got no stack: the requested size is out of range, or there is no memory.
///
/// The first switch to a greenlet returns this error. The greenlet stays pending, and the error
/// owns the value that was sent.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, StackError};
/// let tiny = Greenlet::builder().stack_size(1).build(|(): ()| Ok(()));
/// let error = tiny.switch::<()>(()).unwrap_err();
/// assert!(error.downcast_ref::<StackError>().unwrap().is_bad_size());
/// ```
#[derive(Debug)]
pub struct StackError {
    kind: StackErrorKind,
    value: Carried,
}

#[derive(Debug)]
pub(super) enum StackErrorKind {
    TooSmall { asked: usize, min: usize },
    TooLarge { asked: usize, max: usize },
    Map { size: usize, error: io::Error },
    Guard { error: io::Error },
}

impl From<StackErrorKind> for StackError {
    fn from(kind: StackErrorKind) -> StackError {
        StackError { kind, value: None }
    }
}

impl StackError {
    /// Puts the value that was to start the greenlet into the error.
    pub(crate) fn carrying(mut self, value: Option<Value>) -> StackError {
        self.value = value.map(ThreadBound::new);
        self
    }

    /// Returns `true` if the requested size is below the minimum, or larger than any memory.
    pub fn is_bad_size(&self) -> bool {
        matches!(
            self.kind,
            StackErrorKind::TooSmall { .. } | StackErrorKind::TooLarge { .. }
        )
    }

    /// Returns `true` if the system refused the memory or its guard page.
    pub fn is_out_of_memory(&self) -> bool {
        !self.is_bad_size()
    }

    /// Returns the error of the operating system, if it refused.
    pub fn io_error(&self) -> Option<&io::Error> {
        match &self.kind {
            StackErrorKind::Map { error, .. } | StackErrorKind::Guard { error } => Some(error),
            StackErrorKind::TooSmall { .. } | StackErrorKind::TooLarge { .. } => None,
        }
    }
}

carries_value!(StackError);

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            StackErrorKind::TooSmall { asked, min } => {
                write!(f, "a stack of {asked} bytes is too small; ask for at least {min}")
            }
            StackErrorKind::TooLarge { asked, max } => {
                write!(f, "a stack of {asked} bytes is too large; ask for at most {max}")
            }
            StackErrorKind::Map { size, error } => write!(
                f,
                "no memory for a stack of {size} bytes: {error}; end some greenlets or ask for smaller stacks"
            ),
            StackErrorKind::Guard { error } => write!(
                f,
                "no guard page for a stack: {error}; where guards are made with mprotect, the kernel's limit \
                 of mappings (vm.max_map_count) ends the number of stacks"
            ),
        }
    }
}
