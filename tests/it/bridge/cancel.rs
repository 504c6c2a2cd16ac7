//! Ends of spawned functions that catch them, that have ended already, and that await other spawns.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use greenlet::{
    Caught, Greenlet, GreenletExit, Spawn, SpawnBuilder, SpawnResult, Unwinding, await_, await_nested,
    block_on_greenlet, catch, getmain, greenlet_spawn, try_await_,
};

use crate::bridge::{poll, ready};
use crate::support::{Log, NoLeaks, catch_reports, on_drop, take_reports};

/// Polls a cancelled spawn until it has ended.
fn finish<T>(mut cancelled: SpawnResult<T>) -> anyhow::Result<T> {
    for _ in 0..100 {
        let polled = Pin::new(&mut cancelled).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(result) = polled {
            return result;
        }
    }
    panic!("it does not end");
}

/// Returns `Pending` once.
fn yields() -> impl Future<Output = ()> {
    let mut polls = 0;
    poll_fn(move |cx| {
        polls += 1;
        cx.waker().wake_by_ref();
        if polls == 1 {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
}

/// A worker with at most `most` jobs, which wait for ever. It `guards` each of them.
fn worker(jobs: &Rc<Cell<u32>>, most: u32, guard: fn(fn()) -> bool) -> Spawn<()> {
    let jobs = jobs.clone();
    greenlet_spawn(move || {
        while jobs.get() < most && guard(|| await_(pending::<()>())) {
            jobs.set(jobs.get() + 1);
        }
    })
}

#[test]
fn a_caught_unwinding_of_a_cancel_starts_again_at_the_next_await() {
    let _no_leaks = NoLeaks::watch();
    type Guard = fn(fn()) -> bool;
    let guards: [Guard; 2] = [
        |job| catch_unwind(job).is_err(),
        |job| {
            let mut is_caught = false;
            if let Err(_failed) = catch_unwind(AssertUnwindSafe(job)) {
                is_caught = true;
            }
            is_caught
        },
    ];
    for guard in guards {
        let jobs = Rc::default();
        let mut spawned = worker(&jobs, 20, guard);
        assert!(poll(&mut spawned).is_pending());
        let mut cancelled = spawned.cancel();
        assert!(ready(poll(&mut cancelled)).is_ok());
        assert_eq!(jobs.get(), 20);
    }
}

#[test]
fn a_cancel_of_a_function_that_catches_every_unwinding_is_reported() {
    catch_reports();
    let jobs = Rc::default();
    let mut spawned = worker(&jobs, u32::MAX, |job| catch_unwind(job).is_err());
    assert!(poll(&mut spawned).is_pending());
    assert!(finish(spawned.cancel()).unwrap_err().is::<GreenletExit>());
    assert!((100..500).contains(&jobs.get()), "{}", jobs.get());
    assert_eq!(take_reports().len(), 1);
}

#[test]
fn an_await_in_the_clean_up_of_a_child_says_that_the_function_was_ended() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let ends: [fn(Spawn<()>); 2] = [drop, |spawned| spawned.greenlet().clone().end()];
    for end in ends {
        let written = log.clone();
        let mut spawned = greenlet_spawn(move || {
            let child = Greenlet::new(move |(): ()| -> anyhow::Result<()> {
                let exit = try_await_(pending::<()>());
                let refused = try_await_(async {}).unwrap_err();
                written.add(format!("{}", refused.to_string().contains("cancel()")));
                await_(async {}); // unwinds
                exit
            });
            let _ = child.switch::<()>(());
        });
        assert!(poll(&mut spawned).is_pending());
        end(spawned);
        assert_eq!(log.take(), ["true"]);
    }
}

#[test]
fn catch_passes_the_end_of_a_worker_on() {
    for cancels in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let jobs = Rc::default();
        let mut spawned = worker(&jobs, u32::MAX, |job| catch(job).is_err());
        assert!(poll(&mut spawned).is_pending());
        if cancels {
            assert!(finish(spawned.cancel()).unwrap_err().is::<GreenletExit>());
        } else {
            drop(spawned);
        }
        assert_eq!(jobs.get(), 0);
    }
}

#[test]
fn an_await_after_a_drop_unwinds_with_an_exit_that_catch_passes_on() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let written = log.clone();
    let mut spawned = greenlet_spawn(move || {
        written.add(format!("{}", try_await_(pending::<()>()).is_err()));
        match catch(|| await_(async {})) {
            Ok(()) => written.add("awaited"),
            Err(Caught::Panic(_) | Caught::Raised(_)) => written.add("a failure"),
        }
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    assert_eq!(log.take(), ["true"]);
}

#[test]
fn clean_up_awaits_in_both_ways_after_an_exit_that_was_returned() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        let exit = try_await_(pending::<()>()).unwrap_err();
        await_(yields());
        try_await_(yields()).unwrap();
        // An unwinding that was caught refuses `await_`, and not this:
        exit
    });
    assert!(poll(&mut spawned).is_pending());
    assert!(finish(spawned.cancel()).unwrap().is::<GreenletExit>());
}

