//! Templates whose functions await, rendered straight into the body of an axum response.
//!
//! `body(&pool, move |out| template.render_captured_to(context, out).map(drop))`

use std::io::{self, BufWriter, Write};

use axum::body::{Body, Bytes};
use futures::stream;
use greenlet::{PinnedPool, try_await_};
use tokio::sync::mpsc::{self, Sender};

/// A function of templates calls this. An end of the greenlet is an error of the template.
pub fn awaited<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    try_await_(future).map_err(io::Error::other)?
}

/// Returns a body that a function writes, on one of the pool's threads.
///
/// An error of the function, or a panic, breaks the response off: the client sees that. The
/// function ends when the client goes away.
pub fn body<E>(
    pool: &PinnedPool,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Body
where
    E: Into<axum::BoxError> + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let running = pool.run(move || -> Result<(), axum::BoxError> {
        let mut chunks = BufWriter::new(Chunks(sender));
        write(&mut chunks).map_err(Into::into)?;
        Ok(chunks.flush()?)
    });
    Body::from_stream(stream::unfold(Some((receiver, running)), async |rest| {
        let (mut receiver, running) = rest?;
        match receiver.recv().await {
            Some(chunk) => Some((Ok(chunk), Some((receiver, running)))),
            None => running.await.err().map(|error| (Err(error), None)),
        }
    }))
}

/// Writes to a channel, and waits while it is full.
struct Chunks(Sender<Bytes>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = try_await_(self.0.send(Bytes::copy_from_slice(bytes))).map_err(io::Error::other)?;
        sent.map(|()| bytes.len())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
