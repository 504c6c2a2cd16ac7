//! Tracers: the events that they see, and the operations that they may do.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, anyhow};
use greenlet::{
    Greenlet, GreenletExit, State, TraceEvent, TraceKind, Tracer, Value, getcurrent, gettrace, settrace,
};

use crate::support::{Drops, Log, NoLeaks, catch_reports, name, take_reports, up};

/// Returns the text of an event in the logs of this file.
fn text(event: &TraceEvent) -> String {
    let kind = match event.kind {
        TraceKind::Switch => "switch",
        TraceKind::Throw => "throw",
        _ => "unknown",
    };
    format!("{kind}({}, {})", name(&event.origin), name(&event.target))
}

/// Installs a tracer that writes to the log.
fn trace_to(log: &Log) -> Tracer {
    let log = log.clone();
    let tracer = Tracer::new(move |event| {
        log.add(text(event));
        Ok(())
    });
    settrace(Some(tracer.clone()));
    tracer
}

fn named<R: 'static>(name: &str, body: impl FnOnce() -> Result<R> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(move |(): ()| body())
}

/// Returns a greenlet named `g` that is suspended in its first line and then returns.
fn suspended() -> Greenlet {
    let g = named("g", || up::<()>(()));
    g.switch::<()>(()).unwrap();
    g
}

/// Returns the events of an operation.
fn events<T>(operation: impl FnOnce() -> T) -> Vec<String> {
    let log = Log::new();
    trace_to(&log);
    let _outcome = operation();
    settrace(None);
    log.take()
}

// TR-3, TR-5, TR-6, TR-7: the table of events for each operation; M is main.
#[test]
fn each_operation_is_traced_as_documented() {
    let fails = || named("g", || -> Result<()> { Err(anyhow!("error")) });
    let dead = || {
        let g = named("g", || Ok(()));
        g.switch::<()>(()).unwrap();
        g
    };
    let exit = GreenletExit::new;

    let g = named("g", || up::<()>(()));
    assert_eq!(
        events(|| g.switch::<()>(())),
        ["switch(main, g)", "switch(g, main)"],
        "first switch, back"
    );
    assert_eq!(
        events(|| g.switch::<()>(())),
        ["switch(main, g)", "switch(g, main)"],
        "resume, return"
    );
    let ended = ["switch(main, g)", "throw(g, main)"];
    assert_eq!(events(|| fails().switch::<()>(())), ended, "dies of an error");
    let g = suspended();
    assert_eq!(
        events(|| g.throw::<()>(anyhow!("x"))),
        ["throw(main, g)", "throw(g, main)"],
        "throw"
    );
    let g = suspended();
    assert_eq!(
        events(|| g.kill()),
        ["throw(main, g)", "switch(g, main)"],
        "exit at a suspended one"
    );
    let g = named("g", || Ok(()));
    assert_eq!(
        events(|| g.kill()),
        ["throw(main, g)", "switch(g, main)"],
        "exit at a pending one"
    );
    let g = named("g", || Ok(()));
    let both = ["throw(main, g)", "throw(g, main)"];
    assert_eq!(
        events(|| g.throw::<()>(anyhow!("x"))),
        both,
        "error at a pending one"
    );
    assert_eq!(
        events(|| dead().switch::<()>(()))[2..],
        ["switch(main, main)"],
        "switch to a dead one"
    );
    let g = dead();
    assert_eq!(
        events(|| g.throw::<Value>(exit())),
        ["switch(main, main)"],
        "exit at a dead one"
    );
    assert_eq!(
        events(|| g.throw::<()>(anyhow!("x"))),
        ["throw(main, main)"],
        "error at a dead one"
    );
    assert_eq!(
        events(|| getcurrent().switch::<u8>(1_u8)),
        ["switch(main, main)"],
        "to itself"
    );
    assert_eq!(
        events(|| getcurrent().throw::<u8>(exit())),
        ["throw(main, main)"],
        "throw at itself"
    );

    let under = |parent: &Greenlet, error: bool| {
        let ends = move |(): ()| if error { Err(anyhow!("error")) } else { Ok(()) };
        Greenlet::builder().name("g").parent(parent).build(ends)
    };
    let u = Greenlet::builder().name("u").build(|(): ()| Ok(()));
    let into_pending = ["switch(main, g)", "switch(g, u)", "switch(u, main)"];
    assert_eq!(events(|| under(&u, false).switch::<()>(())), into_pending);
    let u = Greenlet::builder().name("u").build(|(): ()| Ok(()));
    let into_pending = ["switch(main, g)", "throw(g, u)", "throw(u, main)"];
    assert_eq!(events(|| under(&u, true).switch::<()>(())), into_pending);
    let past_dead = ["switch(main, g)", "switch(g, main)"];
    assert_eq!(events(|| under(&u, false).switch::<()>(())), past_dead);
    // A parent that cannot be entered never appears in an event.
    let no_stack = Greenlet::builder().name("u").stack_size(1).build(|(): ()| Ok(()));
    let past_failed = ["switch(main, g)", "throw(g, main)"];
    assert_eq!(events(|| under(&no_stack, false).switch::<()>(())), past_failed);
}

