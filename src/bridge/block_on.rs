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
/// and awaits it. On an executor's thread outside of
/// spawned functions, it would block all tasks of that thread. It panics where it can find that
/// out: in the poll of a future that a spawned function awaits, and under a runtime of tokio (with
/// the feature `tokio`).
///
/// It cannot find out that another executor runs its tasks on this thread, such as smol or
/// `futures::executor::block_on`. If the function then awaits something that only a task of that
/// executor does, it waits for ever.
///
/// # Panics
///
/// - Panics with the panic of the function.
/// - Panics on an executor's thread, as above.
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
