//! The outcome of a greenlet goes to the parent that it has at its end.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};
use greenlet::{
    Greenlet, StackError, State, Tracer, TypeMismatch, WeakGreenlet, getcurrent, getparent, settrace,
};

use crate::support::{Drops, Log, NoLeaks, OnDrop, on_drop, up};

/// Returns a greenlet that waits for one value of any kind, logs it, and sends it on to its parent.
fn listener(log: &Log, name: &'static str) -> Greenlet {
    let log = log.clone();
    let listener = Greenlet::builder().name(name).build(move |(): ()| {
        let got: Result<String> = up(());
        match got {
            Ok(text) => log.add(format!("{name} got {text}")),
            Err(error) => log.add(format!("{name} got error {error}")),
        }
        Ok(format!("from {name}"))
    });
    listener.switch::<()>(()).unwrap();
    listener
}

fn text(text: &str) -> Result<String> {
    Ok(text.to_owned())
}

// RT-1, RT-2, EP-2
#[test]
fn an_outcome_goes_to_the_current_parent_and_not_to_the_resumer() {
    let _no_leaks = NoLeaks::watch();
    for fails in [false, true] {
        let log = Log::new();
        let parent = listener(&log, "parent");
        let child = Greenlet::new(move |(): ()| {
            up::<()>(())?;
            if fails {
                bail!("outcome");
            }
            text("outcome")
        });
        child.switch::<()>(()).unwrap();
        child.set_parent(&parent).unwrap();
        let (resumer_log, resumed) = (log.clone(), child.clone());
        let resumer = Greenlet::new(move |(): ()| {
            let got: Result<()> = resumed.switch(());
            resumer_log.add(format!("resumer got {got:?}"));
            Ok(())
        });
        // The outcome reaches `parent`, whose outcome reaches main. The resuming greenlet still
        // waits.
        assert_eq!(resumer.switch::<String>(()).unwrap(), "from parent");
        assert!(child.is_dead() && parent.is_dead() && resumer.is_active());
        assert_eq!(
            log.take(),
            [if fails {
                "parent got error outcome"
            } else {
                "parent got outcome"
            }]
        );
        resumer.switch::<()>(()).unwrap();
        assert_eq!(log.take(), ["resumer got Ok(())"]);
    }
}

// RT-3, RT-12, EP-3
#[test]
fn dead_parents_are_skipped() {
    let _no_leaks = NoLeaks::watch();
    for fails in [false, true] {
        let log = Log::new();
        let grandparent = listener(&log, "grandparent");
        let parent = Greenlet::builder()
            .parent(&grandparent)
            .build(|(): ()| text("parent ends"));
        let child = Greenlet::builder().parent(&parent).build(move |main: Greenlet| {
            main.switch::<()>(())?;
            if fails {
                bail!("late outcome");
            }
            text("late outcome")
        });
        child.switch::<()>(getcurrent()).unwrap();
        // The death of the parent does not affect the child.
        parent.set_parent(&getcurrent()).unwrap();
        assert_eq!(parent.switch::<String>(()).unwrap(), "parent ends");
        parent.set_parent(&grandparent).unwrap();
        assert!(child.is_active());
        assert_eq!(child.parent(), Some(parent));
        assert_eq!(child.switch::<String>(()).unwrap(), "from grandparent");
        let got = if fails {
            "grandparent got error late outcome"
        } else {
            "grandparent got late outcome"
        };
        assert_eq!(log.take(), [got]);
    }
}

// RT-4
#[test]
fn a_pending_parent_is_started_with_the_outcome_and_so_on_upwards() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let adder = |parent: &Greenlet, name: &'static str| {
        let log = log.clone();
        Greenlet::builder()
            .parent(parent)
            .build(move |(number, text): (i32, String)| {
                log.add(format!("{name} started with {number}, {text}"));
                Ok((number + 1, text))
            })
    };
    let top = adder(&getcurrent(), "top");
    let middle = adder(&top, "middle");
    let child = Greenlet::builder()
        .parent(&middle)
        .build(|(): ()| Ok((1, "text".to_owned())));
    // The tuple stays one value all the way.
    assert_eq!(child.switch::<(i32, String)>(()).unwrap(), (3, "text".to_owned()));
    assert_eq!(
        log.take(),
        ["middle started with 1, text", "top started with 2, text"]
    );
    assert!(top.is_dead() && middle.is_dead() && child.is_dead());

    let unit = Greenlet::new(|nothing: Option<i32>| Ok(format!("{nothing:?}")));
    let child = Greenlet::builder().parent(&unit).build(|(): ()| Ok(None::<i32>));
    assert_eq!(child.switch::<String>(()).unwrap(), "None");
}

// RT-5
#[test]
fn a_pending_parent_that_takes_another_type_fails_with_the_mismatch() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let parent = Greenlet::new(move |_: i32| {
        drop(witness);
        Ok(())
    });
    let child = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| text("not a number"));
    let error = child
        .switch::<()>(())
        .unwrap_err()
        .downcast::<TypeMismatch>()
        .unwrap();
    assert_eq!(
        error.into_value().unwrap().downcast::<String>().unwrap(),
        "not a number"
    );
    assert_eq!((parent.state(), drops.count()), (State::Dead, 1));
}

