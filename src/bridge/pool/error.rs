//! The error of a function that a pool could not run to its end.

#![forbid(unsafe_code)]

use std::fmt;

/// A pool did not run a function, or not to its end.
///
/// [`PoolResult`](crate::PoolResult) returns it, inside an `anyhow::Error`.
///
/// # Examples
///
/// ```
/// use greenlet::{PinnedPool, PoolError};
///
/// let pool = PinnedPool::new(1.try_into().unwrap());
/// futures::executor::block_on(async {
///     pool.shutdown().await;
///     let error = pool.run(|| "too late").into_result().await.unwrap_err();
///     assert!(error.downcast_ref::<PoolError>().unwrap().is_shut_down());
/// });
/// ```
#[derive(Debug)]
pub struct PoolError {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full { running: usize, waiting: usize },
    ShutDown,
    Cancelled,
    Lost,
}

impl PoolError {
    pub(super) fn full(running: usize, waiting: usize) -> PoolError {
        PoolError {
            kind: Kind::Full { running, waiting },
        }
    }

    pub(super) fn shut_down() -> PoolError {
        PoolError { kind: Kind::ShutDown }
    }

    pub(super) fn cancelled() -> PoolError {
        PoolError {
            kind: Kind::Cancelled,
        }
    }

    pub(super) fn lost() -> PoolError {
        PoolError { kind: Kind::Lost }
    }

    /// Returns `true` if the function was refused because the queue was full: see
    /// [`PoolBuilder::max_waiting`](crate::PoolBuilder::max_waiting).
    pub fn is_full(&self) -> bool {
        matches!(self.kind, Kind::Full { .. })
    }

    /// Returns `true` if the function was refused because the pool was shut down before.
    pub fn is_shut_down(&self) -> bool {
        self.kind == Kind::ShutDown
    }

    /// Returns `true` if the function was cancelled before it began, or if it was a future of
    /// [`PinnedPool::run_local`](crate::PinnedPool::run_local) that was cancelled. Other cancelled
    /// functions end with the exit that is thrown into them.
    pub fn is_cancelled(&self) -> bool {
        self.kind == Kind::Cancelled
    }

    /// Returns `true` if the thread that ran the function has ended by a panic of its own.
    pub fn is_lost(&self) -> bool {
        self.kind == Kind::Lost
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Full { running, waiting } => write!(
                f,
                "the pool refused the function: {running} functions run, and {waiting} wait, which is the \
                 limit; try again later, or allow more with `PoolBuilder::max_waiting`"
            ),
            Kind::ShutDown => f.write_str(
                "the pool refused the function, because it was shut down; start functions before `shutdown`",
            ),
            Kind::Cancelled => f.write_str("the function of the pool was cancelled"),
            Kind::Lost => f.write_str(
                "the thread of the pool that ran the function has ended by a panic; its message is in the \
                 program's standard error",
            ),
        }
    }
}

impl std::error::Error for PoolError {}
