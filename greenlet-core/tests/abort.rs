//! Cases in which the library aborts the process. Each test runs itself again as a child.

extern crate greenlet_core as greenlet;

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Output};

use anyhow::Result;
use greenlet::{Generator, Greenlet, getmain, raise};

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
        (
            "a_generator_that_stops_its_end_during_a_panic_aborts",
            a_generator_that_stops_its_end_during_a_panic_aborts,
        ),
        (
            "a_destructor_that_panics_during_an_end_is_explained",
            a_destructor_that_panics_during_an_end_is_explained,
        ),
        (
            "a_function_that_cannot_unwind_is_explained",
            a_function_that_cannot_unwind_is_explained,
        ),
        (
            "a_destructor_of_a_closed_generator_that_panics_is_explained",
            a_destructor_of_a_closed_generator_that_panics_is_explained,
        ),
        (
            "a_panic_that_aborts_without_an_end_is_not_explained",
            a_panic_that_aborts_without_an_end_is_not_explained,
        ),
        (
            "a_panic_hook_that_is_installed_later_is_called",
            a_panic_hook_that_is_installed_later_is_called,
        ),
        (
            "an_end_with_closed_standard_error_aborts_as_well",
            an_end_with_closed_standard_error_aborts_as_well,
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

/// Panics when it is dropped.
struct Bad;

impl Drop for Bad {
    fn drop(&mut self) {
        panic!("of a destructor");
    }
}

/// Ends a greenlet that ignores its exit, or raises it, while `Bad` is on its stack.
fn end_with_a_bad_destructor(raises: bool) {
    let named = Greenlet::builder()
        .name("named")
        .build(move |(): ()| -> Result<()> {
            let _bad = Bad;
            loop {
                let asked = getmain().switch::<()>(());
                if raises {
                    raise(asked.unwrap_err());
                }
            }
        });
    named.switch::<()>(()).unwrap();
    println!("begins");
    if raises {
        drop(named.kill());
    } else {
        drop(named);
    }
    println!("goes on");
}

/// Checks that the process aborted, and printed one line that names the greenlet, the place of its
/// switch, the reason and the cure.
#[track_caller]
fn assert_explained(output: &Output, reason: &str, cure: &str) {
    assert_aborted(output, "greenlet: greenlet 'named' created at ");
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors
        .lines()
        .filter(|line| line.starts_with("greenlet: "))
        .collect();
    assert_eq!(lines.len(), 1, "{errors}");
    for part in [", last suspended at ", "tests/abort.rs:", reason, cure] {
        assert!(lines[0].contains(part), "{} has no {part}", lines[0]);
    }
}

// A destructor that panics while an end unwinds aborts the process by Rust's rule. A line says so.
// #[test], on the main thread
fn a_destructor_that_panics_during_an_end_is_explained() {
    let raises = std::env::var_os("RAISES").is_some();
    let output = child::run("a_destructor_that_panics_during_an_end_is_explained", || {
        end_with_a_bad_destructor(raises);
    });
    let Some(output) = output else { return };
    assert_explained(&output, "unwound by force", "catch the panic in the destructor");
    // SAFETY: these tests run one after another, on one thread.
    unsafe { std::env::set_var("RAISES", "1") };
    let output = child::run("a_destructor_that_panics_during_an_end_is_explained", || ());
    // SAFETY: as above.
    unsafe { std::env::remove_var("RAISES") };
    assert_explained(
        &output.expect("this is the parent"),
        "its exit was raised",
        "let the function return its exit",
    );
}

// #[test], on the main thread
fn a_function_that_cannot_unwind_is_explained() {
    extern "C" fn callback() {
        loop {
            let _ = getmain().switch::<()>(());
        }
    }
    let output = child::run("a_function_that_cannot_unwind_is_explained", || {
        let named = Greenlet::builder().name("named").build(|(): ()| -> Result<()> {
            callback();
            Ok(())
        });
        named.switch::<()>(()).unwrap();
        println!("begins");
        named.end();
        println!("goes on");
    });
    let Some(output) = output else { return };
    // An optimised build has no handler above such a function, so the unwinding does not even begin.
    if !cfg!(debug_assertions) {
        return assert_aborted(&output, "failed to initiate panic");
    }
    assert_explained(&output, "cannot be unwound", "below such a function");
}

// #[test], on the main thread
fn a_destructor_of_a_closed_generator_that_panics_is_explained() {
    let output = child::run(
        "a_destructor_of_a_closed_generator_that_panics_is_explained",
        || {
            let named = Greenlet::builder().name("named").build(|(): ()| {
                let () = getmain().switch(())?;
                let mut numbers = Generator::<u32>::new(|out| {
                    let _bad = Bad;
                    loop {
                        let _ = out.yield_(1);
                    }
                });
                numbers.next().unwrap()?;
                println!("begins");
                drop(numbers);
                println!("goes on");
                Ok(())
            });
            named.switch::<()>(()).unwrap();
            named.switch::<()>(()).unwrap();
        },
    );
    let Some(output) = output else { return };
    assert_explained(&output, "closed a generator", "catch the panic in the destructor");
}

// #[test], on the main thread
fn a_panic_that_aborts_without_an_end_is_not_explained() {
    let output = child::run("a_panic_that_aborts_without_an_end_is_not_explained", || {
        // An end that is over, and one whose destructor catches its own panic.
        struct Catches;
        impl Drop for Catches {
            fn drop(&mut self) {
                assert!(std::panic::catch_unwind(|| drop(Bad)).is_err());
            }
        }
        let stubborn = Greenlet::new(|(): ()| -> Result<()> {
            let _catches = Catches;
            loop {
                let _ = getmain().switch::<()>(());
            }
        });
        stubborn.switch::<()>(()).unwrap();
        stubborn.end();
        assert!(stubborn.is_dead());
        println!("begins");
        let _bad = Bad;
        panic!("of main");
    });
    let Some(output) = output else { return };
    assert_aborted(&output, "panic in a destructor during cleanup");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("greenlet: "), "{errors}");
}

