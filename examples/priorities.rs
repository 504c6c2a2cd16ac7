//! A scheduler with priorities that lets no task starve.
//!
//! The ready task with the highest rank runs next. The rank of a task is its priority plus one for
//! each turn that it has waited. So a task of low priority is only slower; the tests check by how
//! much.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getparent, testing::recorder};

struct Ready {
    task: Greenlet,
    priority: u64,
    /// The turn at which it became ready.
    since: u64,
}

#[derive(Clone, Default)]
struct Scheduler {
    ready: Rc<RefCell<Vec<Ready>>>,
    turn: Rc<Cell<u64>>,
    /// The priority of the running task.
    current: Rc<Cell<u64>>,
}

impl Scheduler {
    fn spawn(&self, name: &str, priority: u64, task: impl FnOnce(&Scheduler) -> Result<()> + 'static) {
        let scheduler = self.clone();
        let task = Greenlet::builder()
            .name(name)
            .build(move |(): ()| task(&scheduler));
        self.push(task, priority);
    }

    fn push(&self, task: Greenlet, priority: u64) {
        let since = self.turn.get();
        self.ready.borrow_mut().push(Ready {
            task,
            priority,
            since,
        });
    }

    /// Returns the ready task of the highest rank. Among several, the one that has waited longest
    /// comes first.
    fn pop(&self) -> Option<Ready> {
        let mut ready = self.ready.borrow_mut();
        let now = self.turn.get();
        let rank = |ready: &Ready| (ready.priority + now - ready.since, Reverse(ready.since));
        let best = (0..ready.len()).rev().max_by_key(|&place| rank(&ready[place]))?;
        Some(ready.remove(best))
    }

    /// Lets a task of a higher rank run, if there is one.
    #[track_caller]
    fn pause(&self) -> Result<()> {
        self.push(getcurrent(), self.current.get());
        getparent().expect("only tasks pause").switch_owned(())
    }

    /// Runs the tasks to their ends. The caller is their parent, so it sees each turn.
    fn run(&self) -> Result<()> {
        while let Some(next) = self.pop() {
            self.turn.set(self.turn.get() + 1);
            self.current.set(next.priority);
            next.task.set_parent(&getcurrent())?;
            next.task.switch_owned::<()>(())?;
        }
        Ok(())
    }
}

/// Runs tasks of different priorities, each with `steps` steps. Returns their steps in order.
fn race(tasks: &[(&'static str, u64)], steps: u32) -> Result<()> {
    let scheduler = Scheduler::default();
    for &(name, priority) in tasks {
        scheduler.spawn(name, priority, move |scheduler| {
            for _ in 0..steps {
                recorder::note("");
                scheduler.pause()?;
            }
            Ok(())
        });
    }
    scheduler.run()
}

/// The tasks that made the steps, in order.
fn steps(recording: &recorder::Recording) -> Vec<&str> {
    let notes = recording.events().iter().filter(|event| event.text().is_some());
    notes.map(recorder::Event::target).collect()
}

fn main() -> Result<()> {
    let (outcome, recording) = recorder::record(|| race(&[("low", 0), ("middle", 2), ("high", 5)], 8));
    outcome?;
    println!("{}", steps(&recording).join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use greenlet::record;

    use super::*;

    fn run(tasks: &[(&'static str, u64)], count: u32) -> Vec<String> {
        let (outcome, recording) = record(|| race(tasks, count));
        outcome.unwrap();
        steps(&recording).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn equal_priorities_take_turns() {
        assert_eq!(run(&[("a", 1), ("b", 1)], 3), ["a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn the_higher_one_goes_first_and_more_often() {
        let order = run(&[("low", 0), ("high", 3)], 8);
        assert_eq!(
            order,
            [
                "high", "high", "high", "low", "high", "high", "high", "low", "high", "high", "low", "low",
                "low", "low", "low", "low"
            ]
        );
    }

    #[test]
    fn nobody_starves() {
        let order = run(&[("low", 0), ("high", 10), ("higher", 12)], 200);
        let turns = order.iter().enumerate().filter(|(_, name)| *name == "low");
        let turns = turns.map(|(turn, _)| turn).take(20).collect::<Vec<_>>();
        assert!(turns[0] <= 14, "{turns:?}");
        assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= 14), "{turns:?}");
    }
}
