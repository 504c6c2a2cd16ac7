//! Creates a generator on a fresh stack, which has the function until the body begins, and runs the
//! body.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr::{self, NonNull};

use anyhow::Result;

use super::header::{Header, Held};
use super::step::{ERROR, UNWIND, VALUE};
use super::words::{pack, unpack};
use super::yielder::Types;
use super::{Generator, Yielder};
use crate::backend::{self, Word, asan};
use crate::stack;
use crate::stack::error::StackError;
use crate::thread::ThreadState;

/// The size of the largest function that is stored on the segment until the body begins. Larger
/// ones are boxed.
const LARGEST_IN_PLACE: usize = 1024;

impl<Y: 'static, S: 'static, R: 'static> Generator<Y, S, R> {
    /// Creates a generator. If there is no stack of that size, its first step returns the error.
    pub(super) fn create<F>(
        name: Option<Box<str>>,
        stack_size: usize,
        created_at: &'static Location<'static>,
        function: F,
    ) -> Generator<Y, S, R>
    where
        F: FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
    {
        let prepared = if size_of::<F>() <= LARGEST_IN_PLACE && align_of::<F>() <= align_of::<Header>() {
            prepare(name, stack_size, created_at, function)
        } else {
            let function = Box::new(function);
            // The block frees the box before the call. Otherwise it is freed afterwards.
            let unboxed = move |yielder, first| {
                let function = *{ function };
                function(yielder, first)
            };
            prepare(name, stack_size, created_at, unboxed)
        };
        let (sp, header, failed) = match prepared {
            Ok((sp, header)) => (sp, Some(header), None),
            Err(error) => (ptr::null_mut(), None, Some(error.into())),
        };
        Generator {
            sp: Cell::new(sp),
            header: Cell::new(header),
            returned: Cell::new(None),
            failed: Cell::new(failed),
            types: std::marker::PhantomData,
        }
    }
}

/// Writes the header and the function onto a stack. Returns the resume point.
fn prepare<Y, S, R, F>(
    name: Option<Box<str>>,
    stack_size: usize,
    created_at: &'static Location<'static>,
    function: F,
) -> Result<(*mut u8, NonNull<Header>), StackError>
where
    Y: 'static,
    S: 'static,
    F: FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
{
    let stack = ThreadState::current().take_stack(stack::or_default(stack_size))?;
    let header = Header::put(stack, created_at, name, Types::of::<Y, S>, drop_function::<F>);
    let place = place_of::<F>(header);
    // SAFETY: the place is on the fresh stack, which nobody else uses. It is aligned as the header
    // is.
    unsafe { place.write(function) };
    // SAFETY: the stack below the function is fresh, and its base is aligned as the header is.
    // `Header::put` has written the header.
    let sp = unsafe { backend::init_segment(place.cast(), enter::<Y, S, R, F>, header.as_ptr().cast()) };
    Ok((sp, header))
}

/// Returns where the function is until the body begins.
fn place_of<F>(header: NonNull<Header>) -> NonNull<F> {
    let size = size_of::<F>().next_multiple_of(align_of::<Header>());
    // SAFETY: the stack below the header has room for the largest function.
    unsafe { header.byte_sub(size) }.cast()
}

/// Drops the function of a generator.
///
/// # Safety
///
/// - The function is an `F`, has not been used, and nobody uses it afterwards.
unsafe fn drop_function<F>(header: NonNull<Header>) {
    // SAFETY: the function is there, says the caller, and this is its last use.
    // CAUTION: runs arbitrary user code.
    unsafe { place_of::<F>(header).drop_in_place() };
}

/// The first function on a segment: runs the body, and sends the outcome to the consumer.
///
/// # Safety
///
/// - Only a backend calls it, as a [`SegmentEntry`](backend::SegmentEntry). The generator's
///   function is an `F`.
unsafe extern "C" fn enter<Y, S, R, F>(
    _word: *const (),
    first: Word,
    header: *const Cell<*mut u8>,
    second: Word,
    third: Word,
) -> !
where
    Y: 'static,
    S: 'static,
    F: FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
{
    asan::enter(&ThreadState::current().fibers);
    // SAFETY: the backend passes the pointer that `prepare` gave it.
    let header = unsafe { NonNull::new_unchecked(header.cast_mut().cast::<Header>()) };
    Header::of(&header).unrun.set(None);
    // SAFETY: the function is there until the body begins, and is marked as used.
    let function = unsafe { place_of::<F>(header).read() };
    // SAFETY: it is the count of the function [header-alive].
    let yielder = Yielder::new(unsafe { Held::from_raw(header) });
    // SAFETY: the first step carries an `S`, because `deliver` throws nothing at a body that has
    // not begun.
    let first = unsafe { unpack::<S>([first, second, third]) };
    // Unwind safety: the consumer resumes the unwinding.
    match catch_unwind(AssertUnwindSafe(move || function(yielder, first))) {
        Ok(Ok(value)) => finish(&header, VALUE, value),
        Ok(Err(error)) => finish(&header, ERROR, error),
        Err(payload) => finish(&header, UNWIND, payload),
    }
}

/// Makes the final step.
#[inline]
fn finish<T>(header: &NonNull<Header>, word: *const (), value: T) -> ! {
    let mut value = ManuallyDrop::new(value);
    let to = Header::of(header).label.outer.get();
    let data = pack(&mut value);
    // Last: calls after it would leave marks on this stack.
    asan::leave_for_good(&ThreadState::current().fibers, || stack::bounds_at(to));
    // SAFETY: the consumer is suspended at `to` [outer-waits], and takes the value before this
    // stack is reused [outcome-taken].
    unsafe { backend::step_and_exit(to, word, data) }
}
