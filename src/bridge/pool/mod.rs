//! A pool of pinned workers: spawned functions for runtimes of many threads.
//!
//! ```text
//!   any thread                               one of the pool's threads
//!   pool.run(function) ──── function ──────► greenlet_spawn(function), polled here until it has ended
//!        Pooled (Send) ◄─── output ─────────
//! ```
//!
//! | file | subject |
//! | --- | --- |
//! | `builder.rs` | the options of a pool, and the start of its threads |
//! | `pooled.rs` | the handles: `Pooled`, `PoolResult`, `PoolStream` |
//! | `queue.rs` | which functions run, and which wait |
//! | `work.rs` | the task of one function |
//! | `worker.rs` | one thread |
//! | `control.rs` | the request of a handle to its function |
//! | `error.rs` | `PoolError` |

#![forbid(unsafe_code)]

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use super::spawn::SpawnBuilder;
use super::stream::Items;

mod builder;
mod control;
mod error;
mod pooled;
mod queue;
mod work;
mod worker;

pub use builder::PoolBuilder;
use control::Control;
pub use error::PoolError;
pub use pooled::{PoolResult, PoolStream, Pooled};
use queue::{Job, Queue};
use work::Outcome;

/// Threads that run spawned functions for a runtime whose tasks move between threads.
///
/// A greenlet stays on its thread, so the future of [`greenlet_spawn`](crate::greenlet_spawn) is not
/// `Send`. The pool takes a function that is, runs it on one of its threads, and gives a future of
/// the output that is `Send`. Each thread has a tokio runtime of its own, with I/O and timers, and
/// runs any number of functions at once; they only have to await, not to block. A function goes to
/// an idle thread if there is one, otherwise to the one with the fewest functions.
///
/// The pool is cheap to clone; its threads end with the last clone and the last function, or by
/// [`shutdown`](PinnedPool::shutdown). [`PinnedPool::builder`] has options.
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
    queue: Arc<Queue>,
    threads: Arc<Threads>,
    options: Arc<dyn Fn() -> SpawnBuilder + Send + Sync>,
}

/// The threads of a pool, to be joined.
struct Threads {
    /// How many have not ended.
    alive: watch::Receiver<usize>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    ids: Box<[thread::ThreadId]>,
}

impl PinnedPool {
    /// Runs a function on one of the threads, as [`greenlet_spawn`](crate::greenlet_spawn) does; it
    /// has begun, or will begin, whether or not the future is polled.
    pub fn run<T, F>(&self, function: F) -> Pooled<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let options = Arc::clone(&self.options);
        let make = move || options().spawn(function);
        self.submit(|control, output| work::spawned(make, control, output))
    }

    /// Runs a future that need not be `Send` on one of the threads: a spawn that was built with
    /// options, or several at once.
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
    pub fn run_local<F, M>(&self, make: M) -> Pooled<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
        M: FnOnce() -> F + Send + 'static,
    {
        self.submit(|control, output| work::local(make, control, output))
    }

    /// Creates a stream of the items that a function yields, as
    /// [`stream_from`](crate::stream_from) does. The stream is `Send`: it can be the body of an HTTP
    /// response, for example.
    ///
    /// The function begins at once, and is at most one item ahead: it waits in `yield_` until the
    /// item has been taken out of the stream.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use greenlet::{PinnedPool, await_};
    ///
    /// let pool = PinnedPool::new(1.try_into().unwrap());
    /// let squares = pool.stream(|items| {
    ///     for n in 1..=3 {
    ///         items.yield_(await_(async { n * n }));
    ///     }
    /// });
    /// assert_eq!(futures::executor::block_on(squares.collect::<Vec<i32>>()), [1, 4, 9]);
    /// ```
    pub fn stream<T, F>(&self, function: F) -> PoolStream<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Items<T>) + Send + 'static,
    {
        let (sender, items) = mpsc::channel(1);
        let options = Arc::clone(&self.options);
        let forwarding = self.run_local(move || {
            let mut stream = options().stream(function);
            async move {
                while let Ok(room) = sender.reserve().await {
                    match poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                        Some(item) => room.send(item),
                        None => break,
                    }
                }
            }
        });
        PoolStream::new(items, forwarding)
    }

    /// Submits a job, or gives the error that refuses it to its handle.
    fn submit<T>(&self, job: impl FnOnce(Arc<Control>, oneshot::Sender<Outcome<T>>) -> Job) -> Pooled<T> {
        let control = Arc::new(Control::new());
        let (sender, output) = oneshot::channel();
        let job = job(Arc::clone(&control), sender);
        match self.queue.submit(Arc::clone(&control), job) {
            Ok(id) => Pooled::new(output, control, Some((Arc::downgrade(&self.queue), id))),
            Err(error) => {
                let (sender, output) = oneshot::channel();
                drop(sender.send(Ok(Err(error.into()))));
                Pooled::new(output, control, None)
            }
        }
    }

    /// Cancels all functions, those that wait for their turn included: see [`Pooled::cancel`]. The
    /// pool can be used further.
    pub fn cancel_all(&self) {
        self.queue.cancel_all();
    }

    /// Refuses functions from now on, lets those that run or wait come to their ends, and ends the
    /// threads. The future is ready when the threads have been joined; all destructors of their
    /// thread-locals have run then.
    ///
    /// The shutdown begins at once, and goes on if the future is dropped. To bound it, put a time
    /// limit around the future, and call [`cancel_all`](PinnedPool::cancel_all) when that is over:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use greenlet::{PinnedPool, await_};
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    /// # runtime.block_on(async {
    /// let pool = PinnedPool::new(1.try_into().unwrap());
    /// let endless = pool.run(|| await_(std::future::pending::<()>())).into_result();
    /// if tokio::time::timeout(Duration::from_millis(10), pool.shutdown()).await.is_err() {
    ///     pool.cancel_all();
    ///     pool.shutdown().await;
    /// }
    /// assert!(endless.await.is_err());
    /// # });
    /// ```
    ///
    /// # Panics
    ///
    /// Polling the future panics on a thread of this pool, which would wait for itself, and with the
    /// panic of a thread that a panic has ended.
    pub fn shutdown(&self) -> impl Future<Output = ()> + Send + use<> {
        self.queue.shut_down();
        let threads = Arc::clone(&self.threads);
        async move {
            if threads.ids.contains(&thread::current().id()) {
                panic!(
                    "`PinnedPool::shutdown` is awaited in a function of the pool, and would wait for itself; await \
                     it elsewhere"
                );
            }
            let mut alive = threads.alive.clone();
            // An error says that the last sender is gone: all threads have ended.
            let _ = alive.wait_for(|count| *count == 0).await;
            let mut handles = threads.handles.lock().unwrap_or_else(PoisonError::into_inner);
            for handle in handles.drain(..) {
                if let Err(payload) = handle.join() {
                    std::panic::resume_unwind(payload);
                }
            }
        }
    }
}

impl fmt::Debug for PinnedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPool({} threads)", self.queue.threads())
    }
}
