//! The library's errors: one type for each mistake. Each message says what to do about it. The
//! error of a switch that was refused owns the value that was not delivered.

#![forbid(unsafe_code)]

use std::fmt;
use std::panic::Location;

use crate::payload::thread_bound::ThreadBound;
use crate::payload::value::Value;

/// The value that was not delivered, if there is one.
pub(crate) type Carried = Option<ThreadBound<Value>>;

/// Implements the access to the [`Carried`] value of an error.
macro_rules! carries_value {
    ($error:ident) => {
        impl $error {
            /// Borrows the value that was not delivered. `None` if there was none, and on other
            /// threads.
            pub fn value(&self) -> Option<&Value> {
                self.value.as_ref()?.get()
            }

            /// Returns the value that was not delivered, for a throw the thrown [`anyhow::Error`].
            /// `None` if there was none. `None` on other threads too, and the value is leaked.
            pub fn into_value(self) -> Option<Value> {
                self.value?.into_inner().ok()
            }
        }

        impl std::error::Error for $error {}
    };
}
pub(crate) use carries_value;

/// A value is not of the type that the receiver asked for. The error owns the value.
///
/// A suspended receiver gets this error from its own `switch`. If the receiver is a pending
/// greenlet, the sender gets the error, and the greenlet stays pending.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, TypeMismatch};
/// let wants_text = Greenlet::new(|text: &str| Ok(text.len()));
/// let error = wants_text.switch::<usize>(5_u8).unwrap_err();
/// let mismatch = error.downcast::<TypeMismatch>().unwrap();
/// assert_eq!((mismatch.expected(), mismatch.found()), ("&str", "u8"));
/// assert_eq!(mismatch.into_value().unwrap().downcast::<u8>().unwrap(), 5);
/// ```
#[derive(Debug)]
pub struct TypeMismatch {
    expected: &'static str,
    found: &'static str,
    /// Which greenlets, and where.
    text: String,
    value: Carried,
}

impl TypeMismatch {
    pub(crate) fn new(text: String, expected: &'static str, value: Value) -> TypeMismatch {
        let found = value.type_name();
        TypeMismatch {
            text: with_literal_hint(text, expected, found),
            expected,
            found,
            value: Some(ThreadBound::new(value)),
        }
    }

    /// Returns the name of the type that the receiver asked for.
    pub fn expected(&self) -> &'static str {
        self.expected
    }

    /// Returns the name of the type that was sent.
    pub fn found(&self) -> &'static str {
        self.found
    }
}

carries_value!(TypeMismatch);

impl fmt::Display for TypeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; ask for `Value` to take anything, or take the value out of this error",
            self.text
        )
    }
}

/// Adds a hint to a message, if the value may be a literal of the type that literals have by
/// default.
pub(crate) fn with_literal_hint(text: String, expected: &str, found: &str) -> String {
    const NUMBERS: [&str; 13] = [
        "i8", "i16", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize", "f32", "f64",
    ];
    let hint = match (found, expected) {
        ("i32", expected) if NUMBERS.contains(&expected) => {
            "an integer without a suffix is an `i32`: write `1_u64` for a `u64`"
        }
        ("f64", "f32") => "a number without a suffix is an `f64`: write `1.0_f32`",
        ("&str", "alloc::string::String") => "a text in quotes is a `&str`: write `\"a\".to_owned()`",
        _ => return text,
    };
    format!("{text} ({hint})")
}

/// A parent was refused, and the old one stays: see
/// [`Greenlet::set_parent`](crate::Greenlet::set_parent).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, ParentError};
/// let child = Greenlet::new(|(): ()| Ok(()));
/// let error: ParentError = child.set_parent(&child).unwrap_err();
/// assert!(error.is_cycle());
/// ```
#[derive(Debug)]
pub struct ParentError(ParentErrorKind);

#[derive(Debug, Clone, Copy)]
enum ParentErrorKind {
    Cycle,
    Main,
    AwaitInProgress,
}

