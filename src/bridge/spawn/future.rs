//! The futures of a spawned function.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Error, Result};
use greenlet_core::{Greenlet, check_switch_allowed};

use crate::bridge::nested_polls;

use super::drive::Drive;

/// The future of a spawned function: see [`greenlet_spawn`](crate::greenlet_spawn).
///
/// Dropping the future ends the function: the drop drops the awaited future and throws a
/// [`GreenletExit`](crate::GreenletExit) into the function. All destructors run exactly once,
/// before the drop returns. Awaits in that clean-up are refused, because the driver is gone. Use
/// [`cancel`](Spawn::cancel) for clean-up that awaits.
///
/// # Panics
///
/// Polling panics if the function panics, and after the future has returned its output. It also
/// panics if the function cannot have a result: no stack is available, the poll is in a `no_switch`
/// section, or the greenlet was ended from outside. [`into_result`](Spawn::into_result) returns
/// these cases as errors.
///
/// # Examples
///
/// ```
/// use futures::executor::block_on;
/// use greenlet::{await_, greenlet_spawn};
///
/// let mut spawned = greenlet_spawn(|| {
///     await_(std::future::pending::<()>());
/// });
/// block_on(async {
///     assert!(futures::poll!(&mut spawned).is_pending());
/// });
/// assert!(spawned.greenlet().is_awaiting());
/// let greenlet = spawned.greenlet().clone();
/// drop(spawned);
/// assert!(greenlet.is_dead());
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Spawn<T: 'static> {
    /// First, so that the compiler names it first.
    not_send: PhantomData<*const UseLocalSetOrPinnedPool>,
    drive: Drive<T>,
}

/// The compiler names this type where a spawned function must be `Send`, and is not. It has no values.
///
/// A greenlet stays on its thread. So give the spawned function to the executor of one thread (tokio's
/// `LocalSet` and `spawn_local`), or give the plain function to `PinnedPool::run`, whose future is
/// `Send`.
///
/// # Examples
///
/// ```compile_fail,E0277
/// tokio::spawn(greenlet::greenlet_spawn(|| 1)); // `UseLocalSetOrPinnedPool` cannot be sent
/// ```
#[derive(Debug)]
pub enum UseLocalSetOrPinnedPool {}

impl<T: 'static> Spawn<T> {
    #[inline]
    pub(super) fn of(drive: Drive<T>) -> Spawn<T> {
        Spawn {
            not_send: PhantomData,
            drive,
        }
    }

    /// Ends the function, and lets it clean up. The returned future throws a
    /// [`GreenletExit`](crate::GreenletExit) into the function, and is ready when the function has
    /// ended.
    ///
    /// In the function, [`try_await_`](crate::try_await_) returns the exit as an error, and
    /// [`await_`](crate::await_) unwinds. Clean-up code may await, except while the stack unwinds:
    /// return from the function with `?`.
    ///
    /// The future returns `Ok` if the function returns a value all the same. Otherwise it returns
    /// the error with which the function ends: the exit.
    ///
    /// # Panics
    ///
    /// Polling the returned future panics where polling the spawn does.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::executor::block_on;
    /// use greenlet::{greenlet_spawn, try_await_};
    ///
    /// let mut spawned = greenlet_spawn(|| {
    ///     let waited = try_await_(std::future::pending::<()>());
    ///     // Clean-up may await:
    ///     try_await_(async { "goodbye sent" }).unwrap_or(if waited.is_err() { "no" } else { "never" })
    /// });
    /// block_on(async {
    ///     assert!(futures::poll!(&mut spawned).is_pending());
    ///     assert_eq!(spawned.cancel().await.unwrap(), "goodbye sent");
    /// });
    /// ```
    pub fn cancel(self) -> SpawnResult<T> {
        SpawnResult {
            not_send: PhantomData,
            drive: self.drive,
            cancels: true,
        }
    }

    /// Converts the future into one that returns an error if the function has no result: no stack
    /// is available, a switch is refused, or the greenlet was ended from outside. Polling the spawn
    /// itself panics in these cases.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{SpawnBuilder, StackError};
    ///
    /// let too_small = SpawnBuilder::new().stack_size(1).spawn(|| "never runs").into_result();
    /// let error = futures::executor::block_on(too_small).unwrap_err();
    /// assert!(error.is::<StackError>());
    /// ```
    pub fn into_result(self) -> SpawnResult<T> {
        SpawnResult {
            not_send: PhantomData,
            drive: self.drive,
            cancels: false,
        }
    }

    /// Returns the greenlet that the function runs in.
    ///
    /// Only the driver should switch to it. While it waits, other switches to it are refused.
    pub fn greenlet(&self) -> &Greenlet {
        self.drive.root()
    }

    /// Sets whether each await returns to the poller before its future is polled: see
    /// [`testing`](crate::bridge::testing).
    pub(in crate::bridge) fn stop_at_awaits(&self, stops: bool) {
        self.drive.stop_at_awaits(stops);
    }

    /// Ends the poll of a function that has no output.
    #[cold]
    fn ended_without_output(&self, error: &Error, cx: &Context<'_>) -> Poll<T> {
        if self.drive.is_ended_from_outside && nested_polls::is_cancelled_from_outside(cx) {
            return Poll::Pending; // the spawn that polls this one drops it next
        }
        panic!(
            "a spawned function was ended before it returned: {error:#}; `into_result()` returns this as an error"
        );
    }

    /// Returns the number of awaits.
    pub(in crate::bridge) fn awaits(&self) -> u64 {
        self.drive.awaits()
    }

    /// Returns the place where the function awaits.
    pub(in crate::bridge) fn awaits_at(&self) -> Option<&'static Location<'static>> {
        self.drive.awaits_at()
    }
}

impl<T: 'static> Future for Spawn<T> {
    type Output = T;

    #[inline(always)] // nested polls have one frame less each
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        match this.drive.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(output)) => Poll::Ready(output),
            Poll::Ready(Err(error)) => this.ended_without_output(&error, cx),
        }
    }
}

// The awaited future is pinned on the greenlet's stack, and not in here.
impl<T: 'static> Unpin for Spawn<T> {}

impl<T: 'static> fmt::Debug for Spawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.drive.fmt(f)
    }
}

/// The future of a spawned function that may end without a result: see [`Spawn::cancel`] and
/// [`Spawn::into_result`].
///
/// Dropping it before it is ready does what dropping the [`Spawn`] does: the function ends without
/// further awaits.
#[must_use = "futures do nothing unless polled"]
pub struct SpawnResult<T: 'static> {
    not_send: PhantomData<*const UseLocalSetOrPinnedPool>,
    drive: Drive<T>,
    /// Set if polling it cancels the function.
    cancels: bool,
}

impl<T: 'static> SpawnResult<T> {
    /// Lets the next poll cancel the function: see [`Spawn::cancel`].
    pub(in crate::bridge) fn start_cancel(&mut self) {
        self.cancels = true;
    }
}

impl<T: 'static> Future for SpawnResult<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        check_switch_allowed()?; // if refused, the next poll cancels
        match self.cancels {
            true => self.drive.cancel(cx),
            false => self.drive.poll(cx),
        }
    }
}

impl<T: 'static> Unpin for SpawnResult<T> {}

impl<T: 'static> fmt::Debug for SpawnResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.drive.fmt(f)
    }
}
