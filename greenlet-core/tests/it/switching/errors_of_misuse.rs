//! The error for each kind of misuse.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow};
use greenlet::{
    AwaitInProgress, Greenlet, ParentError, StackError, State, SwitchForbidden, TypeMismatch, Unwinding,
    Value, end_suspended, getcurrent, no_switch, raw, stack, stacks_in_use,
};

use crate::support::{Drops, Log, catch_reports, take_reports, up};

/// Runs a function while a panic unwinds, and returns its result.
fn while_unwinding<T: 'static>(action: impl FnOnce() -> T + 'static) -> T {
    struct Unwinds<T, F: FnOnce() -> T>(Option<F>, Rc<RefCell<Option<T>>>);
    impl<T, F: FnOnce() -> T> Drop for Unwinds<T, F> {
        fn drop(&mut self) {
            let action = self.0.take().unwrap();
            assert!(std::thread::panicking());
            *self.1.borrow_mut() = Some(action());
        }
    }
    let slot = Rc::new(RefCell::new(None));
    let unwinds = Unwinds(Some(action), slot.clone());
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _unwinds = unwinds;
        std::panic::resume_unwind(Box::new("a panic"))
    }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"a panic"));
    slot.take().unwrap()
}

fn suspended() -> Greenlet {
    let greenlet = Greenlet::new(|(): ()| up::<u32>(()));
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

#[test]
fn a_receiver_that_asks_for_another_type_gets_the_value_in_the_error() {
    let drops = Drops::new();
    let child = Greenlet::new(|(): ()| -> Result<Option<TypeMismatch>> {
        let error = up::<u32>(()).unwrap_err();
        Ok(Some(error.downcast()?))
    });
    child.switch::<()>(()).unwrap();
    let back = child.switch::<Option<TypeMismatch>>((7_u8, drops.witness()));
    let mismatch = back.unwrap().unwrap();
    assert_eq!(mismatch.expected(), "u32");
    assert!(mismatch.found().starts_with("(u8, "), "{}", mismatch.found());
    assert!(mismatch.value().is_some());
    assert_eq!(drops.count(), 0);
    drop(mismatch);
    assert_eq!(drops.count(), 1);

    // The parent checks the type of an outcome in the same way.
    let ends = Greenlet::new(|(): ()| Ok("text"));
    let mismatch: TypeMismatch = ends.switch::<u8>(()).unwrap_err().downcast().unwrap();
    assert_eq!(mismatch.into_value().unwrap().downcast::<&str>().unwrap(), "text");
    assert!(ends.is_dead());
}

#[test]
fn a_start_with_the_wrong_type_leaves_the_greenlet_pending() {
    let child = Greenlet::new(|text: String| Ok(text.len()));
    for _ in 0..2 {
        let mismatch: TypeMismatch = child.switch::<usize>(1_u8).unwrap_err().downcast().unwrap();
        assert_eq!(
            (mismatch.expected(), mismatch.found()),
            ("alloc::string::String", "u8")
        );
        assert_eq!(mismatch.into_value().unwrap().downcast::<u8>().unwrap(), 1);
        assert_eq!(child.state(), State::Pending);
    }
    // For a `Value`, the type inside it counts.
    let error = child.switch::<usize>(Value::new(2_u16)).unwrap_err();
    let mismatch: TypeMismatch = error.downcast().unwrap();
    assert_eq!(
        (mismatch.found(), mismatch.into_value().unwrap().is::<u16>()),
        ("u16", true)
    );
    assert_eq!(
        child.switch::<usize>(Value::new(String::from("four"))).unwrap(),
        4
    );
}

#[test]
fn a_parent_cycle_is_refused() {
    let (a, b) = (Greenlet::new(|(): ()| Ok(())), Greenlet::new(|(): ()| Ok(())));
    b.set_parent(&a).unwrap();
    for (child, parent) in [(&a, &a), (&a, &b)] {
        let error = child.set_parent(parent).unwrap_err();
        assert!(error.is_cycle() && !error.is_main() && !error.is_awaiting());
    }
    assert_eq!((a.parent(), b.parent()), (Some(getcurrent()), Some(a.clone())));
}

#[test]
fn setting_a_parent_of_main_is_refused() {
    let child = Greenlet::new(|(): ()| Ok(()));
    for parent in [child, getcurrent()] {
        let error = getcurrent().set_parent(&parent).unwrap_err();
        assert!(error.is_main() && !error.is_cycle());
    }
    assert_eq!(getcurrent().parent(), None);
}

#[test]
fn a_bad_stack_size_leaves_the_greenlet_pending() {
    let drops = Drops::new();
    for size in [0, 1, stack::MIN_SIZE - 1, stack::MAX_SIZE + 1, usize::MAX] {
        let child = Greenlet::builder().stack_size(size).build(|(): ()| Ok(()));
        for tries in 1..=2 {
            let refused = child.switch::<()>(());
            let error: StackError = refused.unwrap_err().downcast().unwrap();
            assert!(error.is_bad_size() && !error.is_out_of_memory() && error.io_error().is_none());
            assert!(error.to_string().contains(&size.to_string()), "{error}");
            assert!(error.into_value().unwrap().is::<()>());
            assert_eq!((child.state(), tries), (State::Pending, tries));
        }
        // A thrown error needs a stack too, since it starts the greenlet in order to end it.
        let error: StackError = child
            .throw::<()>(anyhow!("thrown"))
            .unwrap_err()
            .downcast()
            .unwrap();
        let thrown = error.into_value().unwrap().downcast::<anyhow::Error>().unwrap();
        assert_eq!(
            (thrown.to_string(), child.state()),
            (String::from("thrown"), State::Pending)
        );

        let witness = drops.witness();
        let takes = Greenlet::builder()
            .stack_size(size)
            .build(|_: crate::support::Witness| Ok(()));
        drop(takes.switch::<()>(witness));
    }
    assert_eq!(drops.count(), 5);
    let smallest = Greenlet::builder()
        .stack_size(stack::MIN_SIZE)
        .build(|n: u8| Ok(n));
    assert_eq!(smallest.switch::<u8>(3_u8).unwrap(), 3);
}

// TD-9
#[test]
fn a_switch_to_a_locked_greenlet_is_refused() {
    let waiting = suspended();
    let below = Greenlet::builder().parent(&waiting).build(|n: u32| Ok(n));
    let suspended_below = suspended();
    suspended_below.set_parent(&waiting).unwrap();
    let dead_below = Greenlet::new(|(): ()| Ok(()));
    dead_below.switch::<()>(()).unwrap();
    dead_below.set_parent(&suspended_below).unwrap();

    assert!(raw::lock_for_await(&waiting));
    for target in [&waiting, &below, &suspended_below, &dead_below] {
        let before = target.state();
        let awaiting: AwaitInProgress = target.switch::<u32>(9_u32).unwrap_err().downcast().unwrap();
        assert_eq!(awaiting.into_value().unwrap().downcast::<u32>().unwrap(), 9);
        let awaiting: AwaitInProgress = target
            .throw::<u32>(anyhow!("no"))
            .unwrap_err()
            .downcast()
            .unwrap();
        let thrown = awaiting
            .into_value()
            .unwrap()
            .downcast::<anyhow::Error>()
            .unwrap();
        assert_eq!(thrown.to_string(), "no");
        assert!(target.kill().unwrap_err().is::<AwaitInProgress>());
        assert_eq!(target.state(), before);
    }
    raw::unlock(&waiting);
    assert_eq!(suspended_below.switch::<u32>(1_u32).unwrap(), 1);
    assert!(
        waiting.is_dead() && suspended_below.is_dead(),
        "one ended into the other"
    );
    assert_eq!(below.switch::<u32>(5_u32).unwrap(), 5);
}

// A running greenlet must never be below a locked one: it would end into a greenlet that cannot be
// resumed. This holds even after a detour over a pending or a dead one.
#[test]
fn no_greenlet_runs_below_a_locked_one() {
    let waiting = suspended();
    let pending = Greenlet::new(|(): ()| Ok(()));
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let runs = Greenlet::new({
        let (pending, dead, waiting) = (pending.clone(), dead.clone(), waiting.clone());
        move |between: bool| {
            assert!(raw::lock_for_await(&waiting));
            let between = if between { &pending } else { &dead };
            getcurrent().set_parent(between)?;
            let refused: ParentError = between.set_parent(&waiting).unwrap_err();
            assert!(refused.is_awaiting());
            assert!(getcurrent().set_parent(&waiting).unwrap_err().is_awaiting());
            raw::unlock(&waiting);
            Ok(())
        }
    });
    runs.switch::<()>(false).unwrap();
    assert!(runs.is_dead() && waiting.is_active());
}

#[test]
fn a_switch_while_unwinding_is_refused() {
    let target = suspended();
    let inside = target.clone();
    let drops = Drops::new();
    let witness = drops.witness();
    let refused: Unwinding = while_unwinding(move || inside.switch::<u32>((3_u8, witness)))
        .unwrap_err()
        .downcast()
        .unwrap();
    assert_eq!(drops.count(), 0);
    let (number, witness) = refused
        .into_value()
        .unwrap()
        .downcast::<(u8, crate::support::Witness)>()
        .unwrap();
    drop(witness);
    assert_eq!((number, drops.count()), (3, 1));

    let inside = target.clone();
    let error = while_unwinding(move || inside.throw::<u32>(anyhow!("thrown"))).unwrap_err();
    let thrown = error.downcast::<Unwinding>().unwrap().into_value().unwrap();
    assert_eq!(thrown.downcast::<anyhow::Error>().unwrap().to_string(), "thrown");
    assert!(while_unwinding(end_suspended).unwrap_err().is::<Unwinding>());
    assert!(
        while_unwinding(|| getcurrent().switch::<u8>(1_u8))
            .unwrap_err()
            .is::<Unwinding>()
    );
    assert_eq!(target.switch::<u32>(4_u32).unwrap(), 4);
}

// XS-5: deferred ends run later, once each, in the order in which the handles were dropped.
#[test]
fn ends_deferred_by_an_unwind_run_at_the_next_operation() {
    let make = |log: &Log, name: &'static str| {
        let log = log.clone();
        let greenlet = Greenlet::new(move |(): ()| {
            let exit = up::<()>(());
            log.add(name);
            exit
        });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let log = Log::new();
    let let_go_while_unwinding = |owned: bool| {
        let (a, b) = (make(&log, "a"), make(&log, "b"));
        let kept = owned.then(|| a.clone());
        while_unwinding(move || {
            if owned {
                a.end();
            }
            drop((a, b));
        });
        assert_eq!(log.take(), [""; 0]);
        kept
    };

    // At the next switch.
    let_go_while_unwinding(false);
    let child = Greenlet::new(|(): ()| Ok(()));
    child.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["a", "b"]);

    // At the next throw, even one that comes right back.
    let kept = let_go_while_unwinding(true);
    assert!(getcurrent().throw::<()>(anyhow!("back")).is_err());
    assert_eq!(log.take(), ["a", "b"]);
    assert!(kept.unwrap().is_dead());

    // At the end of a greenlet: before its outcome is delivered, which stays unchanged.
    let ends = Greenlet::new({
        let (a, b) = (make(&log, "a"), make(&log, "b"));
        move |(): ()| {
            while_unwinding(move || drop((a, b)));
            Ok("outcome")
        }
    });
    assert_eq!(ends.switch::<&str>(()).unwrap(), "outcome");
    assert_eq!(log.take(), ["a", "b"]);

    // When a `no_switch` section ends.
    let_go_while_unwinding(false);
    no_switch(|| assert_eq!(log.take(), [""; 0]));
    assert_eq!(log.take(), ["a", "b"]);

    // At the end of the thread.
    let drops = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counts = drops.clone();
    std::thread::spawn(move || {
        let greenlet = Greenlet::new(move |(): ()| {
            let exit = up::<()>(());
            counts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            exit
        });
        greenlet.switch::<()>(()).unwrap();
        while_unwinding(move || drop(greenlet));
    })
    .join()
    .unwrap();
    assert_eq!(drops.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_switch_in_a_no_switch_section_is_refused_and_names_the_section() {
    let target = suspended();
    let line = line!() + 1;
    no_switch(|| {
        no_switch(|| {
            let error: SwitchForbidden = target.switch::<u32>(3_u8).unwrap_err().downcast().unwrap();
            assert_eq!((error.since().file(), error.since().line()), (file!(), line));
            assert!(
                error.to_string().contains(&format!("errors_of_misuse.rs:{line}")),
                "{error}"
            );
            assert_eq!(error.into_value().unwrap().downcast::<u8>().unwrap(), 3);
        });
        // The end of the inner section does not end the outer one.
        assert!(target.kill().unwrap_err().is::<SwitchForbidden>());
        assert!(
            getcurrent()
                .switch::<u8>(1_u8)
                .unwrap_err()
                .is::<SwitchForbidden>()
        );
        assert!(end_suspended().unwrap_err().is::<SwitchForbidden>());
    });
    assert_eq!(target.switch::<u32>(4_u32).unwrap(), 4);
}

#[test]
fn ends_deferred_by_a_no_switch_section_run_when_it_is_left() {
    let log = Log::new();
    let inside = log.clone();
    let target = Greenlet::new(move |(): ()| {
        let exit = up::<()>(());
        inside.add("ended");
        exit
    });
    target.switch::<()>(()).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        no_switch(|| {
            drop(target);
            log.add("in the section");
            std::panic::resume_unwind(Box::new(()))
        })
    }));
    assert!(caught.is_err());
    log.add("the section is over, by a panic");
    // The handle was dropped while the panic unwound, so the end runs now.
    no_switch(|| ());
    assert_eq!(
        log.take(),
        ["in the section", "the section is over, by a panic", "ended"]
    );
}

