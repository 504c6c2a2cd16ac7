//! `std::io` traits over the asynchronous I/O of `futures-io`.

#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::Poll;

use futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};

use super::flatten;
use super::lend::lend;
use crate::bridge::try_await_;

/// Implements the traits of `std::io` for the asynchronous I/O of `futures-io` (smol, async-std),
/// for use in a spawned function.
///
/// It adds no buffer. Wrap it in a [`std::io::BufReader`] or [`std::io::BufWriter`] as you would
/// wrap a file. The I/O must be `Unpin`.
///
/// # Errors
///
/// Returns the errors of the I/O. If an await fails, returns an [`io::Error`] with an
/// [`AwaitFailed`](crate::AwaitFailed) inside.
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

common!(FuturesIo);

impl<T: AsyncRead + Unpin> Read for FuturesIo<T> {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        flatten(try_await_(poll_fn(|cx| {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        })))
    }
}

impl<T: AsyncSeek + Unpin> Seek for FuturesIo<T> {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        flatten(try_await_(poll_fn(|cx| Pin::new(&mut self.0).poll_seek(cx, to))))
    }
}