#[test]
fn an_await_in_a_destructor_says_that_an_exit_unwinds() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let written = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let _transaction = on_drop(move || {
            let error = try_await_(async {}).unwrap_err();
            written.add(format!("{} {error}", error.is::<Unwinding>()));
        });
        await_(pending::<()>());
    });
    assert!(poll(&mut spawned).is_pending());
    drop(finish(spawned.cancel()));
    let said = log.take().concat();
    assert!(
        said.starts_with("true cannot await: the exit of a cancelled spawn unwinds"),
        "{said}"
    );
    assert!(said.contains("`try_await_` and `?`"), "{said}");

    // A panic is no exit.
    let written = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let _transaction = on_drop(move || written.add(format!("{}", try_await_(async {}).unwrap_err())));
        let _ = try_await_(pending::<()>());
        panic!("a panic in clean-up");
    });
    assert!(poll(&mut spawned).is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(finish::<()>(spawned.cancel())))).is_err());
    assert!(!log.take().concat().contains("exit"));
}

#[test]
fn a_cancel_of_an_ended_function_is_an_error() {
    let _no_leaks = NoLeaks::watch();
    let mut returned = greenlet_spawn(|| 7);
    assert_eq!(ready(poll(&mut returned)), 7);
    let mut panicked: Spawn<()> = greenlet_spawn(|| panic!("a panic"));
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut panicked))).is_err());
    let mut ended = greenlet_spawn(|| await_(pending::<()>()));
    assert!(poll(&mut ended).is_pending());
    ended.greenlet().clone().end();
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut ended))).is_err());
    let error = finish(returned.cancel()).unwrap_err();
    assert!(
        error.is::<GreenletExit>() && error.to_string().contains("had ended"),
        "{error}"
    );
    assert!(finish(panicked.cancel()).is_err());
    assert!(finish(ended.cancel()).is_err());
}

#[test]
fn an_exit_passes_through_the_poll_of_another_spawn() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    for cancels in [false, true] {
        let log = Log::new();
        let (outer, inner) = (log.clone(), log.clone());
        // The outer function polls the inner spawn by hand, and the awaited future of that one
        // awaits, by the outer driver.
        let mut spawned = greenlet_spawn(move || {
            let _outer = on_drop(move || outer.add("outer"));
            let mut spawned = greenlet_spawn(move || {
                let _inner = on_drop(move || inner.add("inner"));
                await_(async { await_(pending::<()>()) });
                unreachable!("its future has ended");
            });
            let _: Poll<()> = poll(&mut spawned);
            unreachable!("its own end has passed through that poll");
        });
        assert!(poll::<Spawn<()>>(&mut spawned).is_pending());
        if cancels {
            assert!(finish(spawned.cancel()).unwrap_err().is::<GreenletExit>());
        } else {
            drop(spawned);
        }
        let mut ended = log.take();
        ended.sort();
        assert_eq!(ended, ["inner", "outer"]);
    }
    assert_eq!(take_reports(), [""; 0]);
}

#[test]
fn a_forced_end_of_the_poller_passes_through_the_poll() {
    let _no_leaks = NoLeaks::watch();
    let poller = Greenlet::new(|(): ()| -> anyhow::Result<()> {
        let mut spawned = greenlet_spawn(|| {
            await_(poll_fn(|_| -> Poll<()> {
                loop {
                    let _exit = getmain().switch::<()>(());
                }
            }));
        });
        let _ = poll(&mut spawned);
        unreachable!("the poller was unwound by force");
    });
    poller.switch::<()>(()).unwrap();
    poller.end();
    assert!(poller.is_dead());
}

/// Awaits spawns in each other, `depth` deep. The innermost waits for ever. Each writes what its
/// clean-up does, which awaits.
fn nest(depth: u32, log: &Log) {
    let log = log.clone();
    let waited = match depth {
        0 => try_await_(pending::<()>()),
        _ => {
            let below = log.clone();
            try_await_(greenlet_spawn(move || nest(depth - 1, &below)))
        }
    };
    let cleaned = try_await_(yields());
    log.add(format!("{depth} {} {}", waited.is_err(), cleaned.is_ok()));
}

#[test]
fn a_cancel_reaches_nested_spawns_whose_clean_up_awaits() {
    let _no_leaks = NoLeaks::watch();
    for in_place in [false, true] {
        let log = Log::new();
        let written = log.clone();
        let mut spawned = SpawnBuilder::new()
            .poll_in_place(in_place)
            .spawn(move || nest(3, &written));
        assert!(poll(&mut spawned).is_pending());
        finish(spawned.cancel()).unwrap();
        // Only an inner spawn whose function returns a value all the same lets the outer one see it.
        let said = log.take();
        assert_eq!(said[0], "0 true true");
        assert!(said.iter().all(|line| line.ends_with("true")), "{said:?}");
        assert_eq!(said.len(), 4);
    }
}

