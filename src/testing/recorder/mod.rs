//! Records the switches of a thread, for tests and for pictures.
//!
//! [`record`] runs a closure and returns a recording: every switch, throw, start and end of a
//! greenlet, with names and source lines. A test compares it with the expected events, and prints
//! the difference. People read it as text, as a sequence diagram ([`Recording::to_mermaid`]) or on
//! a time line ([`Recording::to_chrome_trace`]).
//!
//! ```
//! use greenlet::{Greenlet, getparent, record};
//!
//! let (_, recording) = record(|| {
//!     let ping = Greenlet::builder().name("ping").build(|(): ()| {
//!         getparent().unwrap().switch::<()>(())?;
//!         Ok(())
//!     });
//!     ping.switch::<()>(()).unwrap();
//!     ping.switch::<()>(()).unwrap();
//! });
//! recording.assert_eq(&[
//!     "start main -> ping",
//!     "switch ping -> main",
//!     "switch main -> ping",
//!     "end ping -> main",
//! ]);
//! ```
//!
//! `docs/testing.md` shows how to test a scheduler with it.
//!
//! The recorder is a tracer ([`settrace`]). It sees the events of a tracer, and costs as much. A
//! tracer that was installed before is paused while the recorder records. The recorder keeps names
//! and no handles, so greenlets end as they do without it.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use greenlet_core::{Greenlet, TraceEvent, TraceKind, Tracer, getcurrent, settrace};

use crate::text::one_line;

mod chrome;
mod diff;
mod mermaid;
mod snapshot;

pub use diff::Difference;

/// Runs a closure. Returns its output, and the recording of this thread's switches meanwhile.
///
/// If the closure panics, the recording is lost, and the previous tracer is restored.
///
/// # Examples
///
/// See the [module](self).
pub fn record<T>(run: impl FnOnce() -> T) -> (T, Recording) {
    let recorder = Recorder::start();
    let value = run();
    (value, recorder.finish())
}

/// Adds a line of text to the active recording of this thread. Does nothing without one.
///
/// # Examples
///
/// ```
/// use greenlet::testing::recorder::{note, record};
///
/// let (_, recording) = record(|| note("got 1"));
/// recording.assert_eq(&["note main: got 1"]);
/// ```
pub fn note(text: impl Into<String>) {
    let text = text.into();
    // There is no recording once the thread-locals of the thread are being destroyed.
    let log = ACTIVE.try_with(|active| active.borrow().last().map(|active| Rc::clone(&active.log)));
    if let Ok(Some(log)) = log {
        log.borrow_mut().note(&getcurrent(), text);
    }
}

thread_local! {
    /// The active recordings, the innermost last.
    static ACTIVE: RefCell<Vec<Active>> = const { RefCell::new(Vec::new()) };
}

struct Active {
    log: Rc<RefCell<Log>>,
    /// The tracer that was installed when it started.
    before: Option<Tracer>,
}

/// An active recording, for code where the closure of [`record`] does not fit.
///
/// Recorders nest. The one that was started last gets the events. They may finish in any order.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, testing::recorder::Recorder};
///
/// let recorder = Recorder::start();
/// let child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
/// child.switch::<()>(())?;
/// println!("{}", recorder.finish());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a recorder that is dropped at once records nothing"]
pub struct Recorder {
    log: Rc<RefCell<Log>>,
}

impl Recorder {
    /// Starts recording the switches of this thread.
    pub fn start() -> Recorder {
        let log = Rc::new(RefCell::new(Log::new()));
        let written = Rc::clone(&log);
        let before = settrace(Some(Tracer::new(move |event| {
            written.borrow_mut().transfer(event);
            Ok(())
        })));
        let active = Active {
            log: Rc::clone(&log),
            before,
        };
        ACTIVE.with_borrow_mut(|all| all.push(active));
        Recorder { log }
    }

    /// Stops recording, and returns the recording.
    pub fn finish(self) -> Recording {
        let mut log = self.log.replace(Log::new());
        log.names.shrink_to_fit();
        Recording {
            first: log.first,
            events: log.events,
            unnamed: log.unnamed,
            length: log.since.elapsed(),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let removed = ACTIVE.try_with(|active| {
            let mut active = active.borrow_mut();
            let index = active
                .iter()
                .position(|other| Rc::ptr_eq(&other.log, &self.log))?;
            let mut removed = active.remove(index);
            match active.get_mut(index) {
                None => Some((Some(removed), None)),
                // A later recorder records. It restores what this one would restore now.
                Some(next) => Some((None, std::mem::replace(&mut next.before, removed.before.take()))),
            }
        });
        // CAUTION: dropping a tracer runs arbitrary user code.
        if let Ok(Some((Some(innermost), _))) = removed {
            settrace(innermost.before);
        }
    }
}

/// The events that a recorder has written so far.
#[derive(Debug)]
struct Log {
    since: Instant,
    /// The greenlet that ran when the recording began.
    first: Arc<str>,
    /// By the greenlets' ids.
    names: HashMap<u64, Arc<str>>,
    taken: HashSet<Arc<str>>,
    /// The names that greenlets without a name have got so far.
    unnamed: HashSet<Arc<str>>,
    events: Vec<Event>,
}

impl Log {
    fn new() -> Log {
        let mut log = Log {
            since: Instant::now(),
            first: "".into(),
            names: HashMap::new(),
            taken: HashSet::new(),
            unnamed: HashSet::new(),
            events: Vec::new(),
        };
        log.first = log.name(&getcurrent());
        log
    }

