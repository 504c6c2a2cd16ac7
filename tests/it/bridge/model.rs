//! Random functions of awaits in nested spawns and greenlets are driven by hand in random order. A
//! model without stacks predicts their logs. `GREENLET_SEED` repeats a run.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::Result;
use greenlet::{Greenlet, Spawn, SpawnBuilder, greenlet_spawn, try_await_};

use crate::support::{Log, NoLeaks};

/// A part of a random function.
#[derive(Clone, Debug)]
enum Part {
    Await(usize),
    Panic,
    /// Parts between the creation and the drop of a local variable.
    Scope(usize, Vec<Part>),
    Spawn(Vec<Part>),
    Greenlet(Vec<Part>),
}

/// The same for the model, flattened.
#[derive(Clone, Copy, Debug)]
enum Op {
    Enter(usize),
    Leave(usize),
    Await(usize),
    Panic,
}

/// The awaited futures, which the test makes ready.
#[derive(Clone, Default)]
struct Gates(Rc<RefCell<Vec<Gate>>>);

/// `true` if it is ready, and the waker of its waiter.
type Gate = (bool, Option<Waker>);

impl Gates {
    fn wait(&self, id: usize) -> impl Future<Output = ()> + use<> {
        let gates = self.clone();
        poll_fn(move |cx| {
            let (is_ready, waker) = &mut gates.0.borrow_mut()[id];
            if *is_ready {
                return Poll::Ready(());
            }
            *waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    fn open(&self, id: usize) {
        let waker = {
            let gate = &mut self.0.borrow_mut()[id];
            gate.0 = true;
            gate.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Scope(usize, Log);

impl Drop for Scope {
    fn drop(&mut self) {
        self.1.add(format!("-{}", self.0));
    }
}

fn run(parts: Vec<Part>, gates: &Gates, log: &Log) -> Result<()> {
    for part in parts {
        let (gates, log) = (gates.clone(), log.clone());
        match part {
            Part::Await(id) => {
                try_await_(gates.wait(id))?;
                log.add(format!("a{id}"));
            }
            Part::Panic => resume_unwind(Box::new("random")),
            Part::Scope(id, parts) => {
                log.add(format!("+{id}"));
                let _scope = Scope(id, log.clone());
                run(parts, &gates, &log)?;
            }
            Part::Spawn(parts) => try_await_(greenlet_spawn(move || run(parts, &gates, &log)))??,
            Part::Greenlet(parts) => {
                let child = Greenlet::new(move |(): ()| run(parts, &gates, &log));
                child.switch::<()>(())?;
            }
        }
    }
    Ok(())
}

struct Made {
    next_gate: usize,
    next_scope: usize,
}

fn random(rng: &mut fastrand::Rng, depth: usize, made: &mut Made, ops: &mut Vec<Op>) -> Vec<Part> {
    let mut parts = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let kind = if depth == 0 { 0 } else { rng.usize(0..16) };
        parts.push(match kind {
            0..=5 => {
                made.next_gate += 1;
                ops.push(Op::Await(made.next_gate - 1));
                Part::Await(made.next_gate - 1)
            }
            6 => {
                ops.push(Op::Panic);
                Part::Panic
            }
            7..=9 => {
                let id = made.next_scope;
                made.next_scope += 1;
                ops.push(Op::Enter(id));
                let inner = random(rng, depth - 1, made, ops);
                ops.push(Op::Leave(id));
                Part::Scope(id, inner)
            }
            10..=12 => Part::Spawn(random(rng, depth - 1, made, ops)),
            _ => Part::Greenlet(random(rng, depth - 1, made, ops)),
        });
    }
    parts
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Pending,
    Returned,
    Panicked,
}

/// The model of one function.
struct Model {
    ops: Vec<Op>,
    at: usize,
    scopes: Vec<usize>,
    log: Vec<String>,
}

impl Model {
    fn awaits(&self) -> Option<usize> {
        match self.ops.get(self.at) {
            Some(Op::Await(id)) => Some(*id),
            _ => None,
        }
    }

    fn poll(&mut self, is_ready: impl Fn(usize) -> bool) -> Outcome {
        while let Some(op) = self.ops.get(self.at).copied() {
            match op {
                Op::Await(id) if !is_ready(id) => return Outcome::Pending,
                Op::Await(id) => self.log.push(format!("a{id}")),
                Op::Enter(id) => {
                    self.scopes.push(id);
                    self.log.push(format!("+{id}"));
                }
                Op::Leave(id) => {
                    assert_eq!(self.scopes.pop(), Some(id));
                    self.log.push(format!("-{id}"));
                }
                Op::Panic => {
                    self.end();
                    return Outcome::Panicked;
                }
            }
            self.at += 1;
        }
        Outcome::Returned
    }

    fn end(&mut self) {
        self.log
            .extend(self.scopes.drain(..).rev().map(|id| format!("-{id}")));
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Live {
    spawn: Spawn<Result<()>>,
    model: Model,
    log: Log,
    wakes: Arc<Wakes>,
    woken: usize,
    has_waited: bool,
}

impl Live {
    fn poll(&mut self, gates: &Gates) -> Outcome {
        let waker = Waker::from(self.wakes.clone());
        let mut cx = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.spawn).poll(&mut cx))) {
            Ok(Poll::Pending) => Outcome::Pending,
            Ok(Poll::Ready(result)) => {
                result.unwrap();
                Outcome::Returned
            }
            Err(payload) => {
                assert_eq!(payload.downcast_ref(), Some(&"random"));
                let _ = gates;
                Outcome::Panicked
            }
        }
    }

    fn check(&mut self) {
        assert_eq!(self.log.take(), std::mem::take(&mut self.model.log));
        assert_eq!(self.wakes.0.load(Ordering::SeqCst), self.woken, "wake-ups");
    }
}

fn one_run(seed: u64) {
    let _no_leaks = NoLeaks::watch();
    let mut rng = fastrand::Rng::with_seed(seed);
    let gates = Gates::default();
    let mut made = Made {
        next_gate: 0,
        next_scope: 0,
    };
    let mut live: Vec<Live> = (0..rng.usize(1..5))
        .map(|_| {
            let mut ops = Vec::new();
            let parts = random(&mut rng, 4, &mut made, &mut ops);
            let log = Log::new();
            let (gates, written) = (gates.clone(), log.clone());
            let options = SpawnBuilder::new().poll_in_place(rng.bool());
            Live {
                spawn: options.spawn(move || run(parts, &gates, &written)),
                model: Model {
                    ops,
                    at: 0,
                    scopes: Vec::new(),
                    log: Vec::new(),
                },
                log,
                wakes: Arc::default(),
                woken: 0,
                has_waited: false,
            }
        })
        .collect();
    gates.0.borrow_mut().resize(made.next_gate, (false, None));
    let is_ready = |id: usize| gates.0.borrow()[id].0;
    while !live.is_empty() {
        let n = rng.usize(..live.len());
        match rng.usize(0..20) {
            0 => {
                let Live {
                    spawn,
                    mut model,
                    log,
                    ..
                } = live.swap_remove(n);
                let shown = format!("{spawn:?} {:?} at {}", model.ops, model.at);
                drop(spawn);
                model.end();
                assert_eq!(log.take(), model.log, "{shown}");
            }
            1 => {
                let Live {
                    spawn,
                    mut model,
                    log,
                    ..
                } = live.swap_remove(n);
                let mut cancelled = spawn.cancel();
                let mut cx = Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut cancelled).poll(&mut cx).is_ready());
                model.end();
                // Waiters below greenlets that hold each other end after the function.
                let mut found = log.take();
                found.sort();
                model.log.sort();
                assert_eq!(found, model.log);
            }
            2..=10 if made.next_gate > 0 => {
                // Its waiter is woken once, and no other task is.
                let id = rng.usize(..made.next_gate);
                let was_ready = is_ready(id);
                gates.open(id);
                for one in &mut live {
                    if !was_ready && one.has_waited && one.model.awaits() == Some(id) {
                        one.woken += 1;
                    }
                    one.check();
                }
            }
            _ => {
                let one = &mut live[n];
                let outcome = one.poll(&gates);
                one.has_waited = true;
                assert_eq!(outcome, one.model.poll(is_ready));
                one.check();
                if outcome != Outcome::Pending {
                    live.swap_remove(n);
                }
            }
        }
    }
}

#[test]
fn random_functions_match_the_model() {
    let given = std::env::var("GREENLET_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let runs = Cell::new(0_u64);
    let first: u64 = given.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let start = Instant::now();
    while runs.get() == 0 || (given.is_none() && start.elapsed() < Duration::from_secs(2)) {
        let seed = first + runs.get();
        if catch_unwind(|| one_run(seed)).is_err() {
            panic!("it went wrong; repeat with GREENLET_SEED={seed}");
        }
        runs.set(runs.get() + 1);
    }
    println!("{} random runs, from GREENLET_SEED={first}", runs.get());
}
