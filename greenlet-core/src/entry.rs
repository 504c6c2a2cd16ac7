//! The first frame of a greenlet: takes what starts it, runs its function, delivers how it ended.
//!
//! ```text
//!   base ─►├──────────────────────────┤
//!          │ backend's first frame    │  a backtrace ends here
//!          │ Start::enter, body::run  │
//!          │ run                      │  holds the result until the parent has taken it
//!          │ catch_unwind             │
//!          │ the function             │
//! ```
//!
//! - **E1** Nothing with a destructor lives in the frames up to `run` when the greenlet leaves for good:
//!   they are never returned to.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

use crate::asan;
use crate::backend::{Entry, Seat, Word};
use crate::body;
use crate::record::NodeRef;
use crate::switch;
use crate::thread::Hub;
use crate::transfer::{Content, Parcel};
use crate::tree::Node;
use crate::unwind;

/// Runs the function of the current greenlet, and ends it with the outcome.
pub(crate) fn run<A, R, F>(function: F, first: Parcel) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R>,
{
    // What the function captured is dropped in here, while the greenlet is active and current
    // (rules ST-7, RN-9). An error instead of a value drops it unrun (TH-7).
    // Unwind safety: a panic goes on in the parent, so nobody looks at broken state without knowing.
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let first = switch::receive::<A>(first)?;
        function(first)
    }));
    match outcome {
        Ok(Ok(value)) => {
            let mut value = ManuallyDrop::new(value); // E1
            switch::finish_with_value(Parcel::new(&mut value))
        }
        // An exit becomes an ordinary value where it leaves a greenlet (rule EX-2).
        Ok(Err(error)) => match unwind::exit_of(error) {
            Ok(exit) => {
                let mut exit = ManuallyDrop::new(exit); // E1
                switch::finish_with_value(Parcel::new(&mut exit))
            }
            Err(message) => switch::finish(Content::Message(message)),
        },
        Err(payload) => switch::finish(Content::Message(unwind::caught(payload))),
    }
}

/// What a fresh stack enters.
pub(crate) struct Start;

impl Entry for Start {
    unsafe fn enter(own: *const Seat, word: *const (), data: Word) -> ! {
        let node = Node::of_seat(own);
        Hub::get().set_current(node);
        asan::enter();
        // SAFETY: every switch of the library carries the words of a parcel.
        let first = unsafe { Parcel::from_words(word, data) };
        // SAFETY: T1: the greenlet that was started counts itself; this one is not counted (E1).
        let node = ManuallyDrop::new(unsafe { NodeRef::from_counted(node) });
        body::call(&node, first)
    }
}
