//! Awaits a future that calls synchronous code that awaits, too.

#![forbid(unsafe_code)]

use std::future::{Future, IntoFuture, poll_fn};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use anyhow::Result;

use super::await_::{refuse, wait};

/// Waits for a future as [`await_`](crate::await_) does. The future may call synchronous code that
/// awaits.
///
/// [`await_`](crate::await_) leaves the polls of a future to the executor, on whose stack nothing
/// can be suspended. So synchronous code that the future calls cannot await there. This function
/// polls the future on the greenlet's own stack, where it can: synchronous code, in asynchronous
/// code, in synchronous code.
///
/// It costs an allocation, and more stack: see
/// [`SpawnBuilder::stack_size`](crate::SpawnBuilder::stack_size). The context of the polls has a
/// waker that wakes the task, and no other data of the executor. If several futures are joined in
/// the awaited one, they all wait while one of them waits in synchronous code.
///
/// # Panics
///
/// Panics and unwinds where [`await_`](crate::await_) does.
///
/// # Examples
///
/// ```
/// use greenlet::{await_, await_nested, greenlet_spawn};
///
/// /// Synchronous, such as a callback.
/// fn read() -> u32 {
///     await_(async { 41 })
/// }
/// async fn plan() -> u32 {
///     read() + 1
/// }
/// let spawned = greenlet_spawn(|| await_nested(plan()));
/// assert_eq!(futures::executor::block_on(spawned), 42);
/// ```
#[track_caller]
#[inline(always)] // so that the future is not copied to this frame
pub fn await_nested<F: IntoFuture>(future: F) -> F::Output {
    match wait_nested(pin!(future.into_future()), true, Location::caller()) {
        Ok(output) => output,
        Err(error) => refuse(error),
    }
}

/// Waits for a future as [`await_nested`] does, and returns an error where that unwinds or panics.
///
/// # Errors
///
/// Returns the errors of [`try_await_`](crate::try_await_).
///
/// # Panics
///
/// Panics with the panic of the future.
///
/// # Examples
///
/// ```
/// use greenlet::{greenlet_spawn, try_await_, try_await_nested};
///
/// async fn plan() -> anyhow::Result<u32> {
///     let read = || try_await_(async { 41 });
///     Ok(read()? + 1)
/// }
/// let spawned = greenlet_spawn(|| try_await_nested(plan())?);
/// assert_eq!(futures::executor::block_on(spawned)?, 42);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[track_caller]
#[inline(always)] // so that the future is not copied to this frame
pub fn try_await_nested<F: IntoFuture>(future: F) -> Result<F::Output> {
    wait_nested(pin!(future.into_future()), false, Location::caller())
}

/// `unwinds` says that the caller is `await_nested`.
fn wait_nested<F: Future>(
    mut future: Pin<&mut F>,
    unwinds: bool,
    at: &'static Location<'static>,
) -> Result<F::Output> {
    // The first poll needs no wake-up.
    let wakes = Arc::new(Wakes {
        is_woken: AtomicBool::new(true),
        task: Mutex::default(),
    });
    let waker = Waker::from(Arc::clone(&wakes));
    let mut is_polled = false;
    loop {
        // A future that wakes itself, to let other tasks run, must return to the executor.
        let mut returns_first = std::mem::replace(&mut is_polled, true);
        let woken = poll_fn(|cx| wakes.poll_woken(cx, std::mem::take(&mut returns_first)));
        wait(pin!(woken), unwinds, at)?;
        // CAUTION: runs arbitrary user code. It may await, so this greenlet may be suspended, and
        // the task may have another waker afterwards.
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(output);
        }
    }
}

/// The waker of a nested future. It remembers a wake-up that comes while synchronous code of that
/// future waits: the task is then polled for what that code awaits.
struct Wakes {
    is_woken: AtomicBool,
    /// The waker of the task's last poll.
    task: Mutex<Option<Waker>>,
}

impl Wakes {
    fn exchange(&self, waker: Option<Waker>) -> Option<Waker> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut task, waker)
    }

    /// Returns `Pending` if it was not woken, and if it `returns_first`.
    fn poll_woken(&self, cx: &mut Context<'_>, returns_first: bool) -> Poll<()> {
        // CAUTION: cloning and dropping a waker runs arbitrary user code, so no lock is held.
        let waker = cx.waker().clone();
        drop(self.exchange(Some(waker)));
        if returns_first {
            if self.is_woken.load(Ordering::SeqCst) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        // Afterwards: a wake-up in between has found this waker.
        match self.is_woken.swap(false, Ordering::SeqCst) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if let Some(waker) = self.exchange(None) {
            waker.wake();
        }
    }
}
