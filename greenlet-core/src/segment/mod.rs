//! Segments: stacks whose code runs as a part of the greenlet that steps it, as a called function does. Generators stand on them.
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
//! A step changes nothing of the thread: the consumer stays the current greenlet. A body that switches to another greenlet suspends
//! its consumer, whose resume point is on the segment then. So the body and its consumer are suspended and resumed as one.
//!
//! The body may unwind: its first frame catches the payload, and the consumer resumes the unwinding.
//!
//! # Invariants
//!
//! - `[header-alive]` A header lives while its count is not 0. The segment counts one until its body has ended, and each
//!   [`Yielder`] counts one. The header is on the stack, so the stack lives as long.
//! - `[body-suspended]` `sp` is non-null exactly while the body is suspended in a yield, or has not begun. It is the resume point then,
//!   and is used once: each step takes it out.
//! - `[outer-waits]` While the body runs, `header.outer` is the resume point of its consumer, which waits in a step. Each step writes it anew.
//! - `[outcome-taken]` The outcome of the body may be in its last frame. The consumer moves it out before it lets go of the header.

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
use crate::thread::{ThreadState, flag};

use header::Header;
use header::Held;
use words::{pack, unpack};
pub(crate) use yielder::{NotYielded, Yielder};

/// The word of a step, or of a final step, whose data are a value.
const VALUE: *const () = ptr::null();
/// The word of one whose data are an error.
const ERROR: *const () = ptr::without_provenance(1);
/// The word of one that lets the other side unwind: the body by force, and the consumer with the payload that the data are.
const UNWIND: *const () = ptr::without_provenance(2);

/// Functions up to this size start on the segment; larger ones are boxed until they are called.
const LARGEST_IN_PLACE: usize = 1024;

/// How many yields of a body that is thrown an exit are refused before the next ones unwind. A panic of the consumer may be why they are
/// refused, and a body that looks at no error would try for ever.
const REFUSALS: u32 = 100;

/// How often a body that is being ended is unwound before it is given up.
const FORCES: u32 = 3;

/// A body on a stack of its own, and where it goes on.
///
/// Its owner calls [`end`](Segment::end) before it drops it. Otherwise the body stays suspended for ever.
pub(crate) struct Segment<Y: 'static, S: 'static, R: 'static> {
    /// `[body-suspended]`
    sp: Cell<*mut u8>,
    /// `None` after the body's end.
    header: Cell<Option<NonNull<Header>>>,
    types: PhantomData<fn(S) -> (Y, R)>,
}

/// What a step returns instead of an item.
#[derive(Debug)]
pub(crate) enum Outcome<R> {
    /// The body has returned.
    Returned(R),
    /// The body has ended with an error, or the step was refused with one.
    Failed(Error),
    /// The body has ended before.
    Finished,
    /// The body runs, or is in the middle of a switch.
    Executing,
}

/// What goes wrong when a body is ended by its owner.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The body returned an error.
    Error(Error),
    /// The body unwound, or a value that it yielded unwound when it was dropped.
    Unwound(Box<dyn Any + Send>),
    /// The body caught each unwinding, and stays suspended.
    Refused,
}

/// How a body ends.
enum End<R> {
    Returned(R),
    Error(Error),
    Unwound(Box<dyn Any + Send>),
}

/// The payload of a forced unwinding: which segment it is for.
struct Forced(*const Header);

// SAFETY: the pointer is only compared.
unsafe impl Send for Forced {}

