//! The futures of a spawned function.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Error, Result};
use greenlet_core::{Greenlet, may_switch};

use super::drive::Drive;

/// The future of a spawned function: see [`greenlet_spawn`].
///
/// Dropping it ends the function: what it awaits is dropped, and a [`GreenletExit`] is thrown into it, so
/// that its destructors run, exactly once, before the drop is over. Awaits in that clean-up are refused, since nobody
/// polls any more; use [`cancel`](Spawn::cancel) where clean-up has to await.
///
/// # Panics
///
/// Polling it panics if the function panics, if it is polled after it has returned its output, and where
/// the function cannot have a result: no stack could be had, the poll is in a `no_switch` section, or the
/// greenlet was ended from elsewhere. [`into_result`](Spawn::into_result) returns these as errors.
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
    drive: Drive<T>,
}

impl<T: 'static> Spawn<T> {
    #[inline]
    pub(super) fn of(drive: Drive<T>) -> Spawn<T> {
        Spawn { drive }
    }

    /// Ends the function, and lets it clean up: a [`GreenletExit`] is thrown into it, and the future
    /// that this returns goes on polling until it has ended.
    ///
    /// [`try_await_`](crate::try_await_) returns the exit as an error, [`await_`](crate::await_) unwinds.
    /// Clean-up code that runs on the way may await, as long as no panic unwinds: return from the function with `?`.
    ///
    /// The future gives `Ok` if the function returned a value all the same, and otherwise the error that
    /// it ended with: the exit.
    ///
    /// # Panics
    ///
    /// As polling the spawn does.
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
            drive: self.drive,
            cancels: true,
        }
    }

    /// The same future, but one that returns an error where polling this one panics because the
    /// function has no result: no stack could be had, switching is not possible here, or the function's
    /// greenlet was ended from elsewhere.
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
            drive: self.drive,
            cancels: false,
        }
    }

    /// The greenlet that the function runs in.
    ///
    /// It is the driver that switches to it; do not. While it waits, that is refused.
    pub fn greenlet(&self) -> &Greenlet {
        self.drive.root()
    }

    /// Whether to stop at each await before it is polled: see [`testing`](crate::bridge::testing).
    pub(in crate::bridge) fn stop_at_awaits(&self, stops: bool) {
        self.drive.stop_at_awaits(stops);
    }

    /// How often something was awaited.
    pub(in crate::bridge) fn awaits(&self) -> u64 {
        self.drive.awaits()
    }

    /// Where it awaits.
    pub(in crate::bridge) fn awaits_at(&self) -> Option<&'static Location<'static>> {
        self.drive.awaits_at()
    }
}

impl<T: 'static> Future for Spawn<T> {
    type Output = T;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.get_mut().drive.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(output)) => Poll::Ready(output),
            Poll::Ready(Err(error)) => ended_without_output(&error),
        }
    }
}

#[cold]
fn ended_without_output(error: &Error) -> ! {
    panic!("a spawned function was ended before it returned: {error:#}")
}

// Nothing is pinned in it: what is awaited stands on the greenlet's stack.
impl<T: 'static> Unpin for Spawn<T> {}

impl<T: 'static> fmt::Debug for Spawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.drive.fmt(f)
    }
}

/// The future of a spawned function that may end without a result: see [`Spawn::cancel`] and
/// [`Spawn::into_result`].
///
/// Dropping it before it is ready is dropping the spawn: the function is ended without further awaits.
#[must_use = "futures do nothing unless polled"]
pub struct SpawnResult<T: 'static> {
    drive: Drive<T>,
    /// The exit is yet to be thrown.
    cancels: bool,
}

impl<T: 'static> Future for SpawnResult<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        may_switch()?; // refused: cancel at the next poll
        if std::mem::take(&mut self.cancels) {
            self.drive.cancel(cx)
        } else {
            self.drive.poll(cx)
        }
    }
}

impl<T: 'static> Unpin for SpawnResult<T> {}

impl<T: 'static> fmt::Debug for SpawnResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.drive.fmt(f)
    }
}
