//! Tests that need private items: the bare switch, and stacks.

#[cfg(all(
    feature = "asan",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod asan;
mod backend;
mod stack;

use std::process::Command;

/// Returns a command that runs this binary again, in the emulator that `GREENLET_TEST_RUNNER`
/// names, if any.
pub(crate) fn this_binary() -> Command {
    let runner = std::env::var("GREENLET_TEST_RUNNER").unwrap_or_default();
    let exe = std::env::current_exe().expect("a test knows its own path");
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else {
        return Command::new(exe);
    };
    let mut command = Command::new(first);
    command.args(words).arg(exe);
    command
}
