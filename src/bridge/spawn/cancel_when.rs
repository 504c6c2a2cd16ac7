//! Cancels a spawned function when something else happens, such as the end of a time limit.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;

use super::future::{Spawn, SpawnResult};

impl<T: 'static> Spawn<T> {
    /// Cancels the function when `signal` is ready, unless it has ended before: see
    /// [`cancel`](Spawn::cancel).
    ///
    /// With a timer, this is a time limit after which clean-up may still await. A limit around the
    /// returned future bounds the clean-up as well: it drops the function.
    ///
    /// # Panics
    ///
    /// Polling the returned future panics where polling the spawn does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use greenlet::{greenlet_spawn, try_await_};
    /// use tokio::time::{sleep, timeout};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let (limit, grace) = (Duration::from_millis(10), Duration::from_secs(1));
    /// let spawned = greenlet_spawn(|| match try_await_(std::future::pending::<()>()) {
    ///     Ok(()) => "never",
    ///     Err(_) => try_await_(async { "goodbye sent" }).unwrap(),
    /// });
    /// let ended = timeout(limit + grace, spawned.cancel_when(sleep(limit))).await;
    /// assert_eq!(ended.unwrap().unwrap(), "goodbye sent");
    /// # });
    /// ```
    pub fn cancel_when<S: Future<Output = ()> + 'static>(self, signal: S) -> CancelWhen<T> {
        CancelWhen {
            function: self.into_result(),
            signal: Some(Box::pin(signal)),
        }
    }
}

/// The future of a spawned function that a signal cancels: see [`Spawn::cancel_when`].
///
/// Dropping it before it is ready does what dropping the [`Spawn`] does.
#[must_use = "futures do nothing unless polled"]
pub struct CancelWhen<T: 'static> {
    function: SpawnResult<T>,
    /// `None` after it was ready.
    signal: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<T: 'static> Future for CancelWhen<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // First the function: an output that is ready is worth more than the signal.
        if let Poll::Ready(ended) = Pin::new(&mut self.function).poll(cx) {
            return Poll::Ready(ended);
        }
        let Some(signal) = &mut self.signal else {
            return Poll::Pending;
        };
        // CAUTION: runs arbitrary user code.
        if signal.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.signal = None;
        self.function.start_cancel();
        Pin::new(&mut self.function).poll(cx)
    }
}

impl<T: 'static> fmt::Debug for CancelWhen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.function.fmt(f)
    }
}
