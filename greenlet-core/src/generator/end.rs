//! Ends a generator that has not finished, and reports failures, which no code can receive.

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};

use anyhow::Error;

use super::Generator;
use super::header::Header;
use super::step::End;
use crate::payload::exit::{GreenletExit, reason};
use crate::payload::message::Message;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind::{self, Unwound};
use crate::thread::unwinding::ForcedBody;
use crate::thread::{self, ThreadState, flag};

/// How many yields are refused while a body is thrown an exit; the next ones unwind. While the
/// consumer panics every yield is refused, and a body that ignores the error would try for ever.
const REFUSALS: u32 = 100;

/// How often a body that is being ended is unwound by force.
pub(super) const FORCES: u32 = 1;

/// Ends the body of a generator: throws an exit, and then unwinds it by force. Reports failures.
/// Returns `false`, and does nothing, if the body runs or is in the middle of a switch.
///
/// # Panics
///
/// Continues an end of the running greenlet that reached it meanwhile.
pub(super) fn end<Y, S, R>(generator: &Generator<Y, S, R>) -> bool {
    let Some(created_at) = generator.created_at() else {
        return true;
    };
    let forces = if cfg!(panic = "unwind") { FORCES } else { 0 };
    let mut unwound = Unwound::default();
    let mut steps = 0;
    let is_over = loop {
        // After each step, because an item that it dropped may have made another one.
        if generator.is_executing() || generator.has_ended() {
            break generator.has_ended();
        }
        if steps > forces {
            let refusal = Unraisable::of_refusal(thread::current_greenlet());
            unwound.run(|| unraisable::call(refusal.in_generator(created_at)));
            break true;
        }
        if let Some(message) = advance(generator, steps > 0) {
            unwound.run(|| report(message, created_at));
        }
        steps += 1;
    };
    if !std::thread::panicking() {
        unwound.resume();
    }
    is_over
}

/// Makes one step of [`end`]. Returns a failure.
fn advance<Y, S, R>(generator: &Generator<Y, S, R>, by_force: bool) -> Option<Message> {
    let header = generator.header.get();
    let is_own = |payload: &(dyn Any + Send)| {
        let forced = payload.downcast_ref::<ForcedBody>();
        forced.is_some_and(|forced| header.is_some_and(|header| forced.is_of(header.addr().get())))
    };
    // CAUTION: runs arbitrary user code, also the destructors of items.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let step = if by_force {
            generator.force()
        } else {
            generator.deliver_exit()
        };
        match step {
            Err(End::Error(error)) if GreenletExit::in_error(&error).is_none() => Some(Message::Error(error)),
            Err(End::Unwound(payload)) if !is_own(&*payload) => Some(unwind::own_message(payload)),
            _ => {
                generator.returned.take();
                None
            }
        }
    }));
    outcome.unwrap_or_else(|payload| Some(unwind::own_message(payload)))
}

/// Reports a failure.
///
/// # Errors
///
/// Returns the payload of an end of the running greenlet itself.
#[cold]
#[inline(never)]
fn report(message: Message, created_at: &'static Location<'static>) -> std::thread::Result<()> {
    let consumer = thread::current_greenlet();
    let report = match message {
        Message::Panic(payload) => Unraisable::of_panic(consumer, payload),
        Message::Error(error) => Unraisable::of_error(consumer, error),
        Message::ForcedUnwind => return Err(unwind::forced()),
        Message::Value(_) => unreachable!("no failure is a value"),
    };
    unraisable::call(report.in_generator(created_at))
}

/// Returns the exit for a body that is closed, and limits the yields that it may try: see
/// [`REFUSALS`].
#[inline(never)] // keeps the code of its callers small
pub(super) fn exit(header: &Header) -> Error {
    header.refusals_left.set(NonZero::new(REFUSALS + FORCES + 1));
    ThreadState::current()
        .exit_cache
        .error(GreenletExit::because(reason::CLOSED))
}

/// Returns an error that a closed body ended with, except its own [`exit`]. An exit that was thrown
/// at the consumer is such an error.
#[inline(never)] // keeps the code of its callers small
pub(super) fn unless_own_exit(error: Error) -> Option<Error> {
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
