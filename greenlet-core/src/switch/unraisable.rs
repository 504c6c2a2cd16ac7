//! Reports of errors and panics that no greenlet can receive, and the hook that receives the
//! reports.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;

use anyhow::Error;
use parking_lot::RwLock;

use crate::node::handle::Greenlet;
use crate::switch::unwind;

/// An error or a panic that no greenlet can receive: Python's "unraisable exception".
///
/// When a greenlet's last handle is dropped, its clean-up may fail, and no code is there that could
/// receive the error. So the [hook](set_unraisable_hook) receives a report of it. The same is true
/// of an error or panic that is sent to a greenlet while it is inside such a drop.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, set_unraisable_hook, take_unraisable_hook};
///
/// set_unraisable_hook(|report| {
///     assert!(report.error().unwrap().to_string().contains("disk full"));
///     eprintln!("lost: {report}");
/// });
/// let stubborn = Greenlet::new(|(): ()| -> anyhow::Result<()> {
///     let asked = getparent().unwrap().switch::<()>(());
///     assert!(asked.is_err());
///     anyhow::bail!("disk full while cleaning up")
/// });
/// stubborn.switch::<()>(())?;
/// drop(stubborn);
/// take_unraisable_hook();
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct Unraisable {
    greenlet: Greenlet,
    /// Where the generator was created, if this is about one.
    generator: Option<&'static Location<'static>>,
    what: What,
}

#[derive(Debug)]
enum What {
    Error(Error),
    /// In a `RefCell`, so that a hook can take it.
    Panic(RefCell<Option<Box<dyn Any + Send>>>),
    RefusedToEnd,
    /// Both stages of the greenlet's end have come, and it is in its clean-up, which ends another
    /// greenlet. That one has switched away.
    LeftInCleanUp,
    /// The greenlet has ended, and its stack could not be unwound.
    LeftStack,
    /// How many greenlets, and the text about them.
    LeftSuspended(usize, String),
}

/// How many greenlets a report names at most.
const NAMED: usize = 8;

impl Unraisable {
    pub(crate) fn of_error(greenlet: Greenlet, error: Error) -> Unraisable {
        Unraisable {
            greenlet,
            generator: None,
            what: What::Error(error),
        }
    }

    pub(crate) fn of_panic(greenlet: Greenlet, payload: Box<dyn Any + Send>) -> Unraisable {
        Unraisable {
            greenlet,
            generator: None,
            what: What::Panic(RefCell::new(Some(payload))),
        }
    }

    pub(crate) fn of_refusal(greenlet: Greenlet) -> Unraisable {
        let what = match greenlet.inner().status.is_ender() {
            true => What::LeftInCleanUp,
            false => What::RefusedToEnd,
        };
        Unraisable {
            greenlet,
            generator: None,
            what,
        }
    }

    pub(crate) fn of_left_stack(greenlet: Greenlet) -> Unraisable {
        Unraisable {
            greenlet,
            generator: None,
            what: What::LeftStack,
        }
    }

    /// Creates one report of all greenlets that are left suspended, except those that have refused
    /// to end, which have a report of their own.
    pub(crate) fn of_left(all: &[Greenlet]) -> Option<Unraisable> {
        let is_unreported = |greenlet: &&Greenlet| !greenlet.inner().status.is_abandoned();
        let left: Vec<&Greenlet> = all.iter().filter(is_unreported).collect();
        let named = left.iter().take(NAMED).map(|greenlet| format!("{greenlet:?}"));
        let mut text = named.collect::<Vec<_>>().join(", ");
        if left.len() > NAMED {
            text += &format!(", and {} more", left.len() - NAMED);
        }
        let what = What::LeftSuspended(left.len(), text);
        let greenlet = Greenlet::clone(left.first()?);
        Some(Unraisable {
            greenlet,
            generator: None,
            what,
        })
    }

    /// Turns this into the report of a generator that the greenlet ended.
    pub(crate) fn in_generator(self, created_at: &'static Location<'static>) -> Unraisable {
        Unraisable {
            generator: Some(created_at),
            ..self
        }
    }

    /// Returns the greenlet that was being ended, or that ended a generator, or the first of those
    /// that were left suspended.
    pub fn greenlet(&self) -> &Greenlet {
        &self.greenlet
    }

    /// Returns the error, if this reports an error.
    pub fn error(&self) -> Option<&Error> {
        match &self.what {
            What::Error(error) => Some(error),
            _ => None,
        }
    }

