//! The function of a pending greenlet, whatever its types and its size: kept in the greenlet's record if it is
//! small, and in a box if it is not.
//!
//! ```text
//!   Inner: calls ─► ClosureVTable of (A, R, F)        space, behind the node: the function itself, up to four words, or its box
//! ```
//!
//! # Invariants
//!
//! - **Y1** While a greenlet is pending, `calls` is there, and `space` holds a function of the type that it was made for, or a
//!   box of one. Whoever makes it anything else than pending uses the function up, by way of the entry that `calls` names,
//!   or drops it ([`clear`]).
//! - **Y2** A function is put in before anybody else knows the node, with no foreign code in between (an allocator is such);
//!   and never another one.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, needs_drop};
use std::panic::Location;

use anyhow::Result;

use crate::backend::{self, SavedContext, Word};
use crate::greenlet::Greenlet;
use crate::node::Inner;
use crate::node::record::{InnerRc, closure_storage};
use crate::payload::{Payload, TypeTag};
use crate::switch::first_frame;

/// What a function that is kept in the record may have captured, in words.
const WORDS: usize = 4;

/// Where a node keeps its function until it is started.
pub(crate) type ClosureStorage = MaybeUninit<[usize; WORDS]>;

/// What a node knows of its function; `None` for main, which has none.
pub(crate) type ClosureCell = Cell<Option<&'static ClosureVTable>>;

/// What can be done with a function, whatever its type.
pub(crate) struct ClosureVTable {
    /// The type of the value that the function is started with.
    pub(crate) takes: TypeTag,
    /// What a fresh stack enters, to call the function and end the greenlet with its outcome.
    pub(crate) entry: backend::Entry,
    /// `None` if there is nothing to do.
    drop: Option<unsafe fn(*mut ClosureStorage)>,
}

struct VTableOf<A, R, F>(PhantomData<(A, R, F)>);

impl<A, R, F> VTableOf<A, R, F>
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    const INLINE: ClosureVTable = ClosureVTable {
        takes: TypeTag::of::<A>(),
        entry: run::<A, R, F>,
        drop: if needs_drop::<F>() {
            Some(drop_function::<F>)
        } else {
            None
        },
    };
    const BOXED: ClosureVTable = ClosureVTable {
        takes: TypeTag::of::<A>(),
        entry: run_boxed::<A, R, F>,
        drop: Some(drop_function::<Box<F>>),
    };
}

/// ClosureVTable the function in a greenlet's space, and ends the greenlet with its outcome.
///
/// # Safety
///
/// - Of an [`Entry`](backend::Entry), and Y1.
unsafe extern "C" fn run<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    // SAFETY: the contract. It keeps itself, and lives.
    unsafe {
        let (node, first) = first_frame::enter(own, word, data);
        let function = closure_storage(node).cast::<F>().read();
        first_frame::run_and_finish::<A, R, F>(function, first)
    }
}

/// ClosureVTable the function whose box is in a greenlet's space, as [`run`] does. The box goes first: called as a function itself, it would
/// stay until the function has returned, and all that was captured would be there twice.
///
/// # Safety
///
/// - As for [`run`].
unsafe extern "C" fn run_boxed<A, R, F>(word: *const (), data: Word, own: *const SavedContext) -> !
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    /// In a frame of its own: it is as large as the function, and may overflow the stack. Then it is to be known whose that is.
    ///
    /// # Safety
    ///
    /// - Y1.
    #[inline(never)]
    unsafe fn run_unboxed<A, R, F>(node: *const Inner, first: Payload) -> !
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        // SAFETY: the contract; it keeps itself, and lives. A temporary: the box goes with this statement, for this function
        // is never left.
        unsafe {
            let function = *closure_storage(node).cast::<Box<F>>().read();
            first_frame::run_and_finish::<A, R, F>(function, first)
        }
    }
    // SAFETY: the contract.
    unsafe {
        let (node, first) = first_frame::enter(own, word, data);
        run_unboxed::<A, R, F>(node, first)
    }
}

/// Drops the function in `space`.
///
/// # Safety
///
/// - Y1, and this is the end of what is in `space`.
unsafe fn drop_function<F>(space: *mut ClosureStorage) {
    // SAFETY: the contract.
    // CAUTION: runs foreign code.
    unsafe { space.cast::<F>().drop_in_place() };
}

/// Makes the node of a pending greenlet, which will run `function`.
#[inline]
pub(crate) fn pending<A, R, F>(
    parent: Greenlet,
    created_at: &'static Location<'static>,
    function: F,
) -> InnerRc
where
    A: 'static,
    R: 'static,
    F: FnOnce(A) -> Result<R> + 'static,
{
    if size_of::<F>() <= size_of::<ClosureStorage>() && align_of::<F>() <= align_of::<ClosureStorage>() {
        // SAFETY: it fits.
        unsafe {
            put(
                parent,
                created_at,
                const { &VTableOf::<A, R, F>::INLINE },
                function,
            )
        }
    } else {
        const { assert!(size_of::<Box<F>>() <= size_of::<ClosureStorage>()) };
        // First, for an allocator is foreign code.
        let function = Box::new(function);
        // SAFETY: a box fits.
        unsafe {
            put(
                parent,
                created_at,
                const { &VTableOf::<A, R, F>::BOXED },
                function,
            )
        }
    }
}

/// Makes a pending node, and puts its function in its place: to copy it about right after it was written costs more than
/// all else that there is to write.
///
/// # Safety
///
/// - An `F` fits into a [`ClosureStorage`], and is what the calls are for.
#[inline(always)] // so that it is written in its place
unsafe fn put<F>(
    parent: Greenlet,
    created_at: &'static Location<'static>,
    vtable: &'static ClosureVTable,
    function: F,
) -> InnerRc {
    let node = Inner::make_pending(parent, created_at, vtable);
    // SAFETY: Y2: just made, and nothing has run since; the contract; the reference counts the node.
    unsafe { closure_storage(node.as_ptr()).cast::<F>().write(function) };
    node
}

/// Drops the function of a node that is pending, or was until now.
#[inline]
pub(crate) fn clear(node: &InnerRc) {
    if let Some(drop) = node.vtable.take().and_then(|vtable| vtable.drop) {
        // SAFETY: Y1.
        // CAUTION: runs foreign code.
        unsafe { drop(closure_storage(node.as_ptr())) };
    }
}
