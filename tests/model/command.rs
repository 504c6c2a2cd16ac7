//! A random model of greenlets, generators, scopes, spawns and streams, with faults.
//!
//! Random programs run on the library, each on a thread of its own, and invariants are checked
//! (`world.rs`). A process runs some hundred programs, two at a time, and this program watches it: a
//! crash, a hang or a failed check ends that process, and is shrunk and printed.
//!
//! ```text
//! $ cargo run --release --example model -- 60         for 60 seconds, from a new seed
//! $ cargo run --release --example model -- 60 7       from seed 7
//! $ cargo run --release --example model -- --one 7    the program of seed 7, which is printed
//! ```

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

mod awaits;
mod bridge;
mod generators;
mod greenlets;
mod print;
mod program;
mod run;
mod scopes;
mod supervise;
mod tasks;
mod thread;
mod world;

use program::Program;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--batch", first, count, threads] => {
            watch();
            supervise::run_batch(number(first), number(count), number(threads));
            ExitCode::SUCCESS
        }
        ["--one", seed] => one(seed, ""),
        ["--one", seed, skips] => one(seed, skips),
        [seconds] => supervise::supervise(number(seconds), fastrand::u64(..u64::MAX / 2)),
        [seconds, seed] => supervise::supervise(number(seconds), number(seed)),
        _ => {
            eprintln!("usage: model SECONDS [SEED] | model --one SEED [STEPS TO LEAVE OUT]");
            ExitCode::from(2)
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// Runs one program, and prints it and its steps.
fn one(seed: &str, skips: &str) -> ExitCode {
    let skips: BTreeSet<u32> = skips.split(',').filter_map(|text| text.parse().ok()).collect();
    let program = Arc::new(Program::random(number(seed), skips));
    eprintln!("{program}");
    watch();
    world::TRACES.store(
        std::env::var_os("MODEL_TRACE").is_some(),
        std::sync::atomic::Ordering::Relaxed,
    );
    supervise::run_program(&program);
    supervise::check_left();
    ExitCode::SUCCESS
}

fn watch() {
    world::watch_panics();
    use tracing_subscriber::util::SubscriberInitExt;
    tracing_subscriber::registry().init();
}