    /// Takes the payload of the panic, if this reports a panic. The second call returns `None`.
    pub fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        match &self.what {
            What::Panic(payload) => payload.borrow_mut().take(),
            _ => None,
        }
    }

    /// Returns how many greenlets were still suspended when their thread ended, or 0 in another
    /// report.
    ///
    /// They are dead, none of their code runs, and their stacks are leaked. There is one report for
    /// each thread, except the first thread of the process. [`run_to_end`](crate::run_to_end) ends
    /// the greenlets in time.
    pub fn left_suspended(&self) -> usize {
        match &self.what {
            What::LeftSuspended(count, _) => *count,
            _ => 0,
        }
    }

    /// Returns where the generator was created, if this is about a generator that was dropped.
    pub fn generator(&self) -> Option<&'static Location<'static>> {
        self.generator
    }

    /// Returns `true` if the greenlet, or the generator, caught the forced unwind of its stack and
    /// did not end. It stays suspended for ever, and its stack is leaked.
    ///
    /// This is also true of a greenlet whose clean-up ends another greenlet, and that one switched
    /// away instead of ending.
    ///
    /// With `panic = "abort"` no stack can be unwound: then this is also true of a greenlet that did
    /// not return its exit, or that called [`raise`](crate::raise).
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.what,
            What::RefusedToEnd | What::LeftInCleanUp | What::LeftStack
        )
    }
}

impl fmt::Display for Unraisable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut label = self.greenlet.inner().label();
        if let Some(created_at) = self.generator {
            label = format!("a generator created at {created_at}, in {label},");
        }
        match &self.what {
            What::Error(error) => write!(
                f,
                "{label} failed while it was being ended, and the error was ignored: {error:#}"
            ),
            What::Panic(payload) => {
                write!(f, "{label} was ended, and a panic was ignored")?;
                // `try_borrow`, because a hook may print the report while it drops the payload.
                let payload = payload.try_borrow();
                match payload
                    .as_ref()
                    .ok()
                    .and_then(|payload| message_of(payload.as_deref()?))
                {
                    Some(message) => write!(f, ": {message}"),
                    None => Ok(()),
                }
            }
            What::LeftInCleanUp => write!(
                f,
                "{label} is left suspended in its clean-up, and its stack is leaked: it was ending another \
                 greenlet, which switched away"
            ),
            What::RefusedToEnd if cfg!(panic = "abort") => write!(
                f,
                "{label} did not return its exit, and cannot be unwound, because the program is built with \
                 `panic = \"abort\"`; it is left suspended, and its stack is leaked; return the `Err` of `switch`"
            ),
            What::RefusedToEnd => write!(
                f,
                "{label} caught its forced unwinding (a `catch_unwind` that does not resume it?); it is left suspended, and its stack is leaked; use `catch` instead"
            ),
            What::LeftStack => write!(
                f,
                "{label} raised an error, and its stack cannot be unwound, because the program is built with \
                 `panic = \"abort\"`; its stack is leaked; return the error instead"
            ),
            What::LeftSuspended(_, greenlets) => write!(
                f,
                "still suspended when their thread ended, so their stacks are leaked: {greenlets}; end them before, \
                 with `run_to_end`"
            ),
        }
    }
}

/// Returns the message of a panic, if its payload is a text.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

type Hook = Arc<dyn Fn(&Unraisable) + Send + Sync>;

static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

/// Installs the hook that receives [reports](Unraisable), for all threads of the process.
///
/// Without a hook, each report is a line on standard error, as in Python.
///
/// A panic of the hook is caught and dropped: destructors and the last frames of greenlets call the
/// hook, where a panic would abort the process. The panic hook has printed it then.
pub fn set_unraisable_hook(hook: impl Fn(&Unraisable) + Send + Sync + 'static) {
    replace_hook(Some(Arc::new(hook)));
}

/// Removes the hook that [`set_unraisable_hook`] installed.
pub fn take_unraisable_hook() {
    replace_hook(None);
}

fn replace_hook(hook: Option<Hook>) {
    let before = mem::replace(&mut *HOOK.write(), hook);
    // CAUTION: runs arbitrary user code (destructors), so the lock is released.
    drop(before);
}

/// Passes a report to the hook, and drops it. Nothing unwinds out of it.
///
/// # Errors
///
/// Returns the payload of an end that reached the running greenlet meanwhile.
pub(crate) fn call(report: Unraisable) -> std::thread::Result<()> {
    // CAUTION: runs arbitrary user code.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // The lock is released before the hook runs.
        let hook = HOOK.read().clone();
        match hook {
            Some(hook) => hook(&report),
            None => print(&report),
        }
    }));
    let outcome = outcome.or_else(unwind::discard_payload);
    outcome.and(unwind::discard(report))
}

/// Writes a report as a line to standard error.
fn print(report: &Unraisable) {
    // First the text, since it comes from user code, and standard error is locked while it is
    // written to.
    let text = catch_unwind(AssertUnwindSafe(|| report.to_string()));
    // `eprintln!` panics if standard error cannot be written to.
    let _ = match text {
        Ok(text) => writeln!(io::stderr(), "greenlet: {text}"),
        Err(payload) => {
            let label = report.greenlet.inner().label();
            let _ = writeln!(
                io::stderr(),
                "greenlet: {label} was ended, and an error was ignored whose text cannot be shown, because its `Display` panicked"
            );
            std::panic::resume_unwind(payload) // into `call`
        }
    };
}
