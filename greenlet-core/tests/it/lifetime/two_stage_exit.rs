//! The second stage of an end. A greenlet lost its last handle, was thrown an exit, and is still
//! suspended when control returns to the dropping greenlet. If no handle of it exists then, it is
//! unwound by force; Python leaves it suspended. (`last_handle.rs` has more about last handles.)

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, State, Value, getcurrent, getmain};

use crate::support::{Drops, Log, NoLeaks, catch_reports, take_reports, up};

/// Returns a greenlet that catches every error and switches to its parent again.
fn stubborn(drops: &Drops, log: &Log) -> Greenlet {
    let (witness, log) = (drops.witness(), log.clone());
    let greenlet = Greenlet::builder()
        .name("stubborn")
        .build(move |(): ()| -> Result<()> {
            let _witness = witness;
            loop {
                let asked = up::<()>(());
                log.add(if asked.is_err() { "asked to end" } else { "resumed" });
            }
        });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// DE-8, UD-6: a forced unwind is no panic. No hook is called, `panicking` is false afterwards, and
// destructors have run when the drop returns.
#[test]
fn a_forced_unwind_calls_no_panic_hook() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    thread_local!(static PANICS: Cell<u32> = const { Cell::new(0) });
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        let hook = panic::take_hook();
        // The hook stays installed, because tests of other threads run too. It counts and calls the
        // previous hook.
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            hook(info);
        }));
    });
    let (drops, log) = (Drops::new(), Log::new());
    drop(stubborn(&drops, &log));
    assert_eq!(drops.count(), 1);
    assert_eq!(log.take(), ["asked to end"]);
    assert_eq!(PANICS.get(), 0);
    assert!(!std::thread::panicking());
    assert_eq!(take_reports(), [""; 0]);
}

// DE-8: it does not matter how control returns. Here a third greenlet brings it back, and the
// greenlet that is being ended waits in a switch to that one.
#[test]
fn a_greenlet_is_unwound_whichever_greenlet_resumes_the_dropper() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let (drops, third_drops, log) = (Drops::new(), Drops::new(), Log::new());
    let (witness, third_witness, inside) = (drops.witness(), third_drops.witness(), log.clone());
    let third = Greenlet::new(move |(): ()| {
        let _witness = third_witness;
        up::<()>(()) // its parent is main
    });
    let greenlet = Greenlet::new(move |(): ()| -> Result<()> {
        let _witness = witness;
        let asked = up::<()>(());
        inside.add(format!("asked: {}", asked.is_err()));
        // It holds the last handle of the third greenlet while it waits.
        let result = third.switch::<()>(());
        inside.add("never reached");
        result
    });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!(log.take(), ["asked: true"]);
    assert_eq!(drops.count(), 1);
    // The handle was dropped during an unwind, so the end is deferred, and the next switch runs it.
    Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
    assert_eq!(third_drops.count(), 1);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-9: if a handle exists, the greenlet is an ordinary one with its old parent, and continues
// where it is.
#[test]
fn a_resurrected_greenlet_is_not_unwound() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let parent = Greenlet::builder().name("parent").build(|_: Value| Ok(()));
    let shelf: Rc<RefCell<Option<Greenlet>>> = Rc::default();
    let (drops, store) = (Drops::new(), shelf.clone());
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<()>(()).unwrap_err();
        store.replace(Some(getcurrent()));
        let number: u32 = up("still here")?;
        Ok(number + 1)
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet.set_parent(&parent).unwrap();
    drop(greenlet);
    let greenlet = shelf.take().expect("it stored a handle of itself");
    assert_eq!(greenlet.state(), State::Active);
    assert_eq!(greenlet.parent(), Some(parent));
    assert_eq!(drops.count(), 0);
    greenlet.set_parent(&getcurrent()).unwrap();
    assert_eq!(greenlet.switch::<u32>(7_u32).unwrap(), 8);
    assert_eq!(drops.count(), 1);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-9, PA-14: the stored handle is dropped when the old parent is restored. No handle exists then,
// so the greenlet is unwound after all.
#[test]
fn a_handle_dropped_with_the_parent_meanwhile_does_not_resurrect() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let (drops, keeper_drops) = (Drops::new(), Drops::new());
    let (witness, keeper_witness) = (drops.witness(), keeper_drops.witness());
    let greenlet = Greenlet::new(move |(): ()| -> Result<()> {
        let _witness = witness;
        up::<()>(()).unwrap_err();
        let own = getcurrent().downgrade();
        let keeper = Greenlet::builder().parent(&getmain()).build(move |(): ()| {
            let _witness = keeper_witness;
            // The handle is held until this switch comes back.
            own.upgrade().unwrap().switch::<()>(())
        });
        keeper.switch::<()>(())?;
        getcurrent().set_parent(&keeper)?;
        // Only the parent link holds the keeper now, and only the keeper holds this greenlet.
        drop(keeper);
        getmain().switch::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!((drops.count(), keeper_drops.count()), (1, 1));
    assert_eq!(take_reports(), [""; 0]);
}

// DE-8: a function that stops the unwinding and then returns has ended, as any other.
#[test]
fn a_greenlet_that_stops_the_unwinding_and_returns_has_ended() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let (drops, log) = (Drops::new(), Log::new());
    let (witness, inside) = (drops.witness(), log.clone());
    let greenlet = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<()>(()).unwrap_err();
        let caught = panic::catch_unwind(AssertUnwindSafe(|| up::<()>(())));
        inside.add(format!("caught: {}", caught.is_err()));
        Ok(())
    });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!(log.take(), ["caught: true"]);
    assert_eq!(drops.count(), 1);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-8: a greenlet that stops the unwinding and switches again is reported once and stays suspended
// for good. Its stack is never reused, its destructors do not run, and other greenlets are not
// affected.
#[test]
fn a_greenlet_that_stops_the_unwinding_and_continues_is_reported_and_left() {
    catch_reports();
    let drops = Drops::new();
    let witness = drops.witness();
    let stacks = greenlet::stacks_in_use();
    let greenlet = Greenlet::builder()
        .name("deaf")
        .build(move |(): ()| -> Result<()> {
            let _witness = witness;
            loop {
                let _ = panic::catch_unwind(|| up::<()>(()));
            }
        });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!(take_reports(), ["deaf: refused to end"]);
    assert_eq!(greenlet::stacks_in_use(), stacks + 1);
    let other = Greenlet::new(|n: u32| Ok(n + 1));
    assert_eq!(other.switch::<u32>(1_u32).unwrap(), 2);
    assert_eq!(drops.count(), 0);
    assert_eq!(take_reports(), [""; 0]);
}
