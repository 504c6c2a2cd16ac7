//! Stops the process where the library cannot go on.
//!
//! Nothing here panics: standard error may be closed, and an unwinding would run code that must not
//! run.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Write};

/// Aborts the process because the library itself is wrong: to continue would corrupt memory.
#[cold]
#[inline(never)]
pub(crate) fn abort(what: &str) -> ! {
    abort_because(format_args!("internal error: {what}; please report this"))
}

/// Prints the reason to standard error and aborts the process.
#[cold]
#[inline(never)]
pub(crate) fn abort_because(reason: fmt::Arguments<'_>) -> ! {
    // `eprintln!` panics if standard error cannot be written to.
    let _ = writeln!(io::stderr(), "greenlet: {reason}");
    std::process::abort()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    /// Set in the child process that aborts.
    const CHILD: &str = "GREENLET_TEST_ABORT";

    /// Runs the test of this name again, in a process in which it aborts.
    fn aborting(test: &str, errors: Stdio) -> std::process::Output {
        crate::tests::this_binary()
            .args([
                "--exact",
                &format!("backend::abort::tests::{test}"),
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stderr(errors)
            .output()
            .expect("a test can start itself")
    }

    // SW-35
    #[test]
    fn an_internal_error_aborts_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::abort("the test says so");
        }
        let output = aborting("an_internal_error_aborts_the_process", Stdio::piped());
        assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            errors.contains("greenlet: internal error: the test says so; please report this"),
            "{errors}"
        );
    }

    // SW-35
    #[cfg(target_os = "linux")]
    #[test]
    fn an_abort_runs_no_destructor_even_if_standard_error_is_broken() {
        struct Unwound;
        impl Drop for Unwound {
            fn drop(&mut self) {
                println!("unwound");
            }
        }
        if std::env::var_os(CHILD).is_some() {
            let _unwound = Unwound;
            super::abort("the test says so");
        }
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full") // each write fails
            .expect("Linux has this device");
        let output = aborting(
            "an_abort_runs_no_destructor_even_if_standard_error_is_broken",
            full.into(),
        );
        assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(!printed.contains("unwound"), "{printed}");
    }
}
