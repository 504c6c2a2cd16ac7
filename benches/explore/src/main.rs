//! Searches through orders beside Shuttle: the same five programs, with as many switch points, in one run.
//!
//! ```text
//! cargo run --release -p greenlet-explore          15 rounds of 2,000 random orders of each program
//! cargo run --release -p greenlet-explore 31       31 rounds
//! ```
//!
//! The programs are written over the trait `World`. Each of its operations is one switch point in both
//! worlds, and both count theirs. The two take turns. Printed are medians over the rounds.

mod greenlets;
mod programs;
mod threads;

use std::time::Instant;

/// Tasks that share a thread, and where they switch.
pub(crate) trait World: 'static {
    type Id: Clone + Send + 'static;

    /// Starts a task. A switch point.
    fn spawn(task: impl FnOnce() + Send + 'static);
    /// A switch point.
    fn pause();
    /// Waits for `wake`. A switch point.
    fn park();
    /// Makes a task ready that waits. A switch point.
    fn wake(id: Self::Id);
    fn me() -> Self::Id;
    /// Waits for the end of each other task. A switch point for each.
    fn join_all();
}

const ORDERS: u64 = 2000;

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    let rounds: u64 = std::env::args()
        .nth(1)
        .map_or(15, |rounds| rounds.parse().expect("a number of rounds"));
    let ours = programs::all::<greenlets::Greenlets>();
    let theirs = programs::all::<threads::Threads>();
    println!("random orders a second, medians of {rounds} rounds of {ORDERS} orders");
    println!(
        "{:12} {:>16} {:>12} {:>12} {:>7}",
        "program", "switch points", "greenlet", "shuttle", "ratio"
    );
    let mut ratios_of_all = Vec::new();
    for ((name, ours), (_, theirs)) in ours.into_iter().zip(theirs) {
        let (mut greenlet, mut shuttle, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut points = (0, 0);
        for round in 0..rounds {
            let start = Instant::now();
            points.0 += greenlets::run(round, ORDERS, ours);
            let middle = Instant::now();
            points.1 += threads::run(round, ORDERS, theirs);
            let (first, second) = (middle - start, middle.elapsed());
            greenlet.push(ORDERS as f64 / first.as_secs_f64());
            shuttle.push(ORDERS as f64 / second.as_secs_f64());
            ratios.push(second.as_secs_f64() / first.as_secs_f64());
        }
        let orders = (rounds * ORDERS) as f64;
        let points = format!(
            "{:.1} / {:.1}",
            points.0 as f64 / orders,
            points.1 as f64 / orders
        );
        let ratio = median(ratios);
        ratios_of_all.push(ratio);
        println!(
            "{name:12} {points:>16} {:>12.0} {:>12.0} {ratio:>7.2}",
            median(greenlet),
            median(shuttle)
        );
    }
    println!("median of the ratios: {:.2}", median(ratios_of_all));
}
