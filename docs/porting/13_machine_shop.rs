//! A process simulation: the machine shop of the SimPy tutorial, on an engine of a page.
//!
//! Ten machines make parts, and break. One repairman mends them. Between repairs he does other
//! jobs, which he interrupts when a machine breaks. The random numbers come from a generator that
//! is easy to write in every language.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getmain};

const PART_MEAN: f64 = 10.0;
const PART_SIGMA: f64 = 2.0;
const MEAN_TIME_TO_FAILURE: f64 = 300.0;
const REPAIR_TIME: f64 = 30.0;
const JOB_DURATION: f64 = 30.0;
const MACHINES: usize = 10;
const WEEKS: u32 = 4;
const END: f64 = (WEEKS * 7 * 24 * 60) as f64;

struct Random {
    state: Cell<u64>,
}

impl Random {
    fn uniform(&self) -> f64 {
        let state = self.state.get();
        let state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.state.set(state);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&self, mean: f64) -> f64 {
        -(1.0 - self.uniform()).ln() * mean
    }

    fn normal(&self, mean: f64, sigma: f64) -> f64 {
        let total = (0..12).fold(-6.0, |total, _| total + self.uniform());
        mean + sigma * total
    }
}

/// Thrown into a process in the middle of its `hold`.
#[derive(Debug)]
struct Interrupt;

impl std::fmt::Display for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupt {}

/// A time and an order among equal times. Times are not negative, so their bits are in order.
type Moment = (u64, u64);

enum Event {
    Resume(Greenlet),
    Interrupt(Greenlet),
}

struct Engine {
    now: Cell<f64>,
    order: Cell<u64>,
    agenda: RefCell<BTreeMap<Moment, Event>>,
    random: Random,
}

impl Engine {
    fn schedule(&self, delay: f64, event: Event) -> Moment {
        let order = self.order.replace(self.order.get() + 1);
        let moment = ((self.now.get() + delay).to_bits(), order);
        self.agenda.borrow_mut().insert(moment, event);
        moment
    }

    fn process(&self, function: impl FnOnce() -> Result<()> + 'static) -> Greenlet {
        let process = Greenlet::builder().parent(&getmain()).build(|(): ()| function());
        self.schedule(0.0, Event::Resume(process.clone()));
        process
    }

    fn hold(&self, delay: f64) -> Result<()> {
        let moment = self.schedule(delay, Event::Resume(getcurrent()));
        let outcome = self.suspend();
        self.agenda.borrow_mut().remove(&moment);
        outcome
    }

    fn suspend(&self) -> Result<()> {
        getmain().switch(())
    }

    fn interrupt(&self, process: &Greenlet) {
        self.schedule(0.0, Event::Interrupt(process.clone()));
    }

    fn run(&self, until: f64) -> Result<()> {
        loop {
            let next = self.agenda.borrow_mut().pop_first();
            let Some(((time, _), event)) = next else { break };
            let time = f64::from_bits(time);
            if time >= until {
                break;
            }
            self.now.set(time);
            match event {
                Event::Resume(process) => process.switch_owned::<()>(())?,
                Event::Interrupt(process) => process.throw::<()>(Interrupt)?,
            }
        }
        // Ends the processes that are still waiting.
        let left = self.agenda.take();
        drop(left);
        Ok(())
    }
}

/// A preemptible resource: a process with priority interrupts one without, and waits for others
/// with priority.
#[derive(Default)]
struct Repairman {
    user: RefCell<Option<Greenlet>>,
    is_preemptible: Cell<bool>,
    urgent: RefCell<VecDeque<Greenlet>>,
    patient: RefCell<VecDeque<Greenlet>>,
}

impl Repairman {
    fn acquire(&self, engine: &Engine, is_urgent: bool) -> Result<()> {
        if is_urgent && self.is_preemptible.get() {
            if let Some(user) = self.user.take() {
                engine.interrupt(&user);
            }
        }
        if self.user.borrow().is_none() {
            self.take(getcurrent(), is_urgent);
            return Ok(());
        }
        let queue = if is_urgent { &self.urgent } else { &self.patient };
        queue.borrow_mut().push_back(getcurrent());
        engine.suspend()
    }

    fn take(&self, process: Greenlet, is_urgent: bool) {
        self.user.replace(Some(process));
        self.is_preemptible.set(!is_urgent);
    }

