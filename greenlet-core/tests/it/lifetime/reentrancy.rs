//! Attempts to break the core from safe code: one operation keeps a greenlet suspended while
//! another one ends it.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use greenlet::{Greenlet, Tracer, WeakGreenlet, getmain, raw, settrace, switch_to_parent};

use crate::support::{Drops, NoLeaks, Witness, on_drop, up};

type Later<T> = Rc<RefCell<Option<T>>>;

fn later<T>() -> Later<T> {
    Rc::new(RefCell::new(None))
}

fn get(handle: &Later<WeakGreenlet>) -> Greenlet {
    handle.borrow().as_ref().unwrap().upgrade().unwrap()
}

#[test]
fn a_greenlet_kept_suspended_between_the_stages_of_its_end_stays_suspended() {
    let _leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let keeper: Later<WeakGreenlet> = later();
    let its_keeper = keeper.clone();
    let kept = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let ended = up::<()>(());
        assert!(ended.is_err());
        get(&its_keeper).switch::<()>(())
    });
    kept.switch::<()>(()).unwrap();
    let was_dropped = Rc::new(Cell::new(None));
    let (to_keep, observed, say) = (kept.clone(), drops.clone(), was_dropped.clone());
    let keeping = Greenlet::new(move |(): ()| {
        raw::keep_suspended(&to_keep, || {
            up::<()>(())?;
            say.set(Some(observed.count()));
            anyhow::Ok(())
        })
    });
    *keeper.borrow_mut() = Some(keeping.downgrade());

    kept.end(); // the first stage switches to the keeper, which returns here
    assert!(kept.is_active());
    assert_eq!(drops.count(), 0);
    keeping.switch::<()>(()).unwrap();
    assert_eq!(was_dropped.get(), Some(0));
    assert!(kept.is_dead()); // its end ran when `keep_suspended` returned
    assert_eq!(drops.count(), 1);
}

/// Ends a greenlet that puts its ender below itself in the first stage, and ends in the second.
#[test]
fn an_end_makes_no_cycle_of_parents_between_its_stages() {
    let _leaks = NoLeaks::watch();
    let ender: Later<WeakGreenlet> = later();
    let known = ender.clone();
    let seen = Rc::new(Cell::new(None));
    let say = seen.clone();
    let ended: Later<WeakGreenlet> = later();
    let itself = ended.clone();
    let victim = Greenlet::new(move |(): ()| {
        let (myself, above) = (itself.clone(), known.clone());
        let _in_the_second_stage = on_drop(move || {
            // Count the steps to main. In a cycle the loop would never end.
            let mut steps = 0;
            let mut next = get(&myself).parent();
            while let Some(parent) = next.filter(|_| steps < 100) {
                next = parent.parent();
                steps += 1;
            }
            say.set(Some((steps, get(&myself).parent() == Some(get(&above)))));
        });
        assert!(up::<()>(()).is_err());
        get(&itself).set_parent(&getmain())?;
        get(&known).set_parent(&get(&itself))?;
        get(&known).switch::<()>(())
    });
    *ended.borrow_mut() = Some(victim.downgrade());
    victim.switch::<()>(()).unwrap();
    let to_end = victim.clone();
    let ending = Greenlet::new(move |(): ()| {
        to_end.end();
        Ok(())
    });
    *ender.borrow_mut() = Some(ending.downgrade());
    ending.switch::<()>(()).unwrap();
    assert_eq!(seen.get(), Some((2, true)));
    assert!(victim.is_dead() && ending.is_dead());
}

#[test]
fn an_end_leaves_no_greenlet_running_below_a_locked_one() {
    let _leaks = NoLeaks::watch();
    let ender: Later<WeakGreenlet> = later();
    let known = ender.clone();
    let child: Later<Greenlet> = later();
    let made = child.clone();
    let locked = Greenlet::new(move |(): ()| {
        let itself: Later<WeakGreenlet> = later();
        let myself = itself.clone();
        let victim = Greenlet::new(move |(): ()| {
            assert!(getmain().switch::<()>(()).is_err());
            get(&myself).set_parent(&getmain())?;
            get(&known).set_parent(&get(&myself))?;
            let _ = get(&known).switch::<()>(());
            Ok(())
        });
        *itself.borrow_mut() = Some(victim.downgrade());
        *made.borrow_mut() = Some(victim.clone());
        victim.switch_owned::<()>(())?;
        Ok(())
    });
    locked.switch::<()>(()).unwrap();
    let victim = child.take().unwrap();
    assert!(raw::lock_for_await(&locked));
    let to_end = victim.clone();
    let ending = Greenlet::new(move |(): ()| {
        to_end.end();
        // The running greenlet is not below the locked one, so its outcome reaches main.
        Ok(())
    });
    *ender.borrow_mut() = Some(ending.downgrade());
    ending.switch::<()>(()).unwrap();
    assert!(ending.is_dead());
    victim.end();
    raw::unlock(&locked);
    locked.end();
}

