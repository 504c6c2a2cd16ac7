//! The futures of explored tests: a sleep in virtual time, and a fault.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use super::task::Shared;
use crate::testing::explore::Choices;

/// A future that is ready after a virtual time: see
/// [`Executor::sleep`](crate::testing::Executor::sleep). Dropping it removes the timer.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    pub(super) shared: Weak<Shared>,
    pub(super) until: Duration,
    /// The number of the timer that is set.
    pub(super) timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else {
            return Poll::Pending; // the executor is gone, and its time with it
        };
        if shared.now.get() >= self.until {
            return Poll::Ready(());
        }
        let timer = self
            .timer
            .unwrap_or_else(|| shared.timer_count.replace(shared.timer_count.get() + 1));
        self.timer = Some(timer);
        // CAUTION: cloning a waker runs arbitrary user code.
        let waker = cx.waker().clone();
        let replaced = shared.timers.borrow_mut().insert((self.until, timer), waker);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(timer), Some(shared)) = (self.timer, self.shared.upgrade()) {
            let waker = shared.timers.borrow_mut().remove(&(self.until, timer));
            drop(waker);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Awaits a future, or fails instead: a fault of the choices. Use it in the fake of a server, a disk or a
/// database.
///
/// # Errors
///
/// Returns the error of the future, or `error()` if the choice says so.
///
/// # Examples
///
/// ```
/// use greenlet::bridge::testing::{Executor, or_fault};
/// use greenlet::testing::explore::Explore;
///
/// let report = Explore::new().run(|choices| {
///     let executor = Executor::new(choices);
///     let choices = choices.clone();
///     executor.spawn("client", async move {
///         or_fault(&choices, async { Ok(()) }, || anyhow::anyhow!("connection reset")).await
///     });
///     executor.run()
/// });
/// let message = report.failure().unwrap().message();
/// assert_eq!(message, r#"the task "client" failed: connection reset"#);
/// ```
pub async fn or_fault<T, E>(
    choices: &Choices,
    future: impl Future<Output = Result<T, E>>,
    error: impl FnOnce() -> E,
) -> Result<T, E> {
    match choices.fault(1) {
        0 => future.await,
        _ => Err(error()),
    }
}
