//! `std::io::Write` into a stream of bytes.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use super::flatten;
use crate::bridge::stream::Items;

/// Each `write` yields an item: the bytes, as a `Vec<u8>`, or as a type that such a vector converts
/// into, such as `bytes::Bytes`. Put a [`BufWriter`](io::BufWriter) around it: code that formats
/// text writes a few bytes at a time.
///
/// `write` waits, as [`yield_`](Items::yield_) does, until the stream is polled for the next item. If
/// the stream is dropped, it returns an error, of which
/// [`AwaitFailed::of`](crate::AwaitFailed::of) returns the exit.
///
/// # Examples
///
/// ```
/// use std::io::{BufWriter, Write};
/// use futures::StreamExt;
/// use greenlet::stream_from;
///
/// let stream = stream_from(|out| {
///     let mut out = BufWriter::with_capacity(8, out);
///     for n in 0..5 {
///         write!(out, "{n}, ").unwrap();
///     }
///     out.flush().unwrap();
/// });
/// let chunks: Vec<Vec<u8>> = futures::executor::block_on(stream.collect());
/// assert_eq!(chunks, [&b"0, 1, 2"[..], b", 3, 4, "]);
/// ```
impl<T: From<Vec<u8>>> Write for Items<T> {
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            flatten(self.try_yield(bytes.to_vec().into()).map(Ok))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
