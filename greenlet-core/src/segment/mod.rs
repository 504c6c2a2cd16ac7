//! Segments: stacks for generators. The code of a segment, its body, runs as a part of the greenlet
//! that steps it, like a called function.
//!
//! ```text
//!   while the body runs                              while it is suspended
//!
//!   ├ consumer's stack ───────┐                      ├ consumer's stack ───────┐
//!   │ ... resume              │◄── header.outer      │ ... (runs)              │
//!   └─────────────────────────┘                      └─────────────────────────┘
//!   ├ segment: header         │                      ├ segment: header         │
//!   │ body ... (runs)         │    sp: null          │ body ... yield_         │◄── sp
//!   └─────────────────────────┘                      └─────────────────────────┘
//! ```
//!
//! A step changes no state of the thread: the consumer remains the current greenlet. If the body
//! switches to another greenlet, the consumer's resume point is on the segment. So the body and its
//! consumer are suspended and resumed as one.
//!
//! If the body unwinds, its first frame catches the payload, and the consumer resumes the
//! unwinding.
//!
//! The functions between a public call and the step are `inline(always)`, for the reason in
//! `switch`.
//!
//! # Invariants
//!
//! - **[header-alive]** A header lives while its count is not 0. The segment owns a count until its
//!   body has ended, and so does each [`Yielder`]. The header is on the stack, so the stack lives
//!   as long.
//! - **[body-suspended]** `sp` is non-null exactly while the body is suspended in a yield, or has
//!   not begun. Then it is the resume point, and there is a header. Each step takes it out, so it
//!   is used once.
//! - **[outer-waits]** While the body runs, `header.outer` is the resume point of its consumer,
//!   which is suspended in a step. Each step stores it.
//! - **[outcome-taken]** The outcome of the body may be in its last frame. The consumer moves it
//!   out before it releases the header.

mod header;
mod words;
mod yielder;

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};

use anyhow::{Error, Result};

use crate::backend::asan;
use crate::backend::{self, Word, Words};
use crate::payload::error::Unwinding;
use crate::payload::exit::{GreenletExit, reason};
use crate::payload::value::Value;
use crate::stack;
use crate::stack::error::StackError;
use crate::thread::{ThreadState, flag, unwinding::ForcedBody};

use header::{Header, Held};
use words::{pack, unpack};
pub(crate) use yielder::{NotYielded, Yielder};

/// The word of a step or final step whose data are a value.
const VALUE: *const () = ptr::null();
/// The word of a step or final step whose data are an error.
const ERROR: *const () = ptr::without_provenance(1);
/// The word of a step that unwinds the body by force, or of a final step whose data are the payload
/// of an unwinding.
const UNWIND: *const () = ptr::without_provenance(2);

/// The size of the largest function that is stored on the segment until the body begins. Larger
/// ones are boxed.
const LARGEST_IN_PLACE: usize = 1024;

/// How many yields are refused while a body is thrown an exit; the next ones unwind. While the
/// consumer panics every yield is refused, and a body that ignores the error would try for ever.
const REFUSALS: u32 = 100;

/// How often a body that is being ended is unwound by force.
const FORCES: u32 = 1;

/// A body, on a stack of its own.
///
/// It has no destructor. The owner calls [`end`](Segment::end) first; otherwise the body stays
/// suspended for ever.
pub(crate) struct Segment<Y: 'static, S: 'static, R: 'static> {
    /// [body-suspended]
    sp: Cell<*mut u8>,
    /// `None` after the end of the body.
    header: Cell<Option<NonNull<Header>>>,
    types: PhantomData<fn(S) -> (Y, R)>,
}

/// The result of a step that returns no item.
#[derive(Debug)]
pub(crate) enum Outcome<R> {
    /// The body has returned.
    Returned(R),
    /// The body has ended with an error, or the step was refused with one.
    Failed(Error),
    /// The body had ended before.
    Finished,
    /// The body runs, or is in the middle of a switch.
    Executing,
}

