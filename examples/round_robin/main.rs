//! A round robin, with the toolkit on it: `spawn`, `joinall`, events, queues and timeouts.
//!
//! A task that pauses switches directly to the next one. That is one switch a turn; a central loop
//! would need two. The loop only runs when a task ends, or when none is ready.

mod scheduler;

use anyhow::{Result, bail};
use greenlet::testing::recorder;
use greenlet_toolkit::{Kit, Task};

use crate::scheduler::RoundRobin;

/// Three tasks count, each up to the length of its name. A fourth one waits for them.
fn count() -> Result<()> {
    let scheduler = RoundRobin::new();
    let kit = Kit::new(&scheduler);
    let counters = ["a", "bb", "ccc"].map(|name| {
        let inside = scheduler.clone();
        kit.spawn(name, move || {
            for n in 1..=name.len() {
                recorder::note(n.to_string());
                inside.pause()?;
            }
            Ok(())
        })
    });
    let inside = kit.clone();
    kit.spawn("waits", move || {
        let ended = inside.joinall(&counters, None)?;
        recorder::note(format!("{ended} have ended"));
        Ok(())
    });
    kit.run(|| scheduler.run())
}

/// A task fails. Another one waits for its value, and gets the error.
fn fail() -> Result<Task<()>> {
    let scheduler = RoundRobin::new();
    let kit = Kit::new(&scheduler);
    let broken: Task<()> = kit.spawn("broken", || bail!("no luck"));
    let waits = kit.spawn("waits", move || broken.get(None).map(drop));
    kit.run(|| scheduler.run())?;
    Ok(waits)
}

fn main() -> Result<()> {
    let (outcome, recording) = recorder::record(count);
    println!("{recording}");
    outcome?;
    let waits = fail()?;
    println!(
        "{}",
        waits
            .error()
            .map_or("no error".to_owned(), |error| error.to_string())
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use greenlet::assert_no_leaks;
    use greenlet::record;

    use super::*;

    #[test]
    fn tasks_hand_over_to_each_other() {
        let (outcome, recording) = record(|| assert_no_leaks(count));
        outcome.unwrap();
        recording.assert_eq(&[
            "start main -> a",
            "note a: 1",
            "start a -> bb",
            "note bb: 1",
            "start bb -> ccc",
            "note ccc: 1",
            "start ccc -> waits",
            "switch waits -> a", // waits for `a`
            "end a -> main",
            "switch main -> bb",
            "note bb: 2",
            "switch bb -> ccc",
            "note ccc: 2",
            "switch ccc -> waits",
            "switch waits -> bb", // waits for `bb`
            "end bb -> main",
            "switch main -> ccc",
            "note ccc: 3",
            "switch ccc -> waits",
            "switch waits -> ccc", // waits for `ccc`
            "end ccc -> main",
            "switch main -> waits",
            "note waits: 3 have ended",
            "end waits -> main",
        ]);
    }

    #[test]
    fn an_error_of_a_task_reaches_the_task_that_asks_for_its_value() {
        let waits = fail().unwrap();
        assert_eq!(waits.error().unwrap().to_string(), "no luck");
    }
}
