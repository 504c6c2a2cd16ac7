//! Measures contenders beside each other.
//!
//! A [`Group`] is one question ("what does a switch cost?") and its contenders. Each contender is measured by
//! criterion, which keeps a history. But figures that were taken one after the other compare badly on a
//! machine that has other work: so all contenders of a group then run in turns, a few milliseconds each, for many
//! rounds, and what is reported is the median of each, its spread, and the median of the ratios *within* a round.
//!
//! `cargo bench -- --test` runs everything once and measures nothing; `cargo bench -- --table` leaves criterion
//! out; `cargo bench -- <words>` runs the groups whose names contain a word.

use std::hint::black_box;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::Criterion;

pub mod raw;
pub mod stacks;

/// Who the others are compared with.
pub const OURS: &str = "greenlet";

/// How long a contender runs at a stretch, and how often.
const STRETCH: Duration = Duration::from_millis(4);
const ROUNDS: usize = 51;

/// Does something `n` times.
pub type Run = Box<dyn FnMut(u64)>;

/// One question, and everyone who answers it.
pub struct Group {
    name: &'static str,
    /// How many units of what the figure is given for are in one iteration: two switches in a round trip.
    units: u64,
    /// The goals: at most this many times the named contender.
    goals: Vec<(&'static str, f64)>,
    /// A goal in nanoseconds.
    limit: Option<f64>,
    contenders: Vec<Contender>,
}

struct Contender {
    name: &'static str,
    make: Box<dyn FnOnce() -> Run>,
}

impl Group {
    pub fn new(name: &'static str, units: u64) -> Group {
        Group {
            name,
            units,
            goals: Vec::new(),
            limit: None,
            contenders: Vec::new(),
        }
    }

    /// Adds a contender: `make` prepares, and returns what is measured.
    pub fn add<F: FnMut(u64) + 'static>(
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
        self.goals.push((than, ratio));
        self
    }

    /// States a goal: [`OURS`] costs at most so many nanoseconds.
    pub fn limit(mut self, nanoseconds: f64) -> Group {
        self.limit = Some(nanoseconds);
        self
    }
}

/// What was measured of one contender.
struct Line {
    name: &'static str,
    median: f64,
    /// Half of the rounds were between these.
    quartiles: (f64, f64),
    /// The median, over the rounds, of what OURS took by what this took.
    ratio: Option<f64>,
}

/// Runs the groups of one benchmark, prints the table of ratios, and leaves it in `target/ratios/<name>.tsv` for
/// `draw.py`.
pub fn main(name: &str, groups: Vec<Group>) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let table_only = arguments.iter().any(|argument| argument == "--table");
    let words: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .without_plots();

    let mut rows = String::new();
    let mut report = String::new();
    for group in groups {
        if !words.is_empty() && !words.iter().any(|word| group.name.contains(word.as_str())) {
            continue;
        }
        let mut runs: Vec<(&'static str, Run)> = group
            .contenders
            .into_iter()
            .map(|contender| (contender.name, (contender.make)()))
            .collect();
        if is_test {
            for (_, run) in &mut runs {
                run(2);
            }
            println!("{name}: {}: runs", group.name);
            continue;
        }
        if !table_only {
            let mut figures = criterion.benchmark_group(format!("{name}/{}", group.name));
            figures.throughput(criterion::Throughput::Elements(group.units));
            for (contender, run) in &mut runs {
                figures.bench_function(*contender, |bencher| bencher.iter_custom(|n| timed(run, n)));
            }
            figures.finish();
        }
        let lines = in_turns(&mut runs, group.units);
        let ours = lines
            .iter()
            .find(|line| line.name == OURS)
            .map(|line| line.median);
        report.push_str(&format!("\n{} (ns each)\n", group.name));
        for line in &lines {
            let goal = group.goals.iter().find(|(than, _)| *than == line.name);
            let mut verdict = String::new();
            if let (Some(ratio), Some((_, goal))) = (line.ratio, goal) {
                let met = if ratio <= *goal { "met" } else { "MISSED" };
                verdict = format!("  goal {goal:.2}: {met}");
            }
            if let (true, Some(limit), Some(ours)) = (line.name == OURS, group.limit, ours) {
                let met = if ours <= limit { "met" } else { "MISSED" };
                verdict = format!("  goal {limit} ns: {met}");
            }
            let ratio = line.ratio.map_or(String::new(), |ratio| format!("{ratio:6.2}"));
            report.push_str(&format!(
                "  {:<24}{:>10.2}  [{:.2} .. {:.2}]{:>8}{verdict}\n",
                line.name, line.median, line.quartiles.0, line.quartiles.1, ratio
            ));
            rows.push_str(&format!(
                "{}\t{}\t{:.3}\t{:.3}\t{:.3}\t{}\t{}\n",
                group.name,
                line.name,
                line.median,
                line.quartiles.0,
                line.quartiles.1,
                line.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}")),
                goal.map_or(String::new(), |(_, goal)| format!("{goal}")),
            ));
        }
    }
    if is_test {
        return;
    }
    println!(
        "\n{name}: medians [half of the rounds between], and {OURS} by each, as the median of the rounds' ratios"
    );
    println!("{report}");
    if let Err(error) = leave(name, &rows) {
        eprintln!("the table was not written: {error}");
    }
}