// DE-25: dropping the last handle is traced as a throw from the dropping greenlet, and a switch
// back.
#[test]
fn an_end_by_dropping_is_traced() {
    let g = suspended();
    assert_eq!(events(|| drop(g)), ["throw(main, g)", "switch(g, main)"]);
}

// TR-1, TR-16, HZ-19: each thread has one tracer. Setting one returns the previous one, even if it
// is the same.
#[test]
fn settrace_returns_the_previous_tracer() {
    assert_eq!(gettrace(), None);
    let tracer = Tracer::new(|_| Ok(()));
    assert_eq!(settrace(Some(tracer.clone())), None);
    assert_eq!(gettrace(), Some(tracer.clone()));
    assert_eq!(settrace(Some(tracer.clone())), Some(tracer.clone()));
    let seen = Greenlet::new(|(): ()| Ok(gettrace()))
        .switch::<Option<Tracer>>(())
        .unwrap();
    assert_eq!(seen, Some(tracer.clone()));
    let other = Tracer::new(|_| Ok(()));
    assert_ne!(other, tracer);
    assert_eq!(settrace(Some(other.clone())), Some(tracer));
    assert_eq!(settrace(None), Some(other));
    assert_eq!(gettrace(), None);
}

// TR-2, TR-4, TR-6, TR-12: the tracer is called in the target, after the switch and before the
// target receives anything. A finished origin is dead by then. The tracer sees origin, target and
// kind, but not the value.
#[test]
fn a_tracer_runs_in_the_target_before_the_value_arrives() {
    let log = Log::new();
    let inside = log.clone();
    settrace(Some(Tracer::new(move |event| {
        assert!(event.target.is_current() && event.target.is_active());
        inside.add(format!("{} origin {:?}", text(event), event.origin.state()));
        Ok(())
    })));
    let inside = log.clone();
    let g = named("g", move || {
        inside.add("g starts");
        let error = up::<()>(()).unwrap_err();
        inside.add(format!("g gets {error}"));
        Ok(())
    });
    g.switch::<()>(()).unwrap();
    log.add("main got it");
    g.throw::<()>(anyhow!("an error")).unwrap();
    settrace(None);
    assert_eq!(
        log.take(),
        [
            "switch(main, g) origin Active",
            "g starts",
            "switch(g, main) origin Active",
            "main got it",
            "throw(main, g) origin Active",
            "g gets an error",
            "switch(g, main) origin Dead"
        ]
    );
}

// TR-8: a refused or failed operation is no event.
#[test]
fn a_refused_transfer_is_no_event() {
    let g = Greenlet::builder().name("g").build(|_: u8| Ok(()));
    let tiny = Greenlet::builder().stack_size(1).build(|(): ()| Ok(()));
    let nothing: [&str; 0] = [];
    assert_eq!(events(|| g.switch::<()>("not a u8").unwrap_err()), nothing);
    assert_eq!(events(|| tiny.switch::<()>(()).unwrap_err()), nothing);
    assert_eq!(
        events(|| greenlet::no_switch(|| g.switch::<()>(1_u8)).unwrap_err()),
        nothing
    );
    assert_eq!(g.state(), State::Pending);
}

/// Installs a tracer that fails at its event number `at`, counted from 0, and writes all events to
/// the log.
fn trace_failing(log: &Log, at: usize, fail: impl Fn() -> Result<()> + 'static) {
    let log = log.clone();
    let count = std::cell::Cell::new(0);
    settrace(Some(Tracer::new(move |event| {
        log.add(text(event));
        count.set(count.get() + 1);
        if count.get() == at + 1 { fail() } else { Ok(()) }
    })));
}

