//! Names the greenlet in the messages of panics.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::panic;
use std::sync::Once;
use std::thread;

use greenlet_core::describe_current;

/// Makes the message of a panic name the greenlet in which it happened.
///
/// The name of the thread, which is in the message already, says nothing about the greenlet. This
/// installs a panic hook that calls the previous one, and then prints a line to standard error: the
/// greenlet's name and the place where it was created or spawned, and the generators in it. A panic
/// outside of every greenlet has no such line. See [`describe_current`] for hooks of your own.
///
/// Call it at the start of `main`, after the installation of other hooks: each of them should call
/// the one before it. The library does not call it, because the panic hook belongs to the program.
/// Later calls do nothing.
///
/// # Panics
///
/// Panics if the thread is panicking.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, install_panic_hook};
/// use std::panic::{AssertUnwindSafe, catch_unwind};
///
/// install_panic_hook();
/// let worker = Greenlet::builder()
///     .name("worker")
///     .build(|(): ()| -> anyhow::Result<()> { panic!("no more flour") });
/// let panic = catch_unwind(AssertUnwindSafe(|| worker.switch::<()>(())));
/// assert!(panic.is_err());
/// ```
///
/// ```text
/// thread 'main' (2816) panicked at src/main.rs:6:45:
/// no more flour
/// note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
/// in greenlet 'worker' created at src/main.rs:6:6
/// ```
pub fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    assert!(
        !thread::panicking(),
        "a panic hook cannot be installed while the thread panics; install it at the start of `main`"
    );
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // CAUTION: runs arbitrary user code.
            previous(info);
            if let Some(place) = describe_current() {
                // `eprintln!` panics if standard error cannot be written to.
                let _ = writeln!(io::stderr(), "in {place}");
            }
        }));
    });
}
