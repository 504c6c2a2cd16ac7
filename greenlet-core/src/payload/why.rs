//! Why a stack is unwound without a panic: for messages.

#![forbid(unsafe_code)]

use std::fmt;

/// Why a stack is unwound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    /// It did not end by its exit.
    Forced,
    /// `raise` was called with an exit.
    RaisedExit,
    /// `raise` was called with another error.
    RaisedError,
    /// A generator did not end when it was closed.
    Generator,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Forced => "was ended, did not return its exit, and was unwound by force",
            Why::RaisedExit => "was ended, and was unwound, because its exit was raised",
            Why::RaisedError => "was unwound by `raise`",
            Why::Generator => "closed a generator, which was unwound by force",
        })
    }
}
