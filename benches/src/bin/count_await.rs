//! Awaits as many ready futures as the first argument says, in one spawned function, and does nothing
//! else: for `.ci/instructions`.

use std::future::{Future, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use greenlet::{await_, greenlet_spawn};

fn main() {
    let awaits: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let spawned = pin!(greenlet_spawn(move || {
        let mut sum = 0;
        for n in 0..awaits {
            sum += await_(ready(black_box(n)));
        }
        sum
    }));
    let Poll::Ready(sum) = spawned.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("all futures are ready")
    };
    assert_eq!(sum, awaits * awaits.saturating_sub(1) / 2);
}