#[test]
fn a_cancel_reaches_spawns_in_combinators_and_children() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let part = |name: &'static str, log: &Log| {
        let log = log.clone();
        greenlet_spawn(move || -> anyhow::Result<()> {
            let exit = try_await_(pending::<()>());
            try_await_(yields())?;
            log.add(name);
            exit
        })
    };
    let (joined, raced) = ([part("a", &log), part("b", &log)], part("c", &log));
    let (below, blocking) = (part("d", &log), log.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut spawned = greenlet_spawn(move || {
        let child = Greenlet::new(move |(): ()| {
            try_await_(async move {
                let late = tokio::time::timeout(Duration::from_secs(60), raced);
                futures::join!(futures::future::join_all(joined), late, below)
            })
            .map(drop)
        });
        let _ = child.switch::<()>(());
        child.end();
    });
    runtime.block_on(async {
        assert!(futures::poll!(&mut spawned).is_pending());
        let _ = spawned.cancel().await;
    });
    let mut said = log.take();
    said.sort();
    assert_eq!(said, ["a", "b", "c", "d"]);

    // A nested call of `block_on_greenlet`.
    let mut spawned = greenlet_spawn(move || {
        block_on_greenlet(move || -> anyhow::Result<()> {
            let exit = try_await_(pending::<()>());
            try_await_(yields())?;
            blocking.add("blocked");
            exit
        })
    });
    assert!(poll(&mut spawned).is_pending());
    let _ = finish(spawned.cancel());
    assert_eq!(log.take(), ["blocked"]);
}

#[test]
fn a_cancel_leaves_spawns_of_other_tasks_alone() {
    let _no_leaks = NoLeaks::watch();
    let (sender, receiver) = futures::channel::oneshot::channel();
    let local = Rc::new(tokio::task::LocalSet::new());
    let task = local.spawn_local(greenlet_spawn(move || await_(receiver)));
    let driven = local.clone();
    // The cancelled function drives the other task, too.
    let mut spawned = greenlet_spawn(move || {
        let own = greenlet_spawn(|| await_(pending::<()>()));
        await_(driven.run_until(own));
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        assert!(futures::poll!(&mut spawned).is_pending());
        assert!(spawned.cancel().await.is_err());
    });
    sender.send(7).unwrap();
    assert_eq!(local.block_on(&runtime, task).unwrap(), Ok(7));
}

#[test]
fn a_message_that_a_nested_await_has_not_taken_is_not_lost_by_a_cancel() {
    let _no_leaks = NoLeaks::watch();
    let (mut sender, mut receiver) = futures::channel::mpsc::channel(1);
    let shared = Rc::new(Cell::new(None));
    let put = shared.clone();
    let mut spawned = greenlet_spawn(move || {
        // A spawn was pending in an earlier await, and none is in this one.
        await_(greenlet_spawn(|| await_(yields())));
        let waited = try_await_(poll_fn(|cx| {
            futures::Stream::poll_next(Pin::new(&mut receiver), cx)
        }));
        put.set(Some(receiver));
        waited.is_err()
    });
    assert!(poll(&mut spawned).is_pending());
    assert!(poll(&mut spawned).is_pending());
    sender.try_send(7).unwrap();
    assert!(finish(spawned.cancel()).unwrap());
    assert_eq!(shared.take().unwrap().try_recv().unwrap(), 7);
}

#[test]
fn a_nested_await_ends_with_its_function() {
    let _no_leaks = NoLeaks::watch();
    for cancels in [false, true] {
        let log = Log::new();
        let written = log.clone();
        let mut spawned = greenlet_spawn(move || {
            await_nested(async move {
                let _future = on_drop(move || written.add("dropped"));
                await_(pending::<()>());
            });
        });
        assert!(poll(&mut spawned).is_pending());
        if cancels {
            assert!(finish(spawned.cancel()).is_err());
        } else {
            drop(spawned);
        }
        assert_eq!(log.take(), ["dropped"]);
    }
}

/// A spawn whose clean-up waits, and a future that returns without it: the clean-up is nobody's to wait
/// for any more. Otherwise the cancelled spawn above would wait for a waker that nobody calls.
#[test]
fn a_clean_up_that_its_future_does_not_wait_for_holds_up_nobody() {
    let _no_leaks = NoLeaks::watch();
    let mut outer = greenlet_spawn(|| {
        await_(greenlet_spawn(|| {
            let mut inner = greenlet_spawn(|| {
                let _exit = try_await_(pending::<()>());
                let _ = try_await_(pending::<()>()); // in the clean-up
            });
            let mut polls = 0;
            await_(poll_fn(move |cx| {
                assert!(Pin::new(&mut inner).poll(cx).is_pending());
                polls += 1;
                if polls == 2 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
        }));
    });
    assert!(poll(&mut outer).is_pending());
    let cancelled = ready(poll(&mut outer.cancel()));
    assert!(cancelled.unwrap_err().is::<GreenletExit>());
}
