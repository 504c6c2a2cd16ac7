//! A pool of pinned workers: spawned functions for runtimes of many threads.
//!
//! ```text
//!   any thread                               one of the pool's threads
//!   pool.run(function) ──── function ──────► greenlet_spawn(function), polled here until it has ended
//!        Pooled (Send) ◄─── output ─────────
//! ```

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinHandle;
use tokio_util::task::LocalPoolHandle;

use super::spawn::greenlet_spawn;

/// Threads that run spawned functions for a runtime whose tasks move between threads.
///
/// A greenlet stays on its thread, so the future of [`greenlet_spawn`] is not
/// `Send`. The pool takes a function that is, runs it on the least loaded of its threads, and gives a
/// future of the output that is `Send`. Each thread has a tokio runtime of its own, with I/O and
/// timers, and runs any number of functions at once; they only have to await, not to block.
///
/// The pool is cheap to clone; its threads end with the last clone and the last function.
///
/// # Examples
///
/// ```
/// use greenlet::{PinnedPool, await_};
///
/// let pool = PinnedPool::new(2.try_into().unwrap());
/// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
/// let lengths = runtime.block_on(async move {
///     let words = ["synchronous", "code"];
///     let running = words.map(|word| pool.run(move || await_(async { word.len() })));
///     // `Send`, so it can go into a task of any runtime:
///     tokio::spawn(futures::future::join_all(running)).await
/// })?;
/// assert_eq!(lengths, [11, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct PinnedPool {
    workers: LocalPoolHandle,
}

impl PinnedPool {
    /// Starts a pool of so many threads.
    ///
    /// # Panics
    ///
    /// Panics if the system has no threads to give.
    pub fn new(threads: NonZeroUsize) -> PinnedPool {
        PinnedPool {
            workers: LocalPoolHandle::new(threads.get()),
        }
    }

    /// Runs a function on one of the threads, as [`greenlet_spawn`] does; it has
    /// begun, or will begin, whether or not the future is polled.
    ///
    /// # Panics
    ///
    /// A panic of the function comes out of polling the future.
    #[track_caller]
    pub fn run<T, F>(&self, function: F) -> Pooled<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.run_local(move || greenlet_spawn(function))
    }

    /// Runs a future that need not be `Send` on one of the threads: a spawn that was built with options, or
    /// several at once.
    ///
    /// # Panics
    ///
    /// As for [`run`](PinnedPool::run).
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{PinnedPool, SpawnBuilder, await_};
    ///
    /// let pool = PinnedPool::new(1.try_into().unwrap());
    /// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let output = runtime.block_on(async {
    ///     let future = pool.run_local(|| SpawnBuilder::new().name("sum").spawn(|| 1 + await_(async { 2 })));
    ///     future.await
    /// });
    /// assert_eq!(output, 3);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn run_local<F, M>(&self, make: M) -> Pooled<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
        M: FnOnce() -> F + Send + 'static,
    {
        Pooled {
            task: self.workers.spawn_pinned(make),
        }
    }
}

impl fmt::Debug for PinnedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPool({} threads)", self.workers.num_threads())
    }
}

/// The output of a function that a [`PinnedPool`] runs.
///
/// Dropping it ends the function, on its thread, as dropping a [`Spawn`](crate::Spawn) does: the drop does not wait for
/// that.
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
#[derive(Debug)]
#[must_use = "dropping it ends the function"]
pub struct Pooled<T> {
    task: JoinHandle<T>,
}

impl<T> Future for Pooled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.task).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(output)) => Poll::Ready(output),
            Poll::Ready(Err(error)) => match error.try_into_panic() {
                Ok(payload) => resume_unwind(payload),
                Err(_) => panic!("the runtime that runs the pool's function was shut down"),
            },
        }
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
