//! Measures contenders beside each other.
//!
//! A [`Group`] is one question ("what does a switch cost?") and its contenders. Figures that were
//! taken one after the other compare badly on a machine that has other work: so all contenders of a
//! group are in one process, and run in turns, 0.3 ms each, for many rounds. What is reported is
//! the median of each, its spread, and the median of the ratios *within* a round.
//!
//! Other work on the same core slows down all contenders, and pulls a ratio towards 1. A neighbour
//! seldom pauses for several milliseconds, so long stretches are nearly all disturbed. Short ones
//! fit into its pauses. Only the quietest tenth of the rounds counts: those in which all contenders
//! together took least.
//!
//! Each group has processes of its own, so that no question depends on what was asked before. It
//! has five of them, with those of the other groups between, and the rounds are put together: where
//! stacks and records happen to lie in memory then is part of the spread, and a minute that is
//! disturbed does not spoil one group alone.
//!
//! | command | what runs |
//! | --- | --- |
//! | `cargo bench` | criterion, which keeps a history, then the turns; ends with the table of goals |
//! | `cargo bench -- --table` | the turns alone |
//! | `cargo bench -- --test` | everything once; nothing is measured |
//! | `cargo bench -- <words>` | the groups whose names contain one of the words |
//! | `cargo bench -- --save-baseline=<name>`, `--baseline=<name>` | criterion's, to compare with a named earlier run |
//!
//! The figures are left in `target/figures.json`, for `record.py`.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::Criterion;
use serde_json::{Value, json};

pub mod raw;
pub mod stacks;

/// Who the others are compared with.
pub const OURS: &str = "greenlet";

/// How long a contender runs at a stretch.
const STRETCH: Duration = Duration::from_micros(300);

/// The stretch of a group whose best round counts. Two threads need some time to start together.
const LONG_STRETCH: Duration = Duration::from_millis(4);

/// How many processes a group has, and how many rounds each of them runs.
const PROCESSES: usize = 5;
const ROUNDS: usize = 301;

/// How many rounds a process runs at least. It runs no more of them if they are long ones, or after
/// [`ENOUGH`]: one lap of a large ring takes many times a stretch.
const FEWEST_ROUNDS: usize = 21;
const ENOUGH: Duration = Duration::from_secs(4);

/// One of how many rounds counts.
const QUIETEST: usize = 10;

/// Does something `n` times, and says how long what is measured of it took.
type Run = Box<dyn FnMut(u64) -> Duration>;

/// One question, and everyone who answers it.
pub struct Group {
    name: &'static str,
    /// How many units of what the figure is given for are in one iteration: two switches in a round
    /// trip.
    units: u64,
    goals: Vec<Goal>,
    contenders: Vec<Contender>,
    /// Each round is that many iterations, in one process, for that many rounds.
    fixed: Option<(u64, usize)>,
    /// The best round of each counts, instead of the median.
    is_best: bool,
    /// Why it cannot be measured here.
    left_out: Option<String>,
    /// Errors capture backtraces.
    backtraces: bool,
}

struct Contender {
    name: &'static str,
    make: Box<dyn FnOnce() -> Run>,
}

/// What [`OURS`] is to reach.
enum Goal {
    /// At most this many times what another contender takes.
    Ratio(&'static str, f64),
    /// At most so many nanoseconds.
    Nanoseconds(f64),
}

impl Group {
    pub fn new(name: &'static str, units: u64) -> Group {
        Group {
            name,
            units,
            goals: Vec::new(),
            contenders: Vec::new(),
            fixed: None,
            is_best: false,
            left_out: None,
            backtraces: false,
        }
    }

    /// Adds a contender: `make` prepares, and returns what is measured.
    pub fn add<F: FnMut(u64) + 'static>(
        self,
        name: &'static str,
        make: impl FnOnce() -> F + 'static,
    ) -> Group {
        self.add_timed(name, || {
            let mut run = make();
            move |n| {
                let start = Instant::now();
                run(black_box(n));
                start.elapsed()
            }
        })
    }