/// A failure while the owner ends a body.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The body returned an error.
    Error(Error),
    /// The body panicked, or the destructor of a value that it yielded did.
    Unwound(Box<dyn Any + Send>),
    /// The body caught each forced unwind, and stays suspended.
    Refused,
}

/// How a body ends.
enum End<R> {
    Returned(R),
    Error(Error),
    Unwound(Box<dyn Any + Send>),
}

impl<Y: 'static, S: 'static, R: 'static> Segment<Y, S, R> {
    /// Creates a segment that will run `function` with the value of the first step.
    ///
    /// # Errors
    ///
    /// Returns a [`StackError`] if there is no stack of that size.
    pub(crate) fn new<F>(
        name: Option<Box<str>>,
        stack_size: usize,
        created_at: &'static Location<'static>,
        function: F,
    ) -> Result<Segment<Y, S, R>, StackError>
    where
        F: FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
    {
        if size_of::<F>() <= LARGEST_IN_PLACE && align_of::<F>() <= align_of::<Header>() {
            return Segment::in_place(name, stack_size, created_at, function);
        }
        let function = Box::new(function);
        // Frees the box before the call. A call of the box would free it afterwards.
        let unboxed = move |yielder, first| {
            let function = unbox(function);
            function(yielder, first)
        };
        Segment::in_place(name, stack_size, created_at, unboxed)
    }

    fn in_place<F>(
        name: Option<Box<str>>,
        stack_size: usize,
        created_at: &'static Location<'static>,
        function: F,
    ) -> Result<Segment<Y, S, R>, StackError>
    where
        F: FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
    {
        let stack = ThreadState::current().take_stack(stack_size)?;
        let header = Header::put(
            stack,
            created_at,
            name,
            yielder::types::<Y, S>,
            drop_function::<F>,
        );
        let place = place_of::<F>(header);
        // SAFETY: the place is on the fresh stack, which nobody else uses. It is aligned as the
        // header is.
        unsafe { place.write(function) };
        // SAFETY: the place is on the stack, so it is not null.
        let base = unsafe { NonNull::new_unchecked(place.cast()) };
        // SAFETY: the stack below the function is fresh, and its base is aligned as the header is.
        // `Header::put` has written the header.
        let sp = unsafe { backend::init_segment(base, enter::<Y, S, R, F>, header.as_ptr().cast()) };
        Ok(Segment {
            sp: Cell::new(sp),
            header: Cell::new(Some(header)),
            types: PhantomData,
        })
    }

    /// Creates a segment whose body has ended.
    pub(crate) const fn finished() -> Segment<Y, S, R> {
        Segment {
            sp: Cell::new(ptr::null_mut()),
            header: Cell::new(None),
            types: PhantomData,
        }
    }

    /// Runs the body up to its next yield, and returns the item. The yield in which the body is
    /// suspended returns `value`.
    ///
    /// # Errors
    ///
    /// Returns an [`Outcome`] if there is no item.
    ///
    /// # Panics
    ///
    /// Resumes a panic of the body.
    #[inline(always)] // see "Inlining" in `switch`
    pub(crate) fn resume(&self, value: S) -> Result<Y, Outcome<R>> {
        let to = self.sp.replace(ptr::null_mut());
        if to.is_null() || std::thread::panicking() {
            self.sp.set(to);
            return Err(self.refuse(value));
        }
        let mut value = ManuallyDrop::new(value);
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. The value is in this frame,
        // which the step suspends.
        let (left, word, data) = unsafe { self.bare_step(to, VALUE, pack(&mut value)) };
        self.sp.set(left);
        if left.is_null() {
            // SAFETY: it was a final step, and these are its words.
            return Err(unsafe { self.take_outcome(word, data) });
        }
        // SAFETY: a step back that is not final carries a `Y`.
        Ok(unsafe { unpack(data) })
    }

    /// Resumes the body with an error, which its yield returns. A body that has not begun ends with
    /// the error, unrun. After the end of the body, this returns the error.
    ///
    /// # Errors, Panics
    ///
    /// As for [`resume`](Segment::resume).
    pub(crate) fn throw(&self, error: Error) -> Result<Y, Outcome<R>> {
        if self.is_executing() {
            return Err(Outcome::Executing);
        }
        if std::thread::panicking() && !self.is_finished() {
            return Err(Outcome::Failed(Unwinding::new(Some(Value::new(error))).into()));
        }
        self.deliver(error).map_err(outcome_of)
    }

    /// Throws an exit, which asks the body to end. If the body ends with it, this does not return
    /// it as an error.
    ///
    /// # Errors, Panics
    ///
    /// As for [`resume`](Segment::resume).
    pub(crate) fn close(&self) -> Result<Y, Outcome<R>> {
        if self.is_executing() {
            return Err(Outcome::Executing);
        }
        self.deliver_exit()
            .map_err(|end| end.map_or(Outcome::Finished, outcome_of))
    }

    /// Ends the body: throws an exit, and then unwinds it by force. Returns `false`, and does
    /// nothing, if the body runs or is in the middle of a switch.
    ///
    /// Failures go to `report`. Nothing unwinds except out of `report`, so destructors can call
    /// this.
    pub(crate) fn end(&self, report: &mut dyn FnMut(Failure)) -> bool {
        let forces = if cfg!(panic = "unwind") { FORCES } else { 0 };
        for number in 0..=forces {
            // In each round, because an item that the last one dropped may have made a step.
            if self.is_executing() {
                return false;
            }
            if self.is_finished() {
                return true;
            }
            if let Some(failure) = self.advance_to_end(number > 0) {
                report(failure);
            }
        }
        if !self.is_finished() {
            report(Failure::Refused);
        }
        true
    }

    /// Makes one step of [`end`](Segment::end).
    fn advance_to_end(&self, by_force: bool) -> Option<Failure> {
        let header = self.header.get();
        // CAUTION: runs arbitrary user code, also the destructors of items.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let step = if by_force {
                self.force()
            } else {
                self.deliver_exit()
            };
            match step {
                Err(Some(End::Error(error))) if GreenletExit::in_error(&error).is_none() => {
                    Some(Failure::Error(error))
                }
                Err(Some(End::Unwound(payload))) if !is_for(&*payload, header) => {
                    Some(Failure::Unwound(payload))
                }
                _ => None,
            }
        }));
        outcome.unwrap_or_else(|payload| Some(Failure::Unwound(payload)))
    }

    /// Returns `true` if the body has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.header.get().is_none()
    }

    /// Returns `true` if the body runs, or is in the middle of a switch.
    pub(crate) fn is_executing(&self) -> bool {
        self.sp.get().is_null() && !self.is_finished()
    }

    /// Returns where the segment was created. `None` after the end of its body.
    pub(crate) fn created_at(&self) -> Option<&'static Location<'static>> {
        Header::of(&self.header.get()?).created_at()
    }

    /// Returns the name of the segment. `None` after the end of its body.
    pub(crate) fn name(&self) -> Option<String> {
        Header::of(&self.header.get()?).name().map(str::to_owned)
    }

    /// Throws an error at a body that does not run.
    fn deliver(&self, error: Error) -> Result<Y, End<R>> {
        let Some(header) = self.header.get() else {
            return Err(End::Error(error));
        };
        let to = self.sp.replace(ptr::null_mut());
        if let Some(drop_function) = Header::of(&header).begin() {
            self.header.set(None);
            // SAFETY: it is the segment's own count [header-alive], which `self.header` no longer
            // has.
            let _held = unsafe { Held::from_raw(header) };
            // SAFETY: the body has not begun, so the function has not been used, and `begin` has
            // marked it as used.
            // CAUTION: runs arbitrary user code.
            unsafe { drop_function(header) };
            return Err(End::Error(error));
        }
        let mut error = ManuallyDrop::new(error);
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. It is not null, because the
        // body does not run. The error is in this frame, which the step suspends.
        unsafe { self.step(to, ERROR, pack(&mut error)) }
    }

    /// Throws an exit at a body that does not run. Returns `None` if the body ends with that.
    fn deliver_exit(&self) -> Result<Y, Option<End<R>>> {
        let Some(header) = self.header.get() else {
            return Err(None);
        };
        // SAFETY: the segment owns a count of it [header-alive].
        let (closing, exit) = unsafe { Closing::begin(header) };
        let outcome = self.deliver(exit);
        drop(closing);
        outcome.map_err(|end| match end {
            End::Error(error) => unless_own_exit(error).map(End::Error),
            end => Some(end),
        })
    }

    /// Unwinds by force a body that is suspended.
    fn force(&self) -> Result<Y, Option<End<R>>> {
        let to = self.sp.replace(ptr::null_mut());
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. It is not null, because the
        // body does not run. The body has begun, because an exit was thrown first.
        unsafe { self.step(to, UNWIND, [Word::uninit(); 3]) }.map_err(Some)
    }

    /// Resumes the body. Returns the item, or how the body ended.
    ///
    /// # Safety
    ///
    /// - `to` was just taken out of `sp`, and is not null. The word describes the data, which stay
    ///   in place until the body has taken them.
    #[inline(never)] // keeps the code of its callers small
    unsafe fn step(&self, to: *mut u8, word: *const (), data: Words) -> Result<Y, End<R>> {
        // SAFETY: the caller passes such arguments.
        let (left, word, data) = unsafe { self.bare_step(to, word, data) };
        self.sp.set(left);
        if left.is_null() {
            // SAFETY: it was a final step, and these are its words.
            return Err(unsafe { self.take_end(word, data) });
        }
        // SAFETY: a step back that is not final carries a `Y`.
        Ok(unsafe { unpack(data) })
    }

    /// Resumes the body. Returns its next resume point, null after the final step, and the words.
    ///
    /// # Safety
    ///
    /// - As for [`step`](Segment::step).
    #[inline(always)] // see "Inlining" in `switch`
    unsafe fn bare_step(&self, to: *mut u8, word: *const (), data: Words) -> (*mut u8, *const (), Words) {
        // SAFETY: there was a resume point in `sp`, so there is a header [body-suspended].
        let header = unsafe { self.header.get().unwrap_unchecked() };
        let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
        // SAFETY: the body is suspended at `to`, says the caller. `outer` is the first word of the
        // header [outer-waits].
        let back = unsafe { backend::step(header.as_ptr().cast(), to, word, data) };
        asan::arrive(left);
        back
    }

    /// Takes the end of the body out of the words of its final step, and releases the header.
    ///
    /// # Safety
    ///
    /// - The words come from the final step, and this is their first use.
    #[inline]
    unsafe fn take_end(&self, word: *const (), data: Words) -> End<R> {
        // The stack, where the outcome may be, lives until the header is released below
        // [outcome-taken].
        let end = match word {
            // SAFETY: `enter` packs an `R` with this word.
            VALUE => End::Returned(unsafe { unpack(data) }),
            // SAFETY: `enter` packs an error with this word.
            ERROR => End::Error(unsafe { unpack(data) }),
            // SAFETY: `enter` packs a panic's payload with the third word.
            _ => End::Unwound(unsafe { unpack(data) }),
        };
        // SAFETY: it is the segment's own count [header-alive], which `self.header` no longer has.
        drop(self.header.take().map(|header| unsafe { Held::from_raw(header) }));
        end
    }

    /// [`take_end`](Segment::take_end), for [`resume`](Segment::resume).
    ///
    /// # Safety
    ///
    /// - As for [`take_end`](Segment::take_end).
    #[cold]
    #[inline(never)]
    unsafe fn take_outcome(&self, word: *const (), data: Words) -> Outcome<R> {
        // SAFETY: the caller passes the words of the final step.
        outcome_of(unsafe { self.take_end(word, data) })
    }

    /// Returns why there is no step.
    #[cold]
    #[inline(never)]
    fn refuse(&self, value: S) -> Outcome<R> {
        if self.is_finished() {
            Outcome::Finished
        } else if self.is_executing() {
            Outcome::Executing
        } else {
            Outcome::Failed(Unwinding::new(Some(Value::new(value))).into())
        }
    }
}

