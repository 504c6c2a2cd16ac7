//! `std::io` over asynchronous I/O, for synchronous code in a spawned function.
//!
//! A parser or a writer that takes `impl Read` or `impl Write` works over an asynchronous connection: each
//! call that would block awaits instead.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use anyhow::Error;

#[cfg(feature = "futures-io")]
mod futures;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "futures-io")]
pub use futures::FuturesIo;
#[cfg(feature = "tokio")]
pub use tokio::TokioIo;

/// What stands in an [`io::Error`] when a call of the adapters did not fail in its I/O, but in its await:
/// an exit was thrown, or awaiting was refused.
///
/// Its kind is [`io::ErrorKind::Other`], and not `Interrupted`: callers, those of `std` first, would try
/// again for ever.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use std::io::Read;
/// use greenlet::{AwaitFailed, NoDriver, TokioIo};
///
/// let outside = TokioIo::new(&b"data"[..]).read(&mut [0; 4]).unwrap_err();
/// let error = AwaitFailed::of(&outside).unwrap();
/// assert!(error.is::<NoDriver>());
/// # }
/// ```
#[derive(Debug)]
pub struct AwaitFailed(Error);

impl AwaitFailed {
    /// The error of the await, if that is what is in the I/O error.
    pub fn of(error: &io::Error) -> Option<&Error> {
        let failed = error.get_ref()?.downcast_ref::<AwaitFailed>()?;
        Some(&failed.0)
    }

    /// Takes the error of the await out, so that an exit can be passed on as what it is.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    /// use greenlet::AwaitFailed;
    ///
    /// let other = io::Error::from(io::ErrorKind::NotFound);
    /// assert!(AwaitFailed::unwrap(other).is::<io::Error>());
    /// ```
    pub fn unwrap(error: io::Error) -> Error {
        if Self::of(&error).is_none() {
            return error.into();
        }
        let inner = error
            .into_inner()
            .and_then(|inner| inner.downcast::<AwaitFailed>().ok());
        inner.expect("just looked").0
    }
}

impl fmt::Display for AwaitFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the I/O could not be awaited: {}", self.0)
    }
}

impl std::error::Error for AwaitFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.0.as_ref())
    }
}

/// The result of awaited I/O.
#[cfg(any(feature = "tokio", feature = "futures-io"))]
fn flatten<T>(awaited: anyhow::Result<io::Result<T>>) -> io::Result<T> {
    awaited.unwrap_or_else(|error| Err(io::Error::other(AwaitFailed(error))))
}
