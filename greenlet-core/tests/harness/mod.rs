//! A test harness for tests that need the process's main thread: the usual one runs no test there.
//!
//! It runs the tests one after the other, and understands what tools say to the usual one: names, `--exact`,
//! `--skip`, `--list` and `--ignored`. What else begins with a dash it leaves alone.

use std::panic::catch_unwind;
use std::process::ExitCode;

pub(crate) type Test = (&'static str, fn());

/// What the command line wants.
#[derive(Default)]
struct Wanted {
    names: Vec<String>,
    skipped: Vec<String>,
    is_exact: bool,
    is_list: bool,
    /// No test here is an ignored one.
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
                // Those that have a value, which is no name.
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

/// Does what the command line says with the tests.
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
