//! Prints the greenlets of all threads when a signal arrives.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use greenlet_core::track_ages;
use signal_hook::iterator::Signals;

use super::dump::dump_all_threads;

/// How long a dump waits for a thread to switch.
const LIMIT: Duration = Duration::from_secs(1);

/// Prints [`dump_all_threads`](crate::dump_all_threads) to standard error whenever the process gets
/// `signal`. Needs the feature `signal`.
///
/// The signal handler only wakes a helper thread, through a pipe, which is safe at any time. The
/// helper asks all threads that have greenlets. Each writes its part at its next switch. A thread
/// that has not switched for a second is listed by its id only. This also calls [`track_ages`].
/// Other handlers of the signal are still called.
///
/// # Errors
///
/// Returns the system's error if it cannot install the handler or start the thread.
///
/// # Panics
///
/// Panics if the signal cannot be handled, such as `SIGKILL` and `SIGSEGV`.
///
/// # Examples
///
/// ```
/// const SIGUSR1: i32 = 10; // on Linux; see the `libc` crate
/// greenlet::dump_on_signal(SIGUSR1)?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// ```console
/// $ kill -USR1 $(pidof my-server)
/// ```
pub fn dump_on_signal(signal: i32) -> io::Result<()> {
    let mut signals = Signals::new([signal])?;
    thread::Builder::new()
        .name("greenlet-dump".into())
        .spawn(move || {
            for _ in signals.forever() {
                let text = dump_all_threads(LIMIT);
                // There is no other place to report that standard error cannot be written.
                let _ = io::stderr().lock().write_all(text.as_bytes());
            }
        })?;
    track_ages(true);
    Ok(())
}
