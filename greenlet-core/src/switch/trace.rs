//! Tracing: a function of the user's that is told of every transfer of its thread, as Python's
//! `greenlet.settrace` does it.

#![forbid(unsafe_code)]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use anyhow::Result;

use crate::greenlet::Greenlet;
use crate::payload::message::Message;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::{self, ThreadState, flag};

/// What kind of message a transfer brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TraceKind {
    /// A value; also the one that an exit became on its way out.
    Switch,
    /// An error or a panic.
    Throw,
}

/// One transfer of control, as a tracer sees it: it has just happened, and the target has not yet got
/// what it brings.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc};
/// use greenlet_core::{Greenlet, TraceKind, Tracer, settrace};
///
/// let starts = Rc::new(Cell::new(0));
/// let counted = starts.clone();
/// settrace(Some(Tracer::new(move |event| {
///     if event.is_start && event.kind == TraceKind::Switch {
///         counted.set(counted.get() + 1);
///     }
///     Ok(())
/// })));
/// Greenlet::new(|(): ()| Ok(())).switch::<()>(())?;
/// settrace(None);
/// assert_eq!(starts.get(), 1);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TraceEvent {
    /// Whether a value or an error is delivered.
    pub kind: TraceKind,
    /// The greenlet that control left. Already dead if it has finished.
    pub origin: Greenlet,
    /// The greenlet that control reached; it is current.
    pub target: Greenlet,
    /// Whether this starts the target: its function begins after the tracer has returned.
    pub is_start: bool,
}

/// The function that is told of the transfers.
pub(crate) type Hook = dyn Fn(&TraceEvent) -> Result<()>;

/// A function that is told of every transfer in its thread: see [`settrace`].
///
/// It can be cloned; clones are the same tracer, and compare equal.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Tracer, settrace};
///
/// let tracer = Tracer::new(|event| {
///     println!("{:?} from {:?} to {:?}", event.kind, event.origin, event.target);
///     Ok(())
/// });
/// let before = settrace(Some(tracer.clone()));
/// assert!(before.is_none());
/// assert_eq!(settrace(None), Some(tracer));
/// ```
#[derive(Clone)]
pub struct Tracer(Rc<Hook>);

impl Tracer {
    /// Makes a tracer of a function.
    ///
    /// If the function returns an error or panics, it is removed, and the error or panic is delivered
    /// in place of what the transfer brought (rule of Python's greenlet).
    pub fn new(hook: impl Fn(&TraceEvent) -> Result<()> + 'static) -> Tracer {
        Tracer(Rc::new(hook))
    }
}

impl PartialEq for Tracer {
    fn eq(&self, other: &Tracer) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tracer {}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({:p})", Rc::as_ptr(&self.0))
    }
}

/// Installs the tracer of this thread, or removes it, and returns the one that was there before.
///
/// All greenlets of the thread share it; other threads are not affected. It is called in the target of
/// each switch_slow, before the target's `switch` returns or its function begins. It may switch, and
/// change or remove itself. While none is installed, tracing costs nothing.
pub fn settrace(tracer: Option<Tracer>) -> Option<Tracer> {
    let thread = ThreadState::current();
    if thread.current_ptr().is_null() {
        // The thread's end is what releases the tracer: see that it is noticed.
        drop(thread::current_greenlet());
    }
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
    let outcome = catch_unwind(AssertUnwindSafe(|| (tracer.0)(&event)));
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
