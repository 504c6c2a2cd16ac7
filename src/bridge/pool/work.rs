//! The task of one function, on the thread of a pool that runs it.

#![forbid(unsafe_code)]

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::control::{Control, Request};
use super::error::PoolError;
use super::queue::{Job, Running};
use crate::bridge::nested_polls::cancel_nested;
use crate::bridge::spawn::Spawn;

/// What comes of a function: its output, the error with which it was ended, or its panic.
pub(super) type Outcome<T> = thread::Result<Result<T>>;

/// Returns a job that runs a spawned function.
pub(super) fn spawned<T: Send + 'static>(
    make: impl FnOnce() -> Spawn<T> + Send + 'static,
    control: Arc<Control>,
    output: oneshot::Sender<Outcome<T>>,
) -> Job {
    let mut make = Some(make);
    Box::new(move |running| {
        let mut function = None;
        let poll = move |cx: &mut Context<'_>, is_cancelled| {
            if let Some(make) = make.take() {
                function = Some(make().into_result());
            }
            let function = function.as_mut().expect("a task is not polled after a panic");
            if is_cancelled {
                function.start_cancel();
            }
            Pin::new(function).poll(cx)
        };
        spawn_local(complete(running, control, output, poll));
    })
}

/// Returns a job that runs any future. A cancel reaches the spawned functions that it polls.
pub(super) fn local<F: Future<Output: Send> + 'static>(
    make: impl FnOnce() -> F + Send + 'static,
    control: Arc<Control>,
    output: oneshot::Sender<Outcome<F::Output>>,
) -> Job {
    let mut make = Some(make);
    Box::new(move |running| {
        let mut future = None;
        let poll = move |cx: &mut Context<'_>, is_cancelled| {
            if let Some(make) = make.take() {
                if is_cancelled {
                    return Poll::Ready(Err(PoolError::cancelled().into()));
                }
                future = Some(Box::pin(make()));
            }
            let future = future.as_mut().expect("a task is not polled after a panic");
            match is_cancelled {
                true => poll_cancelled(future.as_mut(), cx),
                false => future.as_mut().poll(cx).map(Ok),
            }
        };
        spawn_local(complete(running, control, output, poll));
    })
}

/// Polls a future in which spawned functions clean up. Ready when none of them waits any more.
fn poll_cancelled<F: Future>(mut future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<Result<F::Output>> {
    let mut output = None;
    let waits = cancel_nested(cx, |cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => {
            output = Some(value);
            false
        }
        Poll::Pending => true,
    });
    match output {
        Some(output) => Poll::Ready(Ok(output)),
        None if waits => Poll::Pending,
        None => Poll::Ready(Err(PoolError::cancelled().into())),
    }
}

/// Polls a function to its end by `poll`, which is told whether it was cancelled, and sends what
/// comes of it. Drops the function if it is to end at once.
async fn complete<T>(
    running: Running,
    control: Arc<Control>,
    output: oneshot::Sender<Outcome<T>>,
    mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<Result<T>>,
) {
    let outcome = poll_fn(|cx| {
        let request = control.poll(cx);
        if request == Request::End {
            return Poll::Ready(None);
        }
        // CAUTION: runs arbitrary user code.
        let polled = catch_unwind(AssertUnwindSafe(|| poll(cx, request == Request::Cancel)));
        Poll::Ready(Some(match polled {
            Ok(polled) => Ok(ready!(polled)),
            Err(payload) => Err(payload),
        }))
    });
    let mut outcome = outcome.await;
    // CAUTION: drops the function, which runs arbitrary user code.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(poll))) {
        match &outcome {
            Some(Ok(_)) => outcome = Some(Err(payload)),
            _ => std::mem::forget(payload), // its destructor could panic, too
        }
    }
    drop(running); // before the caller can see the output
    if let Some(outcome) = outcome {
        drop(output.send(outcome));
    }
}
