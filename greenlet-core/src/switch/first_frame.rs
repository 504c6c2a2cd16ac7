//! The first frames of a greenlet: receive the value that starts it, run its function, and deliver
//! the outcome.
//!
//! ```text
//!   base ─►├─────────────────────────────┤
//!          │ backend's first frame       │  a backtrace ends here
//!          │ run, or run_boxed           │
//!          │ run_and_finish              │  holds the result until the parent has taken it
//!          │ catch_unwind, then finish   │
//!          │ the function                │
//! ```
//!
//! - **[nothing-to-drop]** When a greenlet ends, its frames own nothing that has a destructor,
//!   because none of them is returned to.

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
use crate::switch::finish::{finish, finish_with_error, finish_with_value};
use crate::switch::receive;
use crate::switch::unwind;
use crate::thread::ThreadState;
use crate::thread::create::create_pending;

/// Runs the function of the running greenlet, and ends the greenlet with the outcome. It is called
/// in its first frames.
// If this frame overflows the stack, the report must name the greenlet. Where `stack/fault.rs`
// finds it by the stack pointer, the frame may be the caller's. Elsewhere the caller must have set
// `current` first (see `overflow.rs`).
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
fn run_and_finish<A, R, F>(function: F, first: Payload) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R>,
{
    // The captured values are dropped inside, while the greenlet is active and current (rules ST-7,
    // RN-9). If an error was thrown, the function does not run (TH-7).
    // Unwind safety: the panic is resumed in the parent, so no code continues as if nothing had
    // happened.
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let first = receive::receive_first::<A>(first)?;
        function(first)
    }));
    match outcome {
        Ok(Ok(value)) => {
            let mut value = ManuallyDrop::new(value); // [nothing-to-drop]
            finish_with_value(Payload::new(&mut value))
        }
        Ok(Err(error)) => finish_with_error(error),
        Err(payload) => finish(Delivery::Message(unwind::parent_message(payload))),
    }
}

/// Makes the greenlet current. Returns its closure, and the payload that starts it.
///
/// # Safety
///
/// - It is called first on a fresh stack, with the arguments of the entry. The node has a closure
///   of the type `S`.
#[inline]
unsafe fn enter<S>(own: *const SavedContext, word: *const (), data: Word) -> (S, Payload) {
    let node = Inner::of_context(own);
    let thread = ThreadState::current();
    thread.set_current(own);
    asan::enter(&thread.fibers);
    // SAFETY: every switch of the library carries the words of a payload, and these have just
    // arrived.
    let first = unsafe { Payload::from_words(word, data) };
    // SAFETY: the greenlet is active, so its node is in use [active-kept].
    let node = unsafe { &*node };
    // SAFETY: the closure is an `S`, says the caller.
    (unsafe { node.closure.take::<S>() }, first)
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
        // CAUTION: runs arbitrary user code (an allocator), so it precedes the creation of the
        // node.
        let function = Box::new(function);
        let node = create_pending(parent, created_at);
        node.closure.put(const { &VTables::<A, R, F>::BOXED }, function);
        node
    }
}

/// The vtables of a function of the type `F`.
struct VTables<A, R, F>(PhantomData<(A, R, F)>);

impl<A, R, F> VTables<A, R, F>
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: `run` takes an `F` out of the node.
    const INLINE: VTableOf<F> = unsafe { VTableOf::new(TypeTag::of::<A>(), run::<A, R, F>) };
    // SAFETY: `run_boxed` takes a `Box<F>` out of the node.
    const BOXED: VTableOf<Box<F>> = unsafe { VTableOf::new(TypeTag::of::<A>(), run_boxed::<A, R, F>) };
}

/// The entry of a greenlet whose function is in its node.
///
/// # Safety
///
/// - Only a backend calls it, as an [`Entry`](crate::backend::Entry). The node has a closure of the
///   type `F`.
unsafe extern "C" fn run<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: the backend calls this function first on the stack, with a switch's words. The vtable
    // that names it belongs to closures of the type `F`.
    let (function, first) = unsafe { enter::<F>(own, word, data) };
    run_and_finish(function, first)
}

/// The entry of a greenlet whose function is in a box.
///
/// # Safety
///
/// - Only a backend calls it, as an [`Entry`](crate::backend::Entry). The node has a closure of the
///   type `Box<F>`.
unsafe extern "C" fn run_boxed<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    /// Moves the function out of its box, and runs it. A call of the box would free the box only
    /// after the call, and hold a second copy of the captured values meanwhile.
    // This frame is as large as the closure and may overflow the stack. `current` must be set
    // first, so that the report names the greenlet.
    #[inline(never)]
    fn run_unboxed<A, R, F>(function: Box<F>, first: Payload) -> !
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        let function = *{ function }; // the braces make it a temporary, which this statement frees
        run_and_finish(function, first)
    }
    // SAFETY: the backend calls this function first on the stack, with a switch's words. The vtable
    // that names it belongs to closures of the type `Box<F>`.
    let (function, first) = unsafe { enter::<Box<F>>(own, word, data) };
    run_unboxed(function, first)
}
