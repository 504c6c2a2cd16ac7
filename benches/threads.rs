//! Two threads beside one, each with its own greenlets: the time for one unit when both work is to
//! be half of it.
//!
//! It needs both cores for itself, so the best round of each counts. The bare switch says what the
//! machine gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use greenlet_benches::Group;

use crate::{lifecycle, switch};

/// At least 1.9 times the speed.
const GOAL: f64 = 1.0 / 1.9;

/// A thread that does something when it is told how often; it says when it began and ended.
struct Worker {
    todo: Sender<u64>,
    done: Receiver<(Instant, Instant)>,
}

/// Runs on `threads` threads at once. `make` is called on each of them.
fn threads<F: FnMut(u64) + 'static>(threads: usize, make: fn() -> F) -> impl FnMut(u64) -> Duration {
    let waiting = Arc::new(AtomicUsize::new(0));
    let workers: Vec<Worker> = (0..threads)
        .map(|_| {
            let (todo, tasks) = channel();
            let (tell, done) = channel();
            let waiting = Arc::clone(&waiting);
            std::thread::spawn(move || {
                let mut run = make();
                for times in tasks {
                    // All begin at once.
                    waiting.fetch_add(1, Ordering::AcqRel);
                    let mut spins = 0_u32;
                    while !waiting.load(Ordering::Acquire).is_multiple_of(threads) {
                        spins += 1;
                        match spins % 10_000 {
                            0 => std::thread::yield_now(),
                            _ => std::hint::spin_loop(),
                        }
                    }
                    let start = Instant::now();
                    run(times);
                    tell.send((start, Instant::now())).unwrap();
                }
            });
            Worker { todo, done }
        })
        .collect();
    move |times| {
        let each = (times / threads as u64).max(1);
        for worker in &workers {
            worker.todo.send(each).unwrap();
        }
        let ran: Vec<_> = workers.iter().map(|worker| worker.done.recv().unwrap()).collect();
        let start = ran.iter().map(|(start, _)| *start).min().unwrap();
        let end = ran.iter().map(|(_, end)| *end).max().unwrap();
        end - start
    }
}

fn hindrance() -> Option<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores < 2).then(|| String::from("there is one core"))
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("two threads, switches", 2)
            .add_timed("greenlet", || threads(2, switch::asm::ping_pong))
            .add_timed("greenlet, one thread", || threads(1, switch::asm::ping_pong))
            .add_timed("raw", || threads(2, switch::raw_ping_pong))
            .add_timed("raw, one thread", || threads(1, switch::raw_ping_pong))
            .add_timed("corosensei", || threads(2, switch::corosensei_ping_pong))
            .add_timed("corosensei, one thread", || {
                threads(1, switch::corosensei_ping_pong)
            })
            .goal("greenlet, one thread", GOAL)
            .best()
            .unless(hindrance()),
        Group::new("two threads, create, run, end", 1)
            .add_timed("greenlet", || threads(2, lifecycle::asm::create_run_end))
            .add_timed("greenlet, one thread", || {
                threads(1, lifecycle::asm::create_run_end)
            })
            .add_timed("raw", || threads(2, lifecycle::raw_create))
            .add_timed("raw, one thread", || threads(1, lifecycle::raw_create))
            .add_timed("corosensei", || threads(2, lifecycle::corosensei_create))
            .add_timed("corosensei, one thread", || {
                threads(1, lifecycle::corosensei_create)
            })
            .goal("greenlet, one thread", GOAL)
            .best()
            .unless(hindrance()),
    ]
}
