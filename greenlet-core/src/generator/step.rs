//! Steps to the stack of a generator, which is called a segment. Its function, the body, runs as a
//! part of the greenlet that steps it, like a called function.
//!
//! ```text
//!   while the body runs                              while it is suspended
//!
//!   ├ consumer's stack ───────┐                      ├ consumer's stack ───────┐
//!   │ ... step                │◄── label.outer       │ ... (runs)              │
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
//! - **[header-alive]** A header lives while its count is not 0. The generator owns a count until
//!   its body has ended, and so does each [`Yielder`](super::Yielder). A function that has not begun
//!   owns the count of its first yielder. The header is on the stack, so the stack lives as long.
//! - **[body-suspended]** `sp` is non-null exactly while the body is suspended in a yield, or has
//!   not begun. Then it is the resume point, and there is a header. Each step takes it out, so it
//!   is used once.
//! - **[outer-waits]** While the body runs, `label.outer` is the resume point of its consumer,
//!   which is suspended in a step. Each step stores it.
//! - **[outcome-taken]** The outcome of the body may be in its last frame. The consumer moves it
//!   out before it releases the header.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::resume_unwind;
use std::ptr::{self, NonNull};

use anyhow::{Error, Result};

use super::error::Kind;
use super::header::{Header, Held};
use super::words::{pack, unpack};
use super::{Generator, GeneratorError, end};
use crate::backend::{self, Word, Words, asan};
use crate::payload::error::Unwinding;
use crate::payload::value::Value;
use crate::stack;
use crate::thread::ThreadState;

/// The word of a step or final step whose data are a value.
pub(super) const VALUE: *const () = ptr::null();
/// The word of a step or final step whose data are an error.
pub(super) const ERROR: *const () = ptr::without_provenance(1);
/// The word of a step that unwinds the body by force, or of a final step whose data are the payload
/// of an unwinding.
pub(super) const UNWIND: *const () = ptr::without_provenance(2);

/// How a body ends.
pub(super) enum End {
    /// It has returned a value, which is in `returned`; or the exit that it was thrown.
    Finished,
    Error(Error),
    Unwound(Box<dyn Any + Send>),
}

impl End {
    /// Returns the error, or resumes the unwinding.
    pub(super) fn into_error(self) -> Option<Error> {
        match self {
            End::Finished => None,
            End::Error(error) => Some(error),
            End::Unwound(payload) => resume_unwind(payload),
        }
    }
}

