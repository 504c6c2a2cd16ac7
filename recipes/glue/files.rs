//! `Read + Seek` over anything that fetches a range of bytes: an object store, HTTP.
//!
//! `BufReader::with_capacity(1 << 16, Ranges::new(size, |range| store.get_range(&path, range)))`
//!
//! `BufReader` and `BufWriter` of `object_store` need no glue: `TokioIo::new(reader)`.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use greenlet::try_await_;

/// A file of which parts are fetched. Each `read` awaits: put a `BufReader` around it.
pub struct Ranges<F> {
    fetch: F,
    size: u64,
    position: u64,
}

impl<F> Ranges<F> {
    pub fn new(size: u64, fetch: F) -> Ranges<F> {
        Ranges {
            fetch,
            size,
            position: 0,
        }
    }
}

impl<F, Fetch, Bytes> Read for Ranges<F>
where
    F: FnMut(Range<u64>) -> Fetch,
    Fetch: Future<Output = io::Result<Bytes>>,
    Bytes: AsRef<[u8]>,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.size.min(self.position.saturating_add(buffer.len() as u64));
        if self.position >= end {
            return Ok(0);
        }
        let range = self.position..end;
        let wanted = (end - self.position) as usize;
        let bytes = try_await_((self.fetch)(range)).map_err(io::Error::other)??;
        // A part that is short would be read as the end of the file, or as other bytes.
        let bytes = bytes.as_ref();
        if bytes.len() != wanted {
            let text = format!("{} bytes were fetched instead of {wanted}", bytes.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        buffer[..wanted].copy_from_slice(bytes);
        self.position = end;
        Ok(wanted)
    }
}

impl<F> Seek for Ranges<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
