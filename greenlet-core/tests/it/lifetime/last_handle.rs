//! The end of a suspended greenlet when its last handle is dropped.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use greenlet::{Greenlet, GreenletExit, State, Value, WeakGreenlet, getcurrent, getparent};

use crate::support::{Drops, Log, Witness, catch_reports, name, take_reports, up};

/// A shared place for a handle.
type Shelf = Rc<RefCell<Option<Greenlet>>>;

/// Returns a suspended greenlet that ends by the exit, with a witness on its stack.
fn waiting(name: &str, witness: Witness) -> Greenlet {
    let greenlet = Greenlet::builder().name(name).build(move |(): ()| {
        let _witness = witness;
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// DE-1, DE-2, DE-5, DE-29: dropping the last handle throws an exit at once, and the drop returns
// when the greenlet has ended. Its return value is discarded. Its locals are dropped during the
// end, not before.
#[test]
fn dropping_the_last_handle_throws_an_exit_at_once() {
    catch_reports();
    let log = Log::new();
    let inside = log.clone();
    let (argument, local) = (Drops::new(), Drops::new());
    let (argument_witness, local_witness) = (argument.witness(), local.witness());
    let greenlet = Greenlet::new(move |_argument: Witness| {
        let _local = local_witness;
        let error = up::<()>(()).unwrap_err();
        inside.add(format!("inside: {error}"));
        Ok("nobody gets this")
    });
    greenlet.switch::<()>(argument_witness).unwrap();
    let second = greenlet.clone();
    drop(greenlet);
    log.add("one handle left");
    assert_eq!((argument.count(), local.count()), (0, 0));
    drop(second);
    log.add("dropped");
    assert_eq!(
        log.take(),
        [
            "one handle left",
            "inside: greenlet exit: the last handle of the greenlet was dropped",
            "dropped"
        ]
    );
    assert_eq!((argument.count(), local.count()), (1, 1));
    assert_eq!(take_reports(), [""; 0]);
}

// DE-1, DE-23: the link from a child to its parent is a handle of the parent. The child ends first,
// then the link is dropped.
#[test]
fn a_childs_link_to_its_parent_is_a_handle() {
    let log = Log::new();
    let make = |name: &'static str, parent: &Greenlet| {
        let log = log.clone();
        let greenlet = Greenlet::builder()
            .name(name)
            .parent(parent)
            .build(move |(): ()| {
                let main: Greenlet = up(()).unwrap_or_else(|_| getcurrent());
                let _ = main.switch::<()>(());
                log.add(format!("{name} ends"));
                Ok(())
            });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let parent = make("parent", &getcurrent());
    let child = Greenlet::builder().name("child").build({
        let log = log.clone();
        move |(): ()| {
            let _ = up::<()>(());
            log.add("child ends");
            Ok(())
        }
    });
    child.switch::<()>(()).unwrap();
    child.set_parent(&parent).unwrap();
    drop(parent);
    log.add("only the child holds the parent");
    drop(child);
    assert_eq!(
        log.take(),
        ["only the child holds the parent", "child ends", "parent ends"]
    );
}

// DE-3, DE-4, DE-26: the dropping greenlet, main or another, is the parent during the end. The
// recorded parent is neither started nor resumed. Clean-up runs in the greenlet itself, with its
// attachment.
#[test]
fn the_greenlet_that_drops_the_last_handle_is_the_parent_meanwhile() {
    let log = Log::new();
    let never = Greenlet::builder()
        .name("never")
        .build(|_: Value| -> Result<()> { unreachable!() });
    let inside = log.clone();
    let dying = Greenlet::builder().name("dying").build(move |(): ()| {
        let _ = up::<()>(());
        let current = getcurrent();
        let own = current.attached::<&str>().unwrap();
        inside.add(format!(
            "{} under {}, has {own}",
            name(&current),
            name(&getparent().unwrap())
        ));
        Ok(())
    });
    assert!(dying.attach(Rc::new("its own")));
    dying.switch::<()>(()).unwrap();
    dying.set_parent(&never).unwrap();
    let inside = log.clone();
    let deleter = Greenlet::builder().name("deleter").build(move |dying: Greenlet| {
        drop(dying);
        inside.add(format!("{} goes on", name(&getcurrent())));
        Ok(())
    });
    deleter.switch::<()>(dying).unwrap();
    assert_eq!(
        log.take(),
        ["dying under deleter, has its own", "deleter goes on"]
    );
    assert_eq!(never.state(), State::Pending);
}

// DE-6: an error or panic that the greenlet ends with is reported. It never reaches the dropping
// greenlet.
#[test]
fn errors_and_panics_of_the_ended_greenlet_are_reported() {
    catch_reports();
    let failing = Greenlet::builder().name("failing").build(|(): ()| -> Result<()> {
        let _ = up::<()>(());
        bail!("the disk is full")
    });
    let panicking = Greenlet::builder()
        .name("panicking")
        .build(|(): ()| -> Result<()> {
            let _ = up::<()>(());
            std::panic::resume_unwind(Box::new("no!"))
        });
    failing.switch::<()>(()).unwrap();
    panicking.switch::<()>(()).unwrap();
    drop(failing);
    assert_eq!(take_reports(), ["failing: error the disk is full"]);
    drop(panicking);
    assert_eq!(take_reports(), ["panicking: panic no!"]);
}

// DE-7, DE-18, DE-19, UD-7: the drop returns at the first transfer to the dropping greenlet, from
// any greenlet. A value of that transfer is lost, an error is reported. Other greenlets may run in
// between.
#[test]
fn the_drop_returns_at_the_first_transfer_back() {
    catch_reports();
    for throws in [false, true] {
        let log = Log::new();
        let main = getcurrent();
        let inside = log.clone();
        let drops = Drops::new();
        let lost = drops.witness();
        let third = Greenlet::builder()
            .name("third")
            .build(move |(): ()| -> Result<()> {
                inside.add("third runs");
                if throws {
                    main.throw::<()>(anyhow::anyhow!("for whom?"))
                } else {
                    main.switch::<()>(lost)
                }
            });
        let target = third.clone();
        let inside = log.clone();
        let dying = Greenlet::builder().name("dying").build(move |(): ()| {
            let _ = up::<()>(());
            inside.add("dying switches away");
            let error = target.switch::<()>(());
            inside.add(format!("dying is forced: {}", error.is_err()));
            Ok(())
        });
        dying.switch::<()>(()).unwrap();
        drop(dying);
        log.add("dropped");
        // The second stage unwound it, so its switch never returned.
        assert_eq!(log.take(), ["dying switches away", "third runs", "dropped"]);
        assert_eq!(drops.count(), usize::from(!throws));
        assert!(third.is_active());
        let expected: &[&str] = if throws { &["dying: error for whom?"] } else { &[] };
        assert_eq!(take_reports(), expected);
    }
}

// DE-8, UD-6: a greenlet that catches the exit and continues is unwound, and its destructors run
// once. Python complains and leaks it.
#[test]
fn a_greenlet_that_refuses_to_end_is_unwound() {
    catch_reports();
    let drops = Drops::new();
    let witness = drops.witness();
    let log = Log::new();
    let inside = log.clone();
    let stubborn = Greenlet::builder()
        .name("stubborn")
        .build(move |(): ()| -> Result<()> {
            let _witness = witness;
            loop {
                let refused = up::<()>(());
                inside.add(format!("refuses: {}", refused.is_err()));
            }
        });
    stubborn.switch::<()>(()).unwrap();
    drop(stubborn);
    assert_eq!(drops.count(), 1);
    assert_eq!(log.take(), ["refuses: true"]);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-8: a greenlet that stops even the unwinding is reported once, and its stack is leaked.
#[test]
fn a_greenlet_that_stops_the_unwinding_is_reported() {
    catch_reports();
    let drops = Drops::new();
    let witness = drops.witness();
    let stubborn = Greenlet::builder()
        .name("stubborn")
        .build(move |(): ()| -> Result<()> {
            let _witness = witness;
            loop {
                let _ = std::panic::catch_unwind(|| up::<()>(()));
            }
        });
    stubborn.switch::<()>(()).unwrap();
    let weak = stubborn.downgrade();
    drop(stubborn);
    assert_eq!(take_reports(), ["stubborn: refused to end"]);
    let again = weak.upgrade().expect("it is left suspended");
    assert!(again.is_active());
    drop(again);
    assert_eq!(take_reports(), [""; 0]);
    assert_eq!(drops.count(), 0);
}

// DE-9, DE-28, HZ-28, HZ-34: a handle that clean-up stores makes the greenlet an ordinary one
// again, with its old parent, any number of times.
#[test]
fn a_handle_stored_during_the_end_resurrects_the_greenlet() {
    catch_reports();
    let shelf = Shelf::default();
    let parent = Greenlet::builder().name("parent").build(|_: Value| Ok(()));
    let store = shelf.clone();
    let drops = Drops::new();
    let witness = drops.witness();
    let phoenix = Greenlet::builder().name("phoenix").build(move |(): ()| {
        let _witness = witness;
        for _ in 0..3 {
            let error = up::<()>(()).unwrap_err();
            assert!(error.is::<GreenletExit>());
            *store.borrow_mut() = Some(getcurrent());
        }
        up::<()>("still here")
    });
    phoenix.switch::<()>(()).unwrap();
    phoenix.set_parent(&parent).unwrap();
    let weak = phoenix.downgrade();
    drop(phoenix);
    for _ in 0..2 {
        let phoenix = shelf.take().expect("it stored a handle");
        assert_eq!(
            (phoenix.state(), phoenix.parent()),
            (State::Active, Some(parent.clone()))
        );
        drop(phoenix);
    }
    let phoenix = shelf.take().unwrap();
    phoenix.set_parent(&getcurrent()).unwrap();
    drop(phoenix);
    // The fourth time it propagated the exit.
    assert!(shelf.borrow().is_none() && weak.upgrade().is_none());
    assert_eq!(drops.count(), 1);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-10: a greenlet that stores a handle and then ends is an ordinary dead greenlet with its old
// parent.
#[test]
fn a_handle_stored_before_the_end_is_of_a_dead_greenlet() {
    let shelf = Shelf::default();
    let store = shelf.clone();
    let parent = Greenlet::new(|text: String| Ok(text));
    let greenlet = Greenlet::new(move |(): ()| {
        let _ = up::<()>(());
        *store.borrow_mut() = Some(getcurrent());
        Ok(())
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet.set_parent(&parent).unwrap();
    drop(greenlet);
    let remains = shelf.take().unwrap();
    assert_eq!((remains.state(), remains.parent()), (State::Dead, Some(parent)));
    assert_eq!(remains.switch::<String>(String::from("up")).unwrap(), "up");
}

// DE-11: weak handles upgrade during the end, and no longer after the greenlet is freed.
#[test]
fn weak_handles_upgrade_until_the_greenlet_is_freed() {
    let log = Log::new();
    let inside = log.clone();
    let weak_shelf: Rc<RefCell<Option<greenlet::WeakGreenlet>>> = Rc::default();
    let weak_inside = weak_shelf.clone();
    let greenlet = Greenlet::new(move |(): ()| {
        let _ = up::<()>(());
        let weak = weak_inside.take().unwrap();
        inside.add(format!("inside: {}", weak.upgrade() == Some(getcurrent())));
        Ok(())
    });
    greenlet.switch::<()>(()).unwrap();
    let weak = greenlet.downgrade();
    *weak_shelf.borrow_mut() = Some(weak.clone());
    drop(greenlet);
    log.add(format!("after: {}", weak.upgrade().is_some()));
    assert_eq!(log.take(), ["inside: true", "after: false"]);
}

// DE-12, DE-13: a pending greenlet is freed without an exit, and its function never runs. A dead
// one is just freed.
#[test]
fn pending_and_dead_greenlets_are_freed_without_an_exit() {
    let (captured, parents) = (Drops::new(), Drops::new());
    let (witness, parent_witness) = (captured.witness(), parents.witness());
    let parent = Greenlet::new(move |witness: Witness| {
        drop((witness, parent_witness));
        Ok(())
    });
    let pending = Greenlet::builder()
        .parent(&parent)
        .build(move |(): ()| -> Result<()> {
            drop(witness);
            unreachable!("it was never switched to")
        });
    drop(parent);
    assert_eq!((captured.count(), parents.count()), (0, 0));
    drop(pending);
    assert_eq!((captured.count(), parents.count()), (1, 1));

    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let weak = dead.downgrade();
    drop(dead);
    assert!(weak.upgrade().is_none());
}

// DE-14: main lives as long as its thread, with and without handles.
#[test]
fn dropping_handles_of_main_does_not_end_it() {
    let main = getcurrent();
    let weak = main.downgrade();
    let child = Greenlet::new(move |main: Greenlet| {
        drop(main); // while it is suspended
        Ok(())
    });
    child.switch::<()>(main).unwrap();
    drop(child);
    assert!(
        weak.upgrade()
            .is_some_and(|main| main.is_current() && main.is_active())
    );
}

/// Starts a greenlet that runs `body` while no handle of it exists.
fn run_without_handle<R: 'static>(name: &str, body: impl FnOnce() -> Result<()> + 'static) -> Result<R> {
    let body = |starter: WeakGreenlet| {
        // The greenlet that started it had the last handle.
        starter.upgrade().unwrap().end();
        body()
    };
    let greenlet = Greenlet::builder().name(name).build(body);
    let starter = Greenlet::new(|(greenlet, own): (Greenlet, WeakGreenlet)| greenlet.switch::<()>(own));
    starter.switch((greenlet, starter.downgrade()))
}

// DE-15, DE-16: a running greenlet without handles ends when it switches away, in the context of
// the target, before the target receives the value. The value is not lost.
#[test]
fn a_running_greenlet_without_handles_ends_when_it_switches_away() {
    let log = Log::new();
    let inside = log.clone();
    let target = Greenlet::builder()
        .name("target")
        .build(move |text: &'static str| {
            inside.add(format!("target starts: {text}"));
            let text = up::<&str>("started")?;
            inside.add(format!("target gets: {text}"));
            Ok("ended")
        });
    for text in ["first", "second"] {
        let inside = log.clone();
        let to = target.clone();
        let back: &str = run_without_handle("leaving", move || {
            inside.add("leaving runs on");
            let error = to.switch::<()>(text).unwrap_err();
            let parent = name(&getparent().unwrap());
            inside.add(format!("leaving ends under {parent}: {error}"));
            Ok(())
        })
        .unwrap();
        log.add(format!("main gets: {back}"));
    }
    let ends = "leaving ends under target: greenlet exit: the last handle of the greenlet was dropped";
    assert_eq!(
        log.take(),
        [
            "leaving runs on",
            ends,
            "target starts: first",
            "main gets: started",
            "leaving runs on",
            ends,
            "target gets: second",
            "main gets: ended"
        ]
    );
}

// DE-16: the value survives even if the clean-up switches elsewhere. The value that resumes the
// target is lost instead.
#[test]
fn a_sent_value_survives_a_clean_up_that_switches_elsewhere() {
    let log = Log::new();
    let inside = log.clone();
    let main = getcurrent();
    let target = Greenlet::new(move |text: &'static str| {
        inside.add(format!("target gets: {text}"));
        Ok("ended")
    });
    let drops = Drops::new();
    let (to, witness) = (target.clone(), drops.witness());
    let back: &str = run_without_handle("leaving", move || {
        let _witness = witness;
        let _ = to.switch::<()>("sent");
        main.switch("elsewhere")
    })
    .unwrap();
    assert_eq!((back, drops.count()), ("elsewhere", 0));
    assert_eq!(log.take(), [""; 0]);
    let back: &str = target.switch("lost").unwrap();
    assert_eq!((back, drops.count()), ("ended", 1));
    assert_eq!(log.take(), ["target gets: sent"]);
}

// DE-17: a greenlet that changes its parent during its end ends into that parent. The dropping
// greenlet stays suspended until a greenlet transfers to it.
#[test]
fn a_greenlet_that_changes_its_parent_during_its_end_ends_into_the_new_one() {
    let log = Log::new();
    let heir = Greenlet::builder().name("heir").build({
        let log = log.clone();
        move |text: &'static str| {
            log.add(format!("heir gets: {text}"));
            up::<()>(())
        }
    });
    let new_parent = heir.clone();
    let dying = Greenlet::builder().name("dying").build(move |(): ()| {
        let _ = up::<()>(());
        getcurrent().set_parent(&new_parent)?;
        Ok("the estate")
    });
    dying.switch::<()>(()).unwrap();
    let weak = dying.downgrade();
    let deleter = Greenlet::builder().name("deleter").build({
        let log = log.clone();
        move |dying: Greenlet| {
            drop(dying);
            log.add("dropped");
            Ok(())
        }
    });
    deleter.switch::<()>(dying).unwrap();
    log.add("main has control, the drop is not over");
    assert!(weak.upgrade().is_some_and(|dying| dying.is_dead()));
    deleter.switch::<()>(()).unwrap();
    assert_eq!(
        log.take(),
        [
            "heir gets: the estate",
            "main has control, the drop is not over",
            "dropped"
        ]
    );
    assert!(weak.upgrade().is_none());
}

// DE-20: the dropping greenlet is not itself ended before the end that it started is over.
#[test]
fn the_greenlet_that_drops_the_last_handle_lives_until_the_end_is_over() {
    let log = Log::new();
    let main = getcurrent();
    let dying = Greenlet::builder().name("dying").build(move |(): ()| {
        let _ = up::<()>(());
        let _ = main.switch::<()>("in between");
        Ok(())
    });
    dying.switch::<()>(()).unwrap();
    let deleter = Greenlet::builder().name("deleter").build({
        let log = log.clone();
        move |dying: Greenlet| {
            drop(dying);
            log.add("dropped");
            Ok("deleter ended")
        }
    });
    let back: &str = deleter.switch(dying).unwrap();
    assert_eq!(back, "in between");
    let weak = deleter.downgrade();
    drop(deleter);
    log.add("the deleter has no handle of its own");
    let deleter = weak
        .upgrade()
        .expect("the dying one's link to its parent holds it");
    assert!(deleter.is_active());
    assert_eq!(deleter.switch::<&str>(()).unwrap(), "deleter ended");
    assert_eq!(log.take(), ["the deleter has no handle of its own", "dropped"]);
}

// DE-21: handles that the clean-up drops end their greenlets inside the clean-up.
#[test]
fn ends_nest() {
    let log = Log::new();
    let mut outer: Option<Greenlet> = None;
    for name_here in ["inner", "middle", "outer"] {
        let (held, log) = (outer.take(), log.clone());
        let greenlet = Greenlet::builder().name(name_here).build(move |(): ()| {
            let _ = up::<()>(());
            log.add(format!("{name_here} ends under {}", name(&getparent().unwrap())));
            drop(held);
            log.add(format!("{name_here} ended"));
            Ok(())
        });
        greenlet.switch::<()>(()).unwrap();
        outer = Some(greenlet);
    }
    drop(outer);
    assert_eq!(
        log.take(),
        [
            "outer ends under main",
            "middle ends under outer",
            "inner ends under middle",
            "inner ended",
            "middle ended",
            "outer ended"
        ]
    );
}

// DE-22: the greenlets of a container are ended one after the other, each completely, in the order
// of the container.
#[test]
fn a_container_ends_its_greenlets_in_order() {
    let log = Log::new();
    let greenlets: Vec<Greenlet> = (0..3)
        .map(|number| {
            let log = log.clone();
            let greenlet = Greenlet::new(move |(): ()| {
                let _ = up::<()>(());
                log.add(format!("{number} begins to end"));
                drop(waiting("inside", Drops::new().witness()));
                log.add(format!("{number} ended"));
                Ok(())
            });
            greenlet.switch::<()>(()).unwrap();
            greenlet
        })
        .collect();
    drop(greenlets);
    let expected: Vec<String> = (0..3)
        .flat_map(|n| [format!("{n} begins to end"), format!("{n} ended")])
        .collect();
    assert_eq!(log.take(), expected);
}

// DE-24: a long chain of suspended greenlets, each held only by the link of its child, is ended
// without recursion.
#[test]
fn a_long_chain_of_suspended_greenlets_ends_without_recursion() {
    const COUNT: usize = 4000;
    let end_chain = || {
        let drops = Drops::new();
        let mut last = getcurrent();
        for _ in 0..COUNT {
            let witness = drops.witness();
            let next = waiting("link", witness);
            next.set_parent(&last).unwrap();
            last = next;
        }
        assert_eq!(drops.count(), 0);
        drop(last);
        assert_eq!(drops.count(), COUNT);
    };
    // 64 bytes of stack for each greenlet: recursion would overflow it.
    let small = std::thread::Builder::new().stack_size(64 * COUNT);
    small.spawn(end_chain).unwrap().join().unwrap();
}
