//! Implements the traits of `std::io` for asynchronous I/O, for synchronous code in a spawned
//! function.
//!
//! A parser or a writer that takes `impl Read` or `impl Write` then works with an asynchronous
//! connection: each call that would block awaits instead.

use std::fmt;
use std::io;

use anyhow::Error;

/// The common code of the adapters. The traits of their I/O differ in their paths alone.
#[cfg(any(feature = "tokio", feature = "futures-io"))]
macro_rules! common {
    ($adapter:ident) => {
        impl<T> $adapter<T> {
            /// Wraps asynchronous I/O.
            pub fn new(inner: T) -> $adapter<T> {
                $adapter(inner)
            }

            /// Borrows the wrapped I/O.
            pub fn get_ref(&self) -> &T {
                &self.0
            }

            /// Borrows the wrapped I/O mutably.
            pub fn get_mut(&mut self) -> &mut T {
                &mut self.0
            }

            /// Returns the wrapped I/O. The adapter has no buffer, so no data is lost.
            pub fn into_inner(self) -> T {
                self.0
            }
        }

        impl<T: AsyncBufRead + Unpin> BufRead for $adapter<T> {
            #[track_caller]
            fn fill_buf(&mut self) -> io::Result<&[u8]> {
                let mut reader = Some(&mut self.0);
                flatten(try_await_(poll_fn(move |cx| {
                    let lent = reader
                        .take()
                        .expect("polled again after a panic or its end");
                    match lend(lent, |reader| Pin::new(reader).poll_fill_buf(cx)) {
                        Ok(filled) => Poll::Ready(filled),
                        Err(back) => {
                            reader = Some(back);
                            Poll::Pending
                        }
                    }
                })))
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
mod items;
#[cfg(any(feature = "tokio", feature = "futures-io"))]
mod lend;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "futures-io")]
pub use futures::FuturesIo;
#[cfg(feature = "tokio")]
pub use tokio::TokioIo;

/// The cause of an [`io::Error`] if the await of a call has failed, and not its I/O: an exit was
/// thrown, or the await was refused.
///
/// The kind of that error is [`io::ErrorKind::Other`]. With `Interrupted`, callers such as `std`
/// would retry for ever.
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
    /// Returns the error of the await, if an await caused the I/O error.
    pub fn of(error: &io::Error) -> Option<&Error> {
        let failed = error.get_ref()?.downcast_ref::<AwaitFailed>()?;
        Some(&failed.0)
    }

    /// Converts an I/O error into the error of the await that caused it, so that an exit propagates
    /// as an exit. Any other I/O error stays an [`io::Error`].
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
        inner.expect("`of` has found it").0
    }
}

impl fmt::Display for AwaitFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the await of an I/O operation failed: {}", self.0)
    }
}

impl std::error::Error for AwaitFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.0.as_ref())
    }
}

/// Merges the error of an await into the result of its I/O.
fn flatten<T>(awaited: anyhow::Result<io::Result<T>>) -> io::Result<T> {
    awaited.unwrap_or_else(|error| Err(io::Error::other(AwaitFailed(error))))
}