impl<Y, S, R> fmt::Debug for Segment<Y, S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("sp", &self.sp)
            .finish_non_exhaustive()
    }
}

fn outcome_of<R>(end: End<R>) -> Outcome<R> {
    match end {
        End::Returned(value) => Outcome::Returned(value),
        End::Error(error) => Outcome::Failed(error),
        End::Unwound(payload) => resume_unwind(payload),
    }
}

/// Limits the refused yields of a body while it lives: see [`REFUSALS`].
struct Closing(Held);

impl Closing {
    /// Also returns the exit.
    ///
    /// # Safety
    ///
    /// - The header lives.
    #[inline(never)] // keeps the code of its callers small
    unsafe fn begin(header: NonNull<Header>) -> (Closing, Error) {
        // SAFETY: the header lives, says the caller.
        let held = unsafe { Held::clone_from_raw(header) };
        held.header().refusals_left.set(Some(REFUSALS + FORCES));
        (
            Closing(held),
            ThreadState::current().exit_cache.error(reason::CLOSED),
        )
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.header().refusals_left.set(None);
    }
}

/// Returns an error that a closed body ended with, except the exit of [`close`](Segment::close). An
/// exit that was thrown at the consumer is such an error.
#[inline(never)] // keeps the code of its callers small
fn unless_own_exit(error: Error) -> Option<Error> {
    let exit = GreenletExit::in_error(&error);
    if exit.is_none_or(|exit| exit.reason() != Some(reason::CLOSED)) {
        return Some(error);
    }
    let thread = ThreadState::current();
    if !thread.has_flag(flag::EXITING) {
        // Caches the exit. An error with contexts is dropped.
        let _ = thread.exit_cache.exit_of(error);
    }
    None
}

