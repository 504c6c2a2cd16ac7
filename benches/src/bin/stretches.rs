//! One side of a comparison of two builds: `benches/compare` runs two such programs in turns.
//!
//! Reads lines `ROW TIMES` from standard input, runs that stretch, and prints the nanoseconds of
//! one operation. It uses only what both builds have, so the same source compiles with an older
//! one.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::Result;
use greenlet_core::{Greenlet, GreenletExit, getparent};

/// Runs so many operations, and returns the nanoseconds of one.
type Stretch = Box<dyn FnMut(u64) -> f64>;

fn per_operation(start: Instant, operations: u64) -> f64 {
    start.elapsed().as_nanos() as f64 / operations as f64
}

/// Times `run` as a whole.
fn whole(mut run: impl FnMut(u64) + 'static) -> Stretch {
    Box::new(move |times| {
        let start = Instant::now();
        run(times);
        per_operation(start, times)
    })
}

/// Times `what` with each of `times` greenlets that are prepared before, in batches that fit into
/// the cache of stacks.
fn each(what: impl Fn(Greenlet) + 'static) -> Stretch {
    Box::new(move |times| {
        let mut nanos = 0.0;
        let mut left = times;
        while left > 0 {
            let batch: Vec<Greenlet> = (0..left.min(100)).map(|_| suspended()).collect();
            left -= batch.len() as u64;
            let start = Instant::now();
            batch.into_iter().for_each(&what);
            nanos += start.elapsed().as_nanos() as f64;
        }
        nanos / times as f64
    })
}

fn suspended() -> Greenlet {
    let greenlet = Greenlet::new(|n: u64| getparent().expect("it has a parent").switch::<u64>(n));
    greenlet.switch::<u64>(0_u64).expect("it switches back");
    greenlet
}

fn echo(mut n: u64) -> Result<u64> {
    let main = getparent().expect("it has a parent");
    loop {
        n = main.switch::<u64>(n + 1)?;
    }
}

fn ping_pong() -> Stretch {
    let greenlet = Greenlet::new(echo);
    whole(move |times| {
        for n in 0..times / 2 {
            black_box(greenlet.switch::<u64>(n).expect("an echo"));
        }
    })
}

/// The same where the switch is made below fifty frames.
fn deep() -> Stretch {
    #[inline(never)]
    fn below(frames: u32, n: u64) -> Result<u64> {
        if frames == 0 {
            return echo(n);
        }
        let back = below(frames - 1, n);
        black_box(frames);
        back
    }
    let greenlet = Greenlet::new(|n: u64| below(50, n));
    whole(move |times| {
        for n in 0..times / 2 {
            black_box(greenlet.switch::<u64>(n).expect("an echo"));
        }
    })
}

fn ring(members: usize) -> Stretch {
    let ring: std::rc::Rc<std::cell::RefCell<Vec<Greenlet>>> = std::rc::Rc::default();
    for index in 0..members {
        let handles = std::rc::Rc::clone(&ring);
        let greenlet = Greenlet::new(move |mut n: u64| -> Result<u64> {
            let next = handles.borrow().get(index + 1).cloned();
            drop(handles);
            let next = next.or_else(getparent).expect("the last one's next is main");
            loop {
                n = next.switch::<u64>(n + 1)?;
            }
        });
        ring.borrow_mut().push(greenlet);
    }
    let mut n = 0;
    Box::new(move |times| {
        let first = ring.borrow()[0].clone();
        let hops = members as u64 + 1;
        let laps = times.div_ceil(hops);
        let start = Instant::now();
        for _ in 0..laps {
            n = first.switch::<u64>(n).expect("once around");
        }
        per_operation(start, laps * hops)
    })
}

fn create_run_end() -> Stretch {
    whole(|times| {
        for n in 0..times {
            let greenlet = Greenlet::new(|n: u64| Ok(n + 1));
            black_box(greenlet.switch::<u64>(black_box(n)).expect("a number"));
        }
    })
}

fn first_switch() -> Stretch {
    Box::new(|times| {
        let mut nanos = 0.0;
        let mut left = times;
        while left > 0 {
            let batch: Vec<Greenlet> = (0..left.min(100))
                .map(|_| Greenlet::new(|n: u64| getparent().expect("it has a parent").switch::<u64>(n)))
                .collect();
            left -= batch.len() as u64;
            let start = Instant::now();
            for greenlet in &batch {
                black_box(greenlet.switch::<u64>(1_u64).expect("an echo"));
            }
            nanos += start.elapsed().as_nanos() as f64;
        }
        nanos / times as f64
    })
}

fn throw() -> Stretch {
    each(|greenlet| {
        black_box(
            greenlet
                .throw::<GreenletExit>(GreenletExit::new())
                .expect("it ended"),
        );
    })
}

fn stretch(row: &str) -> Stretch {
    match row {
        "ping-pong" => ping_pong(),
        "50-frames-deep" => deep(),
        "ring-1000" => ring(1_000),
        "ring-10000" => ring(10_000),
        "ring-100000" => ring(100_000),
        "create-run-end" => create_run_end(),
        "first-switch" => first_switch(),
        "throw" => throw(),
        "kill" => each(drop),
        _ => panic!("there is no row {row}"),
    }
}

fn main() {
    let mut rows = std::collections::HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input can be read");
        let (row, times) = line.split_once(' ').expect("a line is `ROW TIMES`");
        let run = rows.entry(row.to_owned()).or_insert_with(|| stretch(row));
        let nanos = run(times.parse().expect("a number of times"));
        println!("{nanos:.4}");
        std::io::stdout().flush().expect("standard output can be written");
    }
}
