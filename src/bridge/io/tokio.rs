//! `std::io` over tokio's asynchronous I/O.

use std::future::poll_fn;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::flatten;
use crate::bridge::try_await_;

/// Gives tokio's asynchronous I/O the traits of `std::io`, inside a spawned function.
///
/// It adds no buffer: wrap it in a [`std::io::BufReader`] or [`std::io::BufWriter`] as you would wrap a file. The I/O has
/// to be `Unpin`, as tokio's own types are.
///
/// # Errors
///
/// Those of the I/O, and [`AwaitFailed`](crate::AwaitFailed) inside an [`io::Error`] where an await could not be.
///
/// # Examples
///
/// ```
/// use greenlet::{TokioIo, greenlet_spawn};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let (client, server) = tokio::io::duplex(8);
/// let write = greenlet_spawn(move || serde_json::to_writer(TokioIo::new(client), &[1, 2, 3, 4, 5]));
/// let read = greenlet_spawn(move || serde_json::from_reader::<_, Vec<u32>>(TokioIo::new(server)));
/// let (written, read) = futures::join!(write, read);
/// written?;
/// assert_eq!(read?, [1, 2, 3, 4, 5]);
/// # anyhow::Ok(()) })?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TokioIo<T>(T);

impl<T> TokioIo<T> {
    /// Wraps asynchronous I/O.
    pub fn new(inner: T) -> TokioIo<T> {
        TokioIo(inner)
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

impl<T: AsyncRead + Unpin> Read for TokioIo<T> {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        flatten(try_await_(poll_fn(|cx| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
            Ok(buffer.filled().len()).into()
        })))
    }
}

impl<T: AsyncBufRead + Unpin> BufRead for TokioIo<T> {
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

impl<T: AsyncWrite + Unpin> Write for TokioIo<T> {
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

impl<T: AsyncSeek + Unpin> Seek for TokioIo<T> {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        flatten(try_await_(async {
            let mut inner = Pin::new(&mut self.0);
            // An operation that was given up half-way has to end first.
            poll_fn(|cx| inner.as_mut().poll_complete(cx)).await?;
            inner.as_mut().start_seek(to)?;
            poll_fn(|cx| inner.as_mut().poll_complete(cx)).await
        }))
    }
}
