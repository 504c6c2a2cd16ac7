//! The smallest scheduler: `spawn`, `pause`, `run`. `docs/schedulers.md` builds it step by step.
//!
//! A task that pauses switches directly to the next one. That is one switch a turn; a central loop
//! would need two. The loop only sees the tasks that end.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, testing::recorder};

/// Runs tasks in turns.
#[derive(Clone, Default)]
struct RoundRobin {
    ready: Rc<RefCell<VecDeque<Greenlet>>>,
}

impl RoundRobin {
    /// Adds a task, which will run after those that are ready now.
    fn spawn(&self, name: &str, task: impl FnOnce() -> Result<()> + 'static) {
        let task = Greenlet::builder().name(name).build(move |(): ()| task());
        self.ready.borrow_mut().push_back(task);
    }

    /// Lets the other tasks run first.
    #[track_caller]
    fn pause(&self) -> Result<()> {
        let next = {
            let mut ready = self.ready.borrow_mut();
            ready.push_back(getcurrent());
            ready.pop_front().expect("the caller is there, if nobody else is")
        }; // nothing is borrowed from here on
        next.switch_owned(())
    }

    /// Runs all tasks to their ends. The first error ends them all.
    fn run(&self) -> Result<()> {
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let next = self.ready.borrow_mut().pop_front();
            let Some(task) = next else { break };
            // A task that ends resumes this loop, because the loop's greenlet is its parent.
            task.set_parent(&getcurrent())?;
            outcome = task.switch_owned(());
        }
        let rest = self.ready.take();
        drop(rest);
        outcome
    }
}

/// Three tasks count, each up to the length of its name.
fn count() -> Result<()> {
    let scheduler = RoundRobin::default();
    for name in ["a", "bb", "ccc"] {
        let inside = scheduler.clone();
        scheduler.spawn(name, move || {
            for n in 1..=name.len() {
                recorder::note(n.to_string());
                inside.pause()?;
            }
            Ok(())
        });
    }
    scheduler.run()
}

fn main() -> Result<()> {
    let (outcome, recording) = recorder::record(count);
    println!("{recording}");
    outcome
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use greenlet::assert_no_leaks;
    use greenlet::record;

    use super::*;

    #[test]
    fn tasks_hand_over_to_each_other() {
        let (outcome, recording) = record(count);
        outcome.unwrap();
        recording.assert_eq(&[
            "start main -> a",
            "note a: 1",
            "start a -> bb",
            "note bb: 1",
            "start bb -> ccc",
            "note ccc: 1",
            "switch ccc -> a",
            "end a -> main",
            "switch main -> bb",
            "note bb: 2",
            "switch bb -> ccc",
            "note ccc: 2",
            "switch ccc -> bb",
            "end bb -> main",
            "switch main -> ccc",
            "note ccc: 3",
            "switch ccc -> ccc", // the only task switches to itself
            "end ccc -> main",
        ]);
    }

    #[test]
    fn an_error_ends_all() {
        let (outcome, recording) = record(|| {
            assert_no_leaks(|| {
                let scheduler = RoundRobin::default();
                let inside = scheduler.clone();
                scheduler.spawn("patient", move || {
                    loop {
                        inside.pause()?;
                    }
                });
                scheduler.spawn("broken", || bail!("no luck"));
                scheduler.run()
            })
        });
        assert_eq!(outcome.unwrap_err().to_string(), "no luck");
        recording.assert_eq(&[
            "start main -> patient",
            "start patient -> broken",
            "end broken -> main (throw)",
            "throw main -> patient",
            "end patient -> main",
        ]);
    }
}
