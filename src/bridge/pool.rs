//! A pool of pinned workers: spawned functions for runtimes of many threads.
//!
//! ```text
//!   any thread                               one of the pool's threads
//!   pool.run(function) ──── function ──────► greenlet_spawn(function), polled here until it has ended
//!        Pooled (Send) ◄─── output ─────────
//! ```

#![forbid(unsafe_code)]

use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;

use greenlet_core::run_to_end;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

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
    workers: Arc<[Worker]>,
}

/// One of the threads. It ends when nobody can send jobs any more and all its functions have ended.
struct Worker {
    jobs: UnboundedSender<Job>,
    /// Each function that the worker runs, or will run, has a clone.
    load: Arc<()>,
}

/// Starts a function, on the thread that runs it.
type Job = Box<dyn FnOnce() + Send>;

impl Worker {
    fn start() -> Worker {
        let (jobs, received) = unbounded_channel();
        thread::Builder::new()
            .name("greenlet-worker".into())
            .spawn(|| run_to_end(|| work(received)))
            .expect("a worker needs a thread");
        let load = Arc::default();
        Worker { jobs, load }
    }
}

/// Runs what arrives on this thread.
fn work(mut jobs: UnboundedReceiver<Job>) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let tasks = LocalSet::new();
    runtime.expect("a worker needs a runtime").block_on(async {
        let start = async {
            while let Some(start) = jobs.recv().await {
                start();
            }
        };
        tasks.run_until(start).await;
        tasks.await;
    });
}

/// Runs one future, and sends what comes of it, unless the receiver is dropped before.
async fn run_one<F: Future>(
    make: impl FnOnce() -> F,
    mut output: oneshot::Sender<thread::Result<F::Output>>,
) {
    let mut future = pin!(async { make().await });
    let outcome = poll_fn(|cx| {
        if output.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        // CAUTION: runs arbitrary user code.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        Poll::Ready(Some(match polled {
            Ok(polled) => Ok(ready!(polled)),
            Err(payload) => Err(payload),
        }))
    });
    if let Some(outcome) = outcome.await {
        drop(output.send(outcome));
    }
}

impl PinnedPool {
    /// Starts a pool of so many threads.
    ///
    /// # Panics
    ///
    /// Panics if the system has no threads to give.
    pub fn new(threads: NonZeroUsize) -> PinnedPool {
        PinnedPool {
            workers: (0..threads.get()).map(|_| Worker::start()).collect(),
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
        let least_loaded = self
            .workers
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.load));
        let worker = least_loaded.expect("a pool has at least one thread");
        let load = Arc::clone(&worker.load);
        let (sender, output) = oneshot::channel();
        let counted = || async {
            let output = make().await;
            drop(load); // before the caller can see the output
            output
        };
        let job = || drop(spawn_local(run_one(counted, sender)));
        // Refused if a panic has ended the worker. Then polling the output panics.
        let _ = worker.jobs.send(Box::new(job));
        Pooled { output }
    }
}

impl fmt::Debug for PinnedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPool({} threads)", self.workers.len())
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
    output: oneshot::Receiver<thread::Result<T>>,
}

impl<T> Future for Pooled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.output).poll(cx)) {
            Ok(Ok(output)) => Poll::Ready(output),
            Ok(Err(payload)) => resume_unwind(payload),
            Err(_) => panic!("the worker that ran the pool's function has ended"),
        }
    }
}
