//! The search through the orders of greenlets: strategies, failures, replays, bounds.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use anyhow::{Result, ensure};
use greenlet::testing::explore::{Choices, Explore, FailureKind, Report};
use greenlet::testing::recorder::note;
use greenlet::{Greenlet, getparent};

/// Runs tasks in the order of the choices. Each task gives way where it calls the function.
fn run_tasks(choices: &Choices, tasks: Vec<Box<dyn FnOnce() -> Result<()>>>) -> Result<()> {
    let mut ready = Vec::new();
    for (index, task) in tasks.into_iter().enumerate() {
        let builder = Greenlet::builder().name(format!("task{index}"));
        ready.push(builder.build(move |(): ()| task()));
    }
    while !ready.is_empty() {
        let next = ready.remove(choices.pick(&ready));
        next.switch::<()>(())?;
        ready.extend(Some(next).filter(|task| !task.is_dead()));
    }
    Ok(())
}

fn pause() -> Result<()> {
    getparent().expect("a task").switch(())
}

/// `tasks` tasks with `pauses` pauses each. Returns the report, and all traces that occurred.
fn traces(explore: &Explore, tasks: usize, pauses: usize) -> (Report, HashSet<String>) {
    let all = RefCell::new(HashSet::new());
    let report = explore.check(|choices| {
        let trace = Rc::new(RefCell::new(String::new()));
        let tasks = (0..tasks).map(|name| {
            let trace = trace.clone();
            Box::new(move || {
                for step in 0..=pauses {
                    trace.borrow_mut().push_str(&name.to_string());
                    if step < pauses {
                        pause()?;
                    }
                }
                Ok(())
            }) as Box<dyn FnOnce() -> Result<()>>
        });
        run_tasks(choices, tasks.collect())?;
        all.borrow_mut().insert(trace.take());
        Ok(())
    });
    (report, all.into_inner())
}

#[test]
fn an_exhaustive_search_runs_each_order_once() {
    let (report, all) = traces(&Explore::new(), 2, 2);
    assert_eq!(report.orders(), 20, "6! / (3! * 3!)");
    assert_eq!(all.len(), 20);
    assert!(report.is_complete());
    let (report, all) = traces(&Explore::new(), 3, 1);
    assert_eq!((report.orders(), all.len()), (90, 90), "6! / (2! * 2! * 2!)");
}

#[test]
fn a_bound_on_preemptions_leaves_out_the_orders_above_it() {
    let none = traces(&Explore::new().preemptions(0), 2, 2).1;
    assert_eq!(none, HashSet::from(["000111".into(), "111000".into()]));
    let one = traces(&Explore::new().preemptions(1), 2, 2).1;
    let preemptions = |trace: &String| {
        let pairs = trace.as_bytes().windows(2).enumerate();
        pairs
            .filter(|(at, pair)| pair[0] != pair[1] && trace[at + 1..].contains(&trace[*at..=*at]))
            .count()
    };
    let all = traces(&Explore::new(), 2, 2).1;
    let expected: HashSet<String> = all.into_iter().filter(|trace| preemptions(trace) <= 1).collect();
    assert_eq!(one, expected);
}

/// A task that waits by yielding until another one has set a flag.
fn spin(choices: &Choices) -> Result<()> {
    let is_set = Rc::new(Cell::new(false));
    let (seen, asked) = (is_set.clone(), choices.clone());
    run_tasks(
        choices,
        vec![
            Box::new(move || {
                while !seen.get() {
                    asked.yielded();
                    pause()?;
                }
                Ok(())
            }),
            Box::new(move || {
                is_set.set(true);
                Ok(())
            }),
        ],
    )
}

#[test]
fn a_bound_on_preemptions_bounds_loops_that_yield() {
    let report = Explore::new().preemptions(2).max_choices(100).check(spin);
    assert!(report.is_complete(), "{report}");
    let report = Explore::new().max_choices(20).max_orders(500).run(spin);
    assert!(report.cut() > 0 && !report.is_complete(), "{report}");
}

#[test]
fn a_search_stops_at_its_bound_and_reports_how_much_it_has_covered() {
    let report = Explore::new().max_orders(16).run(|choices| {
        for _ in 0..6 {
            choices.choose(2);
        }
        Ok(())
    });
    assert_eq!((report.orders(), report.is_complete()), (16, false));
    assert!(
        report.to_string().starts_with("16 orders, about 25.00% of all"),
        "{report}"
    );
}

/// Two tasks that add to a counter, and lose an update in some orders.
fn lost_update(choices: &Choices) -> Result<()> {
    let counter = Rc::new(Cell::new(0));
    let add = || {
        let counter = counter.clone();
        Box::new(move || {
            let read = counter.get();
            pause()?;
            counter.set(read + 1);
            Ok(())
        }) as Box<dyn FnOnce() -> Result<()>>
    };
    let tasks = vec![add(), add(), add()];
    run_tasks(choices, tasks)?;
    ensure!(counter.get() == 3, "an update was lost");
    Ok(())
}