// An end does not wait for code that tries again after each refusal by a locked greenlet.
#[test]
fn an_end_does_not_wait_for_code_that_retries_refused_switches() {
    catch_reports();
    let closed = suspended();
    for stops_unwinding in [false, true] {
        let target = closed.clone();
        let greenlet = Greenlet::builder().name("tries").build(move |(): ()| {
            let _exit = up::<()>(());
            let tries = || while target.switch::<u32>(1_u32).is_err() {};
            if stops_unwinding {
                loop {
                    let _ = catch_unwind(AssertUnwindSafe(tries));
                }
            }
            tries();
            Ok(())
        });
        greenlet.switch::<()>(()).unwrap();
        assert!(raw::lock_for_await(&closed));
        greenlet.end();
        raw::unlock(&closed);
        assert_eq!(greenlet.is_dead(), !stops_unwinding);
        let expected: &[&str] = if stops_unwinding {
            &["tries: refused to end"]
        } else {
            &[]
        };
        assert_eq!(take_reports(), expected);
    }
    assert_eq!(closed.switch::<u32>(2_u32).unwrap(), 2);
}

// Clean-up may create greenlets that must be ended too, but not for ever.
#[test]
fn ending_all_greenlets_includes_those_of_clean_up_for_a_hundred_rounds() {
    struct LeavesAnother(u32, Log);
    impl Drop for LeavesAnother {
        fn drop(&mut self) {
            self.1.add("dropped");
            if self.0 > 0 {
                leave(self.0 - 1, &self.1);
            }
        }
    }
    fn leave(more: u32, log: &Log) {
        let another = LeavesAnother(more, log.clone());
        let greenlet = Greenlet::new(move |(): ()| {
            let ended = up::<()>(());
            drop(another);
            ended
        });
        greenlet.switch::<()>(()).unwrap();
        std::mem::forget(greenlet);
    }
    let log = Log::new();
    leave(9, &log);
    end_suspended().unwrap();
    assert_eq!((log.take().len(), stacks_in_use()), (10, 0));
    leave(u32::MAX, &log);
    end_suspended().unwrap();
    assert_eq!((log.take().len(), stacks_in_use()), (100, 1));
}

