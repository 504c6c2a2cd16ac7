//! A small round-robin scheduler and its tests: `cargo test --example testing_a_scheduler`.
//!
//! The tests check the order in which tasks run, and that nothing is left over. Run as a program,
//! it prints one recording as text and as a Mermaid diagram.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getparent, testing::recorder};

/// Runs tasks in turns. Each task is a greenlet; the loop in [`run`](Scheduler::run) is their
/// parent.
#[derive(Clone, Default)]
struct Scheduler {
    ready: Rc<RefCell<VecDeque<Greenlet>>>,
}

impl Scheduler {
    fn new() -> Scheduler {
        Scheduler::default()
    }

    /// Adds a task, to run after those that are ready now.
    fn spawn(&self, name: &str, task: impl FnOnce(&Scheduler) -> Result<()> + 'static) {
        let scheduler = self.clone();
        let task = Greenlet::builder()
            .name(name)
            .build(move |(): ()| task(&scheduler));
        self.ready.borrow_mut().push_back(task);
    }

    /// Runs all tasks to their ends. The first error of a task stops it; the other tasks are ended.
    fn run(&self) -> Result<()> {
        let outcome = loop {
            let next = self.ready.borrow_mut().pop_front();
            let Some(task) = next else { break Ok(()) };
            // Another task may have spawned it and be its parent. Its end must return here.
            if task.parent().as_ref() != Some(&getcurrent()) {
                task.set_parent(&getcurrent())?;
            }
            if let Err(error) = task.switch::<()>(()) {
                break Err(error);
            }
        };
        let rest = self.ready.take();
        drop(rest); // outside the borrow: an ending task may spawn
        outcome
    }

    /// Lets the other tasks run first.
    #[track_caller] // a recording shows the task's line, not ours
    fn pause(&self) -> Result<()> {
        self.ready.borrow_mut().push_back(getcurrent());
        leave()
    }
}

/// Switches to the loop, without entering the queue of ready tasks.
#[track_caller]
fn leave() -> Result<()> {
    let Some(main_loop) = getparent() else {
        anyhow::bail!("only a task can wait");
    };
    main_loop.switch(())
}

/// An event that tasks wait for: it has happened, or it has a queue of waiting tasks.
#[derive(Clone, Default)]
struct Event {
    is_set: Rc<RefCell<bool>>,
    waiting: Rc<RefCell<Vec<Greenlet>>>,
}

impl Event {
    #[track_caller]
    fn wait(&self) -> Result<()> {
        while !*self.is_set.borrow() {
            self.waiting.borrow_mut().push(getcurrent());
            leave()?;
        }
        Ok(())
    }

    fn set(&self, scheduler: &Scheduler) {
        *self.is_set.borrow_mut() = true;
        scheduler.ready.borrow_mut().extend(self.waiting.take());
    }
}

/// A baker, and two guests that wait for the bread.
fn bakery() -> Result<()> {
    let scheduler = Scheduler::new();
    let bread = Event::default();
    for guest in ["ann", "bob"] {
        let bread = bread.clone();
        scheduler.spawn(guest, move |_| {
            bread.wait()?;
            recorder::note("eats");
            Ok(())
        });
    }
    scheduler.spawn("baker", move |scheduler| {
        scheduler.pause()?;
        recorder::note("bread is ready");
        bread.set(scheduler);
        Ok(())
    });
    scheduler.run()
}

fn main() -> Result<()> {
    let (outcome, recording) = recorder::record(bakery);
    outcome?;
    println!("{recording}");
    println!("{}", recording.to_mermaid());
    Ok(())
}

#[cfg(test)]
mod tests {
    use greenlet::assert_no_leaks;
    use greenlet::record;

    use super::*;

    #[test]
    fn tasks_take_turns() {
        let (outcome, recording) = record(|| {
            let scheduler = Scheduler::new();
            for name in ["a", "b"] {
                scheduler.spawn(name, |scheduler| scheduler.pause());
            }
            scheduler.run()
        });
        outcome.unwrap();
        recording.assert_eq(&[
            "start main -> a",
            "switch a -> main",
            "start main -> b",
            "switch b -> main",
            "switch main -> a",
            "end a -> main",
            "switch main -> b",
            "end b -> main",
        ]);
    }

    #[test]
    fn who_waits_runs_again_after_the_event_and_in_order() {
        let (outcome, recording) = record(bakery);
        outcome.unwrap();
        recording.assert_eq(&[
            "start main -> ann",
            "switch ann -> main", // waits
            "start main -> bob",
            "switch bob -> main", // waits
            "start main -> baker",
            "switch baker -> main",
            "switch main -> baker",
            "note baker: bread is ready",
            "end baker -> main",
            "switch main -> ann",
            "note ann: eats",
            "end ann -> main",
            "switch main -> bob",
            "note bob: eats",
            "end bob -> main",
        ]);
    }

    #[test]
    fn an_error_stops_the_run_and_ends_the_others() {
        let (outcome, recording) = record(|| {
            assert_no_leaks(|| {
                let scheduler = Scheduler::new();
                scheduler.spawn("waits", |scheduler| {
                    loop {
                        scheduler.pause()?;
                    }
                });
                scheduler.spawn("fails", |_| anyhow::bail!("out of flour"));
                scheduler.run()
            })
        });
        assert_eq!(outcome.unwrap_err().to_string(), "out of flour");
        recording.assert_eq(&[
            "start main -> waits",
            "switch waits -> main",
            "start main -> fails",
            "end fails -> main (throw)",
            "throw main -> waits", // its last handle is dropped
            "end waits -> main",
        ]);
    }

    #[test]
    fn a_task_can_spawn() {
        let (outcome, recording) = record(|| {
            let scheduler = Scheduler::new();
            scheduler.spawn("outer", |scheduler| {
                scheduler.spawn("inner", |_| Ok(()));
                Ok(())
            });
            scheduler.run()
        });
        outcome.unwrap();
        recording.assert_eq(&[
            "start main -> outer",
            "end outer -> main",
            "start main -> inner",
            "end inner -> main",
        ]);
    }

    #[test]
    fn the_diagram_in_the_documentation_is_this_one() {
        let (_, recording) = record(bakery);
        let page = include_str!("../docs/testing.md");
        assert!(
            page.contains(&recording.to_mermaid()),
            "{}",
            recording.to_mermaid()
        );
    }

    #[test]
    fn nothing_is_left_when_the_run_is_over() {
        assert_no_leaks(bakery).unwrap();
    }
}