// RT-6, RT-7
#[test]
fn a_parent_that_cannot_be_entered_stays_pending_and_the_next_one_gets_the_error() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let huge = |parent: &Greenlet| {
        Greenlet::builder()
            .parent(parent)
            .stack_size(usize::MAX)
            .build(|_: String| Ok(()))
    };
    for parents in 1..=3 {
        let grandparent = listener(&log, "grandparent");
        let parent = (0..parents).fold(grandparent, |parent, _| huge(&parent));
        let child = Greenlet::builder()
            .parent(&parent)
            .build(|(): ()| text("outcome"));
        assert_eq!(child.switch::<String>(()).unwrap(), "from grandparent");
        assert_eq!(parent.state(), State::Pending);
        let events = log.take();
        assert!(
            events[0].starts_with("grandparent got error a stack of"),
            "{events:?}"
        );
    }

    // Main can always be entered, so the search for a parent always ends.
    let parent = huge(&huge(&getcurrent()));
    let child = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| text("outcome"));
    assert!(child.switch::<String>(()).unwrap_err().is::<StackError>());
    assert!(child.is_dead() && parent.state() == State::Pending);
}

// RT-8, EP-3
#[test]
fn an_error_ends_a_pending_parent_unrun_and_propagates() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let pending = |parent: &Greenlet| {
        let witness = drops.witness();
        Greenlet::builder().parent(parent).build(move |(): ()| {
            drop(witness);
            text("never runs")
        })
    };
    let top = pending(&getcurrent());
    let middle = pending(&top);
    let child = Greenlet::builder()
        .parent(&middle)
        .build(|(): ()| -> Result<()> { bail!("boom") });
    assert_eq!(child.switch::<()>(()).unwrap_err().to_string(), "boom");
    assert!(top.is_dead() && middle.is_dead());
    assert_eq!(drops.count(), 2);
}

// RT-9
#[test]
fn a_parent_inside_a_drop_is_resumed_there_and_the_value_is_discarded() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let drops = Drops::new();
    let (inside, witness) = (log.clone(), drops.witness());
    // While main ends `victim`, `victim` runs another child of main to its end.
    let other = Greenlet::new(move |(): ()| Ok(witness));
    let other_inside = other.clone();
    let victim = Greenlet::new(move |(): ()| {
        let asked = up::<()>(());
        inside.add("victim is asked to end");
        let resumed = other_inside.switch::<()>(());
        inside.add("victim is resumed");
        resumed.and(asked)
    });
    victim.switch::<()>(()).unwrap();
    let weak = victim.downgrade();
    drop(victim);
    log.add("main goes on after the drop");
    assert_eq!(drops.count(), 1, "the value is discarded");
    assert!(other.is_dead() && weak.upgrade().is_none());
    // Control returned before the victim had ended, so it was unwound and never logs "is resumed".
    assert_eq!(
        log.take(),
        ["victim is asked to end", "main goes on after the drop"]
    );
}

// RT-10
#[test]
fn captures_and_locals_are_dropped_before_the_parent_resumes() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let witness = |what: &'static str| {
        let log = log.clone();
        on_drop(move || log.add(format!("{what} dropped, {:?}", getcurrent().state())))
    };
    let traced = log.clone();
    let (local, capture, attached) = (witness("local"), witness("capture"), witness("record"));
    let main = getcurrent();
    let ending = Greenlet::new(move |(child, argument): (WeakGreenlet, OnDrop)| {
        let _captured = &capture;
        let _argument = argument;
        let _local = local;
        // The last handle is dropped. From now on only the thread, and then the transfer, holds the
        // greenlet.
        child.upgrade().unwrap().set_parent(&main)?;
        Ok(())
    });
    ending.attach(Rc::new(attached));
    let weak = ending.downgrade();
    let argument = witness("argument");
    let child = Greenlet::builder()
        .parent(&ending)
        .build(move |(): ()| Ok((getcurrent().downgrade(), argument)));
    drop(ending);
    settrace(Some(Tracer::new(move |event| {
        if event.target.is_main() {
            traced.add(format!("tracer in main, origin {:?}", event.origin.state()));
        }
        Ok(())
    })));
    child.switch::<()>(()).unwrap();
    log.add("main's switch returns");
    assert!(weak.upgrade().is_none());
    settrace(None);
    assert_eq!(
        log.take(),
        [
            "local dropped, Active",
            "argument dropped, Active",
            "capture dropped, Active",
            "tracer in main, origin Dead",
            "record dropped, Active",
            "main's switch returns",
        ]
    );
}

// RT-11
#[test]
fn a_dead_greenlet_keeps_its_parent() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let parent = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<()>(())
    });
    parent.switch::<()>(()).unwrap();
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    dead.set_parent(&parent).unwrap();
    let weak = parent.downgrade();
    drop(parent);
    assert_eq!(dead.parent(), weak.upgrade());
    assert_eq!(drops.count(), 0, "held by the dead child's link");
    dead.set_parent(&getcurrent()).unwrap();
    assert_eq!(drops.count(), 1);
}

// RT-13
#[test]
fn main_gets_outcomes_and_never_finishes() {
    let _no_leaks = NoLeaks::watch();
    let main = getcurrent();
    assert_eq!(Greenlet::new(|(): ()| Ok(1)).switch::<i32>(()).unwrap(), 1);
    assert!(
        Greenlet::new(|(): ()| -> Result<()> { Err(anyhow!("x")) })
            .switch::<()>(())
            .is_err()
    );
    assert!(Greenlet::new(|(): ()| Ok(())).kill().unwrap().is_exit());
    assert!(main.is_active() && main.is_current() && getparent().is_none());
}

// RT-4
#[test]
fn a_long_chain_of_pending_parents_runs_one_after_another() {
    let _no_leaks = NoLeaks::watch();
    let count = Rc::new(RefCell::new(0));
    let mut last = getcurrent();
    for _ in 0..1000 {
        let count = Rc::clone(&count);
        last = Greenlet::builder().parent(&last).build(move |number: u32| {
            *count.borrow_mut() += 1;
            Ok(number + 1)
        });
    }
    assert_eq!(last.switch::<u32>(0_u32).unwrap(), 1000);
    assert_eq!(*count.borrow(), 1000);
}
