//! The yielder, by which the function of a generator yields.
//!
//! A yield is refused, and changes nothing:
//!
//! - outside the body, and in another greenlet, because the running stack is not above the
//!   segment's;
//! - in a `no_switch` section that began in the body, because the yield would leave it;
//! - while a panic unwinds, because `std::thread::panicking` would be `true` in the consumer.

use std::any::{TypeId, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::num::NonZero;
use std::panic::{Location, resume_unwind};
use std::ptr;

use anyhow::{Error, Result};

use super::end::FORCES;
use super::error::GeneratorError;
use super::header::{Header, Held};
use super::step::{UNWIND, VALUE};
use super::words::{pack, unpack};
use crate::backend::abort::abort_because;
use crate::backend::{self, Word, Words, asan};
use crate::payload::error::{SwitchForbidden, Unwinding, with_literal_hint};
use crate::payload::value::Value;
use crate::stack;
use crate::thread::ThreadState;
use crate::thread::unwinding::ForcedBody;

/// Yields the items of a [`Generator`](crate::Generator), whose function receives it.
///
/// A clone yields for the same generator, from anywhere in the function. That includes a generator
/// whose consumer is the function: it can yield to the outer consumer directly. Another greenlet
/// cannot yield for the function. The stack of the function is not reused while a yielder exists.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::Generator;
///
/// let squares = Generator::<i32>::new(|outer| {
///     let numbers = Generator::new(move |inner| {
///         for n in 1..4 {
///             inner.yield_(n)?; // to the loop below
///             outer.yield_(n * n)?; // to the consumer of `squares`
///         }
///         Ok(())
///     });
///     numbers.map(|number| number.map(drop)).collect()
/// });
/// assert_eq!(squares.collect::<anyhow::Result<Vec<i32>>>()?, [1, 4, 9]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Yielder<Y: 'static, S: 'static = ()> {
    held: Held,
    types: PhantomData<fn(Y) -> S>,
}

/// The types of a yielder: of its items, and of what each step sends.
pub(super) struct Types {
    ids: [TypeId; 2],
    pub(super) names: [&'static str; 2],
}

impl Types {
    pub(super) fn of<Y: 'static, S: 'static>() -> Types {
        Types {
            ids: [TypeId::of::<Y>(), TypeId::of::<S>()],
            names: [type_name::<Y>(), type_name::<S>()],
        }
    }
}

impl PartialEq for Types {
    fn eq(&self, other: &Types) -> bool {
        self.ids == other.ids
    }
}

impl<Y: 'static, S: 'static> Yielder<Y, S> {
    pub(super) fn new(held: Held) -> Yielder<Y, S> {
        Yielder {
            held,
            types: PhantomData,
        }
    }

    /// Finds the innermost generator of these types whose function the caller runs in.
    ///
    /// # Errors
    ///
    /// Returns a [`GeneratorError`] (`is_outside`) if there is none.
    pub fn nearest() -> Result<Yielder<Y, S>, GeneratorError> {
        let header = Header::chain()
            .find(|header| Header::of(header).types() == Types::of::<Y, S>())
            .ok_or_else(|| outside(&Types::of::<Y, S>()))?;
        // SAFETY: the body runs, so the generator owns a count [header-alive].
        Ok(Yielder::new(unsafe { Held::clone_from_raw(header) }))
    }

    /// Gives an item to the consumer, and returns the value that the next step sends: `()` in an
    /// iteration.
    ///
    /// # Errors
    ///
    /// - The error that is thrown at the function ([`Generator::throw`](crate::Generator::throw)),
    ///   or a [`GreenletExit`](crate::GreenletExit) when the generator is closed or dropped. Pass
    ///   it on with `?`.
    /// - [`GeneratorError::is_outside`] if the caller does not run in the function.
    /// - [`Unwinding`](crate::Unwinding) while a panic unwinds the thread, and
    ///   [`SwitchForbidden`](crate::SwitchForbidden) in a [`no_switch`](crate::no_switch) section
    ///   that began in the function. Nothing has changed, and the error owns the value.
    #[inline(always)] // the processor mispredicts a return that follows a switch
    pub fn yield_(&self, value: Y) -> Result<S> {
        let mut value = ManuallyDrop::new(value);
        let data = pack(&mut value);
        let depth = backend::depth_below(ptr::from_ref(&*self.held).cast());
        // One comparison: in a section, the mask is above all sizes of stacks.
        let is_outside = depth | ThreadState::current().no_switch_mask.get() >= self.held.reach;
        if is_outside || std::thread::panicking() {
            // SAFETY: the words are those of the value, which is in this frame.
            return unsafe { self.yield_slow(data[0], data[1], data[2]) };
        }
        // SAFETY: the stack pointer is on the segment's own stack, so the caller runs in its body.
        // The value is in this frame.
        unsafe { self.step_back(data) }
    }

    /// Yields if that is possible here.
    ///
    /// # Safety
    ///
    /// - The words are those of a value, and this is their first use.
    #[cold]
    #[inline(never)]
    unsafe fn yield_slow(&self, first: Word, second: Word, third: Word) -> Result<S> {
        let data = [first, second, third];
        match find_position(&self.held) {
            // SAFETY: `find_position` found the segment below the running stack, and the caller
            // passes the words of a `Y`.
            Position::Inside => unsafe { self.step_back(data) },
            // SAFETY: the caller passes the words of a `Y`.
            position => Err(refuse(
                &self.held,
                position,
                Value::new(unsafe { unpack::<Y>(data) }),
            )),
        }
    }

