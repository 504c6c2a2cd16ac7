//! The link from a greenlet to its parent.

use std::rc::Rc;

use anyhow::{Result, bail};
use greenlet::{Greenlet, ParentError, State, Tracer, getcurrent, getparent, settrace, switch_to_parent};

use crate::support::{Drops, Log, NoLeaks, up};

// PA-1
#[test]
fn every_greenlet_but_main_has_a_parent_in_every_state() {
    let _no_leaks = NoLeaks::watch();
    assert!(getcurrent().parent().is_none() && getparent().is_none());
    let child = Greenlet::new(|(): ()| {
        assert_eq!(getcurrent().parent(), getparent());
        up::<()>(getparent().unwrap().is_main())
    });
    let parent_is_main = |child: &Greenlet| child.parent().is_some_and(|parent| parent.is_main());
    assert!(parent_is_main(&child));
    assert!(child.switch::<bool>(()).unwrap());
    assert!(parent_is_main(&child));
    child.switch::<()>(()).unwrap();
    assert!(child.is_dead() && parent_is_main(&child));
}

// PA-2
#[test]
fn a_parent_can_be_changed_in_every_state_and_nothing_moves() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let parents: Vec<Greenlet> = (0..4)
        .map(|number| {
            let log = log.clone();
            Greenlet::new(move |got: &'static str| {
                log.add(format!("parent {number} got {got}"));
                Ok(())
            })
        })
        .collect();
    let last = parents[2].clone();
    let child = Greenlet::new(move |(): ()| {
        up::<()>(())?;
        getcurrent().set_parent(&last)?; // its own, while it runs
        Ok("the outcome")
    });
    child.set_parent(&parents[0]).unwrap(); // pending
    assert_eq!(child.parent().as_ref(), Some(&parents[0]));
    child.set_parent(&getcurrent()).unwrap();
    child.switch::<()>(()).unwrap();
    child.set_parent(&parents[1]).unwrap(); // suspended
    assert!(log.take().is_empty());
    child.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["parent 2 got the outcome"]);
    child.set_parent(&parents[3]).unwrap(); // dead
    assert!(log.take().is_empty());
    child.switch::<()>("a value").unwrap();
    assert_eq!(log.take(), ["parent 3 got a value"]);
    assert_eq!(
        (parents[0].state(), parents[1].state()),
        (State::Pending, State::Pending)
    );
}

// PA-3
#[test]
fn the_parent_of_main_cannot_be_set() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| Ok(()));
    let main = getcurrent();
    for parent in [&child, &main] {
        let error = main.set_parent(parent).unwrap_err();
        assert!(error.is_main() && !error.is_cycle(), "{error}");
        assert!(main.parent().is_none());
    }
}

// PA-6, PA-11
#[test]
fn a_cycle_is_refused_at_every_depth_and_the_old_parent_stays() {
    let _no_leaks = NoLeaks::watch();
    let mut chain = vec![Greenlet::new(|(): ()| Ok(()))];
    for _ in 0..5 {
        let parent = chain.last().unwrap();
        let child = Greenlet::builder().parent(parent).build(|(): ()| Ok(()));
        chain.push(child);
    }
    for candidate in &chain {
        let error = chain[0].set_parent(candidate).unwrap_err();
        assert!(error.is_cycle() && !error.is_main(), "{error}");
        assert_eq!(chain[0].parent(), Some(getcurrent()));
    }
    let error = chain[2].set_parent(&chain[4]).unwrap_err();
    assert!(error.is_cycle());
    assert_eq!(chain[2].parent().as_ref(), Some(&chain[1]));
    // The same greenlets in the opposite order form no cycle.
    chain[4].set_parent(&chain[2]).unwrap();
    assert_eq!(chain[4].parent().as_ref(), Some(&chain[2]));
}

// PA-6
#[test]
fn a_running_greenlet_cannot_make_a_cycle_either() {
    let _no_leaks = NoLeaks::watch();
    let refused = Greenlet::new(|(): ()| {
        let own_child = Greenlet::new(|(): ()| Ok(()));
        Ok(getcurrent().set_parent(&own_child).unwrap_err().is_cycle())
    });
    assert!(refused.switch::<bool>(()).unwrap());
}

// PA-7
#[test]
fn a_cycle_is_found_at_the_end_of_a_long_lineage() {
    let _no_leaks = NoLeaks::watch();
    let first = Greenlet::new(|(): ()| Ok(()));
    let mut last = first.clone();
    for _ in 0..50_000 {
        last = Greenlet::builder().parent(&last).build(|(): ()| Ok(()));
    }
    assert!(first.set_parent(&last).unwrap_err().is_cycle());
    let outside = Greenlet::builder().parent(&last).build(|(): ()| Ok(()));
    assert_eq!(outside.parent().as_ref(), Some(&last));
    // Dropping the lineage does not recurse.
    drop((outside, last));
    assert_eq!(first.state(), State::Pending);
}

// PA-12
#[test]
fn children_keep_their_ancestors_and_the_last_child_lets_them_end() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let waits = |parent: &Greenlet, name: &'static str| {
        let log = log.clone();
        let main = getcurrent();
        let greenlet = Greenlet::builder().parent(parent).build(move |(): ()| {
            let ended = main.switch::<()>(());
            log.add(format!("{name} ends"));
            ended
        });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let grandparent = waits(&getcurrent(), "grandparent");
    let parent = waits(&grandparent, "parent");
    let child = waits(&parent, "child");
    let weak = [grandparent.downgrade(), parent.downgrade()];
    drop(grandparent);
    drop(parent);
    assert!(log.take().is_empty(), "held by the link of their child");
    drop(child);
    assert_eq!(log.take(), ["child ends", "parent ends", "grandparent ends"]);
    assert!(weak.iter().all(|weak| weak.upgrade().is_none()));
}

