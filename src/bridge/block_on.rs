//! Runs a function that awaits on a thread without an executor, and blocks that thread.

#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_utils::sync::{Parker, Unparker};

use super::spawn::greenlet_spawn;

/// Runs a function that awaits, and blocks this thread until it has returned.
///
/// This is [`greenlet_spawn`](crate::greenlet_spawn) with the smallest executor around it. The
/// thread is parked while nothing is ready, and each wake-up polls once. Use it on threads without
/// an executor: in a test, a command-line tool or a worker thread. Futures that need the reactor of
/// a runtime, such as tokio's sockets and timers, need that runtime here too: enter it first, or
/// spawn there.
///
/// Do not call this on an executor's thread. It blocks all tasks of that thread, and never returns
/// if the function waits for one of them. Inside a spawned function call the function itself: it
/// can await already.
///
/// # Panics
///
/// Panics with the panic of the function.
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
#[track_caller]
pub fn block_on_greenlet<T, F>(function: F) -> T
where
    T: 'static,
    F: FnOnce() -> T + 'static,
{
    let mut spawned = pin!(greenlet_spawn(function));
    let parker = Parker::new();
    let waker = Waker::from(Arc::new(Unpark(parker.unparker().clone())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match spawned.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => parker.park(),
        }
    }
}

/// Unparks a thread. The parker remembers an unpark that comes before the park, so no wake-up is
/// lost.
struct Unpark(Unparker);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
