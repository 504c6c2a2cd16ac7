//! `GreenletExit` is an error inside a greenlet, and a value for its parent.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Error, Result, anyhow, bail};
use greenlet::{Greenlet, GreenletExit, Tracer, TypeMismatch, Value, getcurrent, getmain, raise, settrace};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

/// Returns a suspended greenlet that passes the result of its switch to `then`.
fn suspended<R: 'static>(then: impl FnOnce(Result<Value>) -> Result<R> + 'static) -> Greenlet {
    let greenlet = Greenlet::new(move |(): ()| then(up::<Value>(())));
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// EX-1, EX-4
#[test]
fn inside_the_function_an_exit_is_an_error_that_question_marks_propagate() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let child = suspended(move |asked| {
        fn inner(asked: Result<Value>, log: &Log) -> Result<()> {
            let log = log.clone();
            let _clean_up = on_drop(move || log.add("clean-up"));
            asked.context("while waiting")?;
            Ok(())
        }
        let error = inner(asked, &inside).unwrap_err();
        // A handler of another kind of error does not match it.
        inside.add(format!("io error: {}", error.is::<std::io::Error>()));
        inside.add(format!("exit: {}", error.is::<GreenletExit>()));
        Err::<(), Error>(error)
    });
    assert!(child.kill().unwrap().is_exit(), "also under a context");
    assert_eq!(log.take(), ["clean-up", "io error: false", "exit: true"]);
}

// EX-2, EX-3
#[test]
fn an_exit_that_leaves_the_function_is_a_value_for_the_parent() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let traced = log.clone();
    let thrown: [Error; 3] = [
        GreenletExit::new().into(),
        GreenletExit::with_reason("done").into(),
        anyhow!(GreenletExit::with_reason("done")).context("on the way"),
    ];
    for error in thrown {
        let reason = error
            .downcast_ref::<GreenletExit>()
            .unwrap()
            .reason()
            .map(str::to_owned);
        let child = suspended(|asked| asked);
        let traced = traced.clone();
        settrace(Some(Tracer::new(move |event| {
            traced.add(format!("{:?}", event.kind));
            Ok(())
        })));
        let exit: GreenletExit = child.throw(error).unwrap();
        settrace(None);
        assert_eq!(exit.reason().map(str::to_owned), reason);
        assert_eq!(log.take(), ["Throw", "Switch"]);
    }
}

// EX-2
#[test]
fn a_raised_exit_ends_the_greenlet_like_a_returned_one() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| -> Result<()> { raise(GreenletExit::with_reason("raised")) });
    let exit: GreenletExit = child.switch(()).unwrap();
    assert_eq!(exit.reason(), Some("raised"));
    assert!(child.is_dead());
}

// EX-5
#[test]
fn an_exit_does_not_propagate_beyond_the_parent_as_an_error() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let parent = Greenlet::new(move |(): ()| {
        let child = Greenlet::new(|(): ()| up::<()>(()));
        child.switch::<()>(())?;
        let exit = child.kill()?;
        inside.add(format!("parent got an exit: {}", exit.is_exit()));
        Ok("parent returns")
    });
    log.add(parent.switch::<&str>(()).unwrap());
    assert_eq!(log.take(), ["parent got an exit: true", "parent returns"]);
}

// EX-6
#[test]
fn returning_an_exit_equals_failing_with_it() {
    let _no_leaks = NoLeaks::watch();
    let died = Greenlet::new(|(): ()| -> Result<()> { Err(GreenletExit::new().into()) });
    let returned = Greenlet::new(|(): ()| Ok(GreenletExit::new()));
    for child in [died, returned] {
        assert_eq!(child.switch::<GreenletExit>(()).unwrap(), GreenletExit::new());
    }
    // A sent exit is an ordinary value, and ends nothing.
    let echo = suspended(|got| got);
    assert!(echo.switch::<Value>(GreenletExit::new()).unwrap().is_exit());
}

// EX-7
#[test]
fn a_greenlet_that_catches_an_exit_may_return_another_value() {
    let _no_leaks = NoLeaks::watch();
    let child = suspended(|asked| {
        assert!(asked.unwrap_err().is::<GreenletExit>());
        Ok("something else")
    });
    assert_eq!(
        child.throw::<&str>(GreenletExit::new()).unwrap(),
        "something else"
    );
    assert!(child.is_dead());
}

// EX-8
#[test]
fn a_greenlet_that_catches_an_exit_may_continue() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| {
        for refused in 1..=3_u32 {
            let exit = up::<()>(refused).unwrap_err();
            assert!(exit.is::<GreenletExit>());
        }
        up::<()>(0_u32)
    });
    assert_eq!(child.switch::<u32>(()).unwrap(), 1);
    for expected in [2, 3, 0] {
        assert_eq!(child.throw::<u32>(GreenletExit::new()).unwrap(), expected);
        assert!(child.is_active());
    }
    assert!(child.kill().unwrap().is_exit());
    assert!(child.is_dead());
}

