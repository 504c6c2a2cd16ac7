//! The options of a pool, and the start of its threads.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::{fmt, io, thread};

use tokio::sync::watch;

use super::queue::Queue;
use super::worker::Worker;
use super::{PinnedPool, Threads};
use crate::bridge::spawn::SpawnBuilder;

impl PinnedPool {
    /// Starts a pool of so many threads, with the defaults of [`PoolBuilder`].
    ///
    /// # Panics
    ///
    /// Panics if the system has no threads to give.
    pub fn new(threads: NonZeroUsize) -> PinnedPool {
        let started = PinnedPool::builder().threads(threads).build();
        started.expect("the threads of a pool can be started")
    }

    /// Returns a builder of a pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder {
            threads: None,
            thread_name: "greenlet-worker".into(),
            max_running: usize::MAX,
            max_waiting: usize::MAX,
            options: Arc::new(SpawnBuilder::new),
        }
    }
}

/// Builds a [`PinnedPool`].
///
/// # Examples
///
/// ```
/// use greenlet::{PinnedPool, SpawnBuilder, await_};
///
/// let pool = PinnedPool::builder()
///     .threads(2.try_into()?)
///     .thread_name("reports")
///     .max_running(100) // others wait for their turn,
///     .max_waiting(1000) // and past these, functions are refused
///     .spawn_options(|| SpawnBuilder::new().name("report").stack_size(1 << 20))
///     .build()?;
/// let written = pool.run(|| await_(async { "written" }));
/// assert_eq!(futures::executor::block_on(written), "written");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a builder starts nothing before `build`"]
pub struct PoolBuilder {
    threads: Option<NonZeroUsize>,
    thread_name: String,
    max_running: usize,
    max_waiting: usize,
    options: Arc<dyn Fn() -> SpawnBuilder + Send + Sync>,
}

impl PoolBuilder {
    /// Sets the number of threads. The default is one for each processor that the program may use.
    pub fn threads(mut self, threads: NonZeroUsize) -> PoolBuilder {
        self.threads = Some(threads);
        self
    }

    /// Sets the name of the threads, to which a hyphen and a number are added. The default is
    /// `greenlet-worker`.
    pub fn thread_name(mut self, name: impl Into<String>) -> PoolBuilder {
        self.thread_name = name.into();
        self
    }

    /// Sets how many functions run at once, on all threads together; at least 1. Others wait for
    /// their turn. By default no function waits.
    pub fn max_running(mut self, functions: usize) -> PoolBuilder {
        self.max_running = functions.max(1);
        self
    }

    /// Sets how many functions may wait for their turn. Past them, the pool refuses functions: their
    /// handles are ready at once, with a [`PoolError`](crate::PoolError) that
    /// [`is_full`](crate::PoolError::is_full). By default there is no limit.
    pub fn max_waiting(mut self, functions: usize) -> PoolBuilder {
        self.max_waiting = functions;
        self
    }

    /// Sets a function that makes the options of each spawned function of [`PinnedPool::run`] and
    /// [`PinnedPool::stream`]: name, stack size, hooks. It is called on the thread that runs the
    /// function.
    pub fn spawn_options(
        mut self,
        options: impl Fn() -> SpawnBuilder + Send + Sync + 'static,
    ) -> PoolBuilder {
        self.options = Arc::new(options);
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// Returns the error of the system if it has no thread, or no I/O driver, to give. Threads that
    /// were started before end.
    pub fn build(self) -> io::Result<PinnedPool> {
        let threads = match self.threads {
            Some(threads) => threads,
            None => thread::available_parallelism()?,
        };
        let (count, alive) = watch::channel(threads.get());
        let count = Arc::new(count);
        let (mut workers, mut handles) = (Vec::new(), Vec::new());
        for number in 0..threads.get() {
            let count = Arc::clone(&count);
            let on_end = move || count.send_modify(|alive| *alive -= 1);
            let (worker, handle) = Worker::start(format!("{}-{number}", self.thread_name), on_end)?;
            workers.push(worker);
            handles.push(handle);
        }
        let ids = handles.iter().map(|handle| handle.thread().id()).collect();
        Ok(PinnedPool {
            queue: Arc::new(Queue::new(workers.into(), self.max_running, self.max_waiting)),
            threads: Arc::new(Threads {
                alive,
                handles: Mutex::new(handles),
                ids,
            }),
            options: self.options,
        })
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("threads", &self.threads)
            .field("thread_name", &self.thread_name)
            .field("max_running", &self.max_running)
            .field("max_waiting", &self.max_waiting)
            .finish_non_exhaustive()
    }
}