#[test]
fn a_greenlet_resumed_by_its_last_handle_ends_when_it_leaves() {
    let _leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let waiting = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<()>(())?;
        up::<()>(())
    });
    waiting.switch::<()>(()).unwrap();
    waiting.switch_owned::<()>(()).unwrap();
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_value_is_dropped_if_deferred_ends_unwind_before_its_switch() {
    let _leaks = NoLeaks::watch();
    let drops = Drops::new();
    let big = (drops.witness(), [0_u64; 8]);
    let target = Greenlet::new(|(_, _): (Witness, [u64; 8])| Ok(()));
    let leaves_a_bomb = Greenlet::new(|(): ()| {
        let _ = up::<()>(());
        Ok(on_drop(|| panic!("in a deferred end")))
    });
    leaves_a_bomb.switch::<()>(()).unwrap();
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _owed = leaves_a_bomb;
        resume_unwind(Box::new(()));
    }));
    assert!(unwound.is_err());
    let sent = catch_unwind(AssertUnwindSafe(|| target.switch::<()>(big)));
    assert!(sent.is_err(), "the deferred end was to panic");
    assert_eq!(drops.count(), 1);
}

const TEXT: &str = "what arrives, and is longer than a word";

/// Overwrites the unused part of the current stack, and the stack whose greenlet finished last.
fn uses_stacks() {
    #[inline(never)]
    fn writes_all_over() {
        std::hint::black_box(&mut [0x41_u8; 64 << 10]);
    }
    writes_all_over();
    let other = Greenlet::new(|(): ()| {
        writes_all_over();
        Ok(())
    });
    other.switch::<()>(()).unwrap();
}

#[test]
fn a_value_is_moved_out_before_the_last_handle_of_its_sender_is_dropped() {
    let _leaks = NoLeaks::watch();
    let suspended = Greenlet::new(|(): ()| {
        let _ = up::<()>(String::from(TEXT));
        uses_stacks();
        Ok(())
    });
    assert_eq!(suspended.switch_owned::<String>(()).unwrap(), TEXT);
}

#[test]
fn a_value_is_moved_out_before_the_attachment_of_its_sender_is_dropped() {
    struct Attached;

    impl Drop for Attached {
        fn drop(&mut self) {
            uses_stacks();
        }
    }

    let _leaks = NoLeaks::watch();
    let ended = Greenlet::new(|(): ()| Ok(String::from(TEXT)));
    ended.attach(Rc::new(Attached));
    assert_eq!(ended.switch_owned::<String>(()).unwrap(), TEXT);

    let ended = Greenlet::new(|(): ()| Ok(String::from(TEXT)));
    ended.attach(Rc::new(Attached));
    let place = raw::Place::new(ended);
    let at = std::panic::Location::caller();
    let emptied = raw::switch_in::<String>(&place, (), at);
    assert_eq!(emptied.unwrap().unwrap(), TEXT);
}

#[test]
fn a_value_is_moved_out_before_the_last_handle_of_an_old_parent_is_dropped() {
    /// Sends the text from a few calls deeper, so that later calls overwrite that part of the
    /// stack.
    #[inline(never)]
    fn sends_text(to: &Greenlet, calls: usize) -> anyhow::Result<()> {
        match std::hint::black_box(calls) {
            0 => to.switch(String::from(TEXT)),
            calls => std::hint::black_box(sends_text(to, calls - 1)),
        }
    }

    let _leaks = NoLeaks::watch();
    let child: Later<Greenlet> = later();
    let known = child.clone();
    let parent = Greenlet::new(move |(): ()| {
        settrace(None);
        let child = known.take().unwrap();
        child.set_parent(&getmain())?; // now only the switch of `child` has a handle of this greenlet
        let _ = sends_text(&child, 8);
        drop(child);
        uses_stacks();
        Ok(())
    });
    let asking = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| Ok(switch_to_parent::<String>(())? == TEXT));
    drop(parent);
    *child.borrow_mut() = Some(asking.clone());
    settrace(Some(Tracer::new(|_| Ok(())))); // so that no switch takes the fast path
    let outcome = asking.switch::<bool>(());
    settrace(None);
    assert!(outcome.unwrap());
}
