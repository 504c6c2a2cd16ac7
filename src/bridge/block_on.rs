//! Blocking on purpose: a function that awaits, on a thread without an executor.

#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_utils::sync::{Parker, Unparker};

use super::spawn::greenlet_spawn;

/// Runs a function that awaits, and blocks this thread until it has returned.
///
/// It is `greenlet_spawn` with the smallest executor around it: the thread is parked while nothing is
/// ready, and each wake-up polls once. For threads without an executor: a test, a command-line tool, a
/// worker thread. Futures that need a reactor of their own runtime (tokio's sockets and timers) need that
/// runtime here as they do everywhere: enter it first, or spawn there.
///
/// Do not call it on an executor's thread: all its tasks stand still meanwhile, and if one of them is what
/// the function waits for, they stand still for good. Inside a spawned function there is no need
/// for it: call the function.
///
/// # Panics
///
/// With the panic of the function.
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

/// A waker that lets a parked thread go on. A wake-up before the parking is not lost: the parker keeps it.
struct Unpark(Unparker);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
