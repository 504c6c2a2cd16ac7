//! What happens to a greenlet that lost its last handle, was thrown an exit, and still is suspended when
//! control comes back to whoever let go? Here this library differs from Python's on purpose: if nobody has
//! a handle of it, it is unwound by force. (More on last handles: `last_handle.rs`.)

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, State, Value, getcurrent, getmain};

use crate::support::{Drops, Log, NoLeaks, catch_reports, take_reports, up};

/// A greenlet that catches what it is thrown, whoever throws it, and switches to its parent again.
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

// DE-8, UD-6: unwinding by force is no panic: no hook is called, nobody sees `panicking` afterwards, and
// destructors have run when the drop is over.
#[test]
fn a_forced_unwind_calls_no_panic_hook() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    thread_local!(static PANICS: Cell<u32> = const { Cell::new(0) });
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        let hook = panic::take_hook();
        // Stays, for the tests of other threads: it adds a count to what was there.
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

// DE-8: it does not matter how control comes back: here a third greenlet brings it, and the one that was
// asked to end waits in a switch to that one.
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
        // It holds the last handle of the third one while it waits.
        let result = third.switch::<()>(());
        inside.add("never reached");
        result
    });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!(log.take(), ["asked: true"]);
    assert_eq!(drops.count(), 1);
    // It was let go of while a stack was being unwound, so its end is owed, and paid by the next switch.
    Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
    assert_eq!(third_drops.count(), 1);
    assert_eq!(take_reports(), [""; 0]);
}

// DE-9: somebody has a handle of it: an ordinary greenlet with its old parent, which goes on where it is.
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

// DE-9, PA-14: the handle that kept it goes when its old parent is set back: nobody has one then, so it is
// unwound after all.
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
        // The link to the parent alone holds the keeper now, and the keeper alone holds us.
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

// DE-8: one that stops the unwinding and switches again is reported once. It is left suspended for good:
// its stack is not given to anyone, its destructors do not run, and others are not disturbed.
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