impl ParentError {
    pub(crate) const CYCLE: ParentError = ParentError(ParentErrorKind::Cycle);
    pub(crate) const MAIN: ParentError = ParentError(ParentErrorKind::Main);
    pub(crate) const AWAITING: ParentError = ParentError(ParentErrorKind::AwaitInProgress);

    /// Returns `true` if the new parent is the greenlet itself or one of its descendants.
    pub fn is_cycle(&self) -> bool {
        matches!(self.0, ParentErrorKind::Cycle)
    }

    /// Returns `true` if the greenlet is the main one, which has no parent.
    pub fn is_main(&self) -> bool {
        matches!(self.0, ParentErrorKind::Main)
    }

    /// Returns `true` if the old or the new parent awaits a future. Its children stay with it
    /// meanwhile, because none may end into it.
    pub fn is_awaiting(&self) -> bool {
        matches!(self.0, ParentErrorKind::AwaitInProgress)
    }
}

impl fmt::Display for ParentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ParentErrorKind::Cycle => {
                "cyclic parent chain: the new parent is the greenlet itself or one of its descendants"
            }
            ParentErrorKind::Main => "the main greenlet of a thread cannot have a parent",
            ParentErrorKind::AwaitInProgress => {
                "the old or the new parent waits for a future; change the parent when it no longer does"
            }
        })
    }
}

impl std::error::Error for ParentError {}

/// The greenlet awaits a future, and only its driver may resume it.
///
/// The error owns the value that was sent. [`Greenlet::is_awaiting`](crate::Greenlet::is_awaiting)
/// is the check in advance.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{AwaitInProgress, Greenlet, Value};
/// /// Sends a job, or returns it if the worker awaits something.
/// fn offer(worker: &Greenlet, job: u32) -> anyhow::Result<Option<Value>> {
///     match worker.switch::<()>(job) {
///         Ok(()) => Ok(None),
///         Err(error) => Ok(error.downcast::<AwaitInProgress>()?.into_value()),
///     }
/// }
/// # assert!(offer(&Greenlet::new(|_: u32| Ok(())), 1).unwrap().is_none());
/// ```
#[derive(Debug)]
pub struct AwaitInProgress {
    greenlet: String,
    value: Carried,
}

impl AwaitInProgress {
    pub(crate) fn new(greenlet: String, value: Option<Value>) -> AwaitInProgress {
        AwaitInProgress {
            greenlet,
            value: value.map(ThreadBound::new),
        }
    }
}

carries_value!(AwaitInProgress);

impl fmt::Display for AwaitInProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} waits for a future; only its driver can resume it, when it is polled",
            self.greenlet
        )
    }
}

/// A destructor that runs because of a panic tried to switch or to await.
///
/// Rust counts panics by thread: in the other greenlet [`std::thread::panicking`] would be `true`,
/// and the locks that it releases would be poisoned. The error owns the value that was sent.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::panic::{AssertUnwindSafe, catch_unwind};
/// use greenlet::{Greenlet, Unwinding};
///
/// struct Guard(Greenlet);
/// impl Drop for Guard {
///     fn drop(&mut self) {
///         assert!(self.0.switch::<()>(()).unwrap_err().is::<Unwinding>());
///     }
/// }
/// let guard = Guard(Greenlet::new(|(): ()| Ok(())));
/// let _ = catch_unwind(AssertUnwindSafe(|| {
///     let _guard = guard;
///     panic!("its destructor runs because of this");
/// }));
/// ```
#[derive(Debug)]
pub struct Unwinding {
    value: Carried,
}

impl Unwinding {
    pub(crate) fn new(value: Option<Value>) -> Unwinding {
        Unwinding {
            value: value.map(ThreadBound::new),
        }
    }
}

carries_value!(Unwinding);

impl fmt::Display for Unwinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "cannot switch while a panic unwinds this thread; check `std::thread::panicking()` in destructors \
             that switch or await",
        )
    }
}

/// A switch was tried inside a [`no_switch`](crate::no_switch) section. The error owns the value
/// that was sent.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, SwitchForbidden, no_switch};
/// let child = Greenlet::new(|n: i32| Ok(n + 1));
/// let error = no_switch(|| child.switch::<i32>(5)).unwrap_err();
/// let forbidden = error.downcast::<SwitchForbidden>().unwrap();
/// assert_eq!(forbidden.into_value().unwrap().downcast::<i32>().unwrap(), 5);
/// ```
#[derive(Debug)]
pub struct SwitchForbidden {
    since: &'static Location<'static>,
    value: Carried,
}

