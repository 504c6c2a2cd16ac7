//! A refused transfer changes nothing. A transfer that user code interrupts examines its target
//! again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::anyhow;
use greenlet::{
    AwaitInProgress, Greenlet, GreenletExit, StackError, State, SwitchForbidden, Tracer, TypeMismatch,
    Unwinding, getcurrent, no_switch, raw, settrace, stack,
};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

// SW-32
#[test]
fn a_refused_transfer_changes_nothing_and_is_not_traced() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let traced = log.clone();
    let pending = Greenlet::new(|value: i32| Ok(value));
    let suspended = Greenlet::new(|(): ()| up::<i32>(()));
    suspended.switch::<()>(()).unwrap();
    settrace(Some(Tracer::new(move |_| {
        traced.add("event");
        Ok(())
    })));
    no_switch(|| {
        for target in [&pending, &suspended, &getcurrent()] {
            let error = target
                .switch::<i32>(5)
                .unwrap_err()
                .downcast::<SwitchForbidden>()
                .unwrap();
            assert!(error.since().file().ends_with("refusals_change_nothing.rs"));
            assert_eq!(error.into_value().unwrap().downcast::<i32>().unwrap(), 5);
            let error = target.throw::<i32>(anyhow!("thrown")).unwrap_err();
            let value = error.downcast::<SwitchForbidden>().unwrap().into_value().unwrap();
            assert_eq!(value.downcast::<anyhow::Error>().unwrap().to_string(), "thrown");
        }
    });
    assert!(
        pending
            .switch::<i32>("wrong type")
            .unwrap_err()
            .is::<TypeMismatch>()
    );
    assert_eq!(
        (pending.state(), suspended.state()),
        (State::Pending, State::Active)
    );
    assert!(log.take().is_empty());
    settrace(None);
    assert_eq!(pending.switch::<i32>(1).unwrap(), 1);
    assert_eq!(suspended.switch::<i32>(2).unwrap(), 2);
}

// SW-34
#[test]
fn a_suspended_target_of_a_refused_switch_stays_usable() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let target = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<i32>(())
    });
    target.switch::<()>(()).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let target = target.clone();
        let _in_unwinding = on_drop(move || {
            let error = target
                .switch::<i32>(1)
                .unwrap_err()
                .downcast::<Unwinding>()
                .unwrap();
            assert_eq!(error.into_value().unwrap().downcast::<i32>().unwrap(), 1);
            assert!(target.kill().unwrap_err().is::<Unwinding>());
        });
        std::panic::resume_unwind(Box::new("a panic"));
    }));
    assert_eq!(*panic.unwrap_err().downcast::<&str>().unwrap(), "a panic");
    assert_eq!((target.state(), drops.count()), (State::Active, 0));
    assert_eq!(target.switch::<i32>(2).unwrap(), 2);
    assert_eq!(drops.count(), 1);
}

// SW-33, RN-5
#[test]
fn a_greenlet_that_cannot_start_stays_pending_and_the_value_comes_back() {
    let _no_leaks = NoLeaks::watch();
    for size in [1, usize::MAX, usize::MAX / 2] {
        let drops = Drops::new();
        let witness = drops.witness();
        let child = Greenlet::builder().stack_size(size).build(move |_: Box<i32>| {
            drop(witness);
            Ok(())
        });
        for _ in 0..3 {
            let error = child
                .switch::<()>(Box::new(5))
                .unwrap_err()
                .downcast::<StackError>()
                .unwrap();
            assert!(error.is_bad_size(), "{error}");
            assert_eq!(*error.into_value().unwrap().downcast::<Box<i32>>().unwrap(), 5);
            assert_eq!((child.state(), drops.count()), (State::Pending, 0));
        }
        drop(child);
        assert_eq!(drops.count(), 1);
    }
    // After a refusal because of the value, the greenlet starts with another value.
    let child = Greenlet::new(|value: i32| Ok(value));
    assert!(child.switch::<i32>("five").unwrap_err().is::<TypeMismatch>());
    assert_eq!(child.switch::<i32>(5).unwrap(), 5);
}

// RN-6
#[test]
fn a_throw_at_a_greenlet_that_cannot_start_is_not_lost() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::builder().stack_size(1).build(|(): ()| Ok(()));
    for _ in 0..2 {
        let error = child
            .throw::<()>(anyhow!("thrown"))
            .unwrap_err()
            .downcast::<StackError>()
            .unwrap();
        let thrown = error.into_value().unwrap().downcast::<anyhow::Error>().unwrap();
        assert_eq!(thrown.to_string(), "thrown");
        let error = child.kill().unwrap_err().downcast::<StackError>().unwrap();
        let thrown = error.into_value().unwrap().downcast::<anyhow::Error>().unwrap();
        assert!(thrown.is::<GreenletExit>());
        assert_eq!(child.state(), State::Pending);
    }
}

/// Drops the last handle of a suspended greenlet while a panic unwinds. The next transfer ends that
/// greenlet before it examines its own target; `clean_up` runs then.
fn run_before_the_next_transfer(clean_up: impl FnOnce() + 'static) {
    let deferred = Greenlet::new(move |(): ()| {
        let ended = up::<()>(());
        clean_up();
        ended
    });
    deferred.switch::<()>(()).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(move || {
        let _deferred = deferred;
        std::panic::resume_unwind(Box::new(()));
    }));
    panic.unwrap_err();
}

