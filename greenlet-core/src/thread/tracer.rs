//! The tracer of a thread, and what it is told. [`settrace`](crate::settrace) installs one.

#![forbid(unsafe_code)]

use std::fmt;
use std::rc::Rc;

use anyhow::Result;

use crate::node::handle::Greenlet;

/// What a switch delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TraceKind {
    /// A value. Also a [`GreenletExit`](crate::GreenletExit) that ended a greenlet and became its
    /// result.
    Switch,
    /// An error or a panic.
    Throw,
}

/// One switch, as a tracer sees it. The target is current, and has received nothing yet.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::{cell::Cell, rc::Rc};
/// use greenlet::{Greenlet, Tracer, settrace};
///
/// let starts = Rc::new(Cell::new(0));
/// let counted = starts.clone();
/// settrace(Some(Tracer::new(move |event| {
///     counted.set(counted.get() + u32::from(event.is_start));
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
    /// The greenlet that switched away. It is dead if it has finished.
    pub origin: Greenlet,
    /// The greenlet that was switched to. It is current.
    pub target: Greenlet,
    /// Whether this switch starts the target. Its function begins after the tracer has returned.
    pub is_start: bool,
}

/// A function that is told of every switch of its thread: see [`settrace`](crate::settrace).
///
/// Clones are the same tracer, and compare equal.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Tracer, settrace};
/// let tracer = Tracer::new(|event| {
///     println!("{:?} from {:?} to {:?}", event.kind, event.origin, event.target);
///     Ok(())
/// });
/// settrace(Some(tracer.clone()));
/// assert_eq!(settrace(None), Some(tracer));
/// ```
#[derive(Clone)]
pub struct Tracer(Rc<Hook>);

type Hook = dyn Fn(&TraceEvent) -> Result<()>;

impl Tracer {
    /// Creates a tracer that calls `hook`.
    ///
    /// If `hook` returns an error or panics, the tracer is removed. The target then receives the
    /// error or panic in place of what the switch delivers, as in Python's greenlet.
    pub fn new(hook: impl Fn(&TraceEvent) -> Result<()> + 'static) -> Tracer {
        Tracer(Rc::new(hook))
    }

    /// Calls the tracer, so that another tracer can pass events on to it.
    ///
    /// # Errors
    ///
    /// Returns the tracer's error. Return it from the calling tracer, to be treated alike.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::{cell::RefCell, rc::Rc};
    /// use greenlet::{Greenlet, Tracer, gettrace, settrace};
    ///
    /// let log = Rc::new(RefCell::new(Vec::new()));
    /// for name in ["first", "second"] {
    ///     let (log, before) = (log.clone(), gettrace());
    ///     settrace(Some(Tracer::new(move |event| {
    ///         log.borrow_mut().push(name);
    ///         before.as_ref().map_or(Ok(()), |before| before.call(event))
    ///     })));
    /// }
    /// Greenlet::new(|(): ()| Ok(())).switch::<()>(())?; // a start and an end
    /// settrace(None);
    /// assert_eq!(*log.borrow(), ["second", "first", "second", "first"]);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn call(&self, event: &TraceEvent) -> Result<()> {
        // CAUTION: runs arbitrary user code.
        (self.0)(event)
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