impl SwitchForbidden {
    pub(crate) fn new(since: &'static Location<'static>, value: Option<Value>) -> SwitchForbidden {
        SwitchForbidden {
            since,
            value: value.map(ThreadBound::new),
        }
    }

    /// Returns the place in the source where the outermost section began.
    pub fn since(&self) -> &'static Location<'static> {
        self.since
    }
}

carries_value!(SwitchForbidden);

impl fmt::Display for SwitchForbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "switching is forbidden in the `no_switch` section that began at {}; leave the section first",
            self.since
        )
    }
}

/// A switch was tried in the destructor of a thread-local, after the end of the thread, or
/// `std::process::exit`, had marked the thread's greenlets as dead.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{ThreadExiting, getcurrent};
/// struct Late;
/// impl Drop for Late {
///     fn drop(&mut self) {
///         assert!(getcurrent().switch::<()>(()).unwrap_err().is::<ThreadExiting>());
///     }
/// }
/// thread_local!(static LATE: Late = const { Late });
///
/// std::thread::spawn(|| {
///     LATE.with(|_| ()); // before the first greenlet of the thread, so it is destroyed later
///     getcurrent();
/// });
/// ```
#[derive(Debug)]
pub struct ThreadExiting {
    value: Carried,
}

impl ThreadExiting {
    pub(crate) fn new(value: Option<Value>) -> ThreadExiting {
        ThreadExiting {
            value: value.map(ThreadBound::new),
        }
    }
}

carries_value!(ThreadExiting);

impl fmt::Display for ThreadExiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot switch while the thread ends; end its greenlets before, with `run_to_end`")
    }
}

/// A greenlet has no backtrace: see [`Greenlet::backtrace`](crate::Greenlet::backtrace).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::Greenlet;
/// let pending = Greenlet::new(|(): ()| Ok(()));
/// assert!(pending.backtrace().unwrap_err().is_pending());
/// pending.switch::<()>(())?;
/// assert!(pending.backtrace().unwrap_err().is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct NoBacktrace(NoBacktraceKind);

#[derive(Debug, Clone, Copy)]
enum NoBacktraceKind {
    Pending,
    Dead,
    StackTooFull,
    Failed,
}

impl NoBacktrace {
    pub(crate) const PENDING: NoBacktrace = NoBacktrace(NoBacktraceKind::Pending);
    pub(crate) const DEAD: NoBacktrace = NoBacktrace(NoBacktraceKind::Dead);
    pub(crate) const STACK_TOO_FULL: NoBacktrace = NoBacktrace(NoBacktraceKind::StackTooFull);
    pub(crate) const FAILED: NoBacktrace = NoBacktrace(NoBacktraceKind::Failed);

    /// Returns `true` if the greenlet has not started. It has no stack yet.
    pub fn is_pending(&self) -> bool {
        matches!(self.0, NoBacktraceKind::Pending)
    }

    /// Returns `true` if the greenlet has ended. It has no stack any more.
    pub fn is_dead(&self) -> bool {
        matches!(self.0, NoBacktraceKind::Dead)
    }

    /// Returns `true` if the greenlet's stack has too little room for taking a backtrace.
    pub fn is_stack_too_full(&self) -> bool {
        matches!(self.0, NoBacktraceKind::StackTooFull)
    }
}

impl fmt::Display for NoBacktrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            NoBacktraceKind::Pending => "no backtrace: the greenlet has not started, so it has no stack yet",
            NoBacktraceKind::Dead => "no backtrace: the greenlet has ended, and its stack is gone",
            NoBacktraceKind::StackTooFull => {
                "no backtrace: too little is left of the greenlet's stack to take one there; ask for a larger stack"
            }
            NoBacktraceKind::Failed => "no backtrace: taking it panicked",
        })
    }
}

impl std::error::Error for NoBacktrace {}
