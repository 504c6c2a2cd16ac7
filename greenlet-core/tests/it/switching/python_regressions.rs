//! Regression tests for bugs that Python's greenlet once had.

use std::rc::Rc;

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, GreenletExit, SwitchForbidden, Tracer, getcurrent, no_switch, settrace};

use crate::support::{Drops, Log, on_drop, up};

// HZ-1, HZ-9, HZ-41: the library keeps no lock and no list that a switch could leave held or
// dangling. A guard that a suspended greenlet holds stays its own, and a `no_switch` section can
// forbid switching while one is held.
#[test]
fn a_guard_held_over_a_switch_stays_with_its_greenlet() {
    let locks = Rc::new([std::sync::Mutex::new(0), std::sync::Mutex::new(0)]);
    let greenlets = [0, 1].map(|index| {
        let locks = locks.clone();
        let greenlet = Greenlet::new(move |(): ()| {
            let mut guard = locks[index].lock().unwrap();
            for _ in 0..10 {
                up::<()>(())?;
                *guard += 1;
            }
            Ok(())
        });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    });
    for _ in 0..10 {
        for (greenlet, lock) in greenlets.iter().zip(&*locks) {
            assert!(lock.try_lock().is_err(), "held by the suspended greenlet");
            greenlet.switch::<()>(()).unwrap();
        }
    }
    assert_eq!(locks.each_ref().map(|lock| *lock.lock().unwrap()), [10, 10]);

    let other = Greenlet::new(|(): ()| Ok(()));
    let guard = locks[0].lock().unwrap();
    let refused = no_switch(|| other.switch::<()>(())).unwrap_err();
    drop(guard);
    assert!(refused.is::<SwitchForbidden>());
}

// HZ-7, HZ-14, LK-5: an operation that fails changes nothing. The same greenlet can start
// afterwards, and the value is dropped once.
#[test]
fn a_failed_start_leaves_nothing_half_done() {
    let drops = Drops::new();
    let child = Greenlet::new(|_: crate::support::Witness| Ok(()));
    let before = greenlet::stacks_in_use();
    for _ in 0..100 {
        assert!(child.switch::<()>("not a witness").is_err());
        let refused = no_switch(|| child.switch::<()>(drops.witness())).unwrap_err();
        assert!(child.set_parent(&child).is_err());
        drop(refused);
    }
    assert_eq!((drops.count(), greenlet::stacks_in_use()), (100, before));
    child.switch::<()>(drops.witness()).unwrap();
    assert_eq!(drops.count(), 101);
}

// HZ-17: the captures of a function are dropped at its end, in its greenlet, and may switch there.
// The returned value is delivered afterwards.
#[test]
fn captures_may_switch_when_dropped() {
    let log = Log::new();
    let main = getcurrent();
    let inside = log.clone();
    let captured = on_drop(move || {
        inside.add("captured value is dropped");
        let back: &str = main.switch("from the destructor").unwrap();
        inside.add(format!("destructor gets {back}"));
    });
    let child = Greenlet::new(move |(): ()| {
        let _captured = &captured;
        Ok("the outcome")
    });
    assert_eq!(child.switch::<&str>(()).unwrap(), "from the destructor");
    assert!(child.is_active());
    assert_eq!(child.switch::<&str>("back in").unwrap(), "the outcome");
    assert!(child.is_dead());
    assert_eq!(
        log.take(),
        ["captured value is dropped", "destructor gets back in"]
    );
}

// HZ-22: switches from inside a long chain of nested destructors, in two greenlets in turn.
#[test]
fn nested_destructors_may_switch() {
    const DEPTH: u32 = 200;
    struct Nested(u32, Option<Box<Nested>>, Drops);
    impl Drop for Nested {
        fn drop(&mut self) {
            up::<()>(self.0).unwrap();
            drop(self.1.take());
            drop(self.2.witness());
        }
    }
    let drops = Drops::new();
    let greenlets = [0, 1].map(|_| {
        let drops = drops.clone();
        Greenlet::new(move |(): ()| {
            let nested = (0..DEPTH).fold(None, |inner, depth| {
                Some(Box::new(Nested(depth, inner, drops.clone())))
            });
            drop(nested);
            Ok(DEPTH)
        })
    });
    for depth in (0..DEPTH).rev() {
        for greenlet in &greenlets {
            assert_eq!(greenlet.switch::<u32>(()).unwrap(), depth);
        }
    }
    assert_eq!(drops.count(), 0, "all are still inside");
    for greenlet in &greenlets {
        assert_eq!(greenlet.switch::<u32>(()).unwrap(), DEPTH);
    }
    assert_eq!(drops.count(), 2 * DEPTH as usize);
}

// HZ-27: each stack can be unwound by itself, even by a panic that is caught far from where it
// began, on a reused stack.
#[test]
fn every_stack_can_be_unwound() {
    fn deep(depth: u32) -> Result<()> {
        if depth == 0 {
            std::panic::resume_unwind(Box::new(7_u8))
        } else {
            deep(depth - 1).map(drop)
        }
    }
    for depth in [0, 10, 200] {
        let greenlet = Greenlet::new(move |(): ()| {
            let caught = std::panic::catch_unwind(|| deep(depth)).unwrap_err();
            Ok(caught.downcast_ref::<u8>().copied())
        });
        assert_eq!(greenlet.switch::<Option<u8>>(()).unwrap(), Some(7));
    }
}

