//! The executor whose orders a search chooses.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use greenlet::bridge::testing::{Executor, Witnesses, or_fault};
use greenlet::testing::explore::{Choices, Explore, FailureKind};
use greenlet::{await_, try_await_};

use crate::support::Log;

const SECOND: Duration = Duration::from_secs(1);

/// Runs a test in all orders, and returns the logs that occurred.
fn logs(explore: &Explore, test: impl Fn(&Executor, &Log) -> Result<()>) -> BTreeSet<String> {
    let all = RefCell::new(BTreeSet::new());
    let report = explore.check(|choices| {
        let (executor, log) = (Executor::new(choices), Log::new());
        test(&executor, &log)?;
        all.borrow_mut().insert(log.take().join(" "));
        Ok(())
    });
    assert!(report.is_complete(), "{report}");
    all.into_inner()
}

fn set(logs: &[&str]) -> BTreeSet<String> {
    logs.iter().map(|log| (*log).to_owned()).collect()
}

#[test]
fn functions_and_futures_run_in_every_order() {
    let all = logs(&Explore::new(), |executor, log| {
        let (a, b) = (log.clone(), log.clone());
        executor.spawn_function("a", move || {
            a.add("a1");
            await_(tokio::task::yield_now());
            a.add("a2");
            Ok(())
        });
        executor.spawn("b", async move {
            b.add("b");
            Ok(())
        });
        executor.run()
    });
    assert_eq!(all, set(&["a1 a2 b", "a1 b a2", "b a1 a2"]));
}

#[test]
fn a_timer_fires_before_or_after_what_is_ready_and_in_the_order_of_times() {
    let all = logs(&Explore::new(), |executor, log| {
        for (name, seconds) in [("late", 2), ("early", 1)] {
            let (inside, log) = (executor.clone(), log.clone());
            executor.spawn(name, async move {
                inside.sleep(SECOND * seconds).await;
                log.add(format!("{name}@{}", inside.now().as_secs()));
                Ok(())
            });
        }
        executor.run()
    });
    // A timer may fire before the task of an earlier one runs, or before another sleep begins.
    assert_eq!(
        all,
        set(&[
            "early@1 late@2",
            "early@1 late@3",
            "early@2 late@2",
            "early@3 late@3",
            "late@2 early@2",
            "late@2 early@3",
            "late@3 early@3",
        ])
    );
}

#[test]
fn dropping_a_sleep_removes_its_timer() {
    let all = logs(&Explore::new(), |executor, log| {
        let (inside, log) = (executor.clone(), log.clone());
        executor.spawn("a", async move {
            let mut sleep = Box::pin(inside.sleep(SECOND * 60));
            assert!(futures::poll!(&mut sleep).is_pending());
            drop(sleep);
            inside.sleep(SECOND).await;
            log.add(format!("{}", inside.now().as_secs()));
            Ok(())
        });
        executor.run()
    });
    assert_eq!(all, set(&["1"]));
}

#[test]
fn a_spurious_poll_is_a_choice_if_it_is_allowed() {
    let polls = |most| {
        logs(&Explore::new(), move |executor, log| {
            let executor = executor.clone().spurious(most);
            let (polls, is_ready) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
            let (counted, waker) = (polls.clone(), is_ready.clone());
            executor.spawn("waits", async move {
                let mut is_first = true;
                poll_fn(|cx| {
                    counted.set(counted.get() + 1);
                    if std::mem::take(&mut is_first) {
                        waker.set(Some(cx.waker().clone()));
                        return Poll::Pending;
                    }
                    match waker.take() {
                        Some(kept) => {
                            waker.set(Some(kept));
                            Poll::Pending
                        }
                        None => Poll::Ready(()),
                    }
                })
                .await;
                Ok(())
            });
            executor.spawn("wakes", async move {
                tokio::task::yield_now().await;
                if let Some(waker) = is_ready.take() {
                    waker.wake();
                }
                Ok(())
            });
            let outcome = executor.run();
            log.add(format!("{} {}", outcome.is_ok(), polls.get()));
            Ok(())
        })
    };
    assert!(polls(0).iter().all(|log| !log.ends_with('3')));
    assert!(polls(1).contains("true 3"));
    assert!(!polls(1).contains("true 4"));
}