/// Writes the table to where `draw.py` looks for it.
fn leave(name: &str, rows: &str) -> std::io::Result<()> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "target", "ratios"].iter().collect();
    std::fs::create_dir_all(&folder)?;
    let mut file = std::fs::File::create(folder.join(format!("{name}.tsv")))?;
    file.write_all(b"group\tcontender\tmedian_ns\tlower_quartile\tupper_quartile\tratio\tgoal\n")?;
    file.write_all(rows.as_bytes())
}

/// Runs all contenders in turns.
fn in_turns(runs: &mut [(&'static str, Run)], units: u64) -> Vec<Line> {
    let counts: Vec<u64> = runs.iter_mut().map(|(_, run)| fitting(run)).collect();
    let mut times = vec![Vec::with_capacity(ROUNDS); runs.len()];
    for round in 0..ROUNDS {
        for turn in 0..runs.len() {
            // Another one begins each round, so that nobody always follows the same one.
            let which = (turn + round) % runs.len();
            let n = counts[which];
            let run = &mut runs[which].1;
            run((n / 8).max(1)); // what the others left in the caches is not what is measured
            let time = timed(run, n).as_nanos() as f64;
            times[which].push(time / (n * units) as f64);
        }
    }
    let ours = runs.iter().position(|(name, _)| *name == OURS);
    let ratios: Vec<Option<f64>> = (0..runs.len())
        .map(|which| {
            let ours = ours.filter(|ours| *ours != which)?;
            let ratios = times[ours]
                .iter()
                .zip(&times[which])
                .map(|(ours, other)| ours / other);
            Some(quantile(&mut ratios.collect::<Vec<f64>>(), 0.5))
        })
        .collect();
    runs.iter()
        .zip(times.iter_mut())
        .zip(ratios)
        .map(|(((name, _), times), ratio)| Line {
            name,
            median: quantile(times, 0.5),
            quartiles: (quantile(times, 0.25), quantile(times, 0.75)),
            ratio,
        })
        .collect()
}

/// How many iterations take about a [`STRETCH`].
fn fitting(run: &mut Run) -> u64 {
    let mut n = 1;
    loop {
        let time = timed(run, n);
        if time >= STRETCH / 2 || n >= 1 << 40 {
            let ratio = STRETCH.as_secs_f64() / time.as_secs_f64();
            return ((n as f64 * ratio) as u64).max(1);
        }
        n *= 2;
    }
}

fn timed(run: &mut Run, n: u64) -> Duration {
    let start = Instant::now();
    run(black_box(n));
    start.elapsed()
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at) as usize]
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