// Ending an ancestor from below makes no cycle, although the caller is the parent of that ancestor
// meanwhile.
#[test]
fn ending_an_ancestor_returns_to_the_caller() {
    let log = Log::new();
    let inside = log.clone();
    let main = getcurrent();
    let ancestor = Greenlet::new(move |(): ()| {
        let child = Greenlet::new(move |()| {
            let ancestor = greenlet::getparent().unwrap();
            ancestor.end();
            assert!(ancestor.is_dead() && ancestor.parent() == Some(main.clone()));
            assert_eq!(greenlet::getparent(), Some(main)); // the branch has moved past the ancestor
            Ok("child's outcome")
        });
        let error = child.switch::<()>(()).unwrap_err();
        // In a cycle, any walk along the parents would never end.
        let current = getcurrent();
        assert!(child.set_parent(&child).unwrap_err().is_cycle());
        assert!(current.nearest_attached::<()>().is_none());
        assert_eq!(greenlet::getparent(), Some(child));
        let pending = Greenlet::new(|(): ()| Ok("started"));
        inside.add(pending.switch::<&str>(())?);
        Err::<(), _>(error)
    });
    log.add(ancestor.switch::<&str>(()).unwrap());
    assert_eq!(log.take(), ["started", "child's outcome"]);
}

