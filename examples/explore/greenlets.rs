//! Mistakes of code that switches. Each function has the mistake, or its correction if `is_correct`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::{Result, ensure};
use greenlet::testing::explore::Choices;
use greenlet::{Greenlet, getcurrent};

use crate::scheduler::Scheduler;

type Waiters = Rc<RefCell<VecDeque<Greenlet>>>;

/// Suspends the running task, as the last in a list.
fn wait_in(scheduler: &Scheduler, waiters: &Waiters) -> Result<()> {
    waiters.borrow_mut().push_back(getcurrent());
    scheduler.park()
}

fn wake_first(scheduler: &Scheduler, waiters: &Waiters) {
    let first = waiters.borrow_mut().pop_front();
    first.into_iter().for_each(|task| scheduler.wake(task));
}

/// A task switches between its check of the flag and its registration as a waiter.
pub(crate) fn lost_wake_up(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let (is_set, waiters) = (Rc::new(Cell::new(false)), Waiters::default());
    let (inside, flag, list) = (scheduler.clone(), is_set.clone(), waiters.clone());
    scheduler.spawn("waits", move || {
        if is_correct {
            inside.pause()?;
        }
        if !flag.get() {
            if !is_correct {
                inside.pause()?; // for example a line of a log, written to a socket
            }
            wait_in(&inside, &list)?;
        }
        Ok(())
    });
    let inside = scheduler.clone();
    scheduler.spawn("sets", move || {
        is_set.set(true);
        wake_first(&inside, &waiters);
        Ok(())
    });
    scheduler.run()
}

#[derive(Clone, Default)]
struct Lock {
    is_held: Rc<Cell<bool>>,
    waiters: Waiters,
}

impl Lock {
    fn lock(&self, scheduler: &Scheduler) -> Result<()> {
        while self.is_held.replace(true) {
            wait_in(scheduler, &self.waiters)?;
        }
        scheduler.pause()
    }

    fn unlock(&self, scheduler: &Scheduler) {
        self.is_held.set(false);
        wake_first(scheduler, &self.waiters);
    }
}

/// Two tasks take two locks, each in its own order.
pub(crate) fn abba(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let (a, b) = (Lock::default(), Lock::default());
    let second = if is_correct { [&a, &b] } else { [&b, &a] };
    for (name, locks) in [("ab", [&a, &b]), ("ba", second)] {
        let (inside, locks) = (scheduler.clone(), locks.map(Lock::clone));
        scheduler.spawn(name, move || {
            locks.iter().try_for_each(|lock| lock.lock(&inside))?;
            locks.iter().for_each(|lock| lock.unlock(&inside));
            Ok(())
        });
    }
    scheduler.run()
}

/// A consumer that was woken takes an item without another look: a consumer that did not wait was faster.
pub(crate) fn if_for_while(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let (items, waiters) = (Rc::new(RefCell::new(Vec::new())), Waiters::default());
    for name in ["ann", "bob"] {
        let (inside, items, waiters) = (scheduler.clone(), items.clone(), waiters.clone());
        scheduler.spawn(name, move || {
            while items.borrow().is_empty() {
                wait_in(&inside, &waiters)?;
                if !is_correct {
                    break;
                }
            }
            let item: Option<i32> = items.borrow_mut().pop();
            ensure!(item.is_some(), "woken, and there is no item");
            Ok(())
        });
    }
    let inside = scheduler.clone();
    scheduler.spawn("baker", move || {
        for item in 0..2 {
            items.borrow_mut().push(item);
            wake_first(&inside, &waiters);
            inside.pause()?;
        }
        Ok(())
    });
    scheduler.run()
}

/// A semaphore of one. Work that fails releases it in its error path, and again at the end.
pub(crate) fn released_twice(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let (free, inside_now, waiters) = (Rc::new(Cell::new(1)), Rc::new(Cell::new(0)), Waiters::default());
    for name in ["ann", "bob", "eve"] {
        let (inside, free) = (scheduler.clone(), free.clone());
        let (inside_now, waiters) = (inside_now.clone(), waiters.clone());
        scheduler.spawn(name, move || {
            while free.get() == 0 {
                wait_in(&inside, &waiters)?;
            }
            free.set(free.get() - 1);
            inside_now.set(inside_now.get() + 1);
            ensure!(inside_now.get() == 1, "two tasks hold a semaphore of one");
            inside.pause()?;
            inside_now.set(inside_now.get() - 1);
            let release = || {
                free.set(free.get() + 1);
                wake_first(&inside, &waiters);
            };
            let has_failed = inside.choices.fault(1) == 1;
            if has_failed && !is_correct {
                release();
            }
            release();
            Ok(())
        });
    }
    scheduler.run()
}

