//! Cases in which the library aborts the process. Each test runs itself again as a child.

extern crate greenlet_core as greenlet;

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Output};

use anyhow::Result;
use greenlet::{Generator, Greenlet};

mod child;

fn main() -> ExitCode {
    child::run_tests(&[
        (
            "a_foreign_exception_that_leaves_a_greenlet_aborts",
            a_foreign_exception_that_leaves_a_greenlet_aborts,
        ),
        (
            "a_thread_cancelled_inside_a_greenlet_aborts",
            a_thread_cancelled_inside_a_greenlet_aborts,
        ),
        #[cfg(all(
            any(target_arch = "x86_64", target_arch = "aarch64"),
            not(feature = "fcontext")
        ))]
        (
            "no_unwinding_of_the_last_frames_continues_in_the_parent",
            last_frames::no_unwinding_of_the_last_frames_continues_in_the_parent,
        ),
        (
            "a_generator_that_stops_its_end_during_a_panic_aborts",
            a_generator_that_stops_its_end_during_a_panic_aborts,
        ),
        (
            "a_panic_of_main_ends_the_process",
            a_panic_of_main_ends_the_process,
        ),
    ])
}

const SIGABRT: i32 = 6;

/// An exception object: the header that all language runtimes share.
#[repr(C, align(16))]
struct ForeignException {
    class: u64,
    cleanup: Option<unsafe extern "C" fn(i32, *mut ForeignException)>,
    private: [usize; 6],
}

unsafe extern "C-unwind" {
    fn _Unwind_RaiseException(exception: *mut ForeignException) -> i32;
    fn pthread_exit(value: *mut std::ffi::c_void) -> !;
}

/// Raises an exception of another language. Returns if there is no handler.
fn raise_foreign() {
    let class = u64::from_be_bytes(*b"TESTFORE");
    let exception = Box::new(ForeignException {
        class,
        cleanup: None,
        private: [0; 6],
    });
    // SAFETY: the object has the layout that the ABI requires, and is never freed. All frames up to
    // the first of the greenlet are Rust frames, which may be unwound.
    unsafe { _Unwind_RaiseException(Box::into_raw(exception)) };
}

#[track_caller]
fn assert_aborted(output: &Output, says: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(SIGABRT),
        "{:?} {errors}",
        output.status
    );
    assert!(errors.contains(says), "{errors}");
    assert_eq!(child::lines(output), ["begins"]);
}

// CX-3, HZ-23: an exception of another language that leaves the function of a greenlet aborts the
// process with a message.
// #[test], on the main thread
fn a_foreign_exception_that_leaves_a_greenlet_aborts() {
    let output = child::run("a_foreign_exception_that_leaves_a_greenlet_aborts", || {
        let raises = Greenlet::new(|(): ()| -> Result<()> {
            println!("begins");
            raise_foreign();
            unreachable!("it was raised")
        });
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| raises.switch::<()>(())));
        println!("goes on");
    });
    let Some(output) = output else { return };
    assert_aborted(&output, "Rust cannot catch foreign exceptions");
}

// CX-6, HZ-13: the unwinding by which the system ends a thread aborts at the first frame of a
// greenlet, as it does at the first frame of any Rust thread.
// #[test], on the main thread
fn a_thread_cancelled_inside_a_greenlet_aborts() {
    let output = child::run("a_thread_cancelled_inside_a_greenlet_aborts", || {
        let cancelled = Greenlet::new(|(): ()| -> Result<()> {
            println!("begins");
            // SAFETY: the frames of this greenlet may be unwound, and the abort stops the unwinding
            // before others.
            unsafe { pthread_exit(std::ptr::null_mut()) }
        });
        let _ = cancelled.switch::<()>(());
        println!("goes on");
    });
    let Some(output) = output else { return };
    assert_aborted(&output, "exception");
}