#[test]
fn every_strategy_finds_a_lost_update_and_the_line_replays_it() {
    let strategies = [
        Explore::new(),
        Explore::new().preemptions(1),
        Explore::random(1000).seed(1),
        Explore::pct(1000, 2).seed(1),
    ];
    for explore in strategies {
        let report = explore.run(lost_update);
        let failure = report.failure().unwrap_or_else(|| panic!("{report}"));
        assert_eq!(failure.kind(), FailureKind::Error);
        assert_eq!(failure.message(), "an update was lost");
        assert!(!failure.recording().events().is_empty());
        let line = failure.order().to_string();
        assert!(failure.to_string().contains(&format!("GREENLET_ORDER={line}\n")));
        let again = Explore::new().replay(&line).run(lost_update);
        assert_eq!(again.orders(), 1);
        assert_eq!(again.failure().unwrap().message(), "an update was lost");
    }
}

#[test]
fn the_same_seed_leads_to_the_same_orders() {
    let orders = |explore: &Explore| {
        let log = RefCell::new(Vec::new());
        let report = explore.check(|choices| {
            let picks: Vec<usize> = (0..8).map(|_| choices.choose(4)).collect();
            log.borrow_mut().push(picks);
            Ok(())
        });
        (report.seed().unwrap(), log.into_inner())
    };
    let (seed, first) = orders(&Explore::random(20));
    assert_eq!(orders(&Explore::random(20).seed(seed)).1, first);
    assert_ne!(orders(&Explore::random(20).seed(seed + 1)).1, first);
    assert_ne!(first[0], first[1]);
}

#[test]
fn a_failure_is_shrunk_to_the_choices_that_it_needs() {
    let report = Explore::random(10_000).seed(3).run(|choices| {
        let picks: Vec<usize> = (0..30).map(|_| choices.choose(10)).collect();
        ensure!(picks.iter().filter(|pick| **pick >= 3).count() < 2);
        Ok(())
    });
    let failure = report.failure().unwrap();
    let deviations = failure.order().choices().iter().filter(|choice| **choice > 0);
    assert_eq!(deviations.count(), 2, "{failure}");
    assert_eq!(failure.order().choices().len(), 2, "{failure}");
}

/// Three greenlets of three steps. The mistake needs a step of the last one between two of the first.
#[test]
fn pct_finds_a_bug_of_depth_two_more_often_than_uniform_orders_do() {
    let found = |explore: fn(u64) -> Explore| {
        let test = |choices: &Choices| {
            let place = Rc::new(Cell::new(0));
            let tasks = (0..8).map(|index| {
                let place = place.clone();
                Box::new(move || {
                    for step in 0..8 {
                        // The first task runs to its end before the second one's first step.
                        if index == 0 && step == 7 && place.get() == 0 {
                            place.set(1);
                        }
                        if index == 1 && step == 0 && place.get() == 0 {
                            place.set(2);
                        }
                        if step < 7 {
                            pause()?;
                        }
                    }
                    Ok(())
                }) as Box<dyn FnOnce() -> Result<()>>
            });
            run_tasks(choices, tasks.collect())?;
            ensure!(place.get() != 1, "found");
            Ok(())
        };
        (0..100)
            .filter(|seed| explore(*seed).run(test).failure().is_some())
            .count()
    };
    let pct = found(|seed| Explore::pct(1, 1).seed(seed));
    let uniform = found(|seed| Explore::random(1).seed(seed));
    assert!(pct > 30 && uniform < 10, "{pct} and {uniform}");
}

#[test]
fn a_panic_is_a_failure_with_its_place() {
    let report = Explore::new().run(|choices| {
        assert!(choices.choose(3) < 2, "two is too much");
        Ok(())
    });
    let failure = report.failure().unwrap();
    assert_eq!((failure.kind(), failure.found_at()), (FailureKind::Panic, 3));
    assert!(failure.message().contains("two is too much"), "{failure}");
    assert!(failure.message().contains(file!()), "{failure}");
    assert!(
        std::panic::catch_unwind(|| Explore::new().check(|_| panic!("at once"))).is_err(),
        "`check` panics"
    );
}

#[test]
fn a_greenlet_that_is_left_suspended_is_a_failure_and_does_not_reach_the_next_run() {
    let report = Explore::new().run(|choices| {
        let waits = Greenlet::builder().name("waits").build(|(): ()| pause());
        waits.switch::<()>(())?;
        if choices.choose(2) == 1 {
            std::mem::forget(waits);
        }
        Ok(())
    });
    let failure = report.failure().unwrap();
    assert_eq!((failure.kind(), failure.found_at()), (FailureKind::Leak, 2));
    assert!(failure.message().contains("waits"), "{failure}");
    assert_eq!(greenlet::stacks_in_use(), 0);
}

