//! A signal that prints the greenlets of all threads.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use greenlet_core::keep_ages;
use signal_hook::iterator::Signals;

use super::dump::dump_all_threads;

/// How long a thread has to switch before it is said not to.
const LIMIT: Duration = Duration::from_secs(1);

/// Prints [`dump_all_threads`](crate::dump_all_threads) to standard error whenever the process gets `signal`. Needs the
/// feature `signal`.
///
/// The signal's handler only writes a byte to a pipe, which is safe wherever the signal hits; a thread of
/// ours waits at the other end. It asks the threads that have greenlets, each of which writes its part at its
/// next switch. One that has not switched for a second is named instead. From now on ages are kept
/// ([`keep_ages`]). Handlers that are there for the signal go on being called.
///
/// # Errors
///
/// The system's error if the handler or the thread cannot be had. The signals that cannot be handled, such as
/// `SIGKILL` and `SIGSEGV`, cannot be asked for.
///
/// # Panics
///
/// Panics if asked for one of those.
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
                // Nobody can be told that it cannot be written.
                let _ = io::stderr().lock().write_all(text.as_bytes());
            }
        })?;
    keep_ages(true);
    Ok(())
}
