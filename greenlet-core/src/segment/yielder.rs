//! The yielder: suspends a body, with a value for its consumer.
//!
//! A yield is refused, and changes nothing:
//!
//! - outside the body, and in another greenlet, because the running stack is not above the
//!   segment's;
//! - in a `no_switch` section that began in the body, because the yield would leave it;
//! - while a panic unwinds, because `std::thread::panicking` would be `true` in the consumer.

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{Location, resume_unwind};

use anyhow::Error;

use super::header::{Header, Held};
use super::words::{pack, unpack};
use super::{FORCES, UNWIND, VALUE};
use crate::backend::abort::abort_because;
use crate::backend::asan;
use crate::backend::{self, Words};
use crate::payload::error::{SwitchForbidden, Unwinding};
use crate::payload::value::Value;
use crate::stack;
use crate::thread::unwinding::ForcedBody;
use crate::thread::{ThreadState, flag};

/// Yields for a [`Segment`](super::Segment). The stack of the segment lives as long as a yielder.
pub(crate) struct Yielder<Y: 'static, S: 'static> {
    held: Held,
    types: PhantomData<fn(Y) -> S>,
}

/// The result of a yield that returns no value.
#[derive(Debug)]
pub(crate) enum NotYielded {
    /// The error that was thrown at the body, or that refuses the yield.
    Error(Error),
    /// The caller does not run in the body.
    Outside,
}

/// Identifies the type of a yielder.
pub(super) fn types<Y: 'static, S: 'static>() -> [TypeId; 2] {
    [TypeId::of::<Y>(), TypeId::of::<S>()]
}

impl<Y: 'static, S: 'static> Yielder<Y, S> {
    pub(super) fn new(held: Held) -> Yielder<Y, S> {
        Yielder {
            held,
            types: PhantomData,
        }
    }

    /// Finds the innermost segment of these types whose body the caller runs in.
    pub(crate) fn nearest() -> Option<Yielder<Y, S>> {
        let header = Header::chain().find(|header| Header::of(header).has_types(types::<Y, S>()))?;
        // SAFETY: the body runs, so the segment owns a count [header-alive].
        Some(Yielder::new(unsafe { Held::clone_from_raw(header) }))
    }

    /// Gives a value to the consumer, and returns the value of the next step.
    ///
    /// # Errors
    ///
    /// Returns a [`NotYielded`] if a step throws an error, or the yield is refused.
    #[inline(always)] // see "Inlining" in `switch`
    pub(crate) fn yield_(&self, value: Y) -> Result<S, NotYielded> {
        let depth = self
            .held
            .place()
            .addr()
            .get()
            .wrapping_sub(backend::stack_pointer().addr());
        let is_innermost = depth < self.held.header().reach;
        if !is_innermost || ThreadState::current().has_flag(flag::NO_SWITCH) || std::thread::panicking() {
            return self.yield_slow(value);
        }
        // SAFETY: the stack pointer is on the segment's own stack, so the caller runs in its body.
        unsafe { self.step_back(value) }
    }

    #[cold]
    #[inline(never)]
    fn yield_slow(&self, value: Y) -> Result<S, NotYielded> {
        match find_position(&self.held) {
            // SAFETY: `find_position` found the segment below the running stack.
            Position::Inside => unsafe { self.step_back(value) },
            position => Err(refuse(&self.held, position, Value::new(value))),
        }
    }

    /// Suspends the body.
    ///
    /// # Safety
    ///
    /// - The caller runs in the body.
    #[inline(always)] // see "Inlining" in `switch`
    unsafe fn step_back(&self, value: Y) -> Result<S, NotYielded> {
        let mut value = ManuallyDrop::new(value);
        let to = self.held.header().outer().get();
        let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
        // SAFETY: the body runs, so its consumer is suspended at `to` [outer-waits]. The value is
        // in this frame, which this suspends.
        let (word, data) = unsafe { backend::step_back(to, VALUE, pack(&mut value)) };
        asan::arrive(left);
        if word == VALUE {
            // SAFETY: a step with this word (`VALUE`) carries an `S`.
            return Ok(unsafe { unpack(data) });
        }
        // SAFETY: the data have just arrived with that word.
        Err(unsafe { interrupt(&self.held, word, data) })
    }
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
        header == held.place()
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
fn refuse(held: &Held, position: Position, value: Value) -> NotYielded {
    let error = match position {
        Position::Unwinding => Unwinding::new(Some(value)).into(),
        Position::Forbidden(since) => SwitchForbidden::new(since, Some(value)).into(),
        Position::Inside | Position::Outside => return NotYielded::Outside,
    };
    if let Some(left) = held.header().refusals_left.get() {
        if left == 0 {
            give_up();
        }
        held.header().refusals_left.set(Some(left - 1));
        if left <= FORCES {
            force(held);
        }
    }
    NotYielded::Error(error)
}

/// Returns the error that a step carries, or unwinds the body.
///
/// # Safety
///
/// - The words come from a step, whose word is not [`VALUE`], and this is their first use.
#[cold]
#[inline(never)]
unsafe fn interrupt(held: &Held, word: *const (), data: Words) -> NotYielded {
    if word == UNWIND {
        force(held);
    }
    // SAFETY: the remaining word is `ERROR`, whose data are an error.
    NotYielded::Error(unsafe { unpack(data) })
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
    resume_unwind(Box::new(ForcedBody::begin(held.place().as_ptr().addr())))
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