// TR-10, EX-13: a tracer that fails is removed, and its error replaces what was to be delivered.
#[test]
fn a_failing_tracer_is_removed_and_its_error_delivered() {
    let log = Log::new();
    let fail = || Err(anyhow!("tracer"));

    // At a first switch: the function never runs, and the error ends the greenlet.
    let drops = Drops::new();
    let g = Greenlet::builder()
        .name("g")
        .build(|_: crate::support::Witness| -> Result<()> { unreachable!() });
    trace_failing(&log, 0, fail);
    assert_eq!(g.switch::<()>(drops.witness()).unwrap_err().to_string(), "tracer");
    assert!(g.is_dead() && gettrace().is_none());
    assert_eq!(
        (log.take(), drops.count()),
        (vec![String::from("switch(main, g)")], 1)
    );

    // An exit as the tracer's error acts as an exit.
    let g = named("g", || -> Result<()> { unreachable!() });
    trace_failing(&log, 0, || Err(GreenletExit::new().into()));
    assert!(g.switch::<Value>(()).unwrap().is_exit());
    assert!(g.is_dead());

    // At a resume, and in place of a thrown error: the switch of the target returns it.
    for throws in [false, true] {
        let g = named("g", || Ok(up::<()>(()).unwrap_err().to_string()));
        g.switch::<()>(()).unwrap();
        trace_failing(&log, 0, fail);
        let got = if throws {
            g.throw::<String>(anyhow!("thrown"))
        } else {
            g.switch(())
        };
        assert_eq!(got.unwrap(), "tracer");
    }

    // At the end of a greenlet: the parent gets the error, and the outcome is lost.
    let witness = drops.witness();
    let g = named("g", move || Ok(witness));
    trace_failing(&log, 1, fail);
    assert_eq!(g.switch::<Value>(()).unwrap_err().to_string(), "tracer");
    assert_eq!(drops.count(), 2);

    // A panic of the tracer propagates in the target.
    let g = named("g", || Ok(()));
    trace_failing(&log, 1, || std::panic::resume_unwind(Box::new("panic")));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| g.switch::<()>(())));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"panic"));
    assert!(gettrace().is_none());
}

// TR-11: while a greenlet is ended. If the tracer fails at the exit, its error replaces the exit.
// If it fails at the switch back, the error is reported. The forced unwind is not replaced.
#[test]
fn a_tracer_may_fail_while_a_greenlet_is_ended() {
    catch_reports();
    let log = Log::new();
    let inside = log.clone();
    let g = named("g", move || {
        inside.add(up::<()>(()).unwrap_err().to_string());
        Ok(())
    });
    g.switch::<()>(()).unwrap();
    trace_failing(&log, 0, || Err(anyhow!("tracer")));
    drop(g);
    assert_eq!(log.take(), ["throw(main, g)", "tracer"]);
    assert_eq!(take_reports(), [""; 0]);

    let g = suspended();
    trace_failing(&log, 1, || Err(anyhow!("tracer")));
    drop(g);
    log.add("main goes on");
    assert_eq!(log.take(), ["throw(main, g)", "switch(g, main)", "main goes on"]);
    assert_eq!(take_reports(), ["g: error tracer"]);

    let drops = Drops::new();
    let witness = drops.witness();
    let stubborn = named("g", move || -> Result<()> {
        let _witness = witness;
        loop {
            let _ = up::<()>(());
        }
    });
    stubborn.switch::<()>(()).unwrap();
    trace_failing(&log, 2, || Err(anyhow!("tracer")));
    drop(stubborn);
    assert_eq!(drops.count(), 1);
    assert_eq!(
        log.take(),
        ["throw(main, g)", "switch(g, main)", "throw(main, g)"]
    );
    assert_eq!(take_reports(), ["g: error tracer"]);
    assert!(gettrace().is_none());
}

// TR-13, TR-14, HZ-15, HZ-18: a tracer may switch. The traced transfer is completed, with its own
// value, when the greenlet that the tracer ran in is resumed. The value that resumes it goes to the
// tracer.
#[test]
fn a_tracer_may_switch() {
    let log = Log::new();
    let other = named("other", {
        let log = log.clone();
        move || {
            log.add("other runs");
            up::<()>("from other")
        }
    });
    let g = Greenlet::builder().name("g").build({
        let log = log.clone();
        move |text: &'static str| {
            log.add(format!("g starts with {text}"));
            Ok("from g")
        }
    });
    let inside = log.clone();
    let diverts = RefCell::new(Some(other.clone()));
    settrace(Some(Tracer::new(move |event| {
        inside.add(text(event));
        let to = diverts.borrow_mut().take();
        if let Some(to) = to {
            let resumed: &str = to.switch(())?;
            inside.add(format!("the tracer is resumed with {resumed}"));
        }
        Ok(())
    })));
    let back: &str = g.switch("the argument").unwrap();
    log.add(format!("main gets {back}, g is {:?}", g.state()));
    let back: &str = g.switch("a resume").unwrap();
    log.add(format!("main gets {back}, g is {:?}", g.state()));
    settrace(None);
    assert_eq!(
        log.take(),
        [
            "switch(main, g)",
            "switch(g, other)",
            "other runs",
            "switch(other, main)",
            "main gets from other, g is Active",
            "switch(main, g)",
            "the tracer is resumed with a resume",
            "g starts with the argument",
            "switch(g, main)",
            "main gets from g, g is Dead"
        ]
    );
}

