//! As many spawned functions, each created, run and ended, as the first argument says, and nothing
//! else: for `.ci/instructions`.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use greenlet::greenlet_spawn;

fn main() {
    let spawns: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..spawns {
        let mut spawned = greenlet_spawn(move || black_box(n));
        assert_eq!(Pin::new(&mut spawned).poll(&mut cx), Poll::Ready(n));
    }
}
