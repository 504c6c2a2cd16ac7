//! Tracing: a function of the user's that is told of every transfer of its thread, as Python's
//! `greenlet.settrace` does it.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::node::handle::Greenlet;
use crate::payload::message::Message;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::tracer::{TraceEvent, TraceKind, Tracer};
use crate::thread::{self, ThreadState, flag};

/// Installs the tracer of this thread, or removes it, and returns the one that was there before.
///
/// All greenlets of the thread share it; other threads are not affected. It is called in the target of
/// each switch_slow, before the target's `switch` returns or its function begins. It may switch, and
/// change or remove itself. While none is installed, tracing costs nothing.
pub fn settrace(tracer: Option<Tracer>) -> Option<Tracer> {
    let thread = ThreadState::current();
    // The thread's end is what releases the tracer: see that it is noticed.
    thread.ensure_set_up();
    if tracer.is_some() {
        thread.raise_flag(flag::TRACED);
    } else {
        thread.lower_flag(flag::TRACED);
    }
    thread.tracer.replace(tracer)
}

/// The tracer of this thread, if one is installed.
pub fn gettrace() -> Option<Tracer> {
    ThreadState::current().tracer.borrow().clone()
}

/// Tells the tracer of a switch_slow, and returns what is to be delivered.
pub(crate) fn call(origin: &Greenlet, message: Message) -> Message {
    let Some(tracer) = gettrace() else {
        return message;
    };
    let target = thread::current_greenlet();
    let event = TraceEvent {
        kind: if message.is_throw() {
            TraceKind::Throw
        } else {
            TraceKind::Switch
        },
        origin: origin.clone(),
        // Who has never switched away has not been come back to.
        is_start: !target.is_main()
            && *origin != target
            && target.inner().context.suspended_at.get().is_none(),
        target,
    };
    // CAUTION: runs foreign code: the tracer may switch, throw, panic, and replace itself.
    let outcome = catch_unwind(AssertUnwindSafe(|| tracer.call(&event)));
    drop(event);
    let replacement = match outcome {
        Ok(Ok(())) => return message,
        Ok(Err(error)) => Message::Error(error),
        Err(payload) => unwind::own_message(payload),
    };
    drop(settrace(None));
    if let Message::ForcedUnwind = message {
        // The greenlet is being unwound in any case.
        if let Message::Error(error) = replacement {
            unraisable::call(&Unraisable::of_error(thread::current_greenlet(), error));
        }
        return message;
    }
    // CAUTION: runs foreign code: what was on its way is lost (rule TR-10).
    drop(message);
    replacement
}
