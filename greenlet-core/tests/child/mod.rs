//! Runs tests of the end of a process, each in a child process, on the main thread.
//!
//! The usual harness runs no test on the main thread, and the end of that thread ends a process.

use std::process::{ExitCode, Output};

#[path = "../harness/mod.rs"]
mod harness;
mod this_binary;

use harness::Test;

const VARIABLE: &str = "GREENLET_TEST_CHILD";

/// Runs the tests that the command line selects. In a child, runs only the test of that child.
pub(crate) fn run_tests(tests: &[Test]) -> ExitCode {
    let Ok(child) = std::env::var(VARIABLE) else {
        return harness::run(tests);
    };
    let (_, test) = tests
        .iter()
        .find(|(name, _)| *name == child)
        .expect("the parent knows the tests");
    test();
    ExitCode::SUCCESS
}

/// In the child, runs the scenario and returns `None`. In the parent, starts the child and returns
/// its output and status. `test` is the name of the calling test.
pub(crate) fn run(test: &str, scenario: impl FnOnce()) -> Option<Output> {
    run_with(test, &[("RUST_BACKTRACE", "0")], scenario)
}

/// As [`run`], with these variables in the child's environment.
pub(crate) fn run_with(test: &str, variables: &[(&str, &str)], scenario: impl FnOnce()) -> Option<Output> {
    if std::env::var_os(VARIABLE).is_some() {
        scenario();
        return None;
    }
    let mut child = this_binary::this_binary();
    child.env(VARIABLE, test).envs(variables.iter().copied());
    Some(child.output().expect("the test can run itself"))
}

/// The lines that the child wrote to its standard output.
pub(crate) fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(String::from).collect()
}
