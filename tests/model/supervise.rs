//! Runs batches of programs in child processes, watches them, and shrinks what fails.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use greenlet::stack;

use crate::program::Program;
use crate::thread::run_thread;
use crate::world::LEFT;

/// The programs of a process. What they leave for good is its memory.
const BATCH: u64 = 2000;
/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long shrinking may take.
const SHRINK: Duration = Duration::from_secs(60);

/// Runs a program on a new thread.
pub(crate) fn run_program(program: &Arc<Program>) {
    let shared = Arc::clone(program);
    let thread = std::thread::spawn(move || run_thread(&shared, &shared.body, shared.end));
    if thread.join().is_err() {
        eprintln!("FAILED seed {}: the thread has panicked", program.seed);
        std::process::abort();
    }
}

/// Runs programs on some threads at once. Prints each seed before it runs.
pub(crate) fn run_batch(first: u64, count: u64, threads: u64) {
    let next = AtomicU64::new(0);
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= count {
                        return;
                    }
                    let program = Arc::new(Program::random(first.wrapping_add(number), BTreeSet::new()));
                    steps.fetch_add(u64::from(program.steps), Ordering::SeqCst);
                    let mut output = std::io::stdout().lock();
                    writeln!(output, "{}", program.seed).expect("the supervisor reads this");
                    drop(output);
                    run_program(&program);
                    println!("done {}", program.seed);
                }
            });
        }
    });
    println!("steps {}", steps.into_inner());
    check_left();
}

/// Checks that the stacks of this process are those that its programs have left for good.
pub(crate) fn check_left() {
    let (stats, left) = (stack::stats(), LEFT.load(Ordering::SeqCst));
    if (stats.in_use, stats.leaked) != (left, left) {
        eprintln!("FAILED: {left} stacks are left on purpose, and the library counts {stats:?}");
        std::process::abort();
    }
}

/// How a child process has failed.
struct Failure {
    /// The seeds of the programs that had not ended, the last one first.
    seeds: Vec<u64>,
    text: String,
}

enum Outcome {
    /// The number of steps in the programs.
    Passed(u64),
    Failed(Failure),
}

fn this_program(arguments: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(arguments);
    command
}

/// Runs a child process, and kills it if it prints nothing for too long.
fn run_child(arguments: &[String]) -> Outcome {
    let mut child = this_program(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program can start itself");
    let (lines, received) = channel();
    let output = BufReader::new(child.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        output
            .lines()
            .map_while(Result::ok)
            .all(|line| lines.send(line).is_ok())
    });
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = errors.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut seeds: Vec<u64> = Vec::new();
    let mut steps = 0;
    let hang = loop {
        match received.recv_timeout(LIMIT) {
            Ok(line) => match line.split_once(' ') {
                Some(("steps", count)) => steps = count.parse().unwrap_or(0),
                Some((_done, ended)) => seeds.retain(|seed| seed.to_string() != ended),
                None => seeds.extend(line.parse::<u64>()),
            },
            Err(RecvTimeoutError::Disconnected) => break String::new(),
            Err(RecvTimeoutError::Timeout) => break hang(&mut child),
        }
    };
    let status = child.wait().expect("a child can be waited for");
    let errors = errors.join().expect("the reader does not panic");
    if status.success() && hang.is_empty() {
        return Outcome::Passed(steps);
    }
    seeds.reverse();
    // A failed check names its seed.
    let named = errors
        .split("FAILED seed ")
        .nth(1)
        .and_then(|text| text.split(':').next()?.parse().ok());
    seeds.splice(0..0, named);
    Outcome::Failed(Failure {
        seeds,
        text: format!("{hang}{errors}{status}"),
    })
}

fn hang(child: &mut Child) -> String {
    let _ = child.kill();
    format!("FAILED: nothing has happened for {} s\n", LIMIT.as_secs())
}

/// Runs batches for so many seconds, and prints how it goes.
pub(crate) fn supervise(seconds: u64, first: u64) -> ExitCode {
    let start = Instant::now();
    let (mut programs, mut steps) = (0, 0);
    println!("seed {first}");
    let mut told = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let seed = first.wrapping_add(programs);
        match run_child(&["--batch".into(), seed.to_string(), BATCH.to_string(), "2".into()]) {
            Outcome::Passed(count) => steps += count,
            Outcome::Failed(mut failure) => {
                if failure.seeds.is_empty() {
                    // The whole batch fails: of what its programs have left.
                    failure.seeds = (seed..seed.wrapping_add(BATCH)).collect();
                }
                explain(&failure);
                return ExitCode::FAILURE;
            }
        }
        programs += BATCH;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!(
                "{programs} programs, {steps} steps, {} s",
                start.elapsed().as_secs()
            );
        }
    }
    println!(
        "{programs} programs run, {steps} steps, {} s, from seed {first}",
        start.elapsed().as_secs()
    );
    ExitCode::SUCCESS
}

fn run_one(seed: u64, skips: &BTreeSet<u32>) -> Option<String> {
    let skips: Vec<String> = skips.iter().map(u32::to_string).collect();
    match run_child(&["--one".into(), seed.to_string(), skips.join(",")]) {
        Outcome::Passed(_) => None,
        Outcome::Failed(failure) => Some(failure.text),
    }
}

/// The kind of a failure: its message without numbers, or the signal.
fn kind(text: &str) -> String {
    let is_message = |line: &&str| line.starts_with("FAILED") || line.starts_with("greenlet: ");
    let line = text
        .lines()
        .find(is_message)
        .or(text.lines().last())
        .unwrap_or_default();
    let start = line.split(['<', '(']).next().unwrap_or_default();
    start.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

/// Finds the program that fails, shrinks it, and prints it.
fn explain(failure: &Failure) {
    println!("{}", failure.text);
    let none = BTreeSet::new();
    let found = failure
        .seeds
        .iter()
        .find_map(|&seed| Some((seed, run_one(seed, &none)?)));
    let Some((seed, text)) = found else {
        let seeds: Vec<String> = failure.seeds.iter().take(4).map(u64::to_string).collect();
        println!("none of the programs fails alone: seeds {} ...", seeds.join(", "));
        return;
    };
    let skips = shrink(seed, &kind(&text));
    let text = run_one(seed, &skips).unwrap_or(text);
    println!("{text}");
    let skips: Vec<String> = skips.iter().map(u32::to_string).collect();
    println!("repeat it with: model --one {seed} {}", skips.join(","));
}

/// Leaves out steps, as long as the program fails in the same way.
fn shrink(seed: u64, failure: &str) -> BTreeSet<u32> {
    let steps = Program::random(seed, BTreeSet::new()).steps;
    let start = Instant::now();
    let mut skips = BTreeSet::new();
    let mut size = steps.next_power_of_two();
    while size > 0 && start.elapsed() < SHRINK {
        let before = skips.len();
        for from in (1..=steps).step_by(size as usize) {
            let mut more: BTreeSet<u32> = skips.clone();
            more.extend(from..(from + size).min(steps + 1));
            if more.len() > skips.len() && run_one(seed, &more).is_some_and(|text| kind(&text) == failure) {
                skips = more;
            }
        }
        if skips.len() == before || size > 1 {
            size /= 2;
        }
    }
    skips
}
