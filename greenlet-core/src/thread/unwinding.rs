//! Unwindings without a panic that are in progress, and a line that explains the death of the process
//! by one.
//!
//! Rust aborts the process if a destructor panics during an unwinding, and if an unwinding reaches a
//! function that cannot unwind, such as an `extern "C"` callback. Its message names neither the
//! greenlet nor the cause. So the first unwinding of the process installs a panic hook, which prints a
//! line and calls the previous hook. It stays installed: to remove it would race with other threads
//! that install theirs.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;

use crate::backend::abort;
use crate::payload::thread_id::thread_id;
use crate::payload::why::Why;
use crate::thread::{self, ThreadState};

/// Part of the payload of an unwinding: while it lives, the unwinding is in progress.
pub(crate) struct InProgress {
    /// The thread that unwinds. The payload may be dropped by another one.
    thread: u64,
    before: Option<Why>,
}

impl InProgress {
    /// Begins an unwinding.
    pub(crate) fn begin(why: Why) -> InProgress {
        static INSTALLED: Once = Once::new();
        // A thread that panics cannot install a hook.
        if !std::thread::panicking() {
            INSTALLED.call_once(install_hook);
        }
        InProgress {
            thread: thread_id(),
            before: ThreadState::current().unwinding.replace(Some(why)),
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if self.thread == thread_id() {
            ThreadState::current().unwinding.set(self.before);
        }
    }
}

/// The payload of a forced unwinding of a generator's function.
pub(crate) struct ForcedBody {
    /// The address of the header of its segment, which is only compared.
    header: usize,
    _in_progress: InProgress,
}

impl ForcedBody {
    pub(crate) fn begin(header: usize) -> ForcedBody {
        ForcedBody {
            header,
            _in_progress: InProgress::begin(Why::Generator),
        }
    }

    /// Returns `true` if the unwinding is of the segment with this header.
    pub(crate) fn is_of(&self, header: usize) -> bool {
        self.header == header
    }
}

fn install_hook() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        explain(info);
        // CAUTION: runs arbitrary user code.
        previous(info);
    }));
}

/// Prints a line if this panic aborts the process during an unwinding of the library.
fn explain(info: &PanicHookInfo<'_>) {
    let Some(why) = ThreadState::current().unwinding.get() else {
        return;
    };
    // The texts of the panics by which Rust aborts.
    let (what, cure) = match info.payload().downcast_ref::<&str>() {
        Some(&"panic in a destructor during cleanup") => (
            "a destructor on its stack panicked; a panic in a destructor during an unwinding aborts the process",
            "catch the panic in the destructor, or let the function return its exit: `?` on `switch` or `try_await_`",
        ),
        Some(&"panic in a function that cannot unwind") => (
            "a function on its stack cannot be unwound, such as an `extern \"C\"` callback, which aborts the process",
            "below such a function, use `try_await_`, or the `Err` of `switch`, and return",
        ),
        _ => return,
    };
    let text = thread::with_current_inner(|greenlet| {
        let place = greenlet.context.suspended_at.get();
        let place = place.map_or(String::new(), |at| format!(", last suspended at {at},"));
        format!("{}{place} {why}, and {what}; {cure}", greenlet.label())
    });
    // `eprintln!` panics if standard error cannot be written to.
    let _ = writeln!(io::stderr(), "greenlet: {text}");
}

/// Aborts the process, because a greenlet cannot be left without unwinding its stack.
#[cold]
pub(crate) fn abort_without_unwinding(why: &str) -> ! {
    let label = thread::with_current_inner(|greenlet| greenlet.label());
    abort::abort_because(format_args!(
        "{label} raised an error, which cannot unwind its stack, because the program is built with `panic = \"abort\"`, \
         and {why}; return the error instead"
    ))
}
