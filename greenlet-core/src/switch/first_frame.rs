//! The first frame of a greenlet: takes what starts it, runs its function, delivers how it ended.
//!
//! ```text
//!   base ─►├──────────────────────────┤
//!          │ backend's first frame    │  a backtrace ends here
//!          │ run                      │
//!          │ run_and_finish           │  holds the result until the parent has taken it
//!          │ catch_unwind             │
//!          │ the function             │
//! ```
//!
//! - **E1** Nothing with a destructor lives in the frames up to `run` when the greenlet leaves for good:
//!   they are never returned to.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};

use anyhow::Result;

use crate::backend::asan;
use crate::backend::{SavedContext, Word};
use crate::node::Inner;
use crate::node::closure::{VTableOf, fits_in_node};
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::payload::message::Delivery;
use crate::payload::{Payload, TypeTag};
use crate::switch::finish::{finish, finish_with_value};
use crate::switch::receive;
use crate::switch::unwind;
use crate::thread::ThreadState;
use crate::thread::create::create_pending;

/// Runs the function of the current greenlet, and ends it with the outcome.
///
/// # Safety
///
/// - It is called in the first frame of the greenlet's stack.
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

/// Creates a pending greenlet that will run `function`.
#[inline]
pub(crate) fn create<A, R, F>(
    parent: Greenlet,
    created_at: &'static Location<'static>,
    function: F,
) -> InnerRc
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    if fits_in_node::<F>() {
        let node = create_pending(parent, created_at);
        node.closure.put(const { &VTables::<A, R, F>::INLINE }, function);
        node
    } else {
        // CAUTION: runs arbitrary user code, as an allocator is. So the node is created afterwards.
        let function = Box::new(function);
        let node = create_pending(parent, created_at);
        node.closure.put(const { &VTables::<A, R, F>::BOXED }, function);
        node
    }
}

/// The vtables of a function, stored in the node or in a box.
struct VTables<A, R, F>(PhantomData<(A, R, F)>);

impl<A, R, F> VTables<A, R, F>
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: `run` takes an `F`.
    const INLINE: VTableOf<F> = unsafe { VTableOf::new(TypeTag::of::<A>(), run::<A, R, F>) };
    // SAFETY: `run_boxed` takes a `Box<F>`.
    const BOXED: VTableOf<Box<F>> = unsafe { VTableOf::new(TypeTag::of::<A>(), run_boxed::<A, R, F>) };
}

/// The entry of a greenlet whose function is in its node.
///
/// # Safety
///
/// - Of an [`Entry`](crate::backend::Entry). The node has a closure of the type `F`.
unsafe extern "C" fn run<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: this is the first frame of the greenlet's stack.
    let (node, first) = unsafe { enter(own, word, data) };
    // SAFETY: the node is active, so it counts itself [own-count].
    let closure = unsafe { &(*node).closure };
    // SAFETY: the vtable that names this entry says that it is an `F`.
    let function = unsafe { closure.take::<F>() };
    // SAFETY: as above.
    unsafe { run_and_finish::<A, R, F>(function, first) }
}

/// The entry of a greenlet whose function is in a box.
///
/// # Safety
///
/// - Of an [`Entry`](crate::backend::Entry). The node has a closure of the type `Box<F>`.
unsafe extern "C" fn run_boxed<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    /// Moves the function out of its box, and runs it. To call the box would keep it until the
    /// function returns, with a second copy of all that was captured.
    ///
    /// # Safety
    ///
    /// - As for [`run_boxed`], after [`enter`].
    // This frame is as large as the closure and may overflow. `current` must be set first, so that
    // the report names the greenlet.
    #[inline(never)]
    unsafe fn run_unboxed<A, R, F>(node: *const Inner, first: Payload) -> !
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        // SAFETY: the node is active, so it counts itself [own-count].
        let closure = unsafe { &(*node).closure };
        // SAFETY: the vtable that names the entry says that it is a `Box<F>`. The box is a
        // temporary, so this statement frees it.
        let function = *unsafe { closure.take::<Box<F>>() };
        // SAFETY: this function is called in the first frames of the greenlet's stack.
        unsafe { run_and_finish::<A, R, F>(function, first) }
    }
    // SAFETY: this is the first frame of the greenlet's stack.
    let (node, first) = unsafe { enter(own, word, data) };
    // SAFETY: `enter` has just been called.
    unsafe { run_unboxed::<A, R, F>(node, first) }
}