/// A release wakes the latest waiter, as the order of a hash set may. gevent's semaphore did this:
/// <https://github.com/gevent/gevent/issues/1487>.
pub(crate) fn unfair_queue(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let (is_held, waiters) = (Rc::new(Cell::new(false)), Waiters::default());
    let (came, served) = (
        Rc::new(RefCell::new(Vec::new())),
        Rc::new(RefCell::new(Vec::new())),
    );
    for name in ["ann", "bob", "eve"] {
        let (inside, is_held, waiters) = (scheduler.clone(), is_held.clone(), waiters.clone());
        let (came, served) = (came.clone(), served.clone());
        scheduler.spawn(name, move || {
            came.borrow_mut().push(name);
            if is_held.replace(true) {
                wait_in(&inside, &waiters)?; // the one before hands it over
            }
            served.borrow_mut().push(name);
            inside.pause()?;
            let next = match is_correct {
                true => waiters.borrow_mut().pop_front(),
                false => waiters.borrow_mut().pop_back(),
            };
            match next {
                Some(next) => inside.wake(next),
                None => is_held.set(false),
            }
            Ok(())
        });
    }
    scheduler.run()?;
    ensure!(
        *came.borrow() == *served.borrow(),
        "served {:?}, came {:?}",
        served.borrow(),
        came.borrow()
    );
    Ok(())
}

/// A timer of a task: another task, which may run at any time.
struct Timer {
    is_armed: Cell<bool>,
    has_fired: Cell<bool>,
}

impl Timer {
    /// Starts a timer that calls `fires`, and wakes the running task.
    fn start(scheduler: &Rc<Scheduler>, fires: impl FnOnce() + 'static) -> Rc<Timer> {
        let timer = Rc::new(Timer {
            is_armed: Cell::new(true),
            has_fired: Cell::new(false),
        });
        let (inside, own, task) = (scheduler.clone(), timer.clone(), getcurrent());
        scheduler.spawn("timer", move || {
            if own.is_armed.get() {
                own.has_fired.set(true);
                fires();
                inside.wake(task);
            }
            Ok(())
        });
        timer
    }
}

/// Sleeps, and returns an error if something else than its own timer ends the sleep.
fn sleep(scheduler: &Rc<Scheduler>) -> Result<()> {
    let timer = Timer::start(scheduler, || ());
    scheduler.park()?;
    ensure!(
        timer.has_fired.get(),
        "a wake-up of the wait before ended the sleep"
    );
    Ok(())
}

/// A wait with a timeout ends by its event, and leaves its timer. The timer ends the next wait.
pub(crate) fn stale_timer(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let is_set = Rc::new(Cell::new(false));
    let waiter = Rc::new(RefCell::new(None::<(Greenlet, Rc<Timer>)>));
    let (inside, set, list) = (scheduler.clone(), is_set.clone(), waiter.clone());
    scheduler.spawn("sets", move || {
        set.set(true);
        if let Some((task, timer)) = list.take() {
            timer.is_armed.set(!is_correct);
            inside.wake(task);
        }
        Ok(())
    });
    let inside = scheduler.clone();
    scheduler.spawn("waits", move || {
        if !is_set.get() {
            let list = waiter.clone();
            let timer = Timer::start(&inside, move || {
                if is_correct {
                    list.take(); // the event must not wake it, too
                }
            });
            waiter.replace(Some((getcurrent(), timer)));
            inside.park()?;
        }
        sleep(&inside)
    });
    scheduler.run()
}

/// A task waits for the first of two events. Both wake it.
pub(crate) fn double_wake(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let is_set = Rc::new(Cell::new(false));
    let is_waiting = Rc::new(Cell::new(false));
    let lists = [Waiters::default(), Waiters::default()];
    for (name, list) in ["first", "second"].into_iter().zip(lists.clone()) {
        let (inside, is_set, is_waiting) = (scheduler.clone(), is_set.clone(), is_waiting.clone());
        scheduler.spawn(name, move || {
            is_set.set(true);
            let waiter = list.borrow_mut().pop_front();
            if waiter.is_some() && (is_waiting.replace(false) || !is_correct) {
                waiter.into_iter().for_each(|task| inside.wake(task));
            }
            Ok(())
        });
    }
    let inside = scheduler.clone();
    scheduler.spawn("waits", move || {
        if !is_set.get() {
            is_waiting.set(true);
            lists
                .iter()
                .for_each(|list| list.borrow_mut().push_back(getcurrent()));
            inside.park()?;
        }
        sleep(&inside)
    });
    scheduler.run()
}

/// A task holds a borrow of a list while it switches. Another one changes the list.
pub(crate) fn borrow_over_switch(choices: &Choices, is_correct: bool) -> Result<()> {
    let scheduler = Scheduler::new(choices);
    let members = Rc::new(RefCell::new(vec!["ann", "bob"]));
    let (inside, list) = (scheduler.clone(), members.clone());
    scheduler.spawn("says hello to all", move || {
        if is_correct {
            let copy = list.borrow().clone();
            return copy.iter().try_for_each(|_| inside.pause());
        }
        list.borrow().iter().try_for_each(|_| inside.pause())
    });
    scheduler.spawn("joins", move || {
        members.borrow_mut().push("eve");
        Ok(())
    });
    scheduler.run()
}