/// Returns `true` if the payload is that of a forced unwind of this segment.
fn is_for(payload: &(dyn Any + Send), header: Option<NonNull<Header>>) -> bool {
    let forced = payload.downcast_ref::<ForcedBody>();
    forced.is_some_and(|forced| header.is_some_and(|header| forced.is_of(header.as_ptr().addr())))
}

#[inline]
#[expect(clippy::boxed_local, reason = "moves the value out of the box")]
fn unbox<T>(value: Box<T>) -> T {
    *value
}

/// Returns where the function is until the body begins.
fn place_of<F>(header: NonNull<Header>) -> *mut F {
    let size = size_of::<F>().next_multiple_of(align_of::<Header>());
    header.as_ptr().cast::<u8>().wrapping_sub(size).cast()
}

/// Drops the function of a segment.
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
/// - Only a backend calls it, as a [`SegmentEntry`](backend::SegmentEntry). The segment's function
///   is an `F`.
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
    // SAFETY: the backend passes the pointer that `in_place` gave it.
    let header = unsafe { NonNull::new_unchecked(header.cast_mut().cast::<Header>()) };
    Header::of(&header).begin();
    // SAFETY: the function is there until the body begins, and `begin` has marked it as used.
    let function = unsafe { place_of::<F>(header).read() };
    // SAFETY: the body runs, so the segment owns a count [header-alive].
    let yielder = Yielder::new(unsafe { Held::clone_from_raw(header) });
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
    let to = Header::of(header).outer().get();
    let data = pack(&mut value);
    // Last: calls after it would leave marks on this stack.
    asan::leave_for_good(&ThreadState::current().fibers, || stack::bounds_at(to));
    // SAFETY: the consumer is suspended at `to` [outer-waits], and takes the value before this
    // stack is reused [outcome-taken].
    unsafe { backend::step_and_exit(to, word, data) }
}