    /// Returns the name of a greenlet in this recording. Further greenlets of the same name get a
    /// number. Greenlets without a name are `g1`, `g2` ... in order of appearance, so the recording
    /// does not depend on earlier code.
    fn name(&mut self, greenlet: &Greenlet) -> Arc<str> {
        if let Some(name) = self.names.get(&greenlet.id()) {
            return Arc::clone(name);
        }
        let mut name = match greenlet.name() {
            Some(name) => name.to_owned(),
            None => format!("g{}", self.unnamed.len() + 1),
        };
        let mut number = 1;
        while self.taken.contains(name.as_str()) {
            number += 1;
            name = format!("{}#{number}", greenlet.name().unwrap_or("g"));
        }
        let name: Arc<str> = name.into();
        if greenlet.name().is_none() {
            self.unnamed.insert(Arc::clone(&name));
        }
        self.taken.insert(Arc::clone(&name));
        self.names.insert(greenlet.id(), Arc::clone(&name));
        name
    }

    fn transfer(&mut self, event: &TraceEvent) {
        let is_throw = event.kind == TraceKind::Throw;
        let kind = if event.is_start {
            EventKind::Start
        } else if event.origin.is_dead() {
            EventKind::End
        } else if is_throw {
            EventKind::Throw
        } else {
            EventKind::Switch
        };
        let event = Event {
            kind,
            is_throw,
            origin: self.name(&event.origin),
            target: self.name(&event.target),
            place: event.origin.suspended_at(),
            text: None,
            time: self.since.elapsed(),
        };
        self.events.push(event);
    }

    fn note(&mut self, current: &Greenlet, text: String) {
        let name = self.name(current);
        let event = Event {
            kind: EventKind::Note,
            is_throw: false,
            origin: Arc::clone(&name),
            target: name,
            place: None,
            text: Some(text),
            time: self.since.elapsed(),
        };
        self.events.push(event);
    }
}

/// The kind of an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A switch or throw to a pending greenlet, which starts.
    Start,
    /// A value was sent to a suspended greenlet.
    Switch,
    /// An error was thrown at a suspended greenlet.
    Throw,
    /// A greenlet ended, and the target got its outcome.
    End,
    /// A [`note`].
    Note,
}

impl EventKind {
    /// Returns the word that the text of a recording uses: `start`, `switch`, `throw`, `end` or
    /// `note`.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Start => "start",
            EventKind::Switch => "switch",
            EventKind::Throw => "throw",
            EventKind::End => "end",
            EventKind::Note => "note",
        }
    }
}

/// A recorded event.
///
/// Tests compare its text: `start main -> worker`, `switch worker -> main`, `throw main -> worker`,
/// `end worker -> main`, `note worker: text`. A start or an end with an error or a panic instead of
/// a value is marked: `end worker -> main (throw)`.
///
/// # Examples
///
/// ```
/// use greenlet::Greenlet;
/// use greenlet::testing::recorder::{EventKind, record};
///
/// let (_, recording) = record(|| {
///     Greenlet::builder().name("child").build(|(): ()| Ok(())).switch::<()>(())
/// });
/// let start = &recording.events()[0];
/// assert_eq!((start.kind(), start.origin(), start.target()), (EventKind::Start, "main", "child"));
/// assert_eq!(start.place().unwrap().file(), file!());
/// ```
#[derive(Clone, Debug)]
pub struct Event {
    kind: EventKind,
    is_throw: bool,
    origin: Arc<str>,
    target: Arc<str>,
    place: Option<&'static Location<'static>>,
    text: Option<String>,
    time: Duration,
}

impl Event {
    /// Returns the kind of the event.
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// Returns `true` if the event delivered an error or a panic, and not a value.
    pub fn is_throw(&self) -> bool {
        self.is_throw
    }

    /// Returns the name of the greenlet that control left.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the name of the greenlet that control reached.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Returns the place where the origin switched or threw. `None` if it has ended or switched to
    /// itself.
    ///
    /// While a greenlet drops the last handle of another, and that one ends, the place is inside
    /// the library.
    pub fn place(&self) -> Option<&'static Location<'static>> {
        self.place
    }

    /// Returns the text of a note.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Returns the time of the event since the recording began.
    pub fn time(&self) -> Duration {
        self.time
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event {
            kind, origin, target, ..
        } = self;
        let (origin, target) = (one_line(origin), one_line(target));
        if let Some(text) = &self.text {
            return write!(f, "{} {origin}: {}", kind.as_str(), one_line(text));
        }
        write!(f, "{} {origin} -> {target}", kind.as_str())?;
        if self.is_throw && *kind != EventKind::Throw {
            f.write_str(" (throw)")?;
        }
        Ok(())
    }
}

/// The recorded events, in order: see [`record`].
///
/// It prints one event a line, with the source line where the origin switched.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, record};
///
/// let (_, recording) = record(|| {
///     Greenlet::builder().name("child").build(|(): ()| Ok(())).switch::<()>(())
/// });
/// assert_eq!(recording.names(), ["main", "child"]);
/// println!("{recording}"); // start main -> child  at src/main.rs:4 ...
/// ```
#[derive(Clone, Debug)]
pub struct Recording {
    first: Arc<str>,
    events: Vec<Event>,
    /// The names of greenlets that have none of their own.
    unnamed: HashSet<Arc<str>>,
    length: Duration,
}

impl Recording {
    /// Returns the events, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Returns the name of the greenlet that ran when the recording began.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// Returns the duration of the recording.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Returns the names of all greenlets in the recording, in order of their first appearance.
    pub fn names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        std::iter::once(self.first())
            .chain(
                self.events
                    .iter()
                    .flat_map(|event| [event.origin(), event.target()]),
            )
            .filter(|name| seen.insert(*name))
            .collect()
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.events.iter().map(Event::to_string).collect();
        let width = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
        for (event, text) in self.events.iter().zip(texts) {
            match event.place {
                Some(place) => writeln!(f, "{text:width$}  at {}:{}", place.file(), place.line())?,
                None => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}
