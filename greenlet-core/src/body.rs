//! The function of a pending greenlet, whatever its types and its size: kept in the greenlet's record if it is
//! small, and in a box if it is not.
//!
//! ```text
//!   Node: calls ─► Calls of (A, R, F)        space, behind the node: the function itself, up to four words, or its box
//! ```
//!
//! # Invariants
//!
//! - **Y1** While `calls` is there, `space` holds a function of the type that it was made for, or a box of one. Whoever
//!   takes `calls` out uses the function up.
//! - **Y2** A function is put in before anybody else knows the node, and never another one.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, needs_drop};
use std::panic::Location;

use anyhow::Result;

use crate::entry;
use crate::greenlet::Greenlet;
use crate::record::NodeRef;
use crate::thread::Hub;
use crate::transfer::{Descriptor, Parcel};
use crate::tree::Node;

/// What a function that is kept in the record may have captured, in words.
const WORDS: usize = 4;

/// Where a node keeps its function until it is started.
pub(crate) type Space = MaybeUninit<[usize; WORDS]>;

/// What a node knows of its function; `None` when it has none, or has none any more.
pub(crate) type Calling = Cell<Option<&'static Calls>>;

/// What can be done with a function, whatever its type.
pub(crate) struct Calls {
    /// The type of the value that the function is started with.
    pub(crate) takes: Descriptor,
    run: unsafe fn(*mut Space, Parcel) -> !,
    /// `None` if there is nothing to do.
    drop: Option<unsafe fn(*mut Space)>,
}

struct CallsOf<A, R, F>(PhantomData<(A, R, F)>);

impl<A, R, F> CallsOf<A, R, F>
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    const CALLS: Calls = Calls {
        takes: Descriptor::of::<A>(),
        run: run::<A, R, F>,
        drop: if needs_drop::<F>() {
            Some(drop_function::<F>)
        } else {
            None
        },
    };
    const CALLS_BOXED: Calls = Calls {
        takes: Descriptor::of::<A>(),
        run: run_boxed::<A, R, F>,
        drop: Some(drop_function::<Box<F>>),
    };
}

/// Calls the function in `space`, and ends the current greenlet with its outcome.
///
/// # Safety
///
/// - Y1, and this is the end of what is in `space`.
unsafe fn run<A, R, F>(space: *mut Space, first: Parcel) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: the contract.
    let function = unsafe { space.cast::<F>().read() };
    entry::run::<A, R, F>(function, first)
}

/// Calls the function whose box is in `space`, as [`run`] does. The box goes first: called as a function itself, it would
/// stay until the function has returned, and all that was captured would be there twice.
///
/// # Safety
///
/// - As for [`run`].
unsafe fn run_boxed<A, R, F>(space: *mut Space, first: Parcel) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: the contract.
    let function = *unsafe { space.cast::<Box<F>>().read() };
    entry::run::<A, R, F>(function, first)
}

/// Drops the function in `space`.
///
/// # Safety
///
/// - As for [`run`].
unsafe fn drop_function<F>(space: *mut Space) {
    // SAFETY: the contract.
    // CAUTION: runs foreign code.
    unsafe { space.cast::<F>().drop_in_place() };
}

/// Makes the node of a pending greenlet, which will run `function`.
#[inline]
pub(crate) fn pending<A, R, F>(parent: Greenlet, made_at: &'static Location<'static>, function: F) -> NodeRef
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    let node = Node::make(Hub::get(), Some(parent), made_at);
    // SAFETY: Y2: just made.
    unsafe { put::<A, R, F>(&node, function) };
    node
}

/// Puts the function of a node in its place: to copy it about right after it was written costs more than all else that
/// there is to write.
///
/// # Safety
///
/// - Y2.
#[inline]
unsafe fn put<A, R, F>(node: &NodeRef, function: F)
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    let space = node.space();
    let calls = if size_of::<F>() <= size_of::<Space>() && align_of::<F>() <= align_of::<Space>() {
        // SAFETY: it fits; Y2.
        unsafe { space.cast::<F>().write(function) };
        const { &CallsOf::<A, R, F>::CALLS }
    } else {
        const { assert!(size_of::<Box<F>>() <= size_of::<Space>()) };
        // SAFETY: a box fits; Y2.
        unsafe { space.cast::<Box<F>>().write(Box::new(function)) };
        const { &CallsOf::<A, R, F>::CALLS_BOXED }
    };
    node.calls.set(Some(calls));
}

/// Calls the function of the current greenlet, which ends with its outcome.
///
/// # Panics
///
/// Panics if it has none.
#[inline]
pub(crate) fn call(node: &NodeRef, first: Parcel) -> ! {
    let calls = node.calls.take().expect("a greenlet is started once");
    // SAFETY: Y1.
    unsafe { (calls.run)(node.space(), first) }
}

/// Drops the function of a node, if it has one.
#[inline]
pub(crate) fn clear(node: &NodeRef) {
    if let Some(drop) = node.calls.take().and_then(|calls| calls.drop) {
        // SAFETY: Y1.
        // CAUTION: runs foreign code.
        unsafe { drop(node.space()) };
    }
}
