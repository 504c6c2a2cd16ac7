//! Stack overflow: says which greenlet ran into its guard page, and what to set.
//!
//! This runs in a signal handler, on a thread that has been stopped anywhere: see G1 in `stack/fault.rs`.
//!
//! # Invariants
//!
//! - **O1** Nothing is allocated, locked or waited for. The text goes into a fixed buffer, and from there
//!   to standard error by `write`.
//! - **O2** NodePool are only read, and a record that may be half-written is only compared. While
//!   the list of them is being changed, it is not looked at.
//! - **O3** A touch of a guard page is an overflow only if the thread was running on that stack.
//!   Anything else is a stray pointer, and goes to the handler that was there before.

use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::node::Inner;
use crate::segment::Header;
use crate::stack::{self, GuardHit};
use crate::thread::{ThreadState, flag};

/// Prepares the process and the calling thread for a greenlet that overflows its stack.
#[cold]
pub(crate) fn watch(thread: &ThreadState) {
    stack::install_fault_handler(report);
    if !thread.has_flag(flag::EXITING) {
        thread.signal_stack.provide(); // until the thread ends
    }
}

/// The text of a report. Not on the signal stack, which may be small.
static mut TEXT: Text = Text {
    bytes: [0; 2048],
    len: 0,
};

fn report(hit: &GuardHit) {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    let Some(culprit) = Culprit::of(ThreadState::current(), hit) else {
        return; // O3
    };
    if REPORTING.swap(true, Ordering::Acquire) {
        // Another thread overflowed at the same time: it is about to end the process.
        loop {
            // SAFETY: waits for a signal, no more.
            unsafe { libc::pause() };
        }
    }
    let text = &raw mut TEXT;
    // SAFETY: only the one thread that set `REPORTING` gets here.
    let text = unsafe { &mut *text };
    // A text that is too long is cut.
    let _ = culprit.write(hit, text);
    text.flush();
    std::process::abort()
}

/// Who overflowed. A generator's body runs in the current greenlet.
enum Culprit<'a> {
    Greenlet(&'a Inner),
    Generator(&'a Header, Option<&'a Inner>),
    /// It was about to finish, and its record is no longer to be had.
    Unknown,
}

impl Culprit<'_> {
    /// The greenlet that runs on the stack that was hit. `None` if nothing of this thread does.
    fn of<'a>(thread: &'a ThreadState, hit: &GuardHit) -> Option<Culprit<'a>> {
        // SAFETY: T1.
        let current = unsafe { thread.current_ptr().as_ref() };
        if let Some(header) = Header::at(hit.base.wrapping_sub(1)).filter(|_| hit.is_on_its_stack) {
            // SAFETY: the process does not outlive the use of the reference, and nothing else runs on this thread.
            return Some(Culprit::Generator(unsafe { header.as_ref() }, current));
        }
        let current = current?;
        if is_on(current, hit) {
            return Some(Culprit::Greenlet(current));
        }
        if thread.last_stack_base() == hit.base {
            return Some(Culprit::Unknown);
        }
        // Who arrives becomes current: the first frame of a greenlet right after its prologue, the others when they have looked at
        // what arrived. A greenlet in that place is known by where the thread's stack pointer is.
        if !hit.is_on_its_stack {
            return None;
        }
        let leaving = thread
            .pool
            .find_from_handler(|node| is_on(node, hit).then_some(&raw const *node))?;
        // SAFETY: the process does not outlive the use of the reference, and nothing else runs on this thread.
        Some(Culprit::Greenlet(unsafe { &*leaving }))
    }

    fn write(&self, hit: &GuardHit, text: &mut Text) -> fmt::Result {
        text.write_str("\n")?;
        match self {
            Culprit::Greenlet(node) => write_greenlet(node, text)?,
            Culprit::Generator(header, current) => {
                text.write_str("generator")?;
                if let Some(name) = header.name() {
                    write!(text, " '{}'", shortened(name))?;
                }
                if let Some(node) = current {
                    text.write_str(" in ")?;
                    write_greenlet(node, text)?;
                }
            }
            Culprit::Unknown => text.write_str("a greenlet at its end")?,
        }
        write!(
            text,
            " has overflowed its stack\n  = its stack has {} bytes",
            hit.size
        )?;
        let created_at = match self {
            Culprit::Greenlet(node) => Some(node.created_at),
            Culprit::Generator(header, _) => header.created_at(),
            Culprit::Unknown => None,
        };
        if let Some(created_at) = created_at {
            write!(text, "; it was created at {created_at}")?;
        }
        let builder = match self {
            Culprit::Generator(..) => "GeneratorBuilder",
            _ => "Builder",
        };
        write!(text, "\n  = give it more with `{builder}::stack_size`\n")
    }
}

fn write_greenlet(node: &Inner, text: &mut Text) -> fmt::Result {
    match node.name() {
        Some(name) => write!(text, "greenlet '{}'", shortened(name)),
        None => write!(text, "greenlet {}", node.id),
    }
}

/// Says whether the stack that was hit is the one that the node has.
fn is_on(node: &Inner, hit: &GuardHit) -> bool {
    // SAFETY: nobody writes to it while this handler runs, on the thread that the node belongs to (O2).
    let stack = unsafe { &*node.stack.as_ptr() };
    stack
        .as_ref()
        .is_some_and(|stack| ptr::eq(stack.base().as_ptr(), hit.base))
}

/// As much of a name as leaves room for the rest.
fn shortened(name: &str) -> &str {
    let end = (0..=name.len().min(1024))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

/// Text in a fixed buffer.
struct Text {
    bytes: [u8; 2048],
    len: usize,
}

impl Text {
    /// Writes the text to standard error.
    fn flush(&self) {
        let mut rest = &self.bytes[..self.len];
        while !rest.is_empty() {
            // SAFETY: the range is the slice's; `write` is async-signal-safe.
            let written = unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
            let Ok(written @ 1..) = usize::try_from(written) else {
                return;
            };
            rest = &rest[written..];
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        if len == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
