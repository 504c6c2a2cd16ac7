//! Awaiting from synchronous code.

#![forbid(unsafe_code)]

use std::future::IntoFuture;
use std::panic::Location;
use std::pin::pin;
use std::task::Poll;

use anyhow::{Error, Result};
use greenlet_core::{Greenlet, Value, getcurrent, getparent, may_switch, raise};

use super::driver::{Driver, Phase, Slot};
use super::error::NoDriver;

/// Waits for a future, and returns its output: `future.await` for synchronous code.
///
/// To be called inside a function that [`greenlet_spawn`](crate::greenlet_spawn) runs, at any depth, also
/// in greenlets that it makes. Only that function is suspended; the thread goes on. The future stays where it is: it is pinned
/// on the greenlet's stack, and may borrow from it.
///
/// When the spawn is cancelled or dropped while this waits, this does not return: the greenlet is unwound, and
/// destructors run. Code that wants to clean up by awaiting uses [`try_await_`].
///
/// # Panics
///
/// - If there is no driver: the message says so, and where.
/// - With the panic of the future, if it panics.
///
/// Inside a destructor use [`try_await_`]: while the stack unwinds, by a panic or because the spawn was dropped, nothing can
/// be awaited, this cannot return, and a panic out of the destructor aborts the process. The message says where.
///
/// # Examples
///
/// ```
/// use greenlet::{await_, greenlet_spawn};
///
/// let spawned = greenlet_spawn(|| {
///     let numbers = vec![1, 2, 3];
///     await_(async { numbers.iter().sum::<i32>() }) // borrows from this stack
/// });
/// assert_eq!(futures::executor::block_on(spawned), 6);
/// ```
#[track_caller]
#[inline]
pub fn await_<F: IntoFuture>(future: F) -> F::Output {
    match try_await_(future) {
        Ok(output) => output,
        Err(error) => refuse(error),
    }
}

#[track_caller]
#[cold]
fn refuse(error: Error) -> ! {
    match error.downcast_ref::<NoDriver>() {
        // A mistake of the program.
        Some(missing) if missing.is_outside() => panic!("{error}"),
        // It cannot be refused in silence, and an end on its way would abort without a word.
        _ if std::thread::panicking() => {
            panic!("{error}; it was awaited in a destructor, where only `try_await_` can return that")
        }
        // The end of the greenlet, on its way.
        _ => raise(error),
    }
}

/// Waits for a future as [`await_`] does, and returns an error where that unwinds or panics.
///
/// # Errors
///
/// - What is thrown at the greenlet while it waits: a [`GreenletExit`](crate::GreenletExit) when the spawn is cancelled or
///   dropped. Pass it on with `?`, so that the function ends.
/// - [`NoDriver`] outside of [`greenlet_spawn`](crate::greenlet_spawn), and in clean-up after the spawn was dropped.
/// - What refuses a switch: [`Unwinding`](crate::Unwinding) in a destructor during a panic,
///   [`SwitchForbidden`](crate::SwitchForbidden) in a `no_switch` section,
///   [`ThreadExiting`](crate::ThreadExiting).
///
/// In each case the future is dropped.
///
/// # Panics
///
/// With the panic of the future, if it panics.
///
/// # Examples
///
/// ```
/// use greenlet::{greenlet_spawn, try_await_};
///
/// let spawned = greenlet_spawn(|| -> anyhow::Result<u32> {
///     let number = try_await_(async { 7 })?;
///     Ok(number + 1)
/// });
/// assert_eq!(futures::executor::block_on(spawned)?, 8);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[track_caller]
#[inline]
pub fn try_await_<F: IntoFuture>(future: F) -> Result<F::Output> {
    let at = Location::caller();
    // The root awaits, mostly. Then no handle of it, or of its driver, must be on this stack meanwhile.
    Greenlet::with_attached(|driver: Option<&Driver>, id| match driver {
        Some(driver) if driver.phase.get() == Phase::Running => {
            let mut future = pin!(future.into_future());
            if driver.in_place.get() {
                if let Poll::Ready(output) = driver.poll_in_place(future.as_mut())? {
                    return Ok(output);
                }
                // The poll may have left, and the driver have ended meanwhile.
                if driver.phase.get() != Phase::Running {
                    return Err(refusal(driver));
                }
            }
            Slot::new(future).wait(driver, id, None, at)
        }
        _ => try_await_below(future, at),
    })
}

/// An await in a greenlet below the root, or one that is refused.
#[cold]
fn try_await_below<F: IntoFuture>(future: F, at: &'static Location<'static>) -> Result<F::Output> {
    let current = getcurrent();
    let Some(driver) = current.nearest_attached::<Driver>() else {
        return Err(NoDriver::outside().into());
    };
    if driver.phase.get() != Phase::Running {
        drop(current);
        return Err(refusal(&driver));
    }
    let future = pin!(future.into_future());
    let id = current.id();
    Slot::new(future).wait(&driver, id, Some(current), at)
}

/// The answer to an await where the driver does not run.
#[cold]
fn refusal(driver: &Driver) -> Error {
    match driver.phase.get() {
        Phase::Over => refuse_over(driver),
        Phase::Running | Phase::Parked | Phase::Polling => NoDriver::outside().into(),
    }
}

/// How often a function whose driver is over may try to await before it is unwound.
const PATIENCE: u32 = 100;

/// The answer to an await when the driver is over. Code that tries again and again, whatever the error,
/// would hang the thread: it is unwound, and if it stops even that, it is left where it is.
#[cold]
fn refuse_over(driver: &Driver) -> Error {
    let refusals = driver.refusals.get() + 1;
    driver.refusals.set(refusals);
    if refusals > PATIENCE && may_switch().is_ok() {
        if refusals > 2 * PATIENCE {
            // To whoever ends this greenlet: it has not ended, so it is unwound by force, or given up.
            if let Some(parent) = getparent() {
                drop(parent.switch_owned::<Value>(()));
            }
        }
        raise(NoDriver::over());
    }
    NoDriver::over().into()
}
