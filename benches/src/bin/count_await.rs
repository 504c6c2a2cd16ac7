//! As many ready awaits of one spawned function as the first argument says, and nothing else: for
//! `.ci/instructions`.

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use greenlet::{await_, greenlet_spawn};

fn main() {
    let awaits: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let mut spawned = greenlet_spawn(move || -> u64 {
        (0..awaits)
            .map(|n| await_(poll_fn(move |_| Poll::Ready(black_box(n)))))
            .sum()
    });
    let mut cx = Context::from_waker(Waker::noop());
    let sum = Pin::new(&mut spawned).poll(&mut cx);
    assert_eq!(sum, Poll::Ready((0..awaits).sum()));
}