// EX-9
#[test]
fn a_greenlet_may_switch_elsewhere_while_it_handles_an_exit() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let main = getcurrent();
    let other = Greenlet::new(move |(): ()| main.switch::<()>("from other"));
    let child = suspended(move |asked| {
        let exit = asked.unwrap_err();
        let answer: &str = other.switch(())?;
        inside.add(answer);
        Err::<(), _>(exit)
    });
    log.add(child.throw::<&str>(GreenletExit::new()).unwrap());
    assert!(child.is_active());
    assert!(child.switch::<Value>("resumed").unwrap().is_exit());
    assert_eq!(log.take(), ["from other", "resumed"]);
}

// EX-10
#[test]
fn a_greenlet_that_catches_an_exit_may_fail_with_another_error() {
    let _no_leaks = NoLeaks::watch();
    let fails = suspended(|asked| -> Result<()> {
        asked.unwrap_err();
        bail!("clean-up failed")
    });
    assert_eq!(fails.kill().unwrap_err().to_string(), "clean-up failed");
    assert!(fails.is_dead());
}

// EX-11
#[test]
fn in_main_an_exit_is_an_ordinary_error() {
    let _no_leaks = NoLeaks::watch();
    let main = getcurrent();
    let child = Greenlet::new(move |(): ()| main.throw::<()>(GreenletExit::with_reason("for main")));
    let error = child.switch::<()>(()).unwrap_err();
    assert_eq!(
        error.downcast_ref::<GreenletExit>().unwrap().reason(),
        Some("for main")
    );
    assert!(getcurrent().is_active());
    child.switch::<()>(()).unwrap();

    let raised = std::panic::catch_unwind(|| raise(GreenletExit::new()));
    assert!(raised.is_err(), "in main it unwinds");
}

// EX-12
#[test]
fn an_exit_with_a_reason_shows_it() {
    let _no_leaks = NoLeaks::watch();
    let reason_of = |end: &dyn Fn(Greenlet)| {
        let log = Log::new();
        let inside = log.clone();
        end(suspended(move |asked| {
            let error = asked.unwrap_err();
            inside.add(format!(
                "{:?}",
                error.downcast_ref::<GreenletExit>().unwrap().reason()
            ));
            Err::<(), _>(error)
        }));
        log.take().concat()
    };
    assert_eq!(reason_of(&|greenlet| drop(greenlet.kill())), "None");
    assert_eq!(
        reason_of(&|greenlet| drop(greenlet.throw::<Value>(GreenletExit::with_reason("my own")))),
        r#"Some("my own")"#
    );
    assert_eq!(
        reason_of(&drop),
        r#"Some("the last handle of the greenlet was dropped")"#
    );
    assert_eq!(
        reason_of(&|greenlet| greenlet.end()),
        r#"Some("the owner of the greenlet ended it")"#
    );
    assert_eq!(GreenletExit::new().to_string(), "greenlet exit");
    assert_eq!(
        GreenletExit::with_reason("my own").to_string(),
        "greenlet exit: my own"
    );
}

// EX-13
#[test]
fn an_exit_of_a_tracer_at_the_first_switch_ends_the_greenlet_unrun() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let child = Greenlet::new(move |(): ()| {
        drop(witness);
        Ok("ran")
    });
    settrace(Some(Tracer::new(|_| {
        Err(GreenletExit::with_reason("by the tracer").into())
    })));
    let exit: GreenletExit = child.switch(()).unwrap();
    assert_eq!(exit.reason(), Some("by the tracer"));
    assert!(child.is_dead());
    assert_eq!(drops.count(), 1);
    assert!(settrace(None).is_none(), "it was removed");
}

// EX-14
#[test]
fn a_dead_parent_passes_the_exit_up_as_a_value() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let grandparent = suspended(move |got| {
        inside.add(format!("grandparent got an exit: {}", got?.is_exit()));
        Ok(())
    });
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    dead.set_parent(&grandparent).unwrap();
    let child = suspended(|asked| asked);
    child.set_parent(&dead).unwrap();
    child.throw::<()>(GreenletExit::new()).unwrap();
    assert!(child.is_dead() && grandparent.is_dead());
    assert_eq!(log.take(), ["grandparent got an exit: true"]);
}

// UD-1
#[test]
fn an_exit_that_reaches_a_pending_parent_starts_it_with_that_value() {
    let _no_leaks = NoLeaks::watch();
    let parent = Greenlet::new(|exit: GreenletExit| Ok(format!("started with {exit}")));
    let child = suspended(|asked| asked);
    child.set_parent(&parent).unwrap();
    let text: String = child.throw(GreenletExit::with_reason("why")).unwrap();
    assert_eq!(text, "started with greenlet exit: why");
    assert!(parent.is_dead());
}