impl<Y: 'static, S: 'static, R: 'static> Segment<Y, S, R> {
    /// Creates a segment that will run `function`, with the value of the first step.
    ///
    /// # Errors
    ///
    /// [`StackError`] if there is no stack of that size.
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
        // The box is freed before the call. A boxed function that is called as such is freed after it.
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
        // SAFETY: the stack is fresh and ours alone. The place is on it, aligned as the header, and holds an `F`.
        let sp = unsafe {
            let place = place_of::<F>(header);
            place.write(function);
            let base = NonNull::new_unchecked(place.cast());
            backend::init_segment(base, enter::<Y, S, R, F>, header.as_ptr().cast())
        };
        Ok(Segment {
            sp: Cell::new(sp),
            header: Cell::new(Some(header)),
            types: PhantomData,
        })
    }

    /// Creates one that has ended.
    pub(crate) const fn finished() -> Segment<Y, S, R> {
        Segment {
            sp: Cell::new(ptr::null_mut()),
            header: Cell::new(None),
            types: PhantomData,
        }
    }

    /// Runs the body up to its next yield, which returns `value`, and returns what it yields.
    ///
    /// # Errors
    ///
    /// What else there is: see [`Outcome`].
    ///
    /// # Panics
    ///
    /// Panics with what the body panics with.
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub(crate) fn resume(&self, value: S) -> Result<Y, Outcome<R>> {
        let to = self.sp.replace(ptr::null_mut());
        if to.is_null() || std::thread::panicking() {
            self.sp.set(to);
            return Err(self.refuse(value));
        }
        let mut value = ManuallyDrop::new(value);
        // SAFETY: `[body-suspended]`: just taken out. The value stays in this frame until the body has taken it.
        let (left, word, data) = unsafe { self.go(to, VALUE, pack(&mut value)) };
        self.sp.set(left);
        if left.is_null() {
            // SAFETY: that was a final step.
            return Err(unsafe { self.settle(word, data) });
        }
        // SAFETY: a step back that is not final carries a `Y`.
        Ok(unsafe { unpack(data) })
    }

    /// Goes on with the body as [`resume`](Segment::resume) does; but its yield returns an error. A body that has not begun ends with
    /// the error, unrun. After the end of the body, the error comes right back.
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

    /// Throws an exit, for the body to end with. It does not come back as an error.
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

    /// Ends the body, whatever it does: throws an exit, and then unwinds it by force. Returns `false` if the body runs, or is in
    /// the middle of a switch: then it is left as it is.
    ///
    /// It is for destructors: nothing unwinds out of it, unless out of `report`, which is told of what goes wrong.
    pub(crate) fn end(&self, report: &mut dyn FnMut(Failure)) -> bool {
        if self.is_executing() {
            return false;
        }
        let forces = if cfg!(panic = "unwind") { FORCES } else { 0 };
        for number in 0..=forces {
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

    /// One step of [`end`](Segment::end).
    fn advance_to_end(&self, by_force: bool) -> Option<Failure> {
        let header = self.header.get();
        // CAUTION: runs arbitrary user code, also when it drops what comes back.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let step = if by_force {
                self.force()
            } else {
                self.deliver_exit()
            };
            match step {
                Err(Some(End::Error(error))) if !error.is::<GreenletExit>() => Some(Failure::Error(error)),
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

    /// Where the segment was created. `None` after the end of its body.
    pub(crate) fn created_at(&self) -> Option<&'static Location<'static>> {
        Header::of(&self.header.get()?).created_at()
    }

    /// The name of the segment. `None` after the end of its body.
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
            // SAFETY: `[header-alive]`: this is the segment's count.
            let _held = unsafe { Held::from_raw(header) };
            // SAFETY: the function has not been used, and will not be.
            // CAUTION: runs arbitrary user code.
            unsafe { drop_function(header) };
            return Err(End::Error(error));
        }
        let mut error = ManuallyDrop::new(error);
        // SAFETY: `[body-suspended]`: just taken out.
        unsafe { self.step(to, ERROR, pack(&mut error)) }
    }

    /// Throws an exit at a body that does not run. Returns `None` if the body ends with that.
    fn deliver_exit(&self) -> Result<Y, Option<End<R>>> {
        let Some(header) = self.header.get() else {
            return Err(None);
        };
        // SAFETY: `[header-alive]`: the segment counts it.
        let (closing, exit) = unsafe { Closing::begin(header) };
        let outcome = self.deliver(exit);
        drop(closing);
        outcome.map_err(|end| match end {
            End::Error(error) => unless_own_exit(error).map(End::Error),
            end => Some(end),
        })
    }

    /// Unwinds a body that is suspended.
    fn force(&self) -> Result<Y, Option<End<R>>> {
        let to = self.sp.replace(ptr::null_mut());
        // SAFETY: `[body-suspended]`: just taken out. (It has begun, since an exit came first.)
        unsafe { self.step(to, UNWIND, [Word::uninit(); 3]) }.map_err(Some)
    }

    /// Goes to the body, and returns what comes back.
    ///
    /// # Safety
    ///
    /// - `to` was just taken out of `sp`, and is not null. The data are what the word says.
    #[inline(never)] // for the size of the code
    unsafe fn step(&self, to: *mut u8, word: *const (), data: Words) -> Result<Y, End<R>> {
        // SAFETY: the contract.
        let (left, word, data) = unsafe { self.go(to, word, data) };
        self.sp.set(left);
        if left.is_null() {
            // SAFETY: that was a final step.
            return Err(unsafe { self.take_end(word, data) });
        }
        // SAFETY: a step back that is not final carries a `Y`.
        Ok(unsafe { unpack(data) })
    }

    /// The bare step.
    ///
    /// # Safety
    ///
    /// - As for [`step`](Segment::step).
    #[inline(always)] // as `resume`
    unsafe fn go(&self, to: *mut u8, word: *const (), data: Words) -> (*mut u8, *const (), Words) {
        // SAFETY: where there is a resume point, there is a header. `[outer-waits]`: it is the first word of that. The body is
        // suspended at `to`, by the contract.
        unsafe {
            let outer = self.header.get().unwrap_unchecked().as_ptr().cast();
            let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
            let back = backend::step(outer, to, word, data);
            asan::arrive(left);
            back
        }
    }

    /// Takes the end of the body after a final step.
    ///
    /// # Safety
    ///
    /// - The words are what the final step brought, and this is their first use.
    #[inline] // also in `settle`
    unsafe fn take_end(&self, word: *const (), data: Words) -> End<R> {
        // SAFETY: `enter` has packed that. `[outcome-taken]`
        let end = unsafe {
            match word {
                VALUE => End::Returned(unpack(data)),
                ERROR => End::Error(unpack(data)),
                _ => End::Unwound(unpack(data)),
            }
        };
        // SAFETY: `[header-alive]`: this is the segment's count.
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
    unsafe fn settle(&self, word: *const (), data: Words) -> Outcome<R> {
        // SAFETY: the contract.
        outcome_of(unsafe { self.take_end(word, data) })
    }

    /// Why there is no step.
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

/// While this lives, a body is thrown an exit: see [`REFUSALS`].
struct Closing(Held);

impl Closing {
    /// # Safety
    ///
    /// - The header lives.
    #[inline(never)] // for the size of the code
    unsafe fn begin(header: NonNull<Header>) -> (Closing, Error) {
        // SAFETY: the contract.
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

/// Takes the exit that a segment throws, and not one that somebody threw at the consumer.
#[inline(never)] // for the size of the code
fn unless_own_exit(error: Error) -> Option<Error> {
    let exit = error.downcast_ref::<GreenletExit>();
    if exit.is_none_or(|exit| exit.reason() != Some(reason::CLOSED)) {
        return Some(error);
    }
    let thread = ThreadState::current();
    if !thread.has_flag(flag::EXITING) {
        // Hold for the next one. An error that has contexts is dropped.
        let _ = thread.exit_cache.exit_of(error);
    }
    None
}

/// Returns `true` if the payload is that of a forced unwinding of this segment.
fn is_for(payload: &(dyn Any + Send), header: Option<NonNull<Header>>) -> bool {
    let forced = payload.downcast_ref::<Forced>();
    forced.is_some_and(|forced| header.is_some_and(|header| ptr::eq(forced.0, header.as_ptr())))
}

#[inline(always)]
#[expect(clippy::boxed_local, reason = "that is what it is for")]
fn unbox<T>(value: Box<T>) -> T {
    *value
}

/// Where the function is until the body begins.
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
    // SAFETY: the contract.
    // CAUTION: runs arbitrary user code.
    unsafe { place_of::<F>(header).drop_in_place() };
}

/// The first function on a segment: runs the body, and leaves how it ended to the consumer.
///
/// Nothing may unwind out of it, so the compiler lets the process abort if something does.
///
/// # Safety
///
/// - Of a [`SegmentEntry`](backend::SegmentEntry). The segment's function is an `F`.
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
    // SAFETY: the backend passes what `init_segment` was given; `[header-alive]`.
    let header = unsafe { NonNull::new_unchecked(header.cast_mut().cast::<Header>()) };
    Header::of(&header).begin();
    // SAFETY: the function is there until the body begins. `[header-alive]`: the count is the yielder's.
    let (function, yielder) = unsafe {
        (
            place_of::<F>(header).read(),
            Yielder::new(Held::clone_from_raw(header)),
        )
    };
    // SAFETY: the first step carries a value: `deliver` throws nothing at a body that has not begun.
    let first = unsafe { unpack::<S>([first, second, third]) };
    // Unwind safety: the consumer goes on with the unwinding.
    match catch_unwind(AssertUnwindSafe(move || function(yielder, first))) {
        Ok(Ok(value)) => finish(&header, VALUE, value),
        Ok(Err(error)) => finish(&header, ERROR, error),
        Err(payload) => finish(&header, UNWIND, payload),
    }
}

/// Leaves the segment for good.
#[inline(always)] // so that the value is packed where it is
fn finish<T>(header: &NonNull<Header>, word: *const (), value: T) -> ! {
    let mut value = ManuallyDrop::new(value);
    let to = Header::of(header).outer().get();
    let data = pack(&mut value);
    asan::leave_for_good(&ThreadState::current().fibers, || stack::bounds_at(to)); // the last thing here: what is done on this stack afterwards would leave marks
    // SAFETY: `[outer-waits]`; `[outcome-taken]`.
    unsafe { backend::step_and_exit(to, word, data) }
}