// PA-13
#[test]
fn after_a_change_the_new_parent_may_pass_the_outcome_up() {
    let _no_leaks = NoLeaks::watch();
    for fails in [false, true] {
        let log = Log::new();
        let inside = log.clone();
        let parent = Greenlet::new(move |(): ()| {
            let outcome: Result<&str> = up(());
            inside.add("the new parent sees it");
            outcome
        });
        parent.switch::<()>(()).unwrap();
        let child = Greenlet::new(move |(): ()| {
            up::<()>(())?;
            if fails {
                bail!("outcome");
            }
            Ok("outcome")
        });
        child.switch::<()>(()).unwrap();
        child.set_parent(&parent).unwrap();
        let at_main = child.switch::<&str>(());
        match at_main {
            Ok(value) => assert_eq!((value, fails), ("outcome", false)),
            Err(error) => assert_eq!((error.to_string(), fails), ("outcome".to_owned(), true)),
        }
        assert_eq!(log.take(), ["the new parent sees it"]);
        assert!(parent.is_dead());
    }
}

// PA-14
#[test]
fn during_an_end_the_dropping_greenlet_is_the_parent_and_afterwards_the_old_one() {
    let _no_leaks = NoLeaks::watch();
    /// The code that the greenlet runs while it is being ended.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Then {
        Ends,
        LivesOn,
        ChangesParentAndEnds,
    }
    for then in [Then::Ends, Then::LivesOn, Then::ChangesParentAndEnds] {
        let old_parent = Greenlet::new(|(): ()| Ok(()));
        let kept: Rc<std::cell::RefCell<Option<Greenlet>>> = Rc::default();
        let keep = Rc::clone(&kept);
        let child = Greenlet::builder()
            .parent(&old_parent)
            .build(move |main: Greenlet| {
                let ended = main.switch::<()>(());
                assert_eq!(getparent().as_ref(), Some(&main), "{then:?}");
                *keep.borrow_mut() = Some(getcurrent());
                match then {
                    Then::Ends => {}
                    Then::LivesOn => up::<()>(())?,
                    Then::ChangesParentAndEnds => {
                        let passes_on = Greenlet::builder()
                            .parent(&main)
                            .build(|_: greenlet::Value| Ok(()));
                        getcurrent().set_parent(&passes_on)?;
                    }
                }
                ended
            });
        child.switch::<()>(getcurrent()).unwrap();
        drop(child);
        let kept = kept.take().expect("it kept itself");
        assert_eq!(kept.is_dead(), then != Then::LivesOn, "{then:?}");
        assert_eq!(kept.parent(), Some(old_parent), "{then:?}");
        kept.end();
        assert!(kept.is_dead());
    }
}

// PA-12
#[test]
fn a_parent_held_only_by_its_dead_child_ends_with_it() {
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
    drop(parent);
    assert_eq!(drops.count(), 0);
    drop(dead);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_greenlet_suspended_in_switch_to_parent_holds_no_handle_of_itself() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let line = line!() + 3;
    let child = Greenlet::new(move |(): ()| {
        let _witness = witness;
        switch_to_parent::<()>(1_u8)
    });
    assert_eq!(child.switch::<u8>(()).unwrap(), 1);
    assert_eq!(child.suspended_at().unwrap().line(), line);
    drop(child);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_greenlet_suspended_in_switch_to_parent_holds_no_handle_of_its_parent() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| switch_to_parent::<()>(2_u8));
    let target = child.clone();
    let parent = Greenlet::new(move |(): ()| {
        target.set_parent(&getcurrent())?;
        let got: u8 = target.switch(())?;
        up::<()>(got)
    });
    assert_eq!(parent.switch::<u8>(()).unwrap(), 2);
    child.set_parent(&getcurrent()).unwrap();
    let weak = parent.downgrade();
    drop(parent);
    assert!(weak.upgrade().is_none());
}

#[test]
fn switch_to_parent_starts_a_pending_parent_and_is_traced() {
    let _no_leaks = NoLeaks::watch();
    let parent = Greenlet::new(|n: u8| Ok(n + 1));
    let child = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| switch_to_parent::<()>(1_u8));
    assert_eq!(child.switch::<u8>(()).unwrap(), 2);
    let log = Log::new();
    let seen = log.clone();
    settrace(Some(Tracer::new(move |event| {
        seen.add(format!("{:?}", event.kind));
        Ok(())
    })));
    let traced = Greenlet::new(|(): ()| switch_to_parent::<()>(3_u8));
    let got = traced.switch::<u8>(());
    settrace(None);
    assert_eq!((got.unwrap(), log.take().len()), (3, 2));
}

#[test]
fn in_main_switch_to_parent_is_an_error_and_drops_the_value() {
    let drops = Drops::new();
    let error = switch_to_parent::<()>(drops.witness()).unwrap_err();
    assert!(error.downcast::<ParentError>().unwrap().is_main());
    assert_eq!(drops.count(), 1);
}
