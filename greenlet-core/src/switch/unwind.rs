//! Unwinding a greenlet's stack without a panic.
//!
//! [`raise`] returns an error from code that does not return a `Result`. [`force`] is the second
//! stage of an end. Neither calls the panic hook. Each has its own payload type, which the
//! greenlet's first frame catches. [`catch`] and [`is_end`] tell them from a panic.

#![forbid(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Error;

use crate::payload::exit::{GreenletExit, reason};
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::segment;
use crate::thread::ThreadState;

/// The payload of [`raise`].
struct Raised(Error);

/// The payload of [`force`].
struct Forced;

/// Ends the running greenlet with an error, from code that cannot return one. Return the error if
/// you can.
///
/// The stack is unwound, and the greenlet ends as if its function had returned the error.
///
/// # Panics
///
/// Unwinds like a panic, without calling the panic hook. Catch it with [`catch`], and not with
/// `std::panic::catch_unwind`, which cannot tell it from a panic. In the main greenlet it ends the thread. A destructor that switches
/// or awaits meanwhile gets [`Unwinding`](crate::Unwinding).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, raise};
///
/// fn deep() -> u32 {
///     raise(anyhow::anyhow!("no number today"))
/// }
/// let child = Greenlet::new(|(): ()| Ok(deep()));
/// assert_eq!(child.switch::<u32>(()).unwrap_err().to_string(), "no number today");
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn raise(error: impl Into<Error>) -> ! {
    resume_unwind(Box::new(Raised(error.into())))
}

/// Something that unwound a stack, and is not the end of the greenlet: see [`catch`].
#[derive(Debug)]
pub enum Caught {
    /// A panic: its payload. [`std::panic::resume_unwind`] continues it.
    Panic(Box<dyn Any + Send>),
    /// The error that [`raise`] was called with.
    Raised(Error),
}

impl Caught {
    /// Returns what the payload of a [`std::panic::catch_unwind`] is.
    ///
    /// # Panics
    ///
    /// Continues the unwinding if the payload is an [end](is_end) of the greenlet.
    pub fn of_payload(payload: Box<dyn Any + Send>) -> Caught {
        if is_end(&*payload) {
            resume_unwind(payload);
        }
        match payload.downcast::<Raised>() {
            Ok(raised) => Caught::Raised(raised.0),
            Err(payload) => Caught::Panic(payload),
        }
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caught::Raised(error) => write!(f, "{error:#}"),
            Caught::Panic(payload) => {
                match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
                    (Some(text), _) => f.write_str(text),
                    (None, Some(text)) => f.write_str(text),
                    (None, None) => f.write_str("a panic without a text"),
                }
            }
        }
    }
}

/// Calls `f`, and catches a panic or a raised error. The end of the greenlet passes through.
///
/// Use it where code must survive a failure of a part, as a worker does that runs jobs.
/// [`std::panic::catch_unwind`] also catches the unwinding that ends the running greenlet: then the
/// end looks like a failure of the part, and the greenlet refuses to end.
///
/// `f` need not be unwind safe. What it has changed may be in a state between two valid ones.
///
/// # Errors
///
/// Returns the panic, or the error that [`raise`] was called with. A raised [`GreenletExit`] is an
/// end.
///
/// # Panics
///
/// Continues the unwinding of an end.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Caught, Greenlet, catch, getmain, raise};
///
/// let worker = Greenlet::new(|(): ()| -> anyhow::Result<()> {
///     loop {
///         let job = || {
///             let number: u32 = getmain().switch(()).unwrap_or_else(|exit| raise(exit));
///             assert!(number < 10, "too large");
///         };
///         if let Err(Caught::Panic(_)) = catch(job) {
///             println!("the job panicked"); // and the next one runs
///         }
///     }
/// });
/// worker.switch::<()>(())?;
/// worker.switch::<()>(11_u32)?;
/// worker.end();
/// assert!(worker.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    catch_unwind(AssertUnwindSafe(f)).map_err(Caught::of_payload)
}

/// Returns `true` if the payload of a [`std::panic::catch_unwind`] is that of an end, and not of a
/// panic or a raised error.
///
/// An end unwinds the stack of a greenlet, or of a generator, that is being ended. A raised
/// [`GreenletExit`] is an end, too. Continue its unwinding with [`std::panic::resume_unwind`], for
/// example where a library has caught it. If you can call [`catch`] instead, do.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
/// use greenlet::{Greenlet, getmain, is_end};
///
/// let waiting = Greenlet::new(|(): ()| {
///     let outcome = catch_unwind(AssertUnwindSafe(|| loop {
///         let _ = getmain().switch::<()>(()); // ignores the exit
///     }));
///     match outcome {
///         Err(payload) if is_end(&*payload) => resume_unwind(payload),
///         _ => Ok(()),
///     }
/// });
/// waiting.switch::<()>(())?;
/// waiting.end();
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn is_end(payload: &(dyn Any + Send)) -> bool {
    let raised = payload.downcast_ref::<Raised>();
    payload.is::<Forced>()
        || segment::is_forced(payload)
        || raised.is_some_and(|raised| GreenletExit::in_error(&raised.0).is_some())
}

/// Unwinds the running greenlet to its first frame: the second stage of an exit.
pub(crate) fn force() -> ! {
    resume_unwind(Box::new(Forced))
}

/// Converts the payload of a greenlet that has unwound into the message for its parent.
pub(crate) fn parent_message(payload: Box<dyn Any + Send>) -> Message {
    let payload = match payload.downcast::<Raised>() {
        Ok(raised) => {
            return match exit_of(raised.0) {
                Ok(exit) => Message::Value(Value::new(exit)),
                Err(message) => message,
            };
        }
        Err(payload) => payload,
    };
    match payload.downcast::<Forced>() {
        Ok(_) => Message::Value(Value::new(GreenletExit::because(reason::ENDED))),
        Err(payload) => Message::Panic(payload),
    }
}

/// Takes the exit out of the error that a greenlet ends with. Drops its contexts, without
/// unwinding.
///
/// # Errors
///
/// Returns the message for the parent if it is no exit, or if a context panicked when it was
/// dropped.
#[inline]
pub(crate) fn exit_of(error: Error) -> Result<GreenletExit, Message> {
    ThreadState::current()
        .exit_cache
        .exit_of(error)
        .or_else(exit_slow)
}

/// [`exit_of`] of an error with contexts.
#[cold]
#[inline(never)]
fn exit_slow(error: Error) -> Result<GreenletExit, Message> {
    // CAUTION: runs arbitrary user code.
    match catch_unwind(AssertUnwindSafe(|| take_exit(error))) {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(error)) => Err(Message::Error(error)),
        Err(payload) => Err(parent_message(payload)),
    }
}

/// Takes the exit out of an error. Drops what is around it.
///
/// # Errors
///
/// Returns the error again if it is no exit.
pub(crate) fn take_exit(error: Error) -> Result<GreenletExit, Error> {
    // CAUTION: runs arbitrary user code.
    match GreenletExit::in_error(&error).cloned() {
        Some(exit) => Ok(exit),
        None => Err(error),
    }
}

/// Converts a caught payload into the message for the greenlet that caught it.
pub(crate) fn own_message(payload: Box<dyn Any + Send>) -> Message {
    let payload = match payload.downcast::<Raised>() {
        Ok(raised) => return Message::Error(raised.0),
        Err(payload) => payload,
    };
    match payload.downcast::<Forced>() {
        Ok(_) => Message::ForcedUnwind,
        Err(payload) => Message::Panic(payload),
    }
}