impl<Y: 'static, S: 'static, R: 'static> Generator<Y, S, R> {
    /// Does what [`resume`](Generator::resume) says.
    #[inline(always)] // see "Inlining" in `switch`
    pub(super) fn step(&self, value: S) -> Option<Result<Y>> {
        let mut value = ManuallyDrop::new(value);
        let data = pack(&mut value);
        let to = self.sp.replace(ptr::null_mut());
        if to.is_null() || std::thread::panicking() {
            self.sp.set(to);
            // SAFETY: the words are those of the value, which is in this frame.
            return unsafe { self.refuse(data[0], data[1], data[2]) }.map(Err);
        }
        // SAFETY: there was a resume point in `sp`, so there is a header [body-suspended].
        let header = unsafe { self.header.get().unwrap_unchecked() };
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. The value is in this frame,
        // which the step suspends.
        let (left, word, data) = unsafe { bare_step(header, to, VALUE, data) };
        if left.is_null() {
            // SAFETY: it was a final step, and these are its words.
            return unsafe { self.end_of_step(header, word, data[0], data[1], data[2]) }.map(Err);
        }
        self.sp.set(left);
        // SAFETY: a step back that is not final carries a `Y`.
        Some(Ok(unsafe { unpack(data) }))
    }

    /// Returns why there is no step. `None` after the end of the body.
    ///
    /// # Safety
    ///
    /// - The words are those of a value, and this is their first use.
    #[cold]
    #[inline(never)]
    unsafe fn refuse(&self, first: Word, second: Word, third: Word) -> Option<Error> {
        // SAFETY: the caller passes the words of an `S`.
        let value: S = unsafe { unpack([first, second, third]) };
        if self.has_ended() {
            self.failed.take()
        } else if self.is_executing() {
            Some(GeneratorError::new(Kind::Busy).into())
        } else {
            Some(Unwinding::new(Some(Value::new(value))).into())
        }
    }

    /// Ends the iteration. Returns its error.
    ///
    /// # Safety
    ///
    /// - As for [`take_end`](Generator::take_end).
    #[cold]
    #[inline(never)]
    unsafe fn end_of_step(
        &self,
        header: NonNull<Header>,
        word: *const (),
        first: Word,
        second: Word,
        third: Word,
    ) -> Option<Error> {
        // SAFETY: the caller passes the header and the words of the final step.
        unsafe { self.take_end(header, word, [first, second, third]) }.into_error()
    }

    /// Throws an error at a body that does not run. A body that has not begun ends with the error,
    /// unrun, and so does one that has ended.
    pub(super) fn deliver(&self, error: Error) -> Result<Y, End> {
        let Some(header) = self.header.get() else {
            return Err(End::Error(error));
        };
        let to = self.sp.replace(ptr::null_mut());
        if let Some(drop_function) = Header::of(&header).unrun.take() {
            self.header.set(None);
            // SAFETY: it is the generator's own count [header-alive], which `self.header` no longer
            // has.
            let _held = unsafe { Held::from_raw(header) };
            // SAFETY: it is the count of the function [header-alive].
            let _yielder = unsafe { Held::from_raw(header) };
            // SAFETY: the body has not begun, so the function has not been used, and it was just
            // marked as used.
            // CAUTION: runs arbitrary user code.
            unsafe { drop_function(header) };
            return Err(End::Error(error));
        }
        let mut error = ManuallyDrop::new(error);
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. It is not null, because the
        // body does not run. The error is in this frame, which the step suspends.
        unsafe { self.rare_step(header, to, ERROR, pack(&mut error)) }
    }

    /// Throws an exit at a body that does not run.
    pub(super) fn deliver_exit(&self) -> Result<Y, End> {
        let Some(header) = self.header.get() else {
            return Err(End::Finished);
        };
        // SAFETY: the generator owns a count of it [header-alive].
        let held = unsafe { Held::clone_from_raw(header) };
        let exit = end::exit(&held);
        let step = self.deliver(exit);
        held.refusals_left.set(None);
        drop(held);
        step.map_err(|end| match end {
            End::Error(error) => end::unless_own_exit(error).map_or(End::Finished, End::Error),
            end => end,
        })
    }

    /// Unwinds by force a body that is suspended.
    pub(super) fn force(&self) -> Result<Y, End> {
        let Some(header) = self.header.get() else {
            return Err(End::Finished);
        };
        let to = self.sp.replace(ptr::null_mut());
        // SAFETY: `to` was just taken out of `sp` [body-suspended]. It is not null, because the
        // body does not run. The body has begun, because an exit was thrown first.
        unsafe { self.rare_step(header, to, UNWIND, [Word::uninit(); 3]) }
    }

    /// Resumes the body. Returns the item, or how the body ended.
    ///
    /// # Safety
    ///
    /// - It is the generator's header. `to` was just taken out of `sp`, and is not null. The word
    ///   describes the data, which stay in place until the body has taken them.
    #[inline(never)] // keeps the code of its callers small
    unsafe fn rare_step(
        &self,
        header: NonNull<Header>,
        to: *mut u8,
        word: *const (),
        data: Words,
    ) -> Result<Y, End> {
        // SAFETY: the caller passes such arguments.
        let (left, word, data) = unsafe { bare_step(header, to, word, data) };
        if left.is_null() {
            // SAFETY: it was a final step, and these are its words.
            return Err(unsafe { self.take_end(header, word, data) });
        }
        self.sp.set(left);
        // SAFETY: a step back that is not final carries a `Y`.
        Ok(unsafe { unpack(data) })
    }

    /// Takes the end of the body out of the words of its final step, and releases the header.
    ///
    /// # Safety
    ///
    /// - It is the generator's header. The words come from the final step, and this is their first
    ///   use.
    #[inline]
    unsafe fn take_end(&self, header: NonNull<Header>, word: *const (), data: Words) -> End {
        self.header.set(None);
        // Dropped last: the outcome may be on the stack [outcome-taken].
        // SAFETY: it is the generator's own count [header-alive], which `self.header` no longer
        // has.
        let _held = unsafe { Held::from_raw(header) };
        match word {
            VALUE => {
                // SAFETY: `enter` packs an `R` with this word.
                self.returned.set(Some(unsafe { unpack(data) }));
                End::Finished
            }
            // SAFETY: `enter` packs an error with this word.
            ERROR => End::Error(unsafe { unpack(data) }),
            // SAFETY: `enter` packs a panic's payload with the third word.
            _ => End::Unwound(unsafe { unpack(data) }),
        }
    }
}

/// Resumes the body. Returns its next resume point, null after the final step, and the words.
///
/// # Safety
///
/// - As for [`rare_step`](Generator::rare_step).
#[inline(always)] // see "Inlining" in `switch`
unsafe fn bare_step(
    header: NonNull<Header>,
    to: *mut u8,
    word: *const (),
    data: Words,
) -> (*mut u8, *const (), Words) {
    let left = asan::leave(&ThreadState::current().fibers, || stack::bounds_at(to));
    // SAFETY: the body is suspended at `to`, says the caller. `outer` is the first word of the
    // header [outer-waits].
    let back = unsafe { backend::step(header.as_ptr().cast(), to, word, data) };
    asan::arrive(left);
    back
}
