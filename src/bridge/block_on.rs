//! Waits on a thread without an executor, and blocks that thread: for a function that awaits, or for
//! one future.

#![forbid(unsafe_code)]

use std::future::IntoFuture;
use std::pin::{Pin, pin};

use super::await_::await_;
use super::driver::Driver;
use super::park::{NoWaker, Section, block};
use super::spawn::greenlet_spawn;

/// Runs a function that awaits, and blocks this thread until it has returned.
///
/// This is [`greenlet_spawn`](crate::greenlet_spawn) with the smallest executor around it. The
/// thread is parked while nothing is ready, and each wake-up polls once. Use it on threads without
/// an executor: in a test, a command-line tool or a worker thread. Futures that need the reactor of
/// a runtime, such as tokio's sockets and timers, need that runtime here too: enter it first, or
/// spawn there.
///
/// Inside a spawned function this does not block: it calls the function in a greenlet of its own,
/// and awaits it. In other code that a task of an executor calls, it would block all tasks of that
/// thread. It panics where it can find that out:
///
/// - in the poll of a future that a spawned function awaits;
/// - under a runtime of tokio, with the feature `tokio`;
/// - under an executor of the `futures` crate, with the feature `futures-io`.
///
/// It cannot find out that another executor, such as smol's, runs its tasks on this thread. There it
/// returns if other threads wake the function, such as those of smol's reactor and of its global
/// executor. If the function awaits something that only a task of this thread does, it waits for
/// ever, as a nested `smol::block_on` does.
///
/// # Panics
///
/// - Panics with the panic of the function.
/// - Panics on an executor's thread, as above.
/// - Panics while a panic unwinds this thread: in a destructor, poll a
///   [`Spawn`](crate::Spawn) with `into_result()` instead.
/// - Panics if the function waits for a future that no waker is left for: the thread would sleep
///   for ever.
///
/// # Examples
///
/// ```
/// use greenlet::{await_, block_on_greenlet};
///
/// let (sender, receiver) = futures::channel::oneshot::channel();
/// std::thread::spawn(move || sender.send(42));
/// let answer = block_on_greenlet(|| await_(receiver));
/// assert_eq!(answer, Ok(42));
/// ```
#[doc(alias = "block_on")]
#[track_caller]
pub fn block_on_greenlet<T, F>(function: F) -> T
where
    T: 'static,
    F: FnOnce() -> T + 'static,
{
    let mut spawned = greenlet_spawn(function);
    if Driver::runs_here() {
        return await_(spawned);
    }
    check_thread("block_on_greenlet");
    match block(Pin::new(&mut spawned)) {
        Ok(output) => output,
        Err(NoWaker) => {
            let at = spawned
                .awaits_at()
                .unwrap_or_else(|| spawned.greenlet().created_at());
            drop(spawned); // before the panic, which would delay its end
            panic!(
                "`block_on_greenlet` would block this thread for ever: the function awaits, at {at}, a future that \
                 has kept no waker"
            );
        }
    }
}

/// Calls a function, in which each [`await_`](crate::await_) blocks this thread until its future is
/// ready. Inside a spawned function it only calls the function, whose awaits suspend that as usual.
///
/// The function runs on the stack of the caller, so it may borrow: in a closure of rayon or of a scoped
/// thread, for example, where [`block_on_greenlet`] cannot be used, because its function must be
/// `'static`. Greenlets that the function creates block as well.
///
/// # Panics
///
/// - Panics with the panic of the function.
/// - Panics on an executor's thread, as [`block_on_greenlet`] does.
/// - An await panics if its future has kept no waker: the thread would sleep for ever.
///
/// # Examples
///
/// ```
/// use greenlet::{await_, with_blocking_awaits};
///
/// fn fetch(name: &str) -> usize {
///     await_(async { name.len() })
/// }
/// let names = [String::from("ann"), String::from("bob")];
/// let lengths = std::thread::scope(|threads| {
///     let fetching = names.each_ref().map(|name| threads.spawn(|| with_blocking_awaits(|| fetch(name))));
///     fetching.map(|thread| thread.join().unwrap())
/// });
/// assert_eq!(lengths, [3, 3]);
/// ```
#[track_caller]
pub fn with_blocking_awaits<T>(function: impl FnOnce() -> T) -> T {
    if Driver::runs_here() {
        return function();
    }
    check_thread("with_blocking_awaits");
    let _section = Section::enter();
    function()
}

/// Waits for a future: by an await in a spawned function, and otherwise by blocking the thread. The
/// future may borrow.
///
/// Use it in synchronous code that is called from both. [`with_blocking_awaits`] does the same for
/// all awaits of a function.
///
/// # Panics
///
/// - Panics and unwinds where [`await_`](crate::await_) does in a spawned function.
/// - Outside, panics on an executor's thread, as [`block_on_greenlet`] does, and if the future has kept
///   no waker.
/// - Panics with the panic of the future.
///
/// # Examples
///
/// ```
/// use greenlet::{await_or_block, greenlet_spawn};
///
/// fn sum(numbers: &[u32]) -> u32 {
///     await_or_block(async { numbers.iter().sum() })
/// }
/// let spawned = greenlet_spawn(|| sum(&[1, 2, 3]));
/// assert_eq!(futures::executor::block_on(spawned), 6);
/// assert_eq!(sum(&[1, 2, 3]), 6);
/// ```
#[track_caller]
pub fn await_or_block<F: IntoFuture>(future: F) -> F::Output {
    if Driver::runs_here() {
        return await_(future);
    }
    check_thread("await_or_block");
    match block(pin!(future.into_future())) {
        Ok(output) => output,
        Err(NoWaker) => {
            panic!("`await_or_block` would block this thread for ever: the future has kept no waker")
        }
    }
}

/// Returns `true` if the running code can await: it belongs to a spawned function that is being
/// polled. Otherwise [`await_`](crate::await_) panics here.
///
/// # Examples
///
/// ```
/// use greenlet::{greenlet_spawn, in_greenlet};
///
/// assert!(!in_greenlet());
/// assert!(futures::executor::block_on(greenlet_spawn(in_greenlet)));
/// ```
pub fn in_greenlet() -> bool {
    Driver::runs_here()
}

/// Panics where the thread must not be blocked, as far as that can be found out.
#[track_caller]
fn check_thread(function: &str) {
    if Driver::is_polled_by_one() {
        panic!(
            "`{function}` would block the executor's thread: it is called in the poll of a future that a \
             spawned function awaits; await that future with `await_nested`"
        );
    }
    // Panics if a runtime of tokio runs its tasks on this thread.
    #[cfg(feature = "tokio")]
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.block_on(async {});
    }
    #[cfg(feature = "futures-io")]
    if futures_executor::enter().is_err() {
        panic!(
            "`{function}` would block the executor's thread: it is called in a task of an executor of \
             `futures`; await `greenlet_spawn(function)` instead, or call it on a thread of its own"
        );
    }
}
