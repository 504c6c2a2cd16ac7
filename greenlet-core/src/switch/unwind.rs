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
use crate::payload::why::Why;
use crate::switch::{finish, unraisable};
use crate::thread::ThreadState;
use crate::thread::unwinding::{ForcedBody, InProgress};

/// The payload of [`raise`].
struct Raised(Error, #[expect(dead_code, reason = "it is dropped")] InProgress);

/// The payload of [`force`].
struct Forced(#[expect(dead_code, reason = "it is dropped")] InProgress);

/// Ends the running greenlet with an error, from code that cannot return one. Return the error if
/// you can.
///
/// The stack is unwound, and the greenlet ends as if its function had returned the error.
///
/// # Panics
///
/// Unwinds like a panic, without calling the panic hook. Catch it with [`catch`], and not with
/// `std::panic::catch_unwind`, which cannot tell it from a panic. In the main greenlet it ends the
/// thread. A destructor that switches or awaits meanwhile gets [`Unwinding`](crate::Unwinding).
///
/// With `panic = "abort"` nothing can be unwound. The greenlet ends with the error all the same, but
/// its stack is left for good, with all that is on it, and that is reported. In the main greenlet, and
/// in a `no_switch` section, the process is aborted with a message.
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
pub fn raise(error: impl Into<Error> + 'static) -> ! {
    let error = into_error(error);
    if cfg!(panic = "abort") {
        finish::leave_with_error(error);
    }
    let why = match GreenletExit::in_error(&error) {
        Some(_) => Why::RaisedExit,
        None => Why::RaisedError,
    };
    resume_unwind(Box::new(Raised(error, InProgress::begin(why))))
}

/// Converts what a user throws or raises. An exit becomes an error of the cache, which captures no
/// backtrace.
#[inline]
pub(crate) fn into_error<E: Into<Error> + 'static>(error: E) -> Error {
    let mut error = Some(error);
    let any: &mut dyn Any = &mut error;
    if let Some(exit) = any.downcast_mut().and_then(Option::<GreenletExit>::take) {
        return ThreadState::current().exit_cache.error(exit);
    }
    // CAUTION: runs arbitrary user code.
    error.expect("it is no exit, so it was not taken").into()
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
                f.write_str(unraisable::message_of(&**payload).unwrap_or("a panic without a text"))
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
        || payload.is::<ForcedBody>()
        || raised.is_some_and(|raised| GreenletExit::in_error(&raised.0).is_some())
}

/// Drops a value of a user. A panic of its destructor is caught, and its payload dropped, too.
///
/// # Errors
///
/// Returns the payload of an [end](is_end) that reached the destructor: the caller must continue it.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::raw;
///
/// struct Bad;
/// impl Drop for Bad {
///     fn drop(&mut self) {
///         panic!("in a destructor");
///     }
/// }
/// assert!(raw::discard(Bad).is_ok());
/// ```
pub fn discard<T>(value: T) -> std::thread::Result<()> {
    // CAUTION: runs arbitrary user code.
    catch_unwind(AssertUnwindSafe(|| drop(value))).or_else(discard_payload)
}

/// Drops a caught payload, unless it is that of an end. Otherwise as [`discard`].
///
/// # Errors
///
/// As for [`discard`].
pub(crate) fn discard_payload(payload: Box<dyn Any + Send>) -> std::thread::Result<()> {
    let mut next = payload;
    for _ in 0..PAYLOADS {
        if is_end(&*next) {
            return Err(next);
        }
        // CAUTION: runs arbitrary user code.
        match catch_unwind(AssertUnwindSafe(|| drop(next))) {
            Ok(()) => return Ok(()),
            Err(payload) => next = payload, // of a panic in its destructor
        }
    }
    std::mem::forget(next);
    Ok(())
}

/// How many payloads are dropped if each panics in its destructor. The last one is leaked.
const PAYLOADS: u32 = 100;

/// Runs code of users while a message is in transit, and returns that.
///
/// # Panics
///
/// Continues what unwinds the code. What is in transit is then dropped where a second panic is
/// caught, but a forced unwinding takes precedence.
#[inline]
pub(crate) fn run_holding(held: Message, code: impl FnOnce()) -> Message {
    // CAUTION: runs arbitrary user code.
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(()) => held,
        Err(payload) => drop_both(payload, held),
    }
}

#[cold]
fn drop_both(payload: Box<dyn Any + Send>, message: Message) -> ! {
    let mut unwound = Unwound(Some(payload));
    if let Message::ForcedUnwind = message {
        unwound.add(forced());
    }
    unwound.run(|| discard(message));
    unwound.resume();
    unreachable!("something has unwound")
}

/// Collects what unwinds several pieces of code that must all run.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::raw::Unwound;
///
/// let mut unwound = Unwound::default();
/// unwound.run(|| panic!("in the first"));
/// let mut has_run = false;
/// unwound.run(|| {
///     has_run = true;
///     Ok(())
/// });
/// assert!(has_run && greenlet::catch(|| unwound.resume()).is_err());
/// ```
#[derive(Debug, Default)]
pub struct Unwound(Option<Box<dyn Any + Send>>);

impl Unwound {
    /// Runs a piece of code, which may also return a payload.
    #[inline]
    pub fn run(&mut self, code: impl FnOnce() -> std::thread::Result<()>) {
        // CAUTION: runs arbitrary user code.
        let outcome = catch_unwind(AssertUnwindSafe(code)).and_then(|outcome| outcome);
        if let Err(payload) = outcome {
            self.add(payload);
        }
    }

    /// Keeps the first payload, except that an end takes precedence over a panic.
    #[cold]
    fn add(&mut self, payload: Box<dyn Any + Send>) {
        let Some(first) = self.0.take() else {
            self.0 = Some(payload);
            return;
        };
        let (kept, surplus) = if is_end(&*payload) && !is_end(&*first) {
            (payload, first)
        } else {
            (first, payload)
        };
        self.0 = Some(kept);
        if let Err(end) = discard_payload(surplus) {
            // A raised exit may have contexts, whose destructors could panic.
            std::mem::forget(self.0.replace(end));
        }
    }

    /// Returns `true` if an end of the running code is to continue.
    pub(crate) fn is_end(&self) -> bool {
        self.0.as_ref().is_some_and(|payload| is_end(&**payload))
    }

    /// Continues the unwinding, if there was one.
    #[inline]
    pub fn resume(self) {
        if let Some(payload) = self.0 {
            resume_unwind(payload);
        }
    }

    /// Continues it, or drops the payload if a panic unwinds already: for destructors.
    pub fn resume_or_discard(self) {
        match self.0 {
            Some(payload) if std::thread::panicking() => {
                // A raised exit may have contexts, whose destructors could panic.
                discard_payload(payload).unwrap_or_else(std::mem::forget);
            }
            payload => Unwound(payload).resume(),
        }
    }
}

/// Unwinds the running greenlet to its first frame: the second stage of an exit.
pub(crate) fn force() -> ! {
    resume_unwind(forced())
}

/// Returns the payload of a forced unwinding.
pub(crate) fn forced() -> Box<dyn Any + Send> {
    Box::new(Forced(InProgress::begin(Why::Forced)))
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
