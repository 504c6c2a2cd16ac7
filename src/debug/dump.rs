//! Prints the tree of a thread and the backtraces of its greenlets as one text.

#![forbid(unsafe_code)]

use std::backtrace::Backtrace;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use greenlet_core::{Greenlet, NoBacktrace, ThreadId, greenlets, run_on_all_threads, run_pending_broadcasts};

use super::tree::{Tree, name_of};

/// Captures the greenlets of this thread: the [`tree`](crate::tree), and a backtrace of each
/// greenlet that has a stack.
///
/// It does not change any greenlet. Capturing needs about 10 KiB of stack. Printing resolves the
/// names, which needs more stack and takes milliseconds.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, dump, getparent};
///
/// fn waits_for_news() -> anyhow::Result<()> {
///     getparent().unwrap().switch(())
/// }
/// let reader = Greenlet::builder().name("reader").build(|(): ()| waits_for_news());
/// reader.switch::<()>(())?;
/// let text = dump().to_string();
/// assert!(text.contains("reader") && text.contains("waits_for_news"));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn dump() -> Dump {
    let greenlets = greenlets();
    let thread = std::thread::current();
    Dump {
        thread: match thread.name() {
            Some(name) => format!("thread '{name}' ({})", ThreadId::current()),
            None => format!("thread {}", ThreadId::current()),
        },
        tree: Tree::of(&greenlets),
        traces: greenlets
            .iter()
            .filter(|greenlet| greenlet.is_active())
            .map(Trace::of)
            .collect(),
    }
}

/// Captures the greenlets of all threads, as [`dump`] does for one, and returns the text.
///
/// Only a greenlet's own thread can inspect it, so each thread writes its part at its next switch.
/// After `limit`, the threads that have not switched are listed by their ids only: they are blocked
/// or busy. `tools/greenlet-gdb.py` shows the greenlets of those, too. A loop that seldom switches
/// can call [`run_pending_broadcasts`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenlet::{dump_all_threads, getcurrent};
///
/// let _main = getcurrent();
/// println!("{}", dump_all_threads(Duration::from_millis(100)));
/// ```
pub fn dump_all_threads(limit: Duration) -> String {
    let parts = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&parts);
    let broadcast = run_on_all_threads(move || {
        let part = dump();
        written.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    });
    run_pending_broadcasts(); // this thread may be one of them
    let silent = broadcast.wait(limit);
    let parts = std::mem::take(&mut *parts.lock().unwrap_or_else(PoisonError::into_inner));
    let mut parts: Vec<String> = parts.iter().map(Dump::to_string).collect();
    for thread in silent {
        parts.push(format!(
            "thread {thread} has greenlets, and has not switched for {limit:?}: it is blocked or busy\n"
        ));
    }
    if parts.is_empty() {
        parts.push("no thread has greenlets\n".to_owned());
    }
    parts.join("\n")
}

/// The captured greenlets of a thread: see [`dump`]. It is `Send`, so another thread can print it.
///
/// # Examples
///
/// ```
/// use greenlet::{Dump, Greenlet, dump};
///
/// let _child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
/// let taken: Dump = dump();
/// assert_eq!(taken.tree().len(), 2);
/// let text = std::thread::spawn(move || taken.to_string()).join().unwrap();
/// assert!(text.contains("child"));
/// ```
#[derive(Debug)]
pub struct Dump {
    thread: String,
    tree: Tree,
    traces: Vec<Trace>,
}

impl Dump {
    /// Returns the tree of the greenlets, without the backtraces.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}

#[derive(Debug)]
struct Trace {
    name: String,
    suspended_at: Option<&'static Location<'static>>,
    backtrace: Result<Backtrace, NoBacktrace>,
}

impl Trace {
    fn of(greenlet: &Greenlet) -> Trace {
        Trace {
            name: name_of(greenlet),
            suspended_at: greenlet.suspended_at(),
            backtrace: greenlet.backtrace(),
        }
    }
}

/// Leaves the library's own frames out of the backtraces.
impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "greenlets of {}: {}\n\n{}",
            self.thread,
            self.tree.len(),
            self.tree
        )?;
        for trace in &self.traces {
            match trace.suspended_at {
                Some(place) => writeln!(f, "\n{}, suspended at {place}", trace.name)?,
                None => writeln!(f, "\n{}, current", trace.name)?,
            }
            match &trace.backtrace {
                Ok(backtrace) => f.write_str(&without_ours(&backtrace.to_string()))?,
                Err(error) => writeln!(f, "  {error}")?,
            }
        }
        Ok(())
    }
}

/// Removes the hashes of crates: `std[e28293b1aa0f68bd]::panic` is `std::panic`.
fn without_hashes(function: &str) -> String {
    let mut pieces = function.split('[');
    let mut kept = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        kept.push_str(piece.split_once(']').map_or(piece, |(_, after)| after));
    }
    kept
}

/// Removes the frames of the library and of the runtime.
///
/// It parses the text that the standard library prints, whose format may change. A text in another
/// format is returned unchanged.
fn without_ours(backtrace: &str) -> String {
    const OURS: [&str; 8] = [
        "greenlet_core::",
        "greenlet::",
        "std::backtrace",
        "std::panic",
        "core::ops::function",
        "core::panic",
        "core::future::",
        "__rust_try",
    ];
    // A frame is a line with a number, and the lines after it (`at file:line`).
    let mut frames: Vec<String> = Vec::new();
    for line in backtrace.lines() {
        let number = line.trim_start().split(": ").next().unwrap_or_default();
        match frames.last_mut() {
            Some(frame) if number.parse::<u32>().is_err() => {
                frame.push_str(line);
                frame.push('\n');
            }
            _ => frames.push(format!("{line}\n")),
        }
    }
    // A function of the user may have a type of ours as its parameter.
    let is_ours = |frame: &String| {
        let line = frame.lines().next().unwrap_or_default();
        let function = line.split_once(": ").map_or(line, |(_, function)| function);
        let function = without_hashes(function.trim_start_matches('<'));
        OURS.iter().any(|name| function.starts_with(name)) || function.contains("catch_unwind")
    };
    // A greenlet's first frames are those of the core's `first_frame.rs`. Main's are those of its
    // thread.
    let is_first = |frame: &String| {
        [
            "greenlet_core::switch::first_frame::",
            "__rust_begin_short_backtrace",
        ]
        .iter()
        .any(|name| frame.contains(name))
    };
    let end = frames.iter().position(is_first).unwrap_or(frames.len());
    // The current greenlet also shows the frames that captured the backtrace.
    let looks = frames
        .iter()
        .rposition(|frame| frame.contains("greenlet::debug::dump"));
    let start = looks.map_or(0, |last| last + 1);
    let between = frames.get(start..end).unwrap_or(&[]);
    let kept: String = between.iter().filter(|frame| !is_ours(frame)).cloned().collect();
    if kept.is_empty() {
        backtrace.to_owned()
    } else {
        kept
    }
}