    fn release(&self, engine: &Engine) {
        if !self.user.borrow().as_ref().is_some_and(Greenlet::is_current) {
            return;
        }
        self.user.take();
        for (queue, is_urgent) in [(&self.urgent, true), (&self.patient, false)] {
            let next = queue.borrow_mut().pop_front();
            if let Some(process) = next {
                self.take(process.clone(), is_urgent);
                engine.schedule(0.0, Event::Resume(process));
                return;
            }
        }
    }
}

/// The state that all processes of the shop share.
struct Shop {
    engine: Engine,
    repairman: Repairman,
}

#[derive(Default)]
struct Machine {
    parts_made: Cell<u32>,
    failures: Cell<u32>,
    is_broken: Cell<bool>,
}

impl Machine {
    fn start(shop: &Rc<Shop>) -> Rc<Machine> {
        let machine = Rc::new(Machine::default());
        let (of_work, of_fail) = (machine.clone(), machine.clone());
        let (at_work, at_fail) = (shop.clone(), shop.clone());
        let working = shop.engine.process(move || of_work.work(&at_work));
        shop.engine.process(move || of_fail.fail(&at_fail, &working));
        machine
    }

    fn work(&self, Shop { engine, repairman }: &Shop) -> Result<()> {
        loop {
            let mut todo = engine.random.normal(PART_MEAN, PART_SIGMA);
            while todo > 0.0 {
                let start = engine.now.get();
                match engine.hold(todo) {
                    Ok(()) => todo = 0.0,
                    Err(error) if error.is::<Interrupt>() => {
                        self.is_broken.set(true);
                        todo -= engine.now.get() - start;
                        repairman.acquire(engine, true)?;
                        engine.hold(REPAIR_TIME)?;
                        repairman.release(engine);
                        self.is_broken.set(false);
                    }
                    Err(error) => return Err(error),
                }
            }
            self.parts_made.set(self.parts_made.get() + 1);
        }
    }

    fn fail(&self, Shop { engine, .. }: &Shop, working: &Greenlet) -> Result<()> {
        loop {
            engine.hold(engine.random.exponential(MEAN_TIME_TO_FAILURE))?;
            if !self.is_broken.get() {
                self.failures.set(self.failures.get() + 1);
                engine.interrupt(working);
            }
        }
    }
}

#[derive(Default)]
struct OtherJobs {
    done: Cell<u32>,
    interruptions: Cell<u32>,
}

impl OtherJobs {
    fn start(shop: &Rc<Shop>) -> Rc<OtherJobs> {
        let jobs = Rc::new(OtherJobs::default());
        let (of_work, at_work) = (jobs.clone(), shop.clone());
        shop.engine.process(move || of_work.work(&at_work));
        jobs
    }

    fn work(&self, Shop { engine, repairman }: &Shop) -> Result<()> {
        loop {
            let mut todo = JOB_DURATION;
            while todo > 0.0 {
                repairman.acquire(engine, false)?;
                let start = engine.now.get();
                match engine.hold(todo) {
                    Ok(()) => {
                        todo = 0.0;
                        repairman.release(engine);
                    }
                    Err(error) if error.is::<Interrupt>() => {
                        self.interruptions.set(self.interruptions.get() + 1);
                        todo -= engine.now.get() - start;
                    }
                    Err(error) => return Err(error),
                }
            }
            self.done.set(self.done.get() + 1);
        }
    }
}

fn main() -> Result<()> {
    let engine = Engine {
        now: Cell::new(0.0),
        order: Cell::new(0),
        agenda: RefCell::default(),
        random: Random { state: Cell::new(42) },
    };
    let repairman = Repairman::default();
    let shop = Rc::new(Shop { engine, repairman });
    let machines = (0..MACHINES).map(|_| Machine::start(&shop)).collect::<Vec<_>>();
    let jobs = OtherJobs::start(&shop);
    shop.engine.run(END)?;
    println!("the machine shop after {WEEKS} weeks");
    for (n, machine) in machines.iter().enumerate() {
        let (made, failed) = (machine.parts_made.get(), machine.failures.get());
        println!("machine {n} made {made} parts and failed {failed} times");
    }
    let (done, interruptions) = (jobs.done.get(), jobs.interruptions.get());
    println!("the repairman finished {done} other jobs, and was called away {interruptions} times");
    println!("last event at {:.6}", shop.engine.now.get());
    Ok(())
}
