//! Awaits a future from synchronous code.

use std::cell::Cell;
use std::future::IntoFuture;
use std::panic::Location;
use std::pin::{Pin, pin};

use anyhow::{Error, Result};
use greenlet_core::{GreenletExit, Unwinding, getcurrent, raise, raw};

use super::driver::{Driver, Phase, Slot};
use super::error::NoDriver;
use super::park::{NoWaker, Section, block};

/// Waits for a future, and returns its output: `future.await` for synchronous code.
///
/// Call this inside a function that [`greenlet_spawn`](crate::greenlet_spawn) runs, at any call
/// depth, also in greenlets that the function creates. It suspends that function alone, and the
/// thread runs other tasks. The future is pinned on the greenlet's stack, and may borrow from it.
///
/// If the spawn is cancelled or dropped meanwhile, this does not return: the greenlet is unwound,
/// and destructors run. If the function catches that, its next `await_` unwinds again: catch panics
/// with [`catch`](crate::catch) instead, which lets an end pass. Clean-up code that awaits uses
/// [`try_await_`].
///
/// # Panics
///
/// - Panics if there is no driver. The message names the place.
/// - Panics in the poll of an awaited future: use [`await_nested`](crate::await_nested) for that
///   future.
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
#[doc(alias = "await")]
#[doc(alias = "await_only")]
#[doc(alias = "block_on")]
#[track_caller]
#[inline(always)] // so that the future is not copied to this frame
pub fn await_<F: IntoFuture>(future: F) -> F::Output {
    match wait(pin!(future.into_future()), true, Location::caller()) {
        Ok(output) => output,
        Err(error) => refuse(error),
    }
}

#[track_caller]
#[cold]
pub(super) fn refuse(error: Error) -> ! {
    let missing = error.downcast_ref::<NoDriver>();
    if missing.is_some_and(|missing| !missing.is_end()) {
        panic!("{error}"); // a bug of the program
    }
    if std::thread::panicking() {
        // This call cannot return. A forced unwind out of the destructor would abort without a
        // message.
        panic!("{error}; it was awaited in a destructor, where only `try_await_` can return that");
    }
    // The end of the greenlet propagates.
    match missing {
        Some(missing) => raise(GreenletExit::with_reason(missing.to_string())),
        None => {
            note_raised(&error);
            raise(error)
        }
    }
}

/// Notes in the driver that an exit unwinds the stack of this greenlet.
fn note_raised(error: &Error) {
    let current = getcurrent();
    let driver = current.nearest_attached::<Driver>();
    if let Some(driver) = driver.filter(|_| error.is::<GreenletExit>()) {
        driver.raised_in.set(current.id());
    }
}

/// Waits for a future as [`await_`] does, and returns an error where that unwinds or panics.
///
/// # Errors
///
/// - The error that is thrown at the greenlet while it waits: a
///   [`GreenletExit`](crate::GreenletExit) if the spawn is cancelled or dropped. Propagate it with
///   `?`, so that the function ends.
/// - [`NoDriver`] outside of [`greenlet_spawn`](crate::greenlet_spawn), in the poll of an awaited
///   future, and in clean-up after the spawn was dropped.
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
#[inline(always)] // so that the future is not copied to this frame
pub fn try_await_<F: IntoFuture>(future: F) -> Result<F::Output> {
    wait(pin!(future.into_future()), false, Location::caller())
}

/// Awaits a pinned future. `unwinds` says that the caller is `await_`.
#[inline]
pub(super) fn wait<F: Future>(
    mut future: Pin<&mut F>,
    unwinds: bool,
    at: &'static Location<'static>,
) -> Result<F::Output> {
    // In most cases the root awaits. No handle of it or of its driver may be on this stack while it
    // waits: it would keep them.
    // SAFETY: the closure runs no user code: the future exists already, and is polled elsewhere.
    // The greenlet is left by a switch alone, so the closure returns before the greenlet ends.
    let waited = unsafe {
        Driver::with_polled(|driver, root| {
            let can_wait = driver.phase.get() == Phase::Running && !driver.in_place.get();
            can_wait.then(|| Slot::new(future.as_mut(), root, false).wait(driver, None, at))
        })
    };
    match waited.flatten() {
        Some(result) => result,
        None => wait_otherwise(future, unwinds, at),
    }
}

