//! Tracing: a user's function that is called at every switch of its thread, as by Python's
//! `greenlet.settrace`.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::node::handle::Greenlet;
use crate::payload::message::Message;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::tracer::{TraceEvent, TraceKind, Tracer};
use crate::thread::{self, ThreadState, flag};

/// Installs the tracer of this thread, or removes it. Returns the previous one.
///
/// All greenlets of the thread share it, and other threads are not affected. Each switch calls it
/// in the target, before the target's `switch` returns or its function begins. It may switch, and
/// replace or remove itself. Without a tracer, tracing costs nothing.
#[doc(alias = "set_trace")]
pub fn settrace(tracer: Option<Tracer>) -> Option<Tracer> {
    let thread = ThreadState::current();
    // The guard that this installs releases the tracer when the thread ends.
    thread.ensure_set_up();
    if tracer.is_some() {
        thread.raise_flag(flag::TRACED);
    } else {
        thread.lower_flag(flag::TRACED);
    }
    thread.tracer.replace(tracer)
}

/// Returns the tracer of this thread, if one is installed.
pub fn gettrace() -> Option<Tracer> {
    ThreadState::current().tracer.borrow().clone()
}

/// Calls the tracer for a switch. Returns the message to deliver: `message`, or the tracer's own
/// failure.
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
        // A greenlet that has never suspended is being started, not resumed.
        is_start: !target.is_main()
            && *origin != target
            && target.inner().context.suspended_at.get().is_none(),
        target,
    };
    // CAUTION: runs arbitrary user code: the tracer may switch, throw, panic, and replace itself.
    let outcome = catch_unwind(AssertUnwindSafe(|| tracer.call(&event)));
    // CAUTION: runs arbitrary user code: a handle may be the last one.
    let dropped = unwind::discard(event);
    let outcome = dropped.and(outcome);
    let mut replacement = match outcome {
        Ok(Ok(())) => return message,
        Ok(Err(error)) => Message::Error(error),
        Err(payload) => unwind::own_message(payload),
    };
    // CAUTION: runs arbitrary user code: destructors of the tracer.
    if let Err(end) = unwind::discard(settrace(None)) {
        let _ = unwind::discard(std::mem::replace(&mut replacement, unwind::own_message(end)));
    }
    if let Message::ForcedUnwind = message {
        // A failure of the tracer does not stop a forced unwind.
        if let Message::Error(error) = replacement {
            // The message is an order to unwind already.
            let _ = unraisable::call(Unraisable::of_error(thread::current_greenlet(), error));
        }
        return message;
    }
    // CAUTION: runs arbitrary user code: the message is lost (rule TR-10).
    if let Err(end) = unwind::discard(message) {
        let _ = unwind::discard(std::mem::replace(&mut replacement, unwind::own_message(end)));
    }
    replacement
}
