//! The states pending, active and dead: when each applies, and where it is visible.

use std::cell::RefCell;
use std::rc::Rc;

use greenlet::{Greenlet, State, TraceKind, Tracer, getcurrent, settrace};

use crate::support::{Log, NoLeaks, on_drop, up};

// ST-1, ST-2, ST-3
#[test]
fn the_three_states_and_their_predicates() {
    let _no_leaks = NoLeaks::watch();
    let check = |greenlet: &Greenlet, state: State| {
        assert_eq!(greenlet.state(), state);
        assert_eq!(greenlet.is_active(), state == State::Active);
        assert_eq!(greenlet.is_dead(), state == State::Dead);
    };
    let main = getcurrent();
    let main_inside = main.clone();
    let child = Greenlet::new(move |(): ()| {
        check(&getcurrent(), State::Active); // running
        check(&main_inside, State::Active); // suspended
        up::<()>(())
    });
    check(&main, State::Active);
    check(&child, State::Pending);
    child.switch::<()>(()).unwrap();
    check(&child, State::Active); // suspended
    child.switch::<()>(()).unwrap();
    check(&child, State::Dead);
    check(&main, State::Active);
}

// ST-5
#[test]
fn states_go_forwards_only() {
    let _no_leaks = NoLeaks::watch();
    type End = fn(&Greenlet);
    let ends: [(&str, End); 4] = [
        ("return", |greenlet| drop(greenlet.switch::<i32>(1))),
        ("error", |greenlet| {
            drop(greenlet.throw::<i32>(anyhow::anyhow!("stop")))
        }),
        ("exit", |greenlet| drop(greenlet.kill())),
        ("owner", Greenlet::end),
    ];
    for (name, end) in ends {
        let pending = Greenlet::new(|value: i32| Ok(value));
        end(&pending);
        assert_eq!(pending.state(), State::Dead, "{name} of a pending greenlet");

        let suspended = Greenlet::new(|_: i32| up::<i32>(0));
        suspended.switch::<i32>(0).unwrap();
        end(&suspended);
        assert_eq!(suspended.state(), State::Dead, "{name} of a suspended greenlet");
        for (again, end) in ends {
            end(&suspended);
            assert_eq!(suspended.state(), State::Dead, "{again} of a dead greenlet");
        }
    }
}

// ST-6, ST-8
#[test]
fn the_tracer_sees_the_target_active_and_a_finished_origin_dead() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let traced = log.clone();
    let before = settrace(Some(Tracer::new(move |event| {
        assert_eq!(event.kind, TraceKind::Switch);
        let name = |greenlet: &Greenlet| greenlet.name().unwrap().to_owned();
        traced.add(format!(
            "{} {:?} -> {} {:?}",
            name(&event.origin),
            event.origin.state(),
            name(&event.target),
            event.target.state()
        ));
        Ok(())
    })));
    assert!(before.is_none());
    let child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
    child.switch::<()>(()).unwrap();
    settrace(None);
    assert_eq!(
        log.take(),
        ["main Active -> child Active", "child Dead -> main Active"]
    );
}

// ST-8
#[test]
fn a_parent_that_gets_an_outcome_sees_the_child_dead() {
    let _no_leaks = NoLeaks::watch();
    let returns = Greenlet::new(|(): ()| Ok(()));
    let fails = Greenlet::new(|(): ()| -> anyhow::Result<()> { anyhow::bail!("failed") });
    for child in [returns, fails] {
        let parent = Greenlet::new(move |(): ()| {
            let parents_handle = child.clone();
            child.set_parent(&getcurrent())?;
            let _outcome = child.switch::<()>(());
            Ok(parents_handle.is_dead())
        });
        assert!(parent.switch::<bool>(()).unwrap());
    }
}

// ST-7
#[test]
fn captures_and_locals_are_dropped_while_the_greenlet_is_active_and_current() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let witness = |what: &'static str| {
        let log = log.clone();
        on_drop(move || {
            let current = getcurrent();
            log.add(format!(
                "{what}: {:?}, main: {}",
                current.state(),
                current.is_main()
            ));
        })
    };
    let (capture, argument, local) = (witness("capture"), witness("argument"), witness("local"));
    let child = Greenlet::new(move |argument: crate::support::OnDrop| {
        let _local = local;
        let _capture = &capture;
        let _argument = argument;
        Ok(())
    });
    child.switch::<()>(argument).unwrap();
    assert_eq!(
        log.take(),
        [
            "argument: Active, main: false",
            "local: Active, main: false",
            "capture: Active, main: false"
        ]
    );
}

// ST-9
#[test]
fn switching_away_as_the_last_act_does_not_finish() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| up::<i32>("last act"));
    assert_eq!(child.switch::<&str>(()).unwrap(), "last act");
    assert_eq!(child.state(), State::Active);
    assert_eq!(child.switch::<i32>(5).unwrap(), 5);
    assert_eq!(child.state(), State::Dead);
}

// ST-10
#[test]
fn the_debug_form_names_the_greenlet_its_state_and_its_place() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::builder().name("worker").build(|(): ()| {
        let seen = format!("{:?}", getcurrent());
        up::<()>(seen)
    });
    assert_eq!(format!("{child:?}"), "<Greenlet 'worker', pending>");
    let current: String = child.switch(()).unwrap();
    assert_eq!(current, "<Greenlet 'worker', current>");
    let suspended = format!("{child:?}");
    assert!(
        suspended.starts_with("<Greenlet 'worker', suspended at "),
        "{suspended}"
    );
    assert!(suspended.contains("states.rs:"), "{suspended}");
    assert_eq!(format!("{child:?}"), suspended, "asking changes nothing");
    child.switch::<()>(()).unwrap();
    assert_eq!(format!("{child:?}"), "<Greenlet 'worker', dead>");
    assert_eq!(format!("{:?}", getcurrent()), "<Greenlet 'main', current>");

    let nameless = Greenlet::new(|(): ()| Ok(()));
    assert!(
        format!("{nameless:?}").contains("states.rs:"),
        "a greenlet without a name says where it was made"
    );
}

// ST-1
#[test]
fn main_is_suspended_while_a_child_runs() {
    let _no_leaks = NoLeaks::watch();
    let seen = Rc::new(RefCell::new(String::new()));
    let seen_inside = Rc::clone(&seen);
    let main = getcurrent();
    let child = Greenlet::new(move |(): ()| {
        *seen_inside.borrow_mut() = format!("{main:?}");
        Ok(main.is_active() && !main.is_current() && main.suspended_at().is_some())
    });
    assert!(child.switch::<bool>(()).unwrap());
    assert!(
        seen.borrow().starts_with("<Greenlet 'main', suspended at "),
        "{}",
        seen.borrow()
    );
}