// DE-27, TR-14: a greenlet that is suspended inside the tracer of its first switch, and loses its
// last handle, ends there.
#[test]
fn a_greenlet_suspended_in_its_first_tracer_can_be_ended() {
    catch_reports();
    let g = named("g", || -> Result<()> { unreachable!("it never begins") });
    let main = getcurrent();
    let log = Log::new();
    let inside = log.clone();
    settrace(Some(Tracer::new(move |event| {
        if name(&event.target) == "g" && event.kind == TraceKind::Switch {
            let exit = main.switch::<()>("diverted");
            inside.add(format!("the tracer gets: {}", exit.as_ref().unwrap_err()));
            exit?;
        }
        Ok(())
    })));
    assert_eq!(g.switch::<&str>(()).unwrap(), "diverted");
    assert!(g.is_active());
    let weak = g.downgrade();
    // The tracer holds no handle of the greenlet, but the event that it received does.
    g.end();
    drop(g);
    assert!(weak.upgrade().is_none());
    assert!(gettrace().is_none(), "it failed, so it is removed");
    let exit = "the tracer gets: greenlet exit: the owner of the greenlet ended it";
    assert_eq!(log.take(), [exit]);
    assert_eq!(take_reports(), [""; 0]);
}

// TR-15: a tracer may remove or replace itself. A tracer that a greenlet sets applies to the whole
// thread, from the next transfer of that greenlet on.
#[test]
fn a_tracer_may_remove_and_replace_itself() {
    let log = Log::new();
    let inside = log.clone();
    settrace(Some(Tracer::new(move |event| {
        inside.add(format!("first: {}", text(event)));
        let second = inside.clone();
        settrace(Some(Tracer::new(move |event| {
            second.add(format!("second: {}", text(event)));
            settrace(None);
            Ok(())
        })));
        Ok(())
    })));
    let g = named("g", || up::<()>(()));
    g.switch::<()>(()).unwrap();
    g.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["first: switch(main, g)", "second: switch(g, main)"]);

    let inside = log.clone();
    let g = named("g", move || {
        trace_to(&inside);
        up::<()>(())
    });
    g.switch::<()>(()).unwrap();
    let other = named("other", || Ok(()));
    other.switch::<()>(()).unwrap();
    settrace(None);
    assert_eq!(
        log.take(),
        ["switch(g, main)", "switch(main, other)", "switch(other, main)"]
    );
}

// TR-17, TR-19: other threads have no tracer, and the tracer of a thread is dropped with the
// thread.
#[test]
fn each_thread_has_its_own_tracer() {
    let log = Log::new();
    trace_to(&log);
    let released = std::thread::spawn(|| {
        assert_eq!(gettrace(), None);
        let witness = std::sync::Arc::new(());
        let released = std::sync::Arc::downgrade(&witness);
        settrace(Some(Tracer::new(move |_| {
            let _keep = &witness;
            Ok(())
        })));
        Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
        assert!(released.upgrade().is_some());
        released
    });
    assert!(released.join().unwrap().upgrade().is_none());
    settrace(None);
    assert_eq!(log.take(), [""; 0]);
}

// TR-18: the tracer runs in the target, so it uses the locals of the target.
#[test]
fn a_tracer_sees_the_locals_of_the_target() {
    let log = Log::new();
    let inside = log.clone();
    let tracer = Tracer::new(move |_| {
        let current = getcurrent();
        let own = current.attached::<&str>();
        inside.add(format!(
            "{}: {}",
            name(&current),
            own.map_or("nothing", |own| *own)
        ));
        Ok(())
    });
    let g = named("g", || Ok(()));
    g.attach(Rc::new("g's own"));
    settrace(Some(tracer));
    g.switch::<()>(()).unwrap();
    settrace(None);
    assert_eq!(log.take(), ["g: g's own", "main: nothing"]);
}

#[test]
fn the_failure_of_a_tracer_that_another_one_calls_reaches_the_target() {
    let _no_leaks = NoLeaks::watch();
    let inner = Tracer::new(|_| Err(anyhow!("from the inner one")));
    settrace(Some(Tracer::new(move |event| inner.call(event))));
    let error = Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap_err();
    assert_eq!(error.to_string(), "from the inner one");
    assert!(gettrace().is_none());
}
