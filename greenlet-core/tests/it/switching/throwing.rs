//! Throwing at a target in each state.

use anyhow::{Error, Result, anyhow};
use greenlet::{Greenlet, GreenletExit, State, Value, getcurrent};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

/// A recognisable error.
#[derive(Debug, PartialEq)]
struct Ours(&'static str);

impl std::fmt::Display for Ours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Ours {}

/// Returns a short text for the result of a switch or throw.
fn outcome(result: Result<Value>) -> String {
    match result {
        Ok(value) if value.is_exit() => "exit as a value".into(),
        Ok(value) => format!("value {}", value.downcast::<&str>().unwrap()),
        Err(error) if error.is::<GreenletExit>() => "exit as an error".into(),
        Err(error) => format!("error {error}"),
    }
}

/// The two kinds of errors that the table distinguishes.
fn exit_and_other() -> [(bool, Error); 2] {
    [(true, GreenletExit::new().into()), (false, anyhow!("boom"))]
}

/// Returns a greenlet that waits for its second message, and logs it.
fn waits(log: &Log, name: &'static str) -> Greenlet {
    let log = log.clone();
    let waiting = Greenlet::new(move |(): ()| {
        log.add(format!("{name} got {}", outcome(up(()))));
        Ok(name)
    });
    waiting.switch::<()>(()).unwrap();
    waiting
}

fn dead_below(parent: &Greenlet) -> Greenlet {
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    dead.set_parent(parent).unwrap();
    dead
}

// TH-10
#[test]
fn throw_at_the_current_greenlet_raises_at_the_call() {
    let _no_leaks = NoLeaks::watch();
    for (is_exit, error) in exit_and_other() {
        let expected = if is_exit { "exit as an error" } else { "error boom" };
        assert_eq!(outcome(getcurrent().throw(error)), expected);
    }
    // If the exit leaves the function, it becomes the function's value.
    let child = Greenlet::new(|(): ()| getcurrent().throw::<()>(GreenletExit::new()));
    assert_eq!(outcome(child.switch(())), "exit as a value");
}

// TH-6
#[test]
fn throw_at_a_suspended_greenlet_raises_out_of_its_switch() {
    let _no_leaks = NoLeaks::watch();
    // The target may propagate the error, ...
    for (is_exit, error) in exit_and_other() {
        let child = Greenlet::new(|(): ()| up::<()>(()));
        child.switch::<()>(()).unwrap();
        let expected = if is_exit { "exit as a value" } else { "error boom" };
        assert_eq!(outcome(child.throw(error)), expected);
        assert!(child.is_dead());
    }
    // ... return something else, ...
    let log = Log::new();
    for (_, error) in exit_and_other() {
        assert_eq!(outcome(waits(&log, "child").throw(error)), "value child");
    }
    assert_eq!(log.take(), ["child got exit as an error", "child got error boom"]);
    // ... or switch elsewhere. It may also be suspended in a throw itself.
    let target = waits(&log, "target");
    let target_inside = target.clone();
    let child = Greenlet::new(move |(): ()| {
        let error = up::<()>(()).unwrap_err();
        let answer: &str = target_inside.throw(error)?;
        Ok(answer)
    });
    child.switch::<()>(()).unwrap();
    target.set_parent(&child).unwrap();
    assert_eq!(outcome(child.throw(anyhow!("passed on"))), "value target");
    assert_eq!(log.take(), ["target got error passed on"]);
}

// TH-7
#[test]
fn throw_at_a_pending_greenlet_never_runs_it() {
    let _no_leaks = NoLeaks::watch();
    for (is_exit, error) in exit_and_other() {
        let drops = Drops::new();
        let witness = drops.witness();
        let child = Greenlet::new(move |(): ()| {
            drop(witness);
            Ok("ran")
        });
        let expected = if is_exit { "exit as a value" } else { "error boom" };
        assert_eq!(outcome(child.throw(error)), expected);
        assert_eq!((child.state(), drops.count()), (State::Dead, 1));
    }
}

// TH-7
#[test]
fn captures_of_a_pending_greenlet_are_dropped_inside_it() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let capture = on_drop(move || {
        inside.add(format!("dropped in main: {}", getcurrent().is_main()));
    });
    let child = Greenlet::new(move |(): ()| {
        let _capture = &capture;
        Ok(())
    });
    assert!(child.throw::<()>(anyhow!("boom")).is_err());
    assert_eq!(log.take(), ["dropped in main: false"]);
}

