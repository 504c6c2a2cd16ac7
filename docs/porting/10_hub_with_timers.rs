//! A gevent-like hub in virtual time: spawn, sleep, events, timeouts thrown into greenlets, kill
//! and join.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Result, bail};
use greenlet::{Greenlet, GreenletExit, getcurrent, getmain};

type Callback = Box<dyn FnOnce() -> Result<()>>;
/// A time, and a number that orders timers of the same time.
type Timer = (u32, u32);

/// The timers, and the greenlet that serves them: the main greenlet.
#[derive(Default)]
struct Hub {
    now: Cell<u32>,
    order: Cell<u32>,
    timers: RefCell<BTreeMap<Timer, Callback>>,
}

thread_local!(static HUB: Hub = Hub::default());

fn now() -> u32 {
    HUB.with(|hub| hub.now.get())
}

fn call_at(time: u32, callback: impl FnOnce() -> Result<()> + 'static) -> Timer {
    HUB.with(|hub| {
        let order = hub.order.replace(hub.order.get() + 1);
        hub.timers.borrow_mut().insert((time, order), Box::new(callback));
        (time, order)
    })
}

fn cancel(timer: Timer) {
    HUB.with(|hub| hub.timers.borrow_mut().remove(&timer));
}

fn run() -> Result<()> {
    // Nothing of the thread-local is borrowed while others run.
    let next = || HUB.with(|hub| hub.timers.borrow_mut().pop_first());
    while let Some(((time, _), callback)) = next() {
        HUB.with(|hub| hub.now.set(time));
        callback()?;
    }
    Ok(())
}

fn log(text: impl std::fmt::Display) {
    println!("{:3} {text}", now());
}

fn resume_at(time: u32, task: Greenlet) {
    call_at(time, move || task.switch_owned(()));
}

fn sleep(seconds: u32) -> Result<()> {
    resume_at(now() + seconds, getcurrent());
    getmain().switch(())
}

fn spawn(name: &'static str, function: impl FnOnce() -> Result<()> + 'static) -> Greenlet {
    let task = Greenlet::builder()
        .name(name)
        .parent(&getmain())
        .build(move |(): ()| {
            match function() {
                Err(error) if error.is::<GreenletExit>() => log(format!("{name} was killed")),
                Err(error) => log(format!("{name} failed: {error}")),
                Ok(()) => {}
            }
            Ok(())
        });
    resume_at(now(), task.clone());
    task
}

#[derive(Clone, Default)]
struct Event {
    is_set: Rc<Cell<bool>>,
    waiting: Rc<RefCell<Vec<Greenlet>>>,
}

impl Event {
    fn set(&self) {
        self.is_set.set(true);
        for task in self.waiting.take() {
            resume_at(now(), task);
        }
    }

    fn wait(&self) -> Result<()> {
        if self.is_set.get() {
            return Ok(());
        }
        self.waiting.borrow_mut().push(getcurrent());
        let outcome = getmain().switch(());
        self.waiting.borrow_mut().retain(|task| !task.is_current());
        outcome
    }
}

#[derive(Debug)]
struct Timeout(u32);

impl std::fmt::Display for Timeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "timed out after {}", self.0)
    }
}

impl std::error::Error for Timeout {}

/// Throws a `Timeout` into the running greenlet if `function` takes longer.
fn with_timeout<R>(seconds: u32, function: impl FnOnce() -> Result<R>) -> Result<R> {
    let task = getcurrent().downgrade();
    let timer = call_at(now() + seconds, move || match task.upgrade() {
        Some(task) => task.throw(Timeout(seconds)),
        None => Ok(()),
    });
    let outcome = function();
    cancel(timer);
    outcome
}

fn guest(name: &str, patience: u32, door: &Event) -> Result<()> {
    log(format!("{name} rings"));
    match with_timeout(patience, || door.wait()) {
        Ok(()) => log(format!("{name} comes in")),
        Err(error) if error.is::<Timeout>() => log(format!("{name} leaves: {error}")),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Python's `finally`.
struct Stops;

impl Drop for Stops {
    fn drop(&mut self) {
        log("the clock stops");
    }
}

fn clock() -> Result<()> {
    let _stops = Stops;
    loop {
        log("tick");
        sleep(3)?;
    }
}

fn broken() -> Result<()> {
    sleep(2)?;
    bail!("bad wiring")
}

fn main() -> Result<()> {
    let door = Event::default();
    let (of_ann, of_bob) = (door.clone(), door.clone());
    let ticking = spawn("clock", clock);
    spawn("ann", move || guest("ann", 10, &of_ann));
    spawn("bob", move || guest("bob", 4, &of_bob));
    spawn("host", move || {
        sleep(5)?;
        log("the door opens");
        door.set();
        Ok(())
    });
    spawn("lamp", broken);
    call_at(8, move || {
        ticking.kill()?;
        let title = if ticking.is_dead() { "True" } else { "False" };
        log(format!("clock dead: {title}"));
        Ok(())
    });
    run()
}
