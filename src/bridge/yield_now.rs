//! Lets other tasks run.

#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::task::Poll;

use super::await_::await_;

/// Lets the executor run its other tasks, and returns when it polls this one again. Call it in long
/// computations.
///
/// # Panics
///
/// Panics and unwinds where [`await_`] does.
///
/// # Examples
///
/// ```
/// use futures::future::join;
/// use greenlet::{greenlet_spawn, yield_now};
/// use std::{cell::RefCell, rc::Rc};
///
/// let log = Rc::new(RefCell::new(Vec::new()));
/// let [first, second] = ["first", "second"].map(|name| {
///     let log = Rc::clone(&log);
///     greenlet_spawn(move || {
///         for step in 1..=2 {
///             log.borrow_mut().push((name, step));
///             yield_now();
///         }
///     })
/// });
/// futures::executor::block_on(join(first, second));
/// assert_eq!(*log.borrow(), [("first", 1), ("second", 1), ("first", 2), ("second", 2)]);
/// ```
#[track_caller]
pub fn yield_now() {
    let mut has_yielded = false;
    await_(poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
}
