//! How a spawned function ends: its driver is dropped, its thread ends, or it refuses to.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;

use greenlet::{
    Greenlet, GreenletExit, NoDriver, Spawn, await_, end_suspended, getcurrent, greenlet_spawn, no_switch,
    stacks_in_use, try_await_,
};

use crate::bridge::soundness::Shared;
use crate::bridge::{poll, ready};
use crate::support::{Drops, NoLeaks, ThreadEnd, Witness, catch_reports, take_reports, up};

#[test]
fn a_function_that_retries_for_ever_is_unwound_when_its_driver_is_dropped() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let mut spawned = greenlet_spawn(move || {
        let _witness = witness;
        while try_await_(pending::<()>()).is_err() {}
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_function_that_swallows_every_unwinding_is_reported_and_left_alone() {
    catch_reports();
    let tries = Rc::new(Cell::new(0));
    let counted = tries.clone();
    let mut spawned = greenlet_spawn(move || {
        loop {
            counted.set(counted.get() + 1);
            let _ = catch_unwind(|| await_(pending::<()>()));
        }
    });
    let polled: Poll<()> = poll(&mut spawned);
    assert!(polled.is_pending());
    drop(spawned);
    let reports = take_reports();
    assert!(
        reports.iter().any(|report| report.contains("refused to end")),
        "{reports:?}"
    );
    assert!(tries.get() < 1_000);
}

/// Code that awaits again after each refusal is unwound once, whichever greenlet ends it, and
/// wherever the driver is meanwhile.
#[test]
fn an_end_does_not_wait_for_code_that_awaits_again_and_again() {
    fn retry() {
        while try_await_(pending::<()>()).is_err() {}
    }
    fn waiting_child(body: fn()) -> Greenlet {
        let child = Greenlet::new(move |(): ()| {
            let _ = up::<()>(());
            body();
            Ok(())
        });
        child.switch::<()>(()).unwrap();
        child
    }
    type End = fn(Witness);
    let ends: [(&str, End); 5] = [
        ("the spawned function, by its owner", |witness| {
            let mut spawned = greenlet_spawn(move || {
                let _witness = witness;
                retry();
            });
            assert!(poll(&mut spawned).is_pending());
            let greenlet = spawned.greenlet().clone();
            greenlet.end();
            assert!(greenlet.is_dead());
        }),
        ("a forgotten spawn, with all others", |witness| {
            let mut spawned = greenlet_spawn(move || {
                let _witness = witness;
                retry();
            });
            assert!(poll(&mut spawned).is_pending());
            std::mem::forget(spawned);
            end_suspended().unwrap();
        }),
        ("a greenlet below the spawned function, from outside", |witness| {
            let place: Shared<Greenlet> = Rc::default();
            let inside = place.clone();
            let mut spawned = greenlet_spawn(move || {
                let _witness = witness;
                inside.replace(Some(waiting_child(retry)));
                await_(pending::<()>());
            });
            assert!(poll(&mut spawned).is_pending());
            let child = place.take().unwrap();
            child.end();
            assert!(child.is_dead());
        }),
        ("a greenlet without a driver", |witness| {
            let greenlet = waiting_child(retry);
            drop(witness);
            drop(greenlet);
        }),
        ("a greenlet that runs another one, which awaits", |witness| {
            let outer = Greenlet::new(move |(): ()| {
                let _witness = witness;
                let inner = waiting_child(retry);
                let _ = up::<()>(());
                inner.switch::<()>(())
            });
            outer.switch::<()>(()).unwrap();
            outer.end();
            assert!(outer.is_dead());
        }),
    ];
    for (which, end) in ends {
        catch_reports();
        let drops = Drops::new();
        end(drops.witness());
        assert_eq!(drops.count(), 1, "{which}");
        end_suspended().unwrap();
        assert_eq!((take_reports(), stacks_in_use()), (vec![], 0), "{which}");
    }
}

/// The steps of an end: the exit, refusals, one forced unwind, a report.
#[test]
fn an_end_forces_one_unwind_and_then_reports() {
    catch_reports();
    let seen: Rc<RefCell<Vec<&str>>> = Rc::default();
    let inside = seen.clone();
    let mut spawned = greenlet_spawn(move || {
        loop {
            let awaited = catch_unwind(|| try_await_(pending::<()>()));
            inside.borrow_mut().push(match awaited {
                Ok(Err(error)) if error.is::<GreenletExit>() => "exit",
                Ok(Err(error)) if error.is::<NoDriver>() => "refused",
                Err(_) => "unwound",
                _ => "something else",
            });
            if false {
                break;
            }
        }
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    let mut seen = seen.take();
    assert_eq!(seen.len(), 102, "the exit, 100 refusals, an unwinding");
    seen.dedup();
    assert_eq!(seen, ["exit", "refused", "unwound"]);
    assert!(take_reports()[0].ends_with(": refused to end"));
}

#[test]
fn a_spawn_may_be_forgotten() {
    let drops = Drops::new();
    let watched = drops.clone();
    let mut spawned = greenlet_spawn(move || {
        let _local = watched.witness();
        await_(pending::<()>());
    });
    assert!(poll(&mut spawned).is_pending());
    std::mem::forget(spawned);
    assert_eq!(drops.count(), 0);
    // The end of the thread, or `end_suspended`, still ends the function.
    greenlet::end_suspended().unwrap();
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_panic_in_a_destructor_after_a_drop_is_reported() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                std::panic::resume_unwind(Box::new("bomb"));
            }
        }
    }
    catch_reports();
    let mut spawned = greenlet_spawn(|| {
        let _bomb = Bomb;
        let _ = try_await_(pending::<()>());
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    assert_eq!(take_reports().len(), 1);
}

#[test]
fn a_spawn_dropped_in_a_no_switch_section_ends_after_it() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let mut spawned = greenlet_spawn(move || {
        let _local = watched.witness();
        await_(pending::<()>());
    });
    assert!(poll(&mut spawned).is_pending());
    no_switch(|| {
        drop(spawned);
        assert_eq!(drops.count(), 0);
    });
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_spawn_dropped_by_a_panic_ends_after_the_unwind() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let mut spawned = greenlet_spawn(move || {
        let _local = watched.witness();
        await_(pending::<()>());
    });
    assert!(poll(&mut spawned).is_pending());
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _held = spawned;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(caught.is_err());
    assert_eq!(Greenlet::new(|(): ()| Ok(1)).switch::<i32>(()).unwrap(), 1);
    assert_eq!(drops.count(), 1);
}

thread_local! {
    static LATE: RefCell<Option<Spawn<()>>> = const { RefCell::new(None) };
}

/// A spawn in a thread-local is dropped when its thread ends: before the library's own thread-local
/// or after it. In the second case the function stays suspended, unless `run_to_end` has ended it.
#[test]
fn a_spawn_in_a_thread_local_ends_with_its_thread() {
    struct Report(std::sync::mpsc::Sender<bool>);
    impl Drop for Report {
        fn drop(&mut self) {
            let refused = try_await_(async {}).is_err();
            self.0.send(refused).unwrap();
        }
    }
    let orders = [false, true].map(|library_first| ThreadEnd::BOTH.map(|end| (library_first, end)));
    for (library_first, end) in orders.into_iter().flatten() {
        for polls in 0..2 {
            let (sender, receiver) = std::sync::mpsc::channel();
            end.of_thread(move || {
                if library_first {
                    drop(getcurrent());
                    LATE.with(|_| ());
                } else {
                    LATE.with(|_| ());
                    drop(getcurrent());
                }
                let captured = Report(sender.clone());
                let mut spawned = greenlet_spawn(move || {
                    let _captured = captured;
                    let _local = Report(sender);
                    await_(pending::<()>());
                });
                for _ in 0..polls {
                    assert!(poll(&mut spawned).is_pending());
                }
                LATE.set(Some(spawned));
            })
            .unwrap();
            let reports: Vec<_> = receiver.try_iter().collect();
            let is_left = polls == 1 && !library_first && end == ThreadEnd::Plain;
            if is_left && cfg!(target_os = "linux") {
                assert!(reports.is_empty());
            } else if !is_left {
                assert_eq!(
                    reports,
                    vec![true; polls + 1],
                    "{polls} polls, library first: {library_first}, {end:?}"
                );
            }
        }
    }
}

#[test]
fn greenlets_that_hold_each_other_end_with_the_spawn() {
    for is_cancelled in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let watched = drops.clone();
        let mut spawned = greenlet_spawn(move || -> anyhow::Result<()> {
            let outer = Greenlet::new(move |(): ()| -> anyhow::Result<()> {
                let local = watched.witness();
                let inner = Greenlet::new(move |(): ()| {
                    let _local = watched.witness();
                    try_await_(pending::<()>())
                });
                inner.switch::<()>(())?; // `inner` is on the stack of its parent
                drop(local);
                Ok(())
            });
            outer.switch::<()>(())
        });
        assert!(poll(&mut spawned).is_pending());
        if is_cancelled {
            let returned = ready(poll(&mut spawned.cancel())).unwrap();
            assert!(returned.unwrap_err().is::<GreenletExit>());
        } else {
            drop(spawned);
        }
        assert_eq!(drops.count(), 2);
    }
}
