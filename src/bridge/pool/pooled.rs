//! The handles of functions that a pool runs.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use anyhow::Result;
use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};

use super::control::{Control, Request};
use super::error::PoolError;
use super::queue::Queue;
use super::work::Outcome;

/// The output of a function that a [`PinnedPool`](crate::PinnedPool) runs.
///
/// Dropping it ends the function, on its thread, as dropping a [`Spawn`](crate::Spawn) does: the
/// drop does not wait for that. A function that still waits for its turn is dropped at once.
/// [`cancel`](Pooled::cancel) lets the function clean up, and [`detach`](Pooled::detach) lets it run
/// to its end.
///
/// # Panics
///
/// Polling panics with the panic of the function. It also panics if the function has no output: see
/// [`PoolResult`], which returns these cases as errors.
///
/// # Examples
///
/// ```
/// use greenlet::{PinnedPool, Pooled, await_};
///
/// let pool = PinnedPool::new(1.try_into().unwrap());
/// let output: Pooled<u32> = pool.run(|| await_(async { 42 }));
/// assert_eq!(futures::executor::block_on(output), 42);
/// ```
#[must_use = "dropping it ends the function"]
pub struct Pooled<T> {
    output: oneshot::Receiver<Outcome<T>>,
    control: Arc<Control>,
    /// Where the function may wait. `None` when the function is over, refused, or detached.
    waits_in: Option<(Weak<Queue>, u64)>,
}

impl<T> Pooled<T> {
    pub(super) fn new(
        output: oneshot::Receiver<Outcome<T>>,
        control: Arc<Control>,
        waits_in: Option<(Weak<Queue>, u64)>,
    ) -> Pooled<T> {
        Pooled {
            output,
            control,
            waits_in,
        }
    }

    /// Ends the function, and lets it clean up, as [`Spawn::cancel`](crate::Spawn::cancel) does. A
    /// function that still waits for its turn is dropped. A future of
    /// [`run_local`](crate::PinnedPool::run_local) is dropped as well, after the spawned functions
    /// in it have cleaned up.
    ///
    /// The cancel begins at once. The returned future is ready when the function has ended: with its
    /// output, if it returns one all the same, or with the error with which it ends.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{PinnedPool, try_await_};
    ///
    /// let pool = PinnedPool::new(1.try_into().unwrap());
    /// let waiting = pool.run(|| match try_await_(std::future::pending::<()>()) {
    ///     Ok(()) => "never",
    ///     Err(_) => try_await_(async { "goodbye sent" }).unwrap(), // clean-up may await
    /// });
    /// std::thread::sleep(std::time::Duration::from_millis(10)); // let it begin
    /// let ended = futures::executor::block_on(waiting.cancel());
    /// assert_eq!(ended?, "goodbye sent");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn cancel(self) -> PoolResult<T> {
        self.control.ask(Request::Cancel);
        self.stop_waiting();
        PoolResult { pooled: self }
    }

    /// Converts the future into one that returns an error if the function has no output.
    pub fn into_result(self) -> PoolResult<T> {
        PoolResult { pooled: self }
    }

    /// Lets the function run to its end, and drops its output on its thread. The hook of
    /// [`std::panic::set_hook`] sees its panic, as that of any thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{PinnedPool, await_};
    ///
    /// let pool = PinnedPool::new(1.try_into().unwrap());
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// pool.run(move || sender.send(await_(async { "written" }))).detach();
    /// assert_eq!(receiver.recv(), Ok("written"));
    /// ```
    pub fn detach(mut self) {
        self.waits_in = None;
    }

    fn stop_waiting(&self) {
        let queue = self
            .waits_in
            .as_ref()
            .and_then(|(queue, id)| Some((queue.upgrade()?, id)));
        if let Some((queue, id)) = queue {
            queue.remove(*id);
        }
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let received = ready!(Pin::new(&mut self.output).poll(cx));
        self.waits_in = None;
        Poll::Ready(received.unwrap_or_else(|_| {
            Ok(Err(match self.control.request() {
                Request::None => PoolError::lost().into(),
                Request::Cancel | Request::End => PoolError::cancelled().into(),
            }))
        }))
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        if self.waits_in.is_some() {
            self.control.ask(Request::End);
            self.stop_waiting();
        }
    }
}

impl<T> Future for Pooled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match ready!(self.poll_outcome(cx)) {
            Ok(Ok(output)) => Poll::Ready(output),
            Ok(Err(error)) => {
                panic!(
                    "a function of a pool has no output: {error:#}; `into_result()` returns this as an error"
                )
            }
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }
}

impl<T> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = self.control.request();
        f.debug_struct("Pooled")
            .field("request", &request)
            .finish_non_exhaustive()
    }
}

/// The outcome of a function that a [`PinnedPool`](crate::PinnedPool) runs: see [`Pooled::cancel`]
/// and [`Pooled::into_result`].
///
/// Dropping it ends the function, as dropping a [`Pooled`] does.
///
/// # Errors
///
/// - A [`PoolError`] if the pool did not run the function, or not to its end.
/// - The errors of [`SpawnResult`](crate::SpawnResult), such as the exit of a cancelled function.
///
/// # Panics
///
/// Polling panics with the panic of the function.
#[must_use = "dropping it ends the function"]
pub struct PoolResult<T> {
    pooled: Pooled<T>,
}

impl<T> Future for PoolResult<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match ready!(self.pooled.poll_outcome(cx)) {
            Ok(result) => Poll::Ready(result),
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }
}

impl<T> fmt::Debug for PoolResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pooled.fmt(f)
    }
}

/// The items of a function that a [`PinnedPool`](crate::PinnedPool) runs: see
/// [`PinnedPool::stream`](crate::PinnedPool::stream).
///
/// Dropping it ends the function, as dropping a [`Pooled`] does.
///
/// # Panics
///
/// Polling panics where polling a [`Pooled`] does.
#[must_use = "dropping it ends the function"]
pub struct PoolStream<T> {
    items: mpsc::Receiver<T>,
    /// `None` after the function has ended.
    function: Option<Pooled<()>>,
}

impl<T> PoolStream<T> {
    pub(super) fn new(items: mpsc::Receiver<T>, function: Pooled<()>) -> PoolStream<T> {
        PoolStream {
            items,
            function: Some(function),
        }
    }
}

impl<T> Stream for PoolStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(item) = ready!(self.items.poll_recv(cx)) {
            return Poll::Ready(Some(item));
        }
        // No more items: the function has returned or panicked, or the pool has lost it.
        if let Some(function) = &mut self.function {
            ready!(Pin::new(function).poll(cx));
            self.function = None;
        }
        Poll::Ready(None)
    }
}

impl<T> fmt::Debug for PoolStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolStream").field(&self.function).finish()
    }
}
