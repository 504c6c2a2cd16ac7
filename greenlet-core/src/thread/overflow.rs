//! Reports a stack overflow: which greenlet hit the guard page of its stack, and what to set.
//!
//! This runs in a signal handler that may interrupt the thread at any instruction. [signal-safe] So
//! it formats the text in a fixed buffer.
//!
//! # Invariants
//!
//! - **[handler-reads]** While the handler runs, nothing else runs on the thread, so nothing else
//!   changes its nodes. A node may be half-written when the handler interrupts the thread; the
//!   handler only compares its stack. It does not walk the list of nodes while the thread changes
//!   that.
//! - **[own-stack]** A fault in a guard page is an overflow only if the thread was running on that
//!   stack. Otherwise a stray pointer caused it, and the previous handler gets it.

use std::fmt::{self, Write};
use std::ptr;

use parking_lot::Mutex;

use crate::node::Inner;
use crate::stack::label::Label;
use crate::stack::{self, GuardHit};
use crate::thread::{ThreadState, flag};

/// Prepares the process and the calling thread for an overflow.
#[cold]
pub(super) fn watch(thread: &ThreadState) {
    stack::install_fault_handler(report);
    if !thread.has_flag(flag::EXITING) {
        thread.signal_stack.provide(); // until the thread ends
    }
}

fn report(hit: &GuardHit) {
    /// Not in the handler's frame: the signal stack may be small.
    static TEXT: Mutex<Text> = Mutex::new(Text {
        bytes: [0; 2048],
        len: 0,
    });
    let Some(overflowed) = Overflowed::find(ThreadState::current(), hit) else {
        return; // [own-stack]
    };
    // `try_lock` is one atomic operation. [signal-safe]
    let Some(mut text) = TEXT.try_lock() else {
        // Another thread has overflowed as well, and is about to abort the process.
        loop {
            std::thread::yield_now();
        }
    };
    // The only error is that the text is too long. What fits is printed.
    let _ = overflowed.write(hit, &mut text);
    text.flush();
    std::process::abort()
}

/// What has overflowed its stack.
enum Overflowed<'a> {
    Greenlet(&'a Inner),
    /// A generator, and the greenlet that runs its body.
    Generator(&'a Label, Option<&'a Inner>),
    /// A greenlet that has finished but still runs on its stack. Its node may be gone.
    Finished,
}

impl Overflowed<'_> {
    /// Finds what the thread was running on the stack that was hit. Returns `None` if nothing.
    fn find<'a>(thread: &'a ThreadState, hit: &GuardHit) -> Option<Overflowed<'a>> {
        // SAFETY: the node is alive, and the thread cannot drop it while the handler runs.
        // [current-alive] [handler-reads]
        let current = unsafe { thread.current_ptr().as_ref() };
        if let Some(label) = Label::at(hit.base.wrapping_sub(1)).filter(|_| hit.is_on_its_stack) {
            // SAFETY: the label is on the stack that the thread runs on. [handler-reads]
            return Some(Overflowed::Generator(unsafe { label.as_ref() }, current));
        }
        let current = current?;
        if is_on(current, hit) {
            return Some(Overflowed::Greenlet(current));
        }
        if thread.last_stack_base() == hit.base {
            return Some(Overflowed::Finished);
        }
        // The resumed side of a switch stores `current`: a new greenlet right after its prologue,
        // others after checking the payload. In that window only the stack pointer identifies it.
        if !hit.is_on_its_stack {
            return None;
        }
        let resumed = thread
            .pool
            .find(|node| is_on(node, hit).then_some(ptr::from_ref(node)))?;
        // SAFETY: the pool has just found the node alive, and the thread cannot drop it while the
        // handler runs. [handler-reads]
        Some(Overflowed::Greenlet(unsafe { &*resumed }))
    }

    fn write(&self, hit: &GuardHit, text: &mut Text) -> fmt::Result {
        text.write_str("\n")?;
        match self {
            Overflowed::Greenlet(node) => write_greenlet(node, text)?,
            Overflowed::Generator(label, current) => {
                text.write_str("generator")?;
                if let Some(name) = label.name() {
                    write!(text, " '{}'", shortened(name))?;
                }
                if let Some(node) = current {
                    text.write_str(" in ")?;
                    write_greenlet(node, text)?;
                }
            }
            Overflowed::Finished => text.write_str("a greenlet that was finishing")?,
        }
        write!(
            text,
            " has overflowed its stack\n  = its stack has {} bytes",
            hit.size
        )?;
        let (created_at, builder) = match self {
            Overflowed::Greenlet(node) => (Some(node.created_at()), "Builder"),
            Overflowed::Generator(label, _) => (label.created_at(), "GeneratorBuilder"),
            Overflowed::Finished => (None, "Builder"),
        };
        if let Some(created_at) = created_at {
            write!(text, "; it was created at {created_at}")?;
        }
        write!(
            text,
            "\n  = give it more with `{builder}::stack_size`, or all of them with \
             `stack::set_default_size` or GREENLET_MIN_STACK\n"
        )
    }
}

fn write_greenlet(node: &Inner, text: &mut Text) -> fmt::Result {
    match node.name() {
        Some(name) => write!(text, "greenlet '{}'", shortened(name)),
        None => write!(text, "greenlet {}", node.id()),
    }
}

fn is_on(node: &Inner, hit: &GuardHit) -> bool {
    // SAFETY: nothing writes to the field while the handler runs. [handler-reads]
    let stack = unsafe { &*node.stack.as_ptr() };
    stack
        .as_ref()
        .is_some_and(|stack| ptr::eq(stack.base().as_ptr(), hit.base))
}

/// The rest of the text must have room.
fn shortened(name: &str) -> &str {
    let end = (0..=name.len().min(1024))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

/// A text of limited length.
struct Text {
    bytes: [u8; 2048],
    len: usize,
}

impl Text {
    /// Writes the text to standard error.
    fn flush(&self) {
        let mut rest = &self.bytes[..self.len];
        while !rest.is_empty() {
            // SAFETY: the pointer and the length are those of one slice.
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
