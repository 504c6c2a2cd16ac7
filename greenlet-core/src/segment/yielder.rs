//! The yielder: how a body leaves its segment.
//!
//! A yield is refused, and changes nothing:
//!
//! - outside of the body, and in another greenlet: the running stack does not lead to the segment;
//! - in a `no_switch` section of the body: the section would be left. One around the step is none of its business;
//! - while a panic unwinds: the consumer would find the thread panicking, and not know why.

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{Location, resume_unwind};

use anyhow::Error;

use super::header::{Header, Held};
use super::words::{pack, unpack};
use super::{FORCES, Forced, UNWIND, VALUE};
use crate::backend::abort::abort_because;
use crate::backend::asan;
use crate::backend::{self, Words};
use crate::payload::error::{SwitchForbidden, Unwinding};
use crate::payload::value::Value;
use crate::stack;
use crate::thread::{ThreadState, flag};

/// Yields for a [`Segment`](super::Segment). While there is one, the stack of the segment is kept.
pub(crate) struct Yielder<Y: 'static, S: 'static> {
    held: Held,
    types: PhantomData<fn(Y) -> S>,
}

/// Why a yield returns no value.
#[derive(Debug)]
pub(crate) enum NotYielded {
    /// The error that was thrown at the body, or why the yield was refused.
    Error(Error),
    /// The caller does not run in the body.
    Outside,
}

/// What tells the yielders of a segment from those of others.
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
        // SAFETY: its body runs, so its segment counts it.
        Some(Yielder::new(unsafe { Held::clone_from_raw(header) }))
    }

    /// Gives a value to the consumer, and returns the one of the next step.
    ///
    /// # Errors
    ///
    /// See [`NotYielded`].
    #[inline(always)] // a return after a switch is one that the processor does not predict
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
        // SAFETY: the caller runs on the segment, so in its body.
        unsafe { self.step_back(value) }
    }

    #[cold]
    #[inline(never)]
    fn yield_slow(&self, value: Y) -> Result<S, NotYielded> {
        match look(&self.held) {
            // SAFETY: the body runs, as far in as the caller is.
            Look::Inside => unsafe { self.step_back(value) },
            why => Err(refuse(&self.held, why, Value::new(value))),
        }
    }

    /// Leaves the body.
    ///
    /// # Safety
    ///
    /// - The caller runs in the body.
    #[inline(always)] // as `yield_`
    unsafe fn step_back(&self, value: Y) -> Result<S, NotYielded> {
        let mut value = ManuallyDrop::new(value);
        let to = self.held.header().outer().get();
        // SAFETY: `[outer-waits]`. The value stays in this frame until the consumer has taken it.
        let (word, data) = unsafe {
            let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
            let back = backend::step_back(to, VALUE, pack(&mut value));
            asan::arrive(left);
            back
        };
        if word.is_null() {
            // SAFETY: a step of this word carries an `S`.
            return Ok(unsafe { unpack(data) });
        }
        // SAFETY: they came with that word.
        Err(unsafe { interrupt(&self.held, word, data) })
    }
}

/// Why the caller may not leave a body.
enum Look {
    Inside,
    Outside,
    Unwinding,
    /// The body is in a section without switches, since here.
    Forbidden(&'static Location<'static>),
}

/// Looks whether the caller runs in the body of a segment, and may leave it.
#[inline(never)]
fn look(held: &Held) -> Look {
    let thread = ThreadState::current();
    let section = Header::at(thread.no_switch_frame.get());
    let mut is_forbidden = false;
    let is_inside = Header::chain().any(|header| {
        is_forbidden |= section == Some(header);
        header == held.place()
    });
    match thread.no_switch_since.get().filter(|_| is_forbidden) {
        _ if !is_inside => Look::Outside,
        _ if std::thread::panicking() => Look::Unwinding,
        Some(since) => Look::Forbidden(since),
        None => Look::Inside,
    }
}

/// Refuses a yield. While the body is thrown an exit, that unwinds it in the end.
#[inline(never)]
fn refuse(held: &Held, why: Look, value: Value) -> NotYielded {
    let error = match why {
        Look::Unwinding => Unwinding::new(Some(value)).into(),
        Look::Forbidden(since) => SwitchForbidden::new(since, Some(value)).into(),
        Look::Inside | Look::Outside => return NotYielded::Outside,
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

/// Makes of a step what the yield returns.
///
/// # Safety
///
/// - The words came with a step, whose word is not [`VALUE`], and this is their first use.
#[cold]
#[inline(never)]
unsafe fn interrupt(held: &Held, word: *const (), data: Words) -> NotYielded {
    if word == UNWIND {
        force(held);
    }
    // SAFETY: the word is `ERROR`.
    NotYielded::Error(unsafe { unpack(data) })
}

/// Stops the process: the destructor of the generator cannot return, and nothing else can be done.
#[cold]
fn give_up() -> ! {
    abort_because(format_args!(
        "a generator cannot be ended: its function stops each unwinding, and it cannot be left suspended while a panic unwinds; \
         the process is aborted"
    ))
}

fn force(held: &Held) -> ! {
    resume_unwind(Box::new(Forced(held.place().as_ptr())))
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