// RT-5, UD-1
#[test]
fn a_pending_parent_that_takes_no_exit_fails_with_the_mismatch() {
    let _no_leaks = NoLeaks::watch();
    let parent = Greenlet::new(|number: i32| Ok(number));
    let child = suspended(|asked| asked);
    child.set_parent(&parent).unwrap();
    let error = child.kill().unwrap_err().downcast::<TypeMismatch>().unwrap();
    assert_eq!(error.expected(), "i32");
    assert!(error.into_value().unwrap().is_exit());
    assert!(parent.is_dead());
}

/// A context that runs a function when it is dropped.
struct Doing(Option<Box<dyn FnOnce() + Send + Sync>>);

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a context")
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.0.take().expect("it is dropped once")();
    }
}

fn exit_under(action: impl FnOnce() + Send + Sync + 'static) -> Error {
    Error::new(GreenletExit::new()).context(Doing(Some(Box::new(action))))
}

// EX-2: the context is dropped where the exit becomes a value, in the last frames of the greenlet.
#[test]
fn a_panic_while_an_exits_context_is_dropped_propagates_to_the_parent() {
    let _no_leaks = NoLeaks::watch();
    for is_raised in [false, true] {
        let child = Greenlet::new(move |(): ()| -> Result<()> {
            let error = exit_under(|| std::panic::resume_unwind(Box::new(7_u8)));
            if is_raised {
                raise(error);
            }
            Err(error)
        });
        let caught = catch_unwind(AssertUnwindSafe(|| child.switch::<Value>(())));
        assert_eq!(caught.unwrap_err().downcast_ref::<u8>(), Some(&7));
        assert!(child.is_dead());
    }
}

// EX-2, DE-6
#[test]
fn a_greenlet_can_be_ended_while_its_exits_context_is_dropped() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| -> Result<()> {
        Err(exit_under(|| {
            for _ in 0..5 {
                drop(up::<()>(()));
            }
        }))
    });
    child.switch::<()>(()).unwrap();
    child.end();
    assert!(child.is_dead());
}

thread_local! {
    static GETS_IT: RefCell<Option<Greenlet>> = const { RefCell::new(None) };
}

// TH-8
#[test]
fn the_drop_of_an_exits_context_may_end_the_receiver() {
    let _no_leaks = NoLeaks::watch();
    for is_ended in [false, true] {
        let parent = Greenlet::new(|(): ()| up::<Value>(()));
        parent.switch::<()>(()).unwrap();
        let dead = Greenlet::builder().parent(&parent).build(|(): ()| Ok(()));
        dead.end();
        GETS_IT.set(Some(parent));
        let back: Value = dead
            .throw(exit_under(move || {
                let parent = GETS_IT.take().unwrap();
                if is_ended {
                    parent.end();
                } else {
                    parent.switch::<u8>(1_u8).unwrap();
                }
            }))
            .unwrap();
        assert!(back.is_exit());
    }
}

// UD-5
#[test]
fn an_error_reported_in_the_last_frames_may_panic_when_dropped() {
    let child = Greenlet::new(|(): ()| -> Result<()> {
        let below = Greenlet::new(|(): ()| {
            drop(up::<()>(()));
            Ok(on_drop(|| {
                raise(anyhow!("reported").context(Doing(Some(Box::new(|| panic!("in its destructor"))))));
            }))
        });
        below.switch::<()>(())?;
        std::panic::resume_unwind(Box::new(2_u8)) // so that `below` is ended when this is over
    });
    let caught = catch_unwind(AssertUnwindSafe(|| child.switch::<()>(())));
    assert_eq!(caught.unwrap_err().downcast_ref::<u8>(), Some(&2));
    assert!(child.is_dead());
}

/// Also with many greenlets, where switches take another path.
#[test]
fn greenlets_switched_to_by_their_last_handles_end_when_they_leave() {
    let is_ended = |others: usize| {
        let _others: Vec<Greenlet> = (0..others)
            .map(|_| {
                let one = Greenlet::new(|(): ()| up::<()>(()));
                one.switch::<()>(()).unwrap();
                one
            })
            .collect();
        let drops = Drops::new();
        let witness = drops.witness();
        let child = Greenlet::new(move |(): ()| {
            let _witness = witness;
            getmain().switch::<()>(())?;
            getmain().switch::<()>(())
        });
        child.switch::<()>(()).unwrap();
        let sender = Greenlet::new(move |(): ()| child.switch_owned::<()>(()));
        sender.switch::<()>(()).unwrap();
        drops.count() == 1
    };
    std::thread::spawn(move || {
        let _no_leaks = NoLeaks::watch();
        assert!(is_ended(0));
        assert!(is_ended(1000));
    })
    .join()
    .unwrap();
}
