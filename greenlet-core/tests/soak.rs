//! A soak test: two threads at once create, switch to, throw at and drop many greenlets at random,
//! for a bounded number of steps. At the end of each round all greenlets are alive at once, then
//! all are ended. After the last round the memory is the same as after the first.
//!
//! The test prints the seed; `GREENLET_SOAK_SEED` sets it. `GREENLET_SOAK_STEPS` sets the number of
//! steps of each thread in a round, which limits the number of greenlets.

extern crate greenlet_core as greenlet;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Barrier;

use anyhow::{Result, bail};
use fastrand::Rng;
use greenlet::{Greenlet, GreenletExit, State, getparent, stack, stacks_in_use};

/// The number of greenlets that are alive at once, on both threads together. A debug build has
/// fewer: it is slower, and the kernel refuses more than 32,000 guards that take two mappings each.
const MEMBERS: usize = if cfg!(debug_assertions) { 10_000 } else { 50_000 };
const LAPS: usize = 4;
const THREADS: usize = 2;

/// Counts the running bodies: 0 at the end.
struct Alive(Rc<Cell<isize>>);

impl Alive {
    fn new(count: &Rc<Cell<isize>>) -> Alive {
        count.set(count.get() + 1);
        Alive(Rc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A greenlet, and its expected next answer.
struct Member {
    greenlet: Greenlet,
    total: u64,
}

/// Adds up the received numbers. Every eighth number goes through a child.
fn adder(alive: &Rc<Cell<isize>>) -> impl FnOnce(u64) -> Result<u64> + use<> {
    let alive = Rc::clone(alive);
    move |first| {
        let _alive = Alive::new(&alive);
        let mut total = first;
        loop {
            let number: u64 = match getparent().unwrap().switch(total) {
                Ok(number) => number,
                Err(error) if error.is::<Harmless>() => 0,
                Err(error) => return Err(error),
            };
            total += number;
            if number % 8 == 7 {
                let child = Greenlet::new(|(): ()| Ok(1_u64));
                total += child.switch::<u64>(())?;
            }
        }
    }
}

/// An error that an adder treats as the number 0.
#[derive(Debug)]
struct Harmless;

impl std::fmt::Display for Harmless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("harmless")
    }
}

impl std::error::Error for Harmless {}

/// The greenlets of one thread.
struct Soak {
    rng: Rng,
    alive: Rc<Cell<isize>>,
    members: Vec<Member>,
}

impl Soak {
    /// The first half of a round: `steps` random steps, which create more greenlets than they end
    /// until the limit is reached. With `must_fill` the limit is reached at the end in any case.
    fn grow(&mut self, steps: usize, must_fill: bool) -> Result<()> {
        for _ in 0..steps {
            self.step()?;
        }
        while must_fill && !self.is_full() {
            self.make()?;
        }
        self.check()
    }

    /// The second half of a round: ends all greenlets, in one way or another.
    fn shrink(&mut self) -> Result<()> {
        self.rng.shuffle(&mut self.members);
        let half = self.members.len() / 2;
        for member in self.members.drain(half..) {
            let _: GreenletExit = member.greenlet.throw(GreenletExit::new())?;
        }
        self.members.clear();
        self.check()
    }

    fn is_full(&self) -> bool {
        self.members.len() >= MEMBERS / THREADS
    }

    fn step(&mut self) -> Result<()> {
        let is_full = self.is_full();
        match self.rng.u8(..) {
            0..160 if !is_full => self.make(),
            // Drops the last handle.
            0..20 => {
                self.take_one();
                Ok(())
            }
            20..30 => {
                let Some(member) = self.take_one() else {
                    return Ok(());
                };
                let _: GreenletExit = member.greenlet.throw(GreenletExit::new())?;
                match member.greenlet.state() {
                    State::Dead => Ok(()),
                    state => bail!("ended, and {state:?}"),
                }
            }
            30..40 => {
                let Some(member) = self.take_one() else {
                    return Ok(());
                };
                match member.greenlet.throw::<u64>(anyhow::anyhow!("deadly")) {
                    Err(error) if error.to_string() == "deadly" => Ok(()),
                    other => bail!("an error became {other:?}"),
                }
            }
            40..60 => self.ask(|member, _| member.greenlet.throw(Harmless)),
            _ => self.ask(|member, number| {
                member.total += number + u64::from(number % 8 == 7);
                member.greenlet.switch(number)
            }),
        }
    }

    fn make(&mut self) -> Result<()> {
        let size = *self.rng.choice(&[64 << 10, 64 << 10, 128 << 10]).unwrap_or(&0);
        let greenlet = Greenlet::builder().stack_size(size).build(adder(&self.alive));
        let total = self.rng.u64(..1000);
        let answer: u64 = greenlet.switch(total)?;
        self.members.push(Member { greenlet, total });
        if answer != total {
            bail!("a new greenlet answered {answer}, not {total}");
        }
        Ok(())
    }

    fn ask(&mut self, how: impl FnOnce(&mut Member, u64) -> Result<u64>) -> Result<()> {
        let number = self.rng.u64(..1000);
        let Some(member) = self.rng.choice(&mut self.members) else {
            return Ok(());
        };
        let answer = how(member, number)?;
        if answer != member.total {
            bail!("{:?} answered {answer}, not {}", member.greenlet, member.total);
        }
        Ok(())
    }

    fn take_one(&mut self) -> Option<Member> {
        let index = self.rng.usize(..self.members.len().max(1));
        (index < self.members.len()).then(|| self.members.swap_remove(index))
    }

    /// Checks that as many bodies run, and as many stacks are in use, as there are members.
    fn check(&self) -> Result<()> {
        let (members, bodies) = (self.members.len(), self.alive.get());
        let stacks = stacks_in_use();
        if bodies != members as isize || stacks != members {
            bail!("{members} members, {bodies} bodies, {stacks} stacks");
        }
        Ok(())
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn memory_does_not_grow_after_the_first_round() {
    let seed = setting("GREENLET_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let shortened = setting("GREENLET_SOAK_STEPS");
    let steps = shortened.map_or(4 * MEMBERS, |steps| steps as usize);
    println!("seed {seed}");
    let barrier = Barrier::new(THREADS);
    let soak = |thread: u64| {
        let mut soak = Soak {
            rng: Rng::with_seed(seed + thread),
            alive: Rc::default(),
            members: Vec::new(),
        };
        let mut laps = Vec::new();
        // Wait also after an error: the other thread would wait at the barrier for ever.
        let mut outcome = Ok(());
        for _ in 0..LAPS {
            outcome = outcome.and_then(|()| soak.grow(steps, shortened.is_none()));
            let alive = soak.members.len();
            barrier.wait(); // the greenlets of both threads are alive at once
            outcome = outcome.and_then(|()| soak.shrink());
            barrier.wait(); // no thread runs while the memory is measured
            laps.push((alive, resident()));
            barrier.wait();
        }
        outcome.map(|()| laps)
    };
    let laps = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|thread| scope.spawn(move || soak(thread)))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap().unwrap());
        results.collect::<Vec<_>>()
    });
    println!("of each thread, for each lap: how many were alive, and bytes resident afterwards: {laps:?}");
    for lap in (0..LAPS).filter(|_| shortened.is_none()) {
        assert_eq!(laps.iter().map(|laps| laps[lap].0).sum::<usize>(), MEMBERS);
    }
    let (first, last) = (laps[0][0].1, laps[0][LAPS - 1].1);
    assert!(last <= first + first / 10, "{first} bytes have become {last}");
    assert_eq!(stack::stats().in_use, 0);
}