// Clean-up that puts the old parent below the greenlet that is being ended makes no cycle either.
#[test]
fn clean_up_cannot_make_a_cycle_of_parents() {
    let old_parent = Greenlet::new(|(): ()| Ok(()));
    let shelf: Rc<RefCell<Option<Greenlet>>> = Rc::default();
    let (hang, store) = (old_parent.clone(), shelf.clone());
    let dying = Greenlet::new(move |(): ()| {
        let _ = up::<()>(());
        *store.borrow_mut() = Some(getcurrent());
        hang.set_parent(&getcurrent())?;
        Ok(())
    });
    dying.switch::<()>(()).unwrap();
    dying.set_parent(&old_parent).unwrap();
    drop(dying);
    let dead = shelf.take().unwrap();
    assert_eq!(
        (old_parent.parent(), dead.parent()),
        (Some(dead.clone()), Some(getcurrent()))
    );
    assert!(dead.set_parent(&old_parent).unwrap_err().is_cycle());
}

// A greenlet runs deferred ends in its last frames while it is itself being ended, in both stages.
// Nothing unwinds out of those frames.
#[test]
fn a_greenlet_can_be_ended_while_it_runs_deferred_ends() {
    catch_reports();
    let main = getcurrent();
    let stubborn = Greenlet::builder().name("stubborn").build(move |(): ()| {
        let _ = up::<()>(());
        // Stops its own unwinding.
        let _ = catch_unwind(AssertUnwindSafe(|| main.switch::<()>("diverted")));
        main.switch::<()>("diverted again")
    });
    stubborn.switch::<()>(()).unwrap();
    let drops = Drops::new();
    let witness = drops.witness();
    let ends = Greenlet::new(move |(): ()| {
        let _witness = witness;
        while_unwinding(move || drop(stubborn));
        Ok("outcome")
    });
    assert_eq!(ends.switch::<&str>(()).unwrap(), "diverted");
    assert!(ends.is_active());
    ends.end();
    assert!(ends.is_dead());
    assert_eq!(drops.count(), 1);
    // The exit of `ends` is no error of `stubborn`, so it is not reported.
    assert_eq!(take_reports(), ["stubborn: refused to end"]);
}
