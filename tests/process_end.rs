//! A process that ends while greenlets are suspended. Each case is a child process: this binary, once more.

use std::panic::{catch_unwind, resume_unwind};
use std::process::{Command, Output, exit};

use greenlet::{Greenlet, getparent};

/// Names the case that a child process is to run.
const CASE: &str = "GREENLET_TEST_CASE";

/// Runs `case` in a child process, by running the test `test` there.
fn in_child(test: &str, case: &str) -> Output {
    let this = std::env::current_exe().expect("a test knows its own path");
    Command::new(this)
        .args(["--exact", test, "--nocapture"])
        .env(CASE, case)
        .output()
        .expect("a test can start itself")
}

/// Says what is dropped while the process ends.
struct Loud;

impl Drop for Loud {
    fn drop(&mut self) {
        eprintln!("dropped");
    }
}

/// A greenlet that is suspended while it handles an error and the payload of a panic.
fn suspended_while_handling() -> Greenlet {
    let greenlet = Greenlet::new(|(): ()| {
        let _loud = Loud;
        let error = std::fs::File::open("/no/such/file").unwrap_err();
        let payload = catch_unwind(|| resume_unwind(Box::new("payload"))).unwrap_err();
        let end = getparent().unwrap().switch::<()>(());
        drop((error, payload));
        end
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

fn run(case: &str) -> ! {
    let _suspended = suspended_while_handling();
    match case {
        "in main" => exit(17),
        "in a greenlet" => {
            let exits = Greenlet::new(|(): ()| -> anyhow::Result<()> { exit(17) });
            let never = exits.switch::<()>(());
            unreachable!("{never:?}");
        }
        "in a thread" => {
            let thread = std::thread::spawn(|| {
                let _suspended = suspended_while_handling();
                exit(17)
            });
            let never: std::thread::Result<()> = thread.join();
            unreachable!("{never:?}");
        }
        other => unreachable!("no case {other}"),
    }
}

// XS-9
#[test]
fn a_greenlet_that_is_handling_an_error_can_be_abandoned_at_the_end_of_the_process() {
    if let Ok(case) = std::env::var(CASE) {
        run(&case);
    }
    let this = "a_greenlet_that_is_handling_an_error_can_be_abandoned_at_the_end_of_the_process";
    for (case, most_dropped) in [("in main", 1), ("in a greenlet", 0), ("in a thread", 1)] {
        let output = in_child(this, case);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(17), "{case}: {errors}");
        // Where `exit` runs the thread-local destructors of its thread, as glibc's does, greenlets of
        // that thread are ended; but not from within a greenlet, nor those of other threads.
        let dropped = errors.matches("dropped").count();
        assert!(dropped <= most_dropped, "{case}: {errors}");
    }
}
