//! Reports of what cannot be raised anywhere: errors of greenlets that were ended because nobody had a
//! handle of them any more.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::panic::Location;
use std::sync::Arc;

use anyhow::Error;
use parking_lot::RwLock;

use crate::node::handle::Greenlet;

/// An error or a panic that no greenlet can receive: Python's "unraisable exception".
///
/// A greenlet that is ended because its last handle was dropped cannot return an error to anything.
/// If its clean-up fails, the [hook](set_unraisable_hook) receives the report. The same is true of
/// an error or panic that is sent to a greenlet while it is inside such a drop.
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
    /// Where the generator was created, if it is about one.
    generator: Option<&'static Location<'static>>,
    what: What,
}

#[derive(Debug)]
enum What {
    Error(Error),
    /// `RefCell`, so that a hook can take it.
    Panic(RefCell<Option<Box<dyn Any + Send>>>),
    RefusedToEnd,
    /// How many greenlets, and the text about them.
    LeftSuspended(usize, String),
}

/// How many greenlets a report names.
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
        Unraisable {
            greenlet,
            generator: None,
            what: What::RefusedToEnd,
        }
    }

    /// Creates one report for all that are left suspended. Those that refused to end were reported
    /// then.
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

    /// Makes this the report of a generator that the greenlet ended.
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

    /// Returns how many greenlets were still suspended when their thread ended, or 0 in another report.
    ///
    /// They are dead, none of their code runs, and their stacks are leaked. It is one report for all of a
    /// thread; the first thread of a process makes none. [`run_to_end`](crate::run_to_end) ends them in
    /// time.
    pub fn left_suspended(&self) -> usize {
        match &self.what {
            What::LeftSuspended(count, _) => *count,
            _ => 0,
        }
    }

    /// Returns where the generator was created, if it is about a generator that was dropped.
    pub fn generator(&self) -> Option<&'static Location<'static>> {
        self.generator
    }

    /// Returns `true` if the greenlet, or the generator, caught the unwinding of its stack and did not end. It stays
    /// suspended for good, and its stack is leaked.
    pub fn is_refusal(&self) -> bool {
        matches!(self.what, What::RefusedToEnd)
    }
}

impl fmt::Display for Unraisable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut who = self.greenlet.inner().label();
        if let Some(created_at) = self.generator {
            who = format!("a generator created at {created_at}, in {who},");
        }
        match &self.what {
            What::Error(error) => write!(f, "{who} was ended, and this was ignored: {error:#}"),
            What::Panic(_) => write!(f, "{who} was ended, and a panic was ignored"),
            What::RefusedToEnd => write!(
                f,
                "{who} stopped its own end; it is left suspended, and its stack is leaked"
            ),
            What::LeftSuspended(_, greenlets) => write!(
                f,
                "still suspended when their thread ended, so their stacks are leaked: {greenlets}; end them before, \
                 with `run_to_end`"
            ),
        }
    }
}

type Hook = Arc<dyn Fn(&Unraisable) + Send + Sync>;

static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

/// Installs the function that receives errors which no greenlet can receive, for all threads of the
/// process.
///
/// Without a hook they are written to standard error, one line each, as in Python.
///
/// # Panics
///
/// The hook must not panic. It is called from destructors and from the last frames of greenlets,
/// where a panic aborts the process.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{set_unraisable_hook, take_unraisable_hook};
///
/// set_unraisable_hook(|report| eprintln!("{:?}: {report}", report.greenlet()));
/// take_unraisable_hook();
/// ```
pub fn set_unraisable_hook(hook: impl Fn(&Unraisable) + Send + Sync + 'static) {
    *HOOK.write() = Some(Arc::new(hook));
}

/// Removes the hook that [`set_unraisable_hook`] installed.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{set_unraisable_hook, take_unraisable_hook};
///
/// set_unraisable_hook(|_| {}); // ignore them
/// take_unraisable_hook(); // print them again
/// ```
pub fn take_unraisable_hook() {
    *HOOK.write() = None;
}

/// Tells the hook.
pub(crate) fn call(report: &Unraisable) {
    let hook = HOOK.read().clone();
    match hook {
        // CAUTION: runs foreign code.
        Some(hook) => hook(report),
        // `eprintln!` panics if standard error cannot be written to.
        None => {
            let _ = writeln!(io::stderr(), "greenlet: {report}");
        }
    }
}
