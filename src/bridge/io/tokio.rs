//! `std::io` traits over tokio's asynchronous I/O.

#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::flatten;
use super::lend::lend;
use crate::bridge::try_await_;

/// Implements the traits of `std::io` for tokio's asynchronous I/O, for use in a spawned function.
///
/// It adds no buffer. Wrap it in a [`std::io::BufReader`] or [`std::io::BufWriter`] as you would
/// wrap a file. The I/O must be `Unpin`, as tokio's own types are.
///
/// # Errors
///
/// Returns the errors of the I/O. If an await fails, returns an [`io::Error`] with an
/// [`AwaitFailed`](crate::AwaitFailed) inside.
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

common!(TokioIo);

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

impl<T: AsyncSeek + Unpin> Seek for TokioIo<T> {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        flatten(try_await_(async {
            let mut inner = Pin::new(&mut self.0);
            // A pending operation of an abandoned await must complete first.
            poll_fn(|cx| inner.as_mut().poll_complete(cx)).await?;
            inner.as_mut().start_seek(to)?;
            poll_fn(|cx| inner.as_mut().poll_complete(cx)).await
        }))
    }
}
