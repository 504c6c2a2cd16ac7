//! Runs a function that awaits on a thread without an executor, and blocks that thread.

#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_utils::sync::{Parker, Unparker};

use super::await_::await_;
use super::driver::Driver;
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
    if Driver::is_polled_by_one() {
        panic!(
            "`block_on_greenlet` would block the executor's thread: it is called in the poll of a future that a \
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
            "`block_on_greenlet` would block the executor's thread: it is called in a task of an executor of \
             `futures`; await `greenlet_spawn(function)` instead, or call it on a thread of its own"
        );
    }
    let parker = Parker::new();
    let unpark = Arc::new(Unpark {
        unparker: parker.unparker().clone(),
        is_called: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = Pin::new(&mut spawned).poll(&mut cx) {
            return output;
        }
        let wakers = Arc::strong_count(&unpark);
        fence(Ordering::Acquire); // a waker that is gone may have been called
        // `unpark` and `waker` are two.
        if wakers == 2 && !unpark.is_called.load(Ordering::SeqCst) {
            let at = spawned
                .awaits_at()
                .unwrap_or_else(|| spawned.greenlet().created_at());
            drop(spawned); // before the panic, which would delay its end
            panic!(
                "`block_on_greenlet` would block this thread for ever: the function awaits, at {at}, a future that \
                 has kept no waker"
            );
        }
        parker.park();
        unpark.is_called.store(false, Ordering::SeqCst);
    }
}

/// Unparks a thread. The parker remembers an unpark that comes before the park, so no wake-up is
/// lost.
struct Unpark {
    unparker: Unparker,
    /// Set when it is called, until the next poll.
    is_called: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_called.store(true, Ordering::SeqCst);
        self.unparker.unpark();
    }
}