/// Polls a future on the stack of the root, if the spawn does that. Then awaits it as any greenlet
/// of the function does.
#[inline(never)]
fn wait_otherwise<F: Future>(
    mut future: Pin<&mut F>,
    unwinds: bool,
    at: &'static Location<'static>,
) -> Result<F::Output> {
    let mut is_polled = false;
    // Counted: the poll may suspend a coroutine of another library that runs on this stack. The
    // root may then end, and drop its handle of the driver, before the poll returns.
    let driver = getcurrent().attached::<Driver>();
    if let Some(driver) = driver.filter(|driver| driver.polls_in_place()) {
        match driver.poll_in_place(future.as_mut())? {
            Ok(output) => return Ok(output),
            Err(has_stayed) => is_polled = has_stayed,
        }
    }
    // The poll may have switched away, and the driver may have ended meanwhile.
    wait_slow(future, unwinds, is_polled, at)
}

/// Awaits in a greenlet below the root or in a cancelled function, or refuses.
#[cold]
fn wait_slow<F: Future>(
    future: Pin<&mut F>,
    unwinds: bool,
    is_polled: bool,
    at: &'static Location<'static>,
) -> Result<F::Output> {
    let current = getcurrent();
    let driver = match current.nearest_attached::<Driver>() {
        Some(driver) if driver.is_running() => driver,
        None if Section::is_here() => {
            drop(current);
            return Ok(block_here(future, at));
        }
        other => {
            let phase = other.map(|driver| driver.phase.get());
            drop(current);
            return Err(refusal(phase));
        }
    };
    let id = current.id();
    let is_root = current.attached::<Driver>().is_some();
    let waiter = Some(current).filter(|_| !is_root);
    let was_unwound = driver.phase.get() == Phase::Ending && driver.raised_in.get() == id;
    if unwinds && was_unwound && !std::thread::panicking() {
        return Err(driver.exit_again(waiter, at)); // the function has caught that unwinding
    }
    match Slot::new(future, id, is_polled).wait(&driver, waiter, at) {
        Ok(output) => Ok(output),
        Err(error) if was_unwound && error.is::<Unwinding>() => Err(error.context(
            "cannot await: the exit of a cancelled spawn unwinds this stack, because `await_` raised it; let \
             `try_await_` and `?` return it all the way up, so that destructors run without an unwinding",
        )),
        Err(error) => {
            if error.is::<GreenletExit>() {
                EXITED_IN.set(Some(id));
            }
            Err(error)
        }
    }
}

/// Blocks the thread until a future is ready that is awaited in a [`Section`].
#[cold]
fn block_here<F: Future>(future: Pin<&mut F>, at: &'static Location<'static>) -> F::Output {
    match block(future) {
        Ok(output) => output,
        Err(NoWaker) => panic!(
            "an await would block this thread for ever, because `with_blocking_awaits` runs here: the future that \
             is awaited at {at} has kept no waker"
        ),
    }
}

thread_local! {
    /// The id of the greenlet below a function in which an await has last returned an exit.
    /// While it is being ended, its parent is the greenlet that ends it, so it finds no driver.
    static EXITED_IN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Returns the error of an await while the driver does not run, or of one without a driver.
///
/// The caller keeps no handle on its stack: an end may leave this greenlet suspended for good.
#[cold]
fn refusal(phase: Option<Phase>) -> Error {
    raw::count_refusal();
    let refused = match phase {
        Some(Phase::Over) => NoDriver::over(),
        Some(Phase::InPlace) => NoDriver::polled(),
        _ if Driver::is_polled_by_one() => NoDriver::polled(),
        Some(_) => NoDriver::idle(),
        None if EXITED_IN.get() == Some(getcurrent().id()) => NoDriver::idle(),
        None => NoDriver::outside(),
    };
    refused.into()
}