// TH-8
#[test]
fn an_exit_at_a_dead_greenlet_is_returned_to_the_thrower() {
    let _no_leaks = NoLeaks::watch();
    let dead = dead_below(&getcurrent());
    for reason in ["one", "two"] {
        let exit: GreenletExit = dead.throw(GreenletExit::with_reason(reason)).unwrap();
        assert_eq!(exit.reason(), Some(reason), "the one that was thrown");
    }
    // A suspended ancestor receives the exit as a value, while the thrower waits.
    let log = Log::new();
    let ancestor = waits(&log, "ancestor");
    assert_eq!(outcome(dead_below(&ancestor).kill()), "value ancestor");
    assert_eq!(log.take(), ["ancestor got exit as a value"]);
}

// TH-8, UD-1
#[test]
fn an_exit_at_a_dead_greenlet_starts_its_pending_ancestor_with_it() {
    let _no_leaks = NoLeaks::watch();
    let pending = Greenlet::new(|exit: GreenletExit| Ok(exit.reason().unwrap().to_owned()));
    let dead = dead_below(&pending);
    let reason: String = dead.throw(GreenletExit::with_reason("the reason")).unwrap();
    assert_eq!(reason, "the reason");
    assert!(pending.is_dead());
}

// TH-9
#[test]
fn an_error_at_a_dead_greenlet_is_raised_in_its_nearest_living_ancestor() {
    let _no_leaks = NoLeaks::watch();
    let boom = || anyhow!("boom");
    assert_eq!(outcome(dead_below(&getcurrent()).throw(boom())), "error boom");

    let log = Log::new();
    let ancestor = waits(&log, "ancestor");
    assert_eq!(outcome(dead_below(&ancestor).throw(boom())), "value ancestor");
    assert_eq!(log.take(), ["ancestor got error boom"]);

    // Pending ancestors in between are ended unrun.
    let ancestor = waits(&log, "ancestor");
    let pending = Greenlet::builder().parent(&ancestor).build(|(): ()| Ok(()));
    let pending = Greenlet::builder()
        .parent(&dead_below(&pending))
        .build(|(): ()| Ok(()));
    assert_eq!(outcome(dead_below(&pending).throw(boom())), "value ancestor");
    assert!(pending.is_dead() && pending.parent().unwrap().parent().unwrap().is_dead());
    assert_eq!(log.take(), ["ancestor got error boom"]);
}

// TH-11, EX-11
#[test]
fn throw_at_main_raises_at_mains_switch_and_an_exit_stays_an_error() {
    let _no_leaks = NoLeaks::watch();
    for (is_exit, error) in exit_and_other() {
        let main = getcurrent();
        let child = Greenlet::new(move |(): ()| main.throw::<()>(error));
        let expected = if is_exit { "exit as an error" } else { "error boom" };
        assert_eq!(outcome(child.switch(())), expected);
        assert!(child.is_active() && getcurrent().is_active());
        child.switch::<()>(()).unwrap();
        assert!(child.is_dead());
    }
}

// TH-1
#[test]
fn anything_that_becomes_an_error_can_be_thrown() {
    let _no_leaks = NoLeaks::watch();
    let target = || {
        let target = Greenlet::new(|(): ()| Ok(up::<()>(()).unwrap_err()));
        target.switch::<()>(()).unwrap();
        target
    };
    let got: Error = target().throw(Ours("own type")).unwrap();
    assert_eq!(got.downcast_ref(), Some(&Ours("own type")));
    let got: Error = target().throw(anyhow!("message {}", 1)).unwrap();
    assert_eq!(got.to_string(), "message 1");
    let got: Error = target().throw(std::io::Error::other("from std")).unwrap();
    assert!(got.is::<std::io::Error>());
    let got: Error = target().throw(anyhow!(Ours("cause")).context("more")).unwrap();
    assert_eq!(
        (got.to_string(), got.downcast_ref()),
        ("more".to_owned(), Some(&Ours("cause")))
    );
}

// TH-2
#[test]
fn kill_throws_an_exit_without_a_reason() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| up::<()>(()).unwrap_err().downcast::<GreenletExit>());
    child.switch::<()>(()).unwrap();
    let exit: GreenletExit = child.kill().unwrap().downcast().unwrap();
    assert_eq!(exit.reason(), None);
    assert_eq!(exit, GreenletExit::default());
}

