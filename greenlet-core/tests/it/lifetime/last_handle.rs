//! The end of a suspended greenlet when its last handle is dropped.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use greenlet::{Greenlet, GreenletExit, State, Value, getcurrent, getmain, getparent, no_switch};

use crate::support::{Drops, Log, NoLeaks, Witness, catch_reports, name, take_reports, up};

/// A shared place for a handle.
type Shelf = Rc<RefCell<Option<Greenlet>>>;

/// Returns a suspended greenlet that ends by the exit, with a witness on its stack.
pub(super) fn waiting(name: &str, witness: Witness) -> Greenlet {
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

/// A greenlet that is revived in its end, by a child, is ended again when that child is gone: also if
/// an end that has waited for the first one drops the child.
#[test]
fn a_revived_greenlet_is_ended_when_a_deferred_end_drops_what_kept_it() {
    let _no_leaks = NoLeaks::watch();
    let slot: Rc<RefCell<Option<Greenlet>>> = Rc::default();
    let taken = slot.clone();
    let drops_it = Greenlet::new(move |(): ()| {
        let asked = getmain().switch::<()>(());
        drop(taken.take());
        asked
    });
    drops_it.switch::<()>(()).unwrap();
    let (filled, ended) = (slot.clone(), drops_it.clone());
    let revived = Greenlet::new(move |(): ()| {
        let _exit = getmain().switch::<()>(());
        filled.replace(Some(Greenlet::new(|(): ()| Ok(()))));
        no_switch(|| ended.end()); // after this end
        drop(ended);
        getmain().switch::<()>(())
    });
    revived.switch::<()>(()).unwrap();
    let weak = revived.downgrade();
    drop(revived);
    assert!(drops_it.is_dead() && slot.borrow().is_none());
    assert!(
        weak.upgrade().is_none(),
        "it is suspended, and nobody refers to it"
    );
}
