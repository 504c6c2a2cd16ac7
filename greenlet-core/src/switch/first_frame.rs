//! The first frame of a greenlet: takes what starts it, runs its function, delivers how it ended.
//!
//! ```text
//!   base ─►├──────────────────────────┤
//!          │ backend's first frame    │  a backtrace ends here
//!          │ body::run                │
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

use crate::backend::asan;
use crate::backend::{SavedContext, Word};
use crate::node::Inner;
use crate::payload::Payload;
use crate::payload::message::Delivery;
use crate::switch::finish::{finish, finish_with_value};
use crate::switch::receive;
use crate::switch::unwind;
use crate::thread::ThreadState;

/// Runs the function of the current greenlet, which is `node`, and ends it with the outcome.
///
/// # Safety
///
/// - The pointer comes from the node's [`InnerRc`](crate::node::record::InnerRc) (K3). It is called in the first frame of the
///   greenlet's stack.
// In its caller, where an overflow of the first frame is told by the stack pointer (`stack/fault.rs` says where that is known); else
// it has to be known before whose stack that is (see `overflow.rs`).
#[cfg_attr(
    all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")
    ),
    inline(always)
)]
#[cfg_attr(
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")
    )),
    inline(never)
)]
pub(crate) unsafe fn run_and_finish<A, R, F>(function: F, first: Payload) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R>,
{
    // What the function captured is dropped in here, while the greenlet is active and current
    // (rules ST-7, RN-9). An error instead of a value drops it unrun (TH-7).
    // Unwind safety: a panic goes on in the parent, so nobody looks at broken state without knowing.
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let first = receive::receive::<A>(first)?;
        function(first)
    }));
    match outcome {
        Ok(Ok(value)) => {
            let mut value = ManuallyDrop::new(value); // E1
            finish_with_value(Payload::new(&mut value))
        }
        // An exit becomes an ordinary value where it leaves a greenlet (rule EX-2).
        Ok(Err(error)) => match unwind::exit_of(error) {
            Ok(exit) => {
                let mut exit = ManuallyDrop::new(exit); // E1
                finish_with_value(Payload::new(&mut exit))
            }
            Err(message) => finish(Delivery::Message(message)),
        },
        Err(payload) => finish(Delivery::Message(unwind::parent_message(payload))),
    }
}

/// The first thing on a fresh stack: says who runs, and what has arrived.
///
/// # Safety
///
/// - Called once on each stack, with what its entry gets.
#[inline(always)] // a few instructions
pub(crate) unsafe fn enter(own: *const SavedContext, word: *const (), data: Word) -> (*const Inner, Payload) {
    let node = Inner::of_context(own);
    let thread = ThreadState::current();
    thread.set_current(node);
    asan::enter(&thread.fibers);
    // SAFETY: every switch of the library carries the words of a payload.
    (node, unsafe { Payload::from_words(word, data) })
}