// HZ-36: a cloned handle refers to the same greenlet, which runs once.
#[test]
fn cloning_a_handle_copies_nothing() {
    let log = Log::new();
    let inside = log.clone();
    let greenlet = Greenlet::new(move |(): ()| {
        inside.add("runs");
        Ok(())
    });
    let same = greenlet.clone();
    greenlet.switch::<()>(()).unwrap();
    assert!(same.is_dead() && same == greenlet);
    assert!(
        same.switch::<()>(()).is_ok(),
        "as any dead one: it goes to the parent"
    );
    assert_eq!(log.take(), ["runs"]);
}

// HZ-38: code that examines the errors it knows, and propagates others with `?`, propagates an
// exit.
#[test]
fn an_exit_propagates_through_code_that_handles_only_its_own_errors() {
    #[derive(Debug)]
    struct Known;
    impl std::fmt::Display for Known {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("known")
        }
    }
    impl std::error::Error for Known {}
    let careful = || {
        let greenlet = Greenlet::new(|(): ()| -> Result<u32> {
            let mut handled = 0_u32;
            loop {
                match up::<u32>(handled) {
                    Ok(number) => return Ok(number),
                    Err(error) => {
                        error.downcast::<Known>()?;
                        handled += 1;
                    }
                }
            }
        });
        greenlet.switch::<u32>(()).unwrap();
        greenlet
    };
    let greenlet = careful();
    assert_eq!(greenlet.throw::<u32>(Known).unwrap(), 1);
    assert_eq!(greenlet.throw::<u32>(Known).unwrap(), 2);
    assert!(greenlet.kill().unwrap().is_exit());
    // The same with an exit that has a context.
    let greenlet = careful();
    let exit: GreenletExit = greenlet
        .throw(anyhow!(GreenletExit::new()).context("shutting down"))
        .unwrap();
    assert_eq!(exit, GreenletExit::new());
}

// HZ-15, HZ-18: user code that runs in the middle of a transfer (here a tracer) switches to the
// same target with a value of its own. Neither value is lost or delivered to the wrong place.
#[test]
fn a_tracer_may_switch_to_the_traced_target() {
    let log = Log::new();
    let target = Greenlet::new({
        let log = log.clone();
        move |first: &'static str| {
            let mut got = first;
            loop {
                log.add(format!("target gets {got}"));
                got = up(())?;
            }
            #[expect(unreachable_code, reason = "names the type of the outcome")]
            Ok(())
        }
    });
    let main = getcurrent();
    let inside = log.clone();
    let is_first = std::cell::Cell::new(true);
    settrace(Some(Tracer::new(move |_| {
        if is_first.replace(false) {
            // Runs in the target, before it receives "staged".
            let resumed: &str = main.switch(())?;
            inside.add(format!("tracer gets {resumed}"));
        }
        Ok(())
    })));
    target.switch::<()>("staged").unwrap();
    log.add("main has control");
    target.switch::<()>("for the tracer").unwrap();
    settrace(None);
    target.switch::<()>("last").unwrap();
    let expected = [
        "main has control",
        "tracer gets for the tracer",
        "target gets staged",
        "target gets last",
    ];
    assert_eq!(log.take(), expected);
}

// UD-1: an exit that reaches a pending ancestor starts it with that value, like any other value. An
// ancestor that takes another type fails with a mismatch that owns the exit, and its parent gets
// that error.
#[test]
fn an_exit_starts_a_pending_parent() {
    let takes = Greenlet::new(|exit: GreenletExit| Ok(format!("started with: {exit}")));
    let child = Greenlet::builder()
        .parent(&takes)
        .build(|(): ()| -> Result<()> { Err(GreenletExit::with_reason("done").into()) });
    assert_eq!(
        child.switch::<String>(()).unwrap(),
        "started with: greenlet exit: done"
    );

    let takes_numbers = Greenlet::new(|_: u32| Ok(()));
    let child = Greenlet::builder()
        .parent(&takes_numbers)
        .build(|(): ()| -> Result<()> { Err(GreenletExit::with_reason("done").into()) });
    let mismatch: greenlet::TypeMismatch = child.switch::<()>(()).unwrap_err().downcast().unwrap();
    assert!(takes_numbers.is_dead());
    assert!(mismatch.into_value().unwrap().is_exit());
}

// UD-2: an outcome never runs out of ancestors: main receives it when all others fail.
#[test]
fn main_receives_an_outcome_that_no_other_ancestor_takes() {
    let mut parent = getcurrent();
    for _ in 0..5 {
        parent = Greenlet::builder()
            .parent(&parent)
            .stack_size(1)
            .build(|_: u32| Ok(0_u32));
    }
    let child = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| Ok("an outcome"));
    let error = child.switch::<()>(()).unwrap_err();
    assert!(
        error.is::<greenlet::StackError>() || error.is::<greenlet::TypeMismatch>(),
        "{error}"
    );
}

// UD-3, UD-4: inspection changes nothing, and a function never runs twice.
#[test]
fn inspection_changes_nothing() {
    let runs = Drops::new();
    let witness = runs.witness();
    let greenlet = Greenlet::new(move |(): ()| {
        drop(witness);
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    let look = || {
        let facts = (
            greenlet.state(),
            greenlet.is_active(),
            greenlet.is_dead(),
            format!("{greenlet:?}"),
        );
        let again = (
            greenlet.state(),
            greenlet.is_active(),
            greenlet.is_dead(),
            format!("{greenlet:?}"),
        );
        assert_eq!(facts, again);
        facts.0
    };
    assert_eq!(look(), greenlet::State::Active);
    greenlet.kill().unwrap();
    assert_eq!(look(), greenlet::State::Dead);
    assert_eq!(
        greenlet.switch::<u8>(1_u8).unwrap(),
        1,
        "nothing is started again"
    );
    assert_eq!(runs.count(), 1);
}
