//! `std::io` over the asynchronous I/O of `futures-io`.

use std::future::poll_fn;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};

use super::flatten;
use crate::bridge::try_await_;

/// Gives the asynchronous I/O of `futures-io` (smol, async-std) the traits of `std::io`, inside a
/// spawned function.
///
/// It adds no buffer: wrap it in a [`std::io::BufReader`] or [`std::io::BufWriter`] as you would wrap a file. The I/O has
/// to be `Unpin`.
///
/// # Errors
///
/// Those of the I/O, and [`AwaitFailed`](crate::AwaitFailed) inside an [`io::Error`] where an await could not be.
///
/// # Examples
///
/// ```
/// use std::io::BufRead;
/// use greenlet::{FuturesIo, greenlet_spawn};
///
/// let spawned = greenlet_spawn(|| {
///     let reader = futures::io::Cursor::new("one\ntwo\n");
///     FuturesIo::new(reader).lines().collect::<Result<Vec<_>, _>>()
/// });
/// assert_eq!(futures::executor::block_on(spawned)?, ["one", "two"]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct FuturesIo<T>(T);

impl<T> FuturesIo<T> {
    /// Wraps asynchronous I/O.
    pub fn new(inner: T) -> FuturesIo<T> {
        FuturesIo(inner)
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

impl<T: AsyncRead + Unpin> Read for FuturesIo<T> {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        flatten(try_await_(poll_fn(|cx| {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        })))
    }
}

impl<T: AsyncBufRead + Unpin> BufRead for FuturesIo<T> {
    #[track_caller]
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let is_at_end = flatten(try_await_(poll_fn(|cx| {
            Pin::new(&mut self.0).poll_fill_buf(cx).map_ok(<[u8]>::is_empty)
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

impl<T: AsyncWrite + Unpin> Write for FuturesIo<T> {
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
        flatten(try_await_(poll_fn(|cx| Pin::new(&mut self.0).poll_flush(cx))))
    }
}

impl<T: AsyncSeek + Unpin> Seek for FuturesIo<T> {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        flatten(try_await_(poll_fn(|cx| Pin::new(&mut self.0).poll_seek(cx, to))))
    }
}
