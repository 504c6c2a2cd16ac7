//! The scenarios of python-greenlet's own tests, under their names. The files are named after its files.
//!
//! The last section of docs/semantics.md has the list, with the tests that have no counterpart.

mod test_contextvars;
mod test_gc;
mod test_generator;
mod test_greenlet;
mod test_throw;
mod test_tracing;
mod test_weakref;

/// The error that these tests raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SomeError;

impl std::fmt::Display for SomeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("some error")
    }
}

impl std::error::Error for SomeError {}