#[test]
fn a_deadlock_lists_the_tasks_and_the_places_of_their_awaits() {
    let report = Explore::new().run(|choices| {
        let executor = Executor::new(choices);
        executor.spawn_function("stuck", || {
            await_(std::future::pending::<()>());
            Ok(())
        });
        executor.spawn("ends", async { Ok(()) });
        executor.run()
    });
    let failure = report.failure().unwrap();
    assert_eq!(failure.kind(), FailureKind::Error);
    let expected = format!(
        "deadlock: nothing will wake \"stuck\", which awaits at {}:",
        file!()
    );
    assert!(failure.message().starts_with(&expected), "{failure}");
    assert!(!failure.message().contains("\"ends\""), "{failure}");
}

/// A transaction, which must be dropped, and commits after two awaits.
fn transaction(choices: &Choices, may_end: bool, log: &Log) -> Result<()> {
    let executor = Executor::new(choices);
    let witnesses = Witnesses::default();
    let (log_, made) = (log.clone(), witnesses.clone());
    let task = executor.spawn_function("transaction", move || {
        let _held = made.make();
        for statement in ["insert", "commit"] {
            if try_await_(tokio::task::yield_now()).is_err() {
                log_.add("rollback");
                bail!("cancelled");
            }
            log_.add(statement);
        }
        Ok(())
    });
    if may_end {
        let _ = task.may_end();
    }
    executor.run()
}

#[test]
fn an_end_is_a_choice_at_every_await_if_it_is_allowed() {
    let all = |may_end, faults| {
        let all = RefCell::new(BTreeSet::new());
        let _ = Explore::new().faults(faults).check(|choices| {
            let log = Log::new();
            transaction(choices, may_end, &log)?;
            all.borrow_mut().insert(log.take().join(" "));
            Ok(())
        });
        all.into_inner()
    };
    assert_eq!(all(false, 1), set(&["insert commit"]));
    assert_eq!(all(true, 0), set(&["insert commit"]));
    let ended = ["", "insert commit", "insert rollback", "rollback"];
    assert_eq!(all(true, 1), set(&ended));
}

#[test]
fn a_fault_of_a_fake_is_a_choice_at_each_await() {
    let all = logs(&Explore::new().faults(2), |executor, log| {
        let (choices, log) = (Choices::clone(executor.choices()), log.clone());
        executor.spawn_function("client", move || {
            let attempt = || await_(or_fault(&choices, async { Ok(7) }, || "reset"));
            log.add(format!("{:?}", attempt().or_else(|_| attempt())));
            Ok(())
        });
        executor.run()
    });
    assert_eq!(all, set(&["Err(\"reset\")", "Ok(7)"]));
}

#[test]
fn an_error_of_a_task_names_it_and_the_others_are_dropped() {
    let witnesses = Witnesses::default();
    let report = Explore::new().run(|choices| {
        let executor = Executor::new(choices);
        let (kept, inside) = (witnesses.make(), executor.clone());
        // A ring: the task owns the executor, which owns the task.
        executor.spawn("waits", async move {
            let _kept = (kept, inside);
            std::future::pending().await
        });
        executor.spawn("fails", async { bail!("no flour") });
        executor.run()
    });
    assert_eq!(
        report.failure().unwrap().message(),
        "the task \"fails\" failed: no flour"
    );
    assert!(witnesses.all_dropped());
}

#[test]
fn a_task_ends_another_one_and_itself() {
    let all = logs(&Explore::new(), |executor, log| {
        let victim = executor.spawn("victim", std::future::pending());
        let (log, own) = (log.clone(), Rc::new(RefCell::new(None)));
        let me = own.clone();
        let task = executor.spawn("killer", async move {
            victim.end();
            log.add(format!("{}", victim.is_finished()));
            let task: greenlet::bridge::testing::Task = me.take().expect("stored below");
            task.end();
            std::future::pending().await
        });
        own.replace(Some(task.clone()));
        executor.run()?;
        ensure!(task.is_finished());
        Ok(())
    });
    assert_eq!(all, set(&["true"]));
}