/// What the last frames of a greenlet unwind with, outside of its function. The `context` crate has no
/// boundary there.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(feature = "fcontext")
))]
mod last_frames {
    use greenlet::{getparent, set_unraisable_hook};

    use super::*;

    /// Prints when it is dropped, and panics if that is its purpose.
    struct Says {
        text: &'static str,
        panics: bool,
    }

    impl Drop for Says {
        fn drop(&mut self) {
            println!("{} dropped", self.text);
            if self.panics {
                std::panic::resume_unwind(Box::new(self.text));
            }
        }
    }

    /// Ends a greenlet below this stack's frame, whose last frames call the unraisable hook outside of
    /// every `catch_unwind`.
    fn calls_the_hook_in_its_last_frames() {
        let _in_the_parent = Says {
            text: "the parent's value",
            panics: false,
        };
        let ends = Greenlet::new(|(): ()| -> Result<()> {
            let deferred = Greenlet::new(|(): ()| {
                let _exit = getparent().unwrap().switch::<()>(());
                Ok(Says {
                    text: "begins:",
                    panics: true,
                })
            });
            deferred.switch::<()>(())?;
            // Its end is deferred, and fails when this greenlet ends.
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _deferred = deferred;
                std::panic::resume_unwind(Box::new(()))
            }));
            assert!(panic.is_err());
            Ok(())
        });
        let _ = ends.switch::<()>(());
        println!("goes on");
    }

    // An exception or a forced unwind that starts outside of the `catch_unwind` of a greenlet finds no
    // handler in the parent, where a backtrace continues, and runs no landing pad there.
    // #[test], on the main thread
    pub(crate) fn no_unwinding_of_the_last_frames_continues_in_the_parent() {
        const TEST: &str = "no_unwinding_of_the_last_frames_continues_in_the_parent";
        const WAY: &str = "GREENLET_TEST_WAY";
        for (way, unwinds) in [
            ("panic", (|| panic!("of the hook")) as fn()),
            ("foreign", || {
                raise_foreign();
                println!("refused");
                std::process::abort() // as other runtimes do if they find no handler
            }),
            // SAFETY: the frames up to the first of the greenlet may be unwound, and the abort stops the
            // unwinding there.
            ("exit", || unsafe { pthread_exit(std::ptr::null_mut()) }),
        ] {
            if std::env::var(WAY).is_ok_and(|chosen| chosen != way) {
                continue;
            }
            let output = child::run_with(TEST, &[(WAY, way)], || {
                set_unraisable_hook(move |_| unwinds());
                calls_the_hook_in_its_last_frames();
            });
            let Some(output) = output else { return };
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(SIGABRT), "{way}: {errors}");
            // The search for a handler fails, so that the call returns.
            let refused = (way == "foreign").then_some("refused");
            let lines = ["begins: dropped"].into_iter().chain(refused);
            assert!(child::lines(&output).iter().eq(lines), "{way}: {output:?}");
        }
    }
}

// A generator that is dropped while its consumer panics cannot be left suspended: its yields are refused.
// #[test], on the main thread
fn a_generator_that_stops_its_end_during_a_panic_aborts() {
    let output = child::run("a_generator_that_stops_its_end_during_a_panic_aborts", || {
        let mut generator = Generator::<u32>::new(|out| {
            loop {
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| out.yield_(1)));
            }
        });
        generator.next().unwrap().unwrap();
        println!("begins");
        std::panic::resume_unwind(Box::new(()));
    });
    let Some(output) = output else { return };
    assert_aborted(&output, "its function stops each unwinding");
}

// CX-4: a panic of main, outside the function of any greenlet, ends the process as usual.
// #[test], on the main thread
fn a_panic_of_main_ends_the_process() {
    let output = child::run("a_panic_of_main_ends_the_process", || {
        Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
        println!("begins");
        panic!("of main itself");
    });
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(101), "{text}");
    assert!(text.contains("of main itself"), "{text}");
}