    /// Adds a contender that says itself how long it took: not all of what it does is measured.
    pub fn add_timed<F: FnMut(u64) -> Duration + 'static>(
        mut self,
        name: &'static str,
        make: impl FnOnce() -> F + 'static,
    ) -> Group {
        self.contenders.push(Contender {
            name,
            make: Box::new(|| Box::new(make())),
        });
        self
    }

    /// States a goal: [`OURS`] costs at most `ratio` times what `than` costs.
    pub fn goal(mut self, than: &'static str, ratio: f64) -> Group {
        self.goals.push(Goal::Ratio(than, ratio));
        self
    }

    /// States a goal: [`OURS`] costs at most so many nanoseconds.
    pub fn limit(mut self, nanoseconds: f64) -> Group {
        self.goals.push(Goal::Nanoseconds(nanoseconds));
        self
    }

    /// What was made stays: each contender makes `rounds` times `iterations` of it, in turns, in
    /// one process. Criterion, which runs as often as it likes, is left out.
    pub fn fixed(mut self, iterations: u64, rounds: usize) -> Group {
        self.fixed = Some((iterations, rounds));
        self
    }

    /// Takes the best round of each contender instead of the median. For what needs the whole
    /// machine: any other work on it disturbs all rounds in the same direction.
    pub fn best(mut self) -> Group {
        self.is_best = true;
        self
    }

    /// Leaves the group out where there is a reason.
    pub fn unless(mut self, reason: Option<String>) -> Group {
        self.left_out = reason;
        self
    }

    /// Sets `RUST_BACKTRACE=1` in the processes of the group.
    pub fn with_backtraces(mut self) -> Group {
        self.backtraces = true;
        self
    }

    fn processes(&self) -> usize {
        if self.fixed.is_some() { 1 } else { PROCESSES }
    }
}

/// Measures the groups, each in processes of its own, and prints the table.
pub fn main(groups: Vec<Group>) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let mut arguments = arguments.iter();
        arguments.find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
    };
    if let Some(index) = value("--group").and_then(|index| index.parse().ok()) {
        let group = groups.into_iter().nth(index).expect("a group of that number");
        let baseline = (value("--save-baseline"), value("--baseline"));
        return child(group, value("--mode").expect("a mode"), baseline);
    }
    let is = |name: &str| arguments.iter().any(|argument| argument == name);
    let words: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let kept: Vec<&String> = arguments
        .iter()
        .filter(|argument| argument.contains("baseline="))
        .collect();

    let mut asked = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        if !words.is_empty() && !words.iter().any(|word| group.name.contains(word.as_str())) {
            continue;
        }
        if let Some(reason) = &group.left_out {
            println!("\n{}: left out: {reason}", group.name);
            continue;
        }
        if is("--test") {
            spawn(index, group, "test", &kept);
        } else {
            if !is("--table") && group.fixed.is_none() {
                spawn(index, group, "criterion", &kept);
            }
            asked.push((index, group, Vec::new()));
        }
    }
    if is("--test") {
        return;
    }
    for pass in 0..PROCESSES {
        eprintln!("in turns: pass {} of {PROCESSES}", pass + 1);
        for (index, group, processes) in &mut asked {
            if pass < group.processes() {
                let printed = spawn(*index, group, "turns", &kept);
                processes.push(serde_json::from_str(&printed).expect("what a child prints is JSON"));
            }
        }
    }
    let measured: Vec<Value> = asked
        .iter()
        .map(|(_, group, processes)| figures(group, processes))
        .collect();
    measured.iter().for_each(print_group);
    print_goals(&measured);
    let all = json!({ "command": command(&arguments), "groups": measured });
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "target", "figures.json"]
        .iter()
        .collect();
    match write(&path, &all) {
        Ok(()) => println!("\nleft in {}", path.display()),
        Err(error) => eprintln!("the figures were not written: {error}"),
    }
}

fn command(arguments: &[String]) -> String {
    let mut command = String::from("cargo bench");
    let ours: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| *argument != "--bench")
        .collect();
    if !ours.is_empty() {
        command += " -- ";
        command += &ours.join(" ");
    }
    command
}

fn write(path: &Path, all: &Value) -> std::io::Result<()> {
    std::fs::write(path, format!("{all:#}\n"))
}

// ---- the process of a group ----------------------------------------------------------------------------

/// Runs a process for one group; what it printed, unless it was for the user.
fn spawn(index: usize, group: &Group, mode: &str, more: &[&String]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(format!("--group={index}"));
    command.arg(format!("--mode={mode}")).args(more);
    command.stderr(std::process::Stdio::inherit());
    if group.backtraces {
        command.env("RUST_BACKTRACE", "1");
    }
    if mode != "turns" {
        command.stdout(std::process::Stdio::inherit());
    }
    let output = command.output().expect("this program can be started");
    assert!(
        output.status.success(),
        "group {index} has failed: {}",
        output.status
    );
    String::from_utf8(output.stdout).expect("what a child prints is text")
}

