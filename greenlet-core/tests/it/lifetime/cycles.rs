//! Reference cycles that keep a greenlet suspended, and ways to break them.

use std::cell::RefCell;
use std::rc::Rc;

use greenlet::{Greenlet, GreenletExit, WeakGreenlet, end_suspended, getcurrent};

use crate::support::{Drops, Log, up};

// GC-1: a dead greenlet has neither function nor stack, so a cycle through these is broken.
#[test]
fn a_dead_greenlet_is_in_no_cycle() {
    let drops = Drops::new();
    let witness = drops.witness();
    let own: Rc<RefCell<Option<Greenlet>>> = Rc::default();
    let captured = own.clone();
    let greenlet = Greenlet::new(move |(): ()| {
        let (_captured, _witness) = (captured, witness);
        Ok(())
    });
    *own.borrow_mut() = Some(greenlet.clone());
    drop(own); // only its function holds a handle of it now
    let weak = greenlet.downgrade();
    greenlet.switch::<()>(()).unwrap();
    assert_eq!(drops.count(), 1);
    drop(greenlet);
    assert!(weak.upgrade().is_none());
}

// GC-2, GC-3, GC-4: a suspended greenlet whose stack holds a handle of itself stays suspended when
// all other handles are dropped. A throw ends it.
#[test]
fn a_greenlet_is_kept_by_a_handle_of_itself_on_its_stack() {
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let _own = getcurrent();
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    let weak = greenlet.downgrade();
    drop(greenlet);
    let kept = weak.upgrade().expect("its own stack keeps it");
    assert!(kept.is_active());
    assert_eq!(drops.count(), 0);
    assert!(kept.kill().unwrap().is_exit());
    drop(kept);
    assert_eq!(drops.count(), 1);
    assert!(weak.upgrade().is_none());
}

// GC-3, GN-10: a weak handle of itself, or a temporary handle, keeps no greenlet alive.
#[test]
fn a_greenlet_is_not_kept_by_a_weak_handle_of_itself() {
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |own: WeakGreenlet| {
        let _witness = witness;
        assert!(own.upgrade().is_some_and(|own| own.is_current()));
        up::<()>(())
    });
    greenlet.switch::<()>(greenlet.downgrade()).unwrap();
    drop(greenlet);
    assert_eq!(drops.count(), 1);
}

// GC-3, UD-9: a suspended child on the stack of its suspended creator holds the creator by its
// parent link. Dropping ends neither; `end_suspended` and `run_to_end` end both.
#[test]
fn a_child_held_by_its_parent_keeps_both() {
    let drops = Drops::new();
    let (witness, child_witness) = (drops.witness(), drops.witness());
    let log = Log::new();
    let inside = log.clone();
    let creator = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let main = greenlet::getparent().unwrap();
        let child = Greenlet::new(move |(): ()| {
            let _witness = child_witness;
            let error = up::<()>(()).unwrap_err();
            inside.add(error.downcast::<GreenletExit>()?.reason().unwrap_or("none"));
            Ok(())
        });
        child.switch::<()>(())?;
        main.switch::<()>(())
    });
    creator.switch::<()>(()).unwrap();
    let weak = creator.downgrade();
    drop(creator);
    assert_eq!(drops.count(), 0);
    assert!(weak.upgrade().is_some());
    end_suspended().unwrap();
    assert_eq!(drops.count(), 2);
    assert!(weak.upgrade().is_none());
    // The creator was ended first, and its stack dropped the handle of the child.
    assert_eq!(log.take(), ["the last handle of the greenlet was dropped"]);
}

// GC-6: the counterpart of a garbage collection that switches. A value that holds suspended
// greenlets is dropped inside the clean-up of another greenlet, while a third one ends that
// greenlet.
#[test]
fn ending_inside_another_destructor_disturbs_neither() {
    struct EndsAnother(Option<Greenlet>, Log);
    impl Drop for EndsAnother {
        fn drop(&mut self) {
            self.1.add("destructor begins");
            self.0 = None;
            self.1.add("destructor ends");
        }
    }
    let log = Log::new();
    let make = |name: &'static str, holds: Option<Greenlet>| {
        let log = log.clone();
        let greenlet = Greenlet::new(move |(): ()| {
            let _holds = EndsAnother(holds, log.clone());
            let exit = up::<()>(());
            log.add(format!("{name} got an exit"));
            exit
        });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let first = make("first", None);
    let second = make("second", Some(first));
    drop(vec![Some(second), None]);
    assert_eq!(
        log.take(),
        [
            "second got an exit",
            "destructor begins",
            "first got an exit",
            "destructor begins",
            "destructor ends",
            "destructor ends"
        ]
    );
}
