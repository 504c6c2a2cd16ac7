//! Templates whose functions await, rendered straight into the body of an axum response.
//!
//! `body(&pool, move |out| template.render_captured_to(context, out).map(drop))`

use std::io::{self, BufWriter, Write};

use axum::body::{Body, Bytes};
use futures::{FutureExt, StreamExt, channel::oneshot};
use greenlet::{Items, PinnedPool, try_await_};

/// A function of templates calls this. An end of the greenlet is an error of the template.
pub fn awaited<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    try_await_(future).map_err(io::Error::other)?
}

/// Returns a body that a function writes, on one of the pool's threads.
///
/// An error of the function, or a panic, breaks the response off: the client sees that. The
/// function ends when the client goes away.
pub fn body<E: Into<axum::BoxError>>(
    pool: &PinnedPool,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Body {
    let (sender, result) = oneshot::channel::<Result<(), axum::BoxError>>();
    let chunks = pool.stream(move |chunks: &mut Items<Bytes>| {
        let mut chunks = BufWriter::new(chunks);
        let written = write(&mut chunks).map_err(Into::into);
        let _ = sender.send(written.and_then(|()| Ok(chunks.flush()?)));
    });
    // After the last chunk, an error if the function has failed.
    let failed = result.into_stream().filter_map(async |result| result.ok()?.err());
    Body::from_stream(chunks.map(Ok).chain(failed.map(Err)))
}
