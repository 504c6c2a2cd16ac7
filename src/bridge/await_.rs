//! Awaits a future from synchronous code.

use std::future::IntoFuture;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use anyhow::{Error, Result};
use greenlet_core::{getcurrent, raise, raw};

use super::driver::{Driver, Phase, Slot};
use super::error::NoDriver;

/// Waits for a future, and returns its output: `future.await` for synchronous code.
///
/// Call this inside a function that [`greenlet_spawn`](crate::greenlet_spawn) runs, at any call
/// depth, also in greenlets that the function creates. It suspends that function alone, and the
/// thread runs other tasks. The future is pinned on the greenlet's stack, and may borrow from it.
///
/// If the spawn is cancelled or dropped meanwhile, this does not return: the greenlet is unwound,
/// and destructors run. Clean-up code that awaits uses [`try_await_`].
///
/// # Panics
///
/// - Panics if there is no driver. The message names the place.
/// - Panics with the panic of the future.
///
/// Use [`try_await_`] inside a destructor. While a panic or a dropped spawn unwinds the stack, an
/// await is refused. This function cannot return then, and its panic in the destructor aborts the
/// process. The message names the place.
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
        // A bug of the program.
        Some(missing) if missing.is_outside() => panic!("{error}"),
        // This call cannot return. A forced unwind out of the destructor would abort without a
        // message.
        _ if std::thread::panicking() => {
            panic!("{error}; it was awaited in a destructor, where only `try_await_` can return that")
        }
        // The end of the greenlet propagates.
        _ => raise(error),
    }
}

/// Waits for a future as [`await_`] does, and returns an error where that unwinds or panics.
///
/// # Errors
///
/// - The error that is thrown at the greenlet while it waits: a
///   [`GreenletExit`](crate::GreenletExit) if the spawn is cancelled or dropped. Propagate it with
///   `?`, so that the function ends.
/// - [`NoDriver`] outside of [`greenlet_spawn`](crate::greenlet_spawn), and in clean-up after the
///   spawn was dropped.
/// - The error of a refused switch: [`Unwinding`](crate::Unwinding) in a destructor during a panic,
///   [`SwitchForbidden`](crate::SwitchForbidden) in a `no_switch` section,
///   [`ThreadExiting`](crate::ThreadExiting).
///
/// In each case the future is dropped.
///
/// # Panics
///
/// Panics with the panic of the future.
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
    let mut future = pin!(future.into_future());
    // In most cases the root awaits. No handle of it or of its driver may be on this stack while it
    // waits: it would keep them.
    // SAFETY: the closure runs no user code: the future exists already, and is polled elsewhere.
    // The greenlet is left by a switch alone, so the closure returns before the greenlet ends.
    let step = unsafe {
        raw::with_attached(|driver: Option<&Rc<Driver>>, id| match driver {
            Some(driver) if driver.phase.get() == Phase::Running => match driver.in_place.get() {
                true => Step::PollHere(Rc::clone(driver)),
                false => Step::Done(Slot::new(future.as_mut()).wait(driver, id, None, at)),
            },
            _ => Step::Done(try_await_below(future.as_mut(), at)),
        })
    };
    let driver = match step {
        Step::Done(result) => return result,
        Step::PollHere(driver) => driver,
    };
    // Counted: the poll may suspend a coroutine of another library that runs on this stack. The
    // root may then end, and drop its handle of the driver, before the poll returns.
    if let Poll::Ready(output) = driver.poll_in_place(future.as_mut())? {
        return Ok(output);
    }
    drop(driver);
    // The poll may have switched away, and the driver may have ended meanwhile.
    // SAFETY: as above.
    unsafe {
        raw::with_attached(|driver: Option<&Rc<Driver>>, id| match driver {
            Some(driver) if driver.phase.get() == Phase::Running => {
                Slot::new(future).wait(driver, id, None, at)
            }
            _ => try_await_below(future, at),
        })
    }
}

/// What the first look at the driver leads to.
enum Step<T> {
    Done(Result<T>),
    /// The future is polled on the stack of the root.
    PollHere(Rc<Driver>),
}

/// Awaits in a greenlet below the root, or refuses.
#[cold]
fn try_await_below<F: Future>(future: Pin<&mut F>, at: &'static Location<'static>) -> Result<F::Output> {
    let current = getcurrent();
    let driver = match current.nearest_attached::<Driver>() {
        Some(driver) if driver.phase.get() == Phase::Running => driver,
        other => {
            let phase = other.map(|driver| driver.phase.get());
            drop(current);
            return Err(refusal(phase));
        }
    };
    let id = current.id();
    Slot::new(future).wait(&driver, id, Some(current), at)
}

/// Returns the error of an await while the driver does not run, or of one without a driver.
///
/// The caller keeps no handle on its stack: an end may leave this greenlet suspended for good.
#[cold]
fn refusal(phase: Option<Phase>) -> Error {
    raw::count_refusal();
    match phase {
        Some(Phase::Over) => NoDriver::over().into(),
        _ => NoDriver::outside().into(),
    }
}