    /// Suspends the body.
    ///
    /// # Safety
    ///
    /// - The caller runs in the body. The data are those of a `Y`, and stay in place.
    #[inline(always)] // see "Inlining" in `switch`
    unsafe fn step_back(&self, data: Words) -> Result<S> {
        let to = self.held.label.outer.get();
        let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
        // SAFETY: the body runs, so its consumer is suspended at `to` [outer-waits].
        let (word, data) = unsafe { backend::step_back(to, data) };
        asan::arrive(left);
        if word != VALUE {
            // SAFETY: the data have just arrived with that word.
            return Err(unsafe { interrupt(&self.held, word, data[0]) });
        }
        // SAFETY: a step with this word carries an `S`.
        Ok(unsafe { unpack(data) })
    }
}

/// Returns the error of a yield of these types, for which the caller runs in no generator.
#[cold]
fn outside(types: &Types) -> GeneratorError {
    let [item, sent] = types.names;
    let Some(nearest) = Header::chain().next() else {
        return GeneratorError::outside(format!("yield of a `{item}` outside a generator"));
    };
    let nearest = Header::of(&nearest);
    let [its_item, its_sent] = nearest.types().names;
    let label = nearest.describe();
    let mut text = format!("yield of a `{item}`, but the nearest {label} is of `{its_item}`");
    if item == its_item {
        text += &format!(", and takes a `{its_sent}` where this yield takes a `{sent}`");
    }
    GeneratorError::outside(with_literal_hint(text, its_item, item))
}

/// Where the caller of a yield runs.
enum Position {
    Inside,
    Outside,
    Unwinding,
    /// In the body, in a `no_switch` section that began there.
    Forbidden(&'static Location<'static>),
}

/// Finds out if the caller runs in the body of a segment, and if a yield is possible there.
#[inline(never)]
fn find_position(held: &Held) -> Position {
    let thread = ThreadState::current();
    let section = Header::at(thread.no_switch_frame.get());
    let mut is_forbidden = false;
    let is_inside = Header::chain().any(|header| {
        is_forbidden |= section == Some(header);
        ptr::eq(header.as_ptr(), &**held)
    });
    match thread.no_switch_since.get().filter(|_| is_forbidden) {
        _ if !is_inside => Position::Outside,
        _ if std::thread::panicking() => Position::Unwinding,
        Some(since) => Position::Forbidden(since),
        None => Position::Inside,
    }
}

/// Refuses a yield. If the body is being closed and has ignored too many refusals, unwinds it.
#[inline(never)]
fn refuse(held: &Held, position: Position, value: Value) -> Error {
    let error = match position {
        Position::Unwinding => Unwinding::new(Some(value)).into(),
        Position::Forbidden(since) => SwitchForbidden::new(since, Some(value)).into(),
        Position::Inside | Position::Outside => {
            let text = format!("yield outside the function of the {}", held.describe());
            return GeneratorError::outside(text).into();
        }
    };
    if let Some(left) = held.refusals_left.get() {
        let Some(left) = NonZero::new(left.get() - 1) else {
            give_up();
        };
        held.refusals_left.set(Some(left));
        if left.get() <= FORCES {
            force(held);
        }
    }
    error
}

/// Returns the error that a step carries, or unwinds the body.
///
/// # Safety
///
/// - The two come from a step, whose word is not [`VALUE`], and this is their first use.
#[cold]
#[inline(never)]
unsafe fn interrupt(held: &Held, word: *const (), error: Word) -> Error {
    if word == UNWIND {
        force(held);
    }
    // SAFETY: the remaining word is `ERROR`, whose data are an error: one word.
    unsafe { unpack([error, Word::uninit(), Word::uninit()]) }
}

/// Aborts the process, because the destructor of the generator cannot return.
#[cold]
fn give_up() -> ! {
    abort_because(format_args!(
        "a generator cannot be ended: its function stops each unwinding, and it cannot be left suspended while a panic unwinds; \
         the process is aborted"
    ))
}

fn force(held: &Held) -> ! {
    resume_unwind(Box::new(ForcedBody::begin(ptr::from_ref(&**held).addr())))
}

impl<Y, S> Clone for Yielder<Y, S> {
    fn clone(&self) -> Yielder<Y, S> {
        Yielder::new(self.held.clone())
    }
}

impl<Y, S> fmt::Debug for Yielder<Y, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder").finish_non_exhaustive()
    }
}

/// Yields a value for the innermost [`Generator`](crate::Generator) of such values that the caller
/// runs in.
///
/// It is for functions that have no [`Yielder`], which is faster.
///
/// # Errors
///
/// As for [`Yielder::yield_`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Generator, GeneratorError, yield_};
///
/// fn count_down(from: u32) -> anyhow::Result<()> {
///     (0..from).rev().try_for_each(yield_)
/// }
/// let numbers = Generator::<u32>::new(|_| count_down(3));
/// assert_eq!(numbers.collect::<anyhow::Result<Vec<_>>>()?, [2, 1, 0]);
///
/// let error = count_down(1).unwrap_err();
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[doc(alias = "yield")]
#[doc(alias = "suspend")]
pub fn yield_<Y: 'static>(value: Y) -> Result<()> {
    Yielder::<Y>::nearest()?.yield_(value)
}
