//! A test harness for tests that need the main thread of the process. The usual harness runs no
//! test there.
//!
//! It runs the tests one after the other. It accepts the arguments that tools pass to the usual
//! harness: names, `--exact`, `--skip`, `--list` and `--ignored`. It ignores all other arguments
//! that begin with a dash.

use std::panic::catch_unwind;
use std::process::ExitCode;

pub(crate) type Test = (&'static str, fn());

/// The parsed command line.
#[derive(Default)]
struct Wanted {
    names: Vec<String>,
    skipped: Vec<String>,
    is_exact: bool,
    is_list: bool,
    /// `--ignored`. No test here is ignored, so none runs.
    only_ignored: bool,
}

impl Wanted {
    fn of(arguments: impl Iterator<Item = String>) -> Wanted {
        let mut wanted = Wanted::default();
        let mut arguments = arguments.flat_map(|argument| match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => vec![option.to_owned(), value.to_owned()],
            _ => vec![argument],
        });
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => wanted.is_exact = true,
                "--list" => wanted.is_list = true,
                "--ignored" => wanted.only_ignored = true,
                "--skip" => wanted.skipped.extend(arguments.next()),
                // These options take a value, which is not a name.
                "--format" | "--color" | "--logfile" | "--test-threads" | "--shuffle-seed" | "-Z" => {
                    arguments.next();
                }
                option if option.starts_with('-') => {}
                name => wanted.names.push(name.to_owned()),
            }
        }
        wanted
    }

    fn has(&self, name: &str) -> bool {
        let fits = |pattern: &String| match self.is_exact {
            true => name == pattern,
            false => name.contains(pattern.as_str()),
        };
        !self.only_ignored
            && (self.names.is_empty() || self.names.iter().any(fits))
            && !self.skipped.iter().any(fits)
    }
}

/// Runs or lists the tests, as the command line says.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let wanted = Wanted::of(std::env::args().skip(1));
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| wanted.has(name)).collect();
    if wanted.is_list {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let is_ok = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        failed += usize::from(!is_ok);
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        tests.len() - chosen.len(),
    );
    ExitCode::from(if failed == 0 { 0 } else { 101 })
}