// TH-5
#[test]
fn a_thrown_error_is_moved_and_not_copied() {
    let _no_leaks = NoLeaks::watch();
    let error = anyhow!(Ours("the one"));
    let address = error.downcast_ref::<Ours>().map(std::ptr::from_ref);
    let child = Greenlet::new(|(): ()| up::<()>(()));
    child.switch::<()>(()).unwrap();
    let back = child.throw::<()>(error).unwrap_err();
    assert_eq!(back.downcast_ref::<Ours>().map(std::ptr::from_ref), address);
}

// TH-12, TH-17
#[test]
fn a_throw_returns_the_next_value_sent_to_the_thrower_and_can_be_repeated() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| {
        let mut caught = 0;
        let mut last = up::<Value>(());
        while caught < 3 {
            let error = last.unwrap_err();
            caught += 1;
            last = up::<Value>(format!("caught {error}"));
        }
        last.map(|_| caught)
    });
    child.switch::<()>(()).unwrap();
    for number in 1..=3 {
        let answer: String = child.throw(anyhow!("error {number}")).unwrap();
        assert_eq!(answer, format!("caught error {number}"));
        assert!(child.is_active());
    }
    assert_eq!(child.switch::<i32>(()).unwrap(), 3);
}

// TH-13
#[test]
fn the_thrower_has_no_special_role() {
    let _no_leaks = NoLeaks::watch();
    for is_pending in [true, false] {
        let log = Log::new();
        let parent = waits(&log, "parent");
        let main = getcurrent();
        let target = Greenlet::builder()
            .parent(&parent)
            .build(move |(): ()| main.switch::<()>(()));
        if !is_pending {
            target.switch::<()>(()).unwrap();
        }
        let target_inside = target.clone();
        let thrower_log = log.clone();
        let thrower = Greenlet::new(move |(): ()| {
            thrower_log.add(format!(
                "thrower got {}",
                outcome(target_inside.throw(anyhow!("boom")))
            ));
            Ok(())
        });
        // The parent of the target catches it and returns to main. The thrower still waits.
        assert_eq!(outcome(thrower.switch(())), "value parent");
        assert!(target.is_dead() && thrower.is_active());
        assert_eq!(log.take(), ["parent got error boom"]);
        thrower.switch::<()>("later").unwrap();
        assert_eq!(log.take(), ["thrower got value later"]);
    }
}

// TH-14
#[test]
fn a_throw_acts_like_a_failing_child_of_the_target() {
    let _no_leaks = NoLeaks::watch();
    let by_throw: fn(&Greenlet, Error) -> Result<Value> = |target, error| target.throw(error);
    let by_child: fn(&Greenlet, Error) -> Result<Value> = |target, error| {
        let failing = Greenlet::builder()
            .parent(target)
            .build(|(): ()| -> Result<()> { Err(error) });
        failing.switch(())
    };
    for way in [by_throw, by_child] {
        let log = Log::new();
        let suspended = waits(&log, "suspended");
        assert_eq!(outcome(way(&suspended, anyhow!("boom"))), "value suspended");
        assert_eq!(log.take(), ["suspended got error boom"]);

        let pending = Greenlet::new(|(): ()| Ok(()));
        assert_eq!(outcome(way(&pending, anyhow!("boom"))), "error boom");
        assert!(pending.is_dead());
        assert_eq!(
            outcome(way(&dead_below(&getcurrent()), anyhow!("boom"))),
            "error boom"
        );
    }
    // An exit is different: it leaves the child as a value.
    let log = Log::new();
    for way in [by_throw, by_child] {
        way(&waits(&log, "suspended"), GreenletExit::new().into()).unwrap();
    }
    assert_eq!(
        log.take(),
        ["suspended got exit as an error", "suspended got exit as a value"]
    );
}

// TH-4
#[test]
fn a_failure_to_build_the_error_stays_with_the_thrower() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| up::<()>(()));
    child.switch::<()>(()).unwrap();
    let make = || -> Result<Error> { Err(anyhow!("cannot make it")) };
    let thrown = make().and_then(|error| child.throw::<()>(error));
    assert_eq!(thrown.unwrap_err().to_string(), "cannot make it");
    assert!(child.is_active(), "nothing was thrown");
    child.switch::<()>(()).unwrap();
}
