//! The first frame of a greenlet: takes what starts it, runs its function, delivers how it ended.
//!
//! ```text
//!   base ─►├──────────────────────────┤
//!          │ backend's first frame    │  a backtrace ends here
//!          │ Start::enter             │
//!          │ Run::run                 │  holds the result until the parent has taken it
//!          │ catch_unwind             │
//!          │ the function             │
//! ```
//!
//! - **E1** Nothing with a destructor lives in the first two frames when the greenlet leaves for good:
//!   they are never returned to.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

use crate::asan;
use crate::backend::{Entry, Word};
use crate::switch;
use crate::thread::Hub;
use crate::transfer::{Content, Parcel, TypeInfo};
use crate::unwind;

/// The function of a pending greenlet, whatever its types.
pub(crate) trait Body {
    /// The type of the value that it is started with.
    fn takes(&self) -> &'static TypeInfo;

    /// Runs it, and ends the current greenlet with its outcome.
    fn run(self: Box<Self>, first: Parcel) -> !;
}

pub(crate) struct Run<A, R, F> {
    function: F,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R, F> Run<A, R, F> {
    #[inline]
    pub(crate) fn new(function: F) -> Run<A, R, F> {
        Run {
            function,
            types: PhantomData,
        }
    }
}

impl<A, R, F> Body for Run<A, R, F>
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    fn takes(&self) -> &'static TypeInfo {
        TypeInfo::of::<A>()
    }

    fn run(self: Box<Self>, first: Parcel) -> ! {
        let function = unboxed(self).function;
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
}

/// Moves a value out of its box, and frees the box: a box that is emptied in place is freed at the end
/// of its scope, and the scope of [`Body::run`] has no end (E1).
#[expect(clippy::boxed_local, reason = "to free the box is what it is for")]
fn unboxed<T>(value: Box<T>) -> T {
    *value
}

/// What a fresh stack enters.
pub(crate) struct Start;

impl Entry for Start {
    unsafe fn enter(word: *const (), data: Word) -> ! {
        asan::enter();
        // SAFETY: every switch of the library carries the words of a parcel.
        let first = unsafe { Parcel::from_words(word, data) };
        // SAFETY: T1: the greenlet that was started is current.
        let node = unsafe { &*Hub::get().current() };
        let body = node.body.borrow_mut().take();
        body.expect("a greenlet is started once").run(first)
    }
}