// #[test], on the main thread
fn a_panic_hook_that_is_installed_later_is_called() {
    let output = child::run("a_panic_hook_that_is_installed_later_is_called", || {
        let stubborn = || {
            let stubborn = Greenlet::new(|(): ()| -> Result<()> {
                loop {
                    let _ = getmain().switch::<()>(());
                }
            });
            stubborn.switch::<()>(()).unwrap();
            stubborn.end();
        };
        std::panic::set_hook(Box::new(|_| println!("the first hook")));
        stubborn();
        let _ = std::panic::catch_unwind(|| panic!("one"));
        std::panic::set_hook(Box::new(|_| println!("the second hook")));
        stubborn();
        let _ = std::panic::catch_unwind(|| panic!("two"));
    });
    let Some(output) = output else { return };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(child::lines(&output), ["the first hook", "the second hook"]);
}

// Messages before an abort never panic, even if standard error is broken.
// #[test], on the main thread
fn an_end_with_closed_standard_error_aborts_as_well() {
    let output = child::run("an_end_with_closed_standard_error_aborts_as_well", || {
        // SAFETY: nothing else uses the descriptor.
        unsafe { libc::close(2) };
        if std::env::var_os("FULL").is_some() {
            // It gets the number 2, the lowest one that is free.
            let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
            std::mem::forget(full);
        }
        end_with_a_bad_destructor(false);
    });
    let Some(output) = output else { return };
    assert_aborted(&output, "");
    // SAFETY: these tests run one after another, on one thread.
    unsafe { std::env::set_var("FULL", "1") };
    let output = child::run("an_end_with_closed_standard_error_aborts_as_well", || ());
    // SAFETY: as above.
    unsafe { std::env::remove_var("FULL") };
    assert_aborted(&output.expect("this is the parent"), "");
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
