//! `std::io` over asynchronous I/O, for synchronous code in a spawned function.
//!
//! A parser or a writer that takes `impl Read` or `impl Write` works over an asynchronous connection: each
//! call that would block awaits instead.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use anyhow::Error;

/// What the adapters have in common: the traits of their I/O differ in name alone here.
#[cfg(any(feature = "tokio", feature = "futures-io"))]
macro_rules! common {
    ($adapter:ident) => {
        impl<T> $adapter<T> {
            /// Wraps asynchronous I/O.
            pub fn new(inner: T) -> $adapter<T> {
                $adapter(inner)
            }

            /// Borrows what is wrapped.
            pub fn get_ref(&self) -> &T {
                &self.0
            }

            /// Borrows what is wrapped.
            pub fn get_mut(&mut self) -> &mut T {
                &mut self.0
            }

            /// Gives back what is wrapped. There is no buffer that could be lost.
            pub fn into_inner(self) -> T {
                self.0
            }
        }

        impl<T: AsyncBufRead + Unpin> BufRead for $adapter<T> {
            #[track_caller]
            fn fill_buf(&mut self) -> io::Result<&[u8]> {
                let is_at_end = flatten(try_await_(poll_fn(|cx| {
                    Pin::new(&mut self.0)
                        .poll_fill_buf(cx)
                        .map_ok(<[u8]>::is_empty)
                })))?;
                if is_at_end {
                    return Ok(&[]);
                }
                // What was filled a moment ago is there still: the first poll could not lend it out.
                match Pin::new(&mut self.0).poll_fill_buf(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(filled) => filled,
                    Poll::Pending => Err(io::Error::other(
                        "an `AsyncBufRead` has lost what it had filled without being told to consume it",
                    )),
                }
            }

            fn consume(&mut self, amount: usize) {
                Pin::new(&mut self.0).consume(amount);
            }
        }

        impl<T: AsyncWrite + Unpin> Write for $adapter<T> {
            #[track_caller]
            fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
                flatten(try_await_(poll_fn(|cx| {
                    Pin::new(&mut self.0).poll_write(cx, buffer)
                })))
            }

            #[track_caller]
            fn write_vectored(&mut self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
                flatten(try_await_(poll_fn(|cx| {
                    Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
                })))
            }

            #[track_caller]
            fn flush(&mut self) -> io::Result<()> {
                flatten(try_await_(poll_fn(|cx| {
                    Pin::new(&mut self.0).poll_flush(cx)
                })))
            }
        }
    };
}

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

    /// Takes the error of the await out, so that an exit can be passed on as what it is. Any other I/O error
    /// stays one.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    /// use greenlet::AwaitFailed;
    ///
    /// let other = io::Error::from(io::ErrorKind::NotFound);
    /// assert!(AwaitFailed::into_error(other).is::<io::Error>());
    /// ```
    pub fn into_error(error: io::Error) -> Error {
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
