//! The world of greenlets, whose orders `Explore` chooses.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use greenlet::testing::explore::{Choices, Explore};
use greenlet::{Greenlet, getcurrent, getmain};

use crate::World;

pub(crate) struct Greenlets;

#[derive(Default)]
struct Scheduler {
    ready: RefCell<Vec<Greenlet>>,
    /// All tasks of a run. A task's id is its index.
    all: RefCell<Vec<Greenlet>>,
    alive: Cell<usize>,
    current: Cell<usize>,
    /// The task that the first one joins.
    joined: RefCell<Option<Greenlet>>,
    points: Cell<u64>,
}

thread_local! {
    static SCHEDULER: Rc<Scheduler> = Rc::default();
}

fn leave() {
    getmain().switch::<()>(()).expect("the loop switches back");
}

fn start(task: impl FnOnce() + 'static) {
    SCHEDULER.with(|scheduler| {
        let task = Greenlet::builder().parent(&getmain()).build(move |(): ()| {
            task();
            SCHEDULER.with(|scheduler| {
                scheduler.alive.set(scheduler.alive.get() - 1);
                if *scheduler.joined.borrow() == Some(getcurrent()) {
                    let first = scheduler.all.borrow()[0].clone();
                    scheduler.ready.borrow_mut().push(first);
                }
            });
            Ok(())
        });
        scheduler.alive.set(scheduler.alive.get() + 1);
        scheduler.all.borrow_mut().push(task.clone());
        scheduler.ready.borrow_mut().push(task);
    });
}

impl World for Greenlets {
    type Id = usize;

    fn spawn(task: impl FnOnce() + Send + 'static) {
        start(task);
        Self::pause();
    }

    fn pause() {
        SCHEDULER.with(|scheduler| scheduler.ready.borrow_mut().push(getcurrent()));
        leave();
    }

    fn park() {
        leave();
    }

    fn wake(id: usize) {
        SCHEDULER.with(|scheduler| {
            let task = scheduler.all.borrow()[id].clone();
            scheduler.ready.borrow_mut().push(task);
        });
        Self::pause();
    }

    fn me() -> usize {
        SCHEDULER.with(|scheduler| scheduler.current.get())
    }

    fn join_all() {
        let all: Vec<Greenlet> = SCHEDULER.with(|scheduler| scheduler.all.borrow()[1..].to_vec());
        for task in all {
            if task.is_dead() {
                Self::pause();
            } else {
                SCHEDULER.with(|scheduler| scheduler.joined.replace(Some(task)));
                leave();
            }
        }
    }
}

fn run_once(choices: &Choices, program: fn()) -> anyhow::Result<()> {
    let scheduler = SCHEDULER.with(Rc::clone);
    scheduler.all.take();
    scheduler.joined.take();
    scheduler.alive.set(0);
    start(program);
    loop {
        let next = {
            let mut ready = scheduler.ready.borrow_mut();
            if ready.is_empty() {
                break;
            }
            scheduler.points.set(scheduler.points.get() + 1);
            let index = choices.pick(&*ready);
            ready.remove(index)
        };
        let all = scheduler.all.borrow();
        scheduler
            .current
            .set(all.iter().position(|task| *task == next).expect("it was started"));
        drop(all);
        next.switch_owned::<()>(())?;
    }
    anyhow::ensure!(scheduler.alive.get() == 0, "a deadlock");
    Ok(())
}

/// Runs random orders of a program, and returns the number of their switch points.
pub(crate) fn run(seed: u64, orders: u64, program: fn()) -> u64 {
    SCHEDULER.with(|scheduler| scheduler.points.set(0));
    let report = Explore::random(orders)
        .seed(seed)
        .check(|choices| run_once(choices, program));
    assert_eq!(report.orders(), orders);
    SCHEDULER.with(|scheduler| scheduler.points.get())
}
