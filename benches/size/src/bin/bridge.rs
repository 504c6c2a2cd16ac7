//! A synchronous function that awaits.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use greenlet::{await_, greenlet_spawn};

fn main() {
    let mut hello = pin!(greenlet_spawn(|| await_(async { "hello" })));
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(word) = hello.as_mut().poll(&mut context) {
        println!("{word}");
    }
}