#[test]
fn a_test_that_is_not_deterministic_is_reported_with_the_first_choice_that_differs() {
    let runs = Cell::new(0);
    let report = Explore::new().run(|choices| {
        let run = runs.replace(runs.get() + 1);
        choices.choose(2);
        choices.choose(if run == 2 { 3 } else { 2 });
        Ok(())
    });
    let failure = report.failure().expect("the third run asks for something else");
    assert_eq!(failure.kind(), FailureKind::NotDeterministic);
    assert!(
        failure.message().contains("choice number 2 differed"),
        "{failure}"
    );
}

#[test]
fn a_failure_that_does_not_repeat_is_reported_as_not_deterministic() {
    let runs = Cell::new(0);
    let report = Explore::random(10).run(|choices| {
        choices.choose(2);
        ensure!(runs.replace(runs.get() + 1) != 4, "once");
        Ok(())
    });
    let failure = report.failure().unwrap();
    assert_eq!(failure.kind(), FailureKind::NotDeterministic);
    assert!(failure.message().contains("The failure was: once"), "{failure}");
}

#[test]
fn a_run_that_ends_before_a_choice_that_it_must_repeat_is_not_deterministic() {
    let runs = Cell::new(0);
    let report = Explore::new().run(|choices| {
        if runs.replace(runs.get() + 1) == 0 {
            choices.choose(2);
        }
        Ok(())
    });
    let failure = report.failure().unwrap();
    assert!(failure.message().contains("ended before it"), "{failure}");
}

#[test]
fn faults_are_bounded() {
    let faults = |most| {
        let explore = Explore::new().faults(most);
        let report = explore.check(|choices| {
            for _ in 0..4 {
                choices.fault(2);
            }
            Ok(())
        });
        report.orders()
    };
    assert_eq!(faults(0), 1);
    assert_eq!(faults(1), 1 + 4 * 2);
    assert_eq!(faults(2), 1 + 4 * 2 + 6 * 4);
}

#[test]
fn the_recording_of_each_run_is_checked() {
    let test = |choices: &Choices| {
        note(format!("chose {}", choices.choose(3)));
        Ok(())
    };
    let check = |recording: &greenlet::testing::recorder::Recording| {
        ensure!(
            recording.compare(&["note main: chose 2"]).is_err(),
            "two was chosen"
        );
        Ok(())
    };
    let caught = std::panic::catch_unwind(|| Explore::new().check_recorded(test, check));
    let message = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("recording: two was chosen"), "{message}");
    assert!(message.contains("GREENLET_ORDER=2\n"), "{message}");
}

#[test]
fn an_order_that_is_no_order_is_refused() {
    for wrong in ["", "1..2", "x", "0x", "-1", "0x99999999999"] {
        assert!(
            wrong.parse::<greenlet::testing::explore::Order>().is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn an_order_of_another_test_is_reported() {
    let test = |choices: &Choices| {
        choices.choose(2);
        Ok(())
    };
    for order in ["0.1", "2"] {
        let report = Explore::new().replay(order).run(test);
        let failure = report.failure().unwrap_or_else(|| panic!("{order} fits"));
        assert!(failure.message().contains("is not one of this test"), "{failure}");
    }
    assert!(Explore::new().replay("1").run(test).failure().is_none());
}

#[test]
fn a_greenlet_that_asks_when_it_is_ended_after_the_run_is_no_choice_of_it() {
    let report = Explore::new().run(|choices| {
        let inside = choices.clone();
        let waits = Greenlet::new(move |(): ()| {
            let ended = pause();
            inside.choose(2);
            ended
        });
        waits.switch::<()>(())?;
        std::mem::forget(waits);
        choices.choose(2);
        anyhow::bail!("fails with a greenlet left")
    });
    let failure = report.failure().unwrap();
    assert_eq!(failure.message(), "fails with a greenlet left");
}

#[test]
fn nothing_to_choose_from_is_refused() {
    let report = Explore::new().run(|choices| {
        choices.pick([]);
        Ok(())
    });
    assert!(
        report
            .failure()
            .unwrap()
            .message()
            .contains("nothing to choose from")
    );
}

/// Runs itself in a process that has the variable.
#[test]
fn the_environment_replays_one_order() {
    let name = "testing::explore::the_environment_replays_one_order";
    if std::env::var_os("GREENLET_ORDER").is_some() {
        let picked = Cell::new(None);
        let report = Explore::new().run(|choices| {
            picked.set(Some(choices.choose(3)));
            Ok(())
        });
        assert_eq!((report.orders(), picked.get()), (1, Some(2)));
        return;
    }
    let run = |order| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", name]).env("GREENLET_ORDER", order);
        command.output().unwrap()
    };
    assert!(run("2").status.success());
    let refused = run("two");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stdout).contains("`two` is no order"));
}