fn child(group: Group, mode: &str, baseline: (Option<&str>, Option<&str>)) {
    let mut runs: Vec<(&'static str, Run)> = group
        .contenders
        .into_iter()
        .map(|contender| (contender.name, (contender.make)()))
        .collect();
    match mode {
        "test" => {
            for (contender, run) in &mut runs {
                run(2);
                println!("{}: {contender}: runs", group.name);
            }
        }
        "criterion" => {
            let mut criterion = Criterion::default()
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(1))
                .sample_size(20)
                .without_plots();
            if let Some(name) = baseline.0 {
                criterion = criterion.save_baseline(name.to_owned());
            }
            if let Some(name) = baseline.1 {
                criterion = criterion.retain_baseline(name.to_owned(), false);
            }
            let mut figures = criterion.benchmark_group(group.name);
            figures.throughput(criterion::Throughput::Elements(group.units));
            for (contender, run) in &mut runs {
                figures.bench_function(*contender, |bencher| bencher.iter_custom(&mut *run));
            }
            figures.finish();
        }
        _ => {
            let times = in_turns(&mut runs, group.units, group.fixed, group.is_best);
            println!("{}", json!(times));
        }
    }
    // What is left suspended, and a million stacks, need not be ended one by one.
    std::process::exit(0);
}

