//! Runs tests of what ends the process: each again in a process of its own, on the main thread.
//!
//! The usual harness runs no test on the main thread, and it is that thread's end that ends a process.

use std::panic::catch_unwind;
use std::process::{Command, ExitCode, Output};

const VARIABLE: &str = "GREENLET_TEST_CHILD";

/// Runs the tests whose names contain an argument of the command line; all if it has none.
pub(crate) fn run_tests(tests: &[(&str, fn())]) -> ExitCode {
    if let Ok(child) = std::env::var(VARIABLE) {
        let (_, test) = tests
            .iter()
            .find(|(name, _)| *name == child)
            .expect("the parent knows the tests");
        test();
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let mut status = ExitCode::SUCCESS;
    for (name, test) in tests.iter().filter(|(name, _)| is_wanted(name)) {
        let is_ok = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        if !is_ok {
            status = ExitCode::FAILURE;
        }
    }
    status
}

/// In the child that this starts: runs the scenario, and returns `None`. In the parent: what the child
/// printed and how it ended. `test` is the name of the calling test.
pub(crate) fn run(test: &str, scenario: impl FnOnce()) -> Option<Output> {
    if std::env::var_os(VARIABLE).is_some() {
        scenario();
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("a test is a file"));
    child.env(VARIABLE, test).env("RUST_BACKTRACE", "0");
    Some(child.output().expect("the test can run itself"))
}

/// The lines that the child wrote to its standard output.
pub(crate) fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(String::from).collect()
}