// SW-30
#[test]
fn a_target_that_user_code_starts_during_the_switch_is_resumed() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let target = Greenlet::new(move |first: i32| {
        inside.add(format!("started with {first}"));
        let second: i32 = up(())?;
        inside.add(format!("resumed with {second}"));
        Ok("result")
    });
    let starter = target.clone();
    run_before_the_next_transfer(move || {
        starter.set_parent(&getcurrent()).unwrap();
        starter.switch::<()>(1).unwrap();
        starter.set_parent(&getcurrent().parent().unwrap()).unwrap();
    });
    log.add(target.switch::<&str>(2).unwrap());
    assert_eq!(log.take(), ["started with 1", "resumed with 2", "result"]);
}

// SW-30
#[test]
fn a_target_that_user_code_ends_during_the_switch_passes_the_value_up() {
    let _no_leaks = NoLeaks::watch();
    let target = Greenlet::new(|(): ()| Ok("not run with a value"));
    let ender = target.clone();
    run_before_the_next_transfer(move || {
        ender.end();
    });
    assert_eq!(target.switch::<i32>(2).unwrap(), 2);
}

// SW-31
#[test]
fn a_parent_that_user_code_sets_during_the_switch_is_used() {
    let _no_leaks = NoLeaks::watch();
    let other = Greenlet::new(|value: i32| Ok(format!("the new parent got {value}")));
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let reparented = dead.clone();
    run_before_the_next_transfer(move || reparented.set_parent(&other).unwrap());
    assert_eq!(dead.switch::<String>(3).unwrap(), "the new parent got 3");
}

// TH-15
#[test]
fn a_thrown_error_survives_user_code_during_the_throw() {
    let _no_leaks = NoLeaks::watch();
    let target = Greenlet::new(|(): ()| up::<()>(()));
    target.switch::<()>(()).unwrap();
    let log = Log::new();
    let inside = log.clone();
    run_before_the_next_transfer(move || {
        let nested = Greenlet::new(|(): ()| -> anyhow::Result<()> { Err(anyhow!("another error")) });
        let error = nested.switch::<()>(()).unwrap_err();
        inside.add(error.to_string());
    });
    log.add(
        target
            .throw::<()>(anyhow!("the thrown error"))
            .unwrap_err()
            .to_string(),
    );
    assert_eq!(log.take(), ["another error", "the thrown error"]);
}

/// Starts and ends a greenlet, so that a stack is cached for the next one.
fn leave_a_stack(size: usize) {
    let greenlet = Greenlet::builder().stack_size(size).build(|(): ()| Ok(()));
    greenlet.switch::<()>(()).unwrap();
}

#[test]
fn a_start_is_refused_also_if_a_stack_is_cached() {
    leave_a_stack(stack::default_size());
    let pending = Greenlet::new(|text: String| Ok(text.len()));
    let error = pending.switch::<usize>([7_u64; 3]).unwrap_err();
    let value = error.downcast::<TypeMismatch>().unwrap().into_value();
    assert_eq!(value.unwrap().downcast::<[u64; 3]>().unwrap(), [7; 3]);
    assert_eq!(pending.switch::<usize>(String::from("text")).unwrap(), 4);

    let closed = Greenlet::new(|(): ()| up::<()>(()));
    closed.switch::<()>(()).unwrap();
    assert!(raw::lock_for_await(&closed)); // no other handle exists, so the thread records no lock
    let below = Greenlet::builder().parent(&closed).build(|(): ()| Ok(()));
    leave_a_stack(stack::default_size());
    assert!(below.switch::<()>(()).unwrap_err().is::<AwaitInProgress>());
    assert_eq!(below.state(), State::Pending);
    raw::unlock(&closed);
}

#[test]
fn a_cached_stack_of_another_size_is_not_used() {
    for (left, asked) in [
        (stack::MIN_SIZE, stack::default_size()),
        (stack::default_size(), 4 << 20),
    ] {
        leave_a_stack(left);
        let measures = |(): ()| Ok(getcurrent().stack_usage().unwrap().size);
        let of_default = Greenlet::new(measures);
        let of_size = Greenlet::builder().stack_size(asked).build(measures);
        let greenlet = if asked == stack::default_size() {
            of_default
        } else {
            of_size
        };
        assert_eq!(greenlet.switch::<usize>(()).unwrap(), asked);
    }
}

/// The outer error says that the caller may not switch. The refusal by the target is the inner
/// error, which owns the value.
#[test]
fn a_refusal_by_the_target_of_switch_in_is_the_inner_error() {
    let place = raw::Place::new(Greenlet::new(|n: u32| Ok(n + 1)));
    let at = std::panic::Location::caller();
    let refused = raw::switch_in::<u32>(&place, "text", at).unwrap().unwrap_err();
    let value = refused.downcast::<TypeMismatch>().unwrap().into_value().unwrap();
    assert_eq!(value.downcast::<&str>().unwrap(), "text");
    assert_eq!(raw::switch_in::<u32>(&place, 1_u32, at).unwrap().unwrap(), 2);
}