/// Runs all contenders in turns: the nanoseconds of each, round by round.
fn in_turns(
    runs: &mut [(&'static str, Run)],
    units: u64,
    fixed: Option<(u64, usize)>,
    is_best: bool,
) -> Vec<Vec<f64>> {
    let (stretch, rounds) = match (fixed, is_best) {
        (Some((_, rounds)), _) => (STRETCH, rounds),
        (None, true) => (LONG_STRETCH, FEWEST_ROUNDS),
        (None, false) => (STRETCH, ROUNDS),
    };
    let counts: Vec<u64> = runs
        .iter_mut()
        .map(|(_, run)| fixed.map_or_else(|| fitting(run, stretch), |(n, _)| n))
        .collect();
    let mut times = vec![Vec::with_capacity(rounds); runs.len()];
    let start = Instant::now();
    for round in 0..rounds {
        if fixed.is_none() && round >= FEWEST_ROUNDS && start.elapsed() > ENOUGH {
            break;
        }
        for turn in 0..runs.len() {
            // Another one begins each round, so that nobody always follows the same one.
            let which = (turn + round) % runs.len();
            let n = counts[which];
            let run = &mut runs[which].1;
            if fixed.is_none() {
                // What the others left in the caches is not what is measured. The first laps of a
                // large ring after others had their turn take twice as long as the next.
                run((n / 8).max(3));
            }
            let time = run(n).as_nanos() as f64;
            times[which].push(time / (n * units) as f64);
        }
    }
    times
}

/// How many iterations take about a `stretch`, with what is not measured of them.
fn fitting(run: &mut Run, stretch: Duration) -> u64 {
    let mut n = 1;
    loop {
        // The shortest of a few: other work on the machine is not to shorten the stretch.
        let tries = (0..3).map(|_| {
            let start = Instant::now();
            run(n);
            start.elapsed()
        });
        let time = tries.min().expect("there were some");
        if time >= stretch / 2 || n >= 1 << 40 {
            let ratio = stretch.as_secs_f64() / time.as_secs_f64();
            return ((n as f64 * ratio) as u64).max(1);
        }
        n *= 2;
    }
}

// ---- what the rounds say -------------------------------------------------------------------------------

/// Puts the rounds of all processes together.
fn figures(group: &Group, processes: &[Value]) -> Value {
    let times: Vec<Vec<f64>> = (0..group.contenders.len())
        .map(|which| {
            let rounds = processes
                .iter()
                .flat_map(|process| process[which].as_array().expect("rounds"));
            rounds.map(|time| time.as_f64().expect("a time")).collect()
        })
        .collect();
    let rounds = times[0].len();
    let all_count = group.is_best || group.fixed.is_some();
    let times = if all_count { times } else { quietest(&times) };
    let typical = if group.is_best { 0.0 } else { 0.5 };
    let position = |name| group.contenders.iter().position(|other| other.name == name);
    let ours = &times[position(OURS).expect("we take part")];
    let contenders: Vec<Value> = group
        .contenders
        .iter()
        .zip(&times)
        .map(|(contender, times)| {
            let mut figure = spread(times, typical);
            figure["name"] = json!(contender.name);
            if contender.name != OURS {
                figure["ratio"] = ratio(ours, times, group.is_best);
            }
            figure
        })
        .collect();
    let goals: Vec<Value> = group
        .goals
        .iter()
        .map(|goal| match *goal {
            Goal::Ratio(than, most) => {
                let other = &contenders[position(than).expect("it takes part")];
                let ratio = &other["ratio"];
                let is_met = ratio["typical"].as_f64() <= Some(most);
                json!({ "than": than, "most": most, "measured": ratio, "met": is_met })
            }
            Goal::Nanoseconds(most) => {
                let ours = spread(ours, typical);
                let is_met = ours["typical"].as_f64() <= Some(most);
                json!({ "nanoseconds": most, "measured": ours, "met": is_met })
            }
        })
        .collect();
    json!({
        "name": group.name,
        "statistic": if group.is_best { "best" } else { "median" },
        "rounds": ours.len(),
        "of": rounds,
        "processes": processes.len(),
        "contenders": contenders,
        "goals": goals,
    })
}

/// Keeps the rounds in which all contenders together took least, each by its own least.
fn quietest(times: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let least: Vec<f64> = times
        .iter()
        .map(|times| times.iter().copied().fold(f64::INFINITY, f64::min))
        .collect();
    let disturbed = |round: usize| -> f64 {
        let each = times.iter().zip(&least);
        each.map(|(times, least)| times[round] / least).sum()
    };
    let mut rounds: Vec<usize> = (0..times[0].len()).collect();
    rounds.sort_by(|one, other| disturbed(*one).total_cmp(&disturbed(*other)));
    rounds.truncate(rounds.len().div_ceil(QUIETEST));
    let kept = |times: &Vec<f64>| rounds.iter().map(|round| times[*round]).collect();
    times.iter().map(kept).collect()
}

/// The typical value, and between what half of the rounds were.
fn spread(values: &[f64], typical: f64) -> Value {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let value = sorted[((sorted.len() - 1) as f64 * share) as usize];
        (value * 1e4).round() / 1e4
    };
    json!({ "typical": at(typical), "low": at(0.25), "high": at(0.75) })
}

/// What ours took by what the other took, round by round. Where the best rounds count, the typical
/// ratio is that of the two best: the best ratio would be of a round in which the other was
/// disturbed.
fn ratio(ours: &[f64], other: &[f64], is_best: bool) -> Value {
    let ratios: Vec<f64> = ours.iter().zip(other).map(|(ours, other)| ours / other).collect();
    let mut ratio = spread(&ratios, 0.5);
    if is_best {
        let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        ratio["typical"] = json!((best(ours) / best(other) * 1e4).round() / 1e4);
    }
    ratio
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn print_group(group: &Value) {
    println!(
        "\n{}: ns each, {} of {} rounds of {} [half of them between]; {OURS} by each",
        text(&group["name"]),
        text(&group["statistic"]),
        group["rounds"],
        group["of"],
    );
    for line in group["contenders"].as_array().into_iter().flatten() {
        let ratio = line.get("ratio").map_or(String::new(), |ratio| {
            let [typical, low, high] = ["typical", "low", "high"].map(|key| number(&ratio[key]));
            format!("{typical:8.3}  [{low:.3} .. {high:.3}]")
        });
        println!(
            "  {:<36}{:>10.2}  {:<24}{ratio}",
            text(&line["name"]),
            number(&line["typical"]),
            format!("[{:.2} .. {:.2}]", number(&line["low"]), number(&line["high"])),
        );
    }
}

fn print_goals(groups: &[Value]) {
    println!("\n{:<36}{:<36}{:>9}{:>10}", "goals", "by", "at most", "measured");
    for group in groups {
        for goal in group["goals"].as_array().into_iter().flatten() {
            let (by, most) = match goal.get("than") {
                Some(than) => (text(than), &goal["most"]),
                None => ("nanoseconds", &goal["nanoseconds"]),
            };
            println!(
                "{:<36}{by:<36}{:>9}{:>10}  {}",
                text(&group["name"]),
                precise(number(most)),
                precise(number(&goal["measured"]["typical"])),
                if goal["met"] == true { "met" } else { "MISSED" },
            );
        }
    }
    println!(
        "What the bridge to async costs is in the other package: `cargo bench --bench bridge` in the top folder."
    );
}

/// With about three digits that count.
fn precise(value: f64) -> String {
    match value {
        value if value < 0.1 => format!("{value:.4}"),
        value if value < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// Calls `body` with 50 frames below it.
pub fn deep<R>(body: &mut dyn FnMut() -> R) -> R {
    #[inline(never)]
    fn frame<R>(left: u32, body: &mut dyn FnMut() -> R) -> R {
        if left == 0 {
            return body();
        }
        let result = frame(left - 1, body);
        black_box(left); // no tail call
        result
    }
    frame(50, body)
}
