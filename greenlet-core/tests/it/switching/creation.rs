//! The creation of greenlets, and the properties of handles.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;

use greenlet::{Greenlet, GreenletExit, StackError, State, getcurrent, getparent, no_switch};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

// CR-1
#[test]
fn creating_a_greenlet_runs_nothing_and_takes_no_stack() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    // No machine has such a stack. The start of the greenlet fails, not its creation.
    let huge = Greenlet::builder().stack_size(usize::MAX).build(|(): ()| Ok(()));
    let child = Greenlet::new(move |(): ()| {
        inside.add("ran");
        Ok(())
    });
    assert_eq!((huge.state(), child.state()), (State::Pending, State::Pending));
    assert!(getcurrent().is_main());
    assert!(log.take().is_empty());
    assert!(huge.switch::<()>(()).unwrap_err().is::<StackError>());
    child.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["ran"]);
}

// CR-2, CR-3
#[test]
fn the_default_parent_is_the_creating_greenlet() {
    let _no_leaks = NoLeaks::watch();
    let parent_of_new = || Greenlet::new(|(): ()| Ok(())).parent().unwrap();
    assert!(parent_of_new().is_main());
    assert!(
        Greenlet::builder()
            .build(|(): ()| Ok(()))
            .parent()
            .unwrap()
            .is_main()
    );

    let maker = Greenlet::new(move |(): ()| Ok(parent_of_new() == getcurrent()));
    assert!(maker.switch::<bool>(()).unwrap());

    // `getcurrent` works also in a destructor that runs because the greenlet is being ended.
    let seen = Rc::new(Cell::new(None));
    let seen_inside = Rc::clone(&seen);
    let ended = Greenlet::new(move |(): ()| {
        let _clean_up = on_drop(move || {
            seen_inside.set(Some(parent_of_new() == getcurrent() && !getcurrent().is_main()));
        });
        up::<()>(())
    });
    ended.switch::<()>(()).unwrap();
    drop(ended);
    assert_eq!(seen.get(), Some(true));
}

// CR-5
#[test]
fn a_greenlet_in_any_state_can_be_a_parent() {
    let _no_leaks = NoLeaks::watch();
    let pending = Greenlet::new(|value: &str| Ok(format!("pending got {value}")));
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let suspended = Greenlet::new(|(): ()| {
        let value: &str = up(())?;
        Ok(format!("suspended got {value}"))
    });
    suspended.switch::<()>(()).unwrap();

    for (parent, expected) in [(pending, "pending got v"), (suspended, "suspended got v")] {
        let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok("v"));
        assert_eq!(child.parent(), Some(parent));
        assert_eq!(child.switch::<String>(()).unwrap(), expected);
    }
    for parent in [dead, getcurrent()] {
        let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok("v"));
        assert_eq!(child.parent(), Some(parent));
        assert_eq!(child.switch::<&str>(()).unwrap(), "v");
    }
}

// CR-7
#[test]
fn the_first_switch_brings_the_argument() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(first, second): (i32, &str)| Ok(format!("{first} {second}")));
    assert_eq!(child.switch::<String>((1, "two")).unwrap(), "1 two");
}

// CR-9
#[test]
fn each_thread_has_one_main_greenlet_without_creating_it() {
    let _no_leaks = NoLeaks::watch();
    let main = getcurrent();
    assert!(main.is_main() && main.is_active() && main.is_current());
    assert_eq!(main, getcurrent());
    assert_eq!(main.name(), Some("main"));
    let seen = Greenlet::new(|(): ()| Ok((getcurrent().is_main(), getparent().unwrap())));
    assert_eq!(seen.switch::<(bool, Greenlet)>(()).unwrap(), (false, main));
    let other = std::thread::spawn(|| getcurrent().is_main() && getparent().is_none());
    assert!(other.join().unwrap());
}

// CR-10
#[test]
fn a_user_type_can_wrap_a_greenlet() {
    let _no_leaks = NoLeaks::watch();
    /// The counterpart of a Python subclass with a `run` method.
    struct Counter {
        step: u32,
    }
    impl Counter {
        fn run(&self, mut total: u32) -> anyhow::Result<u32> {
            while total < 10 {
                total += up::<u32>(total)? * self.step;
            }
            Ok(total)
        }
        fn into_greenlet(self) -> Greenlet {
            Greenlet::new(move |first| self.run(first))
        }
    }
    let counter = Counter { step: 2 }.into_greenlet();
    assert_eq!(counter.switch::<u32>(1_u32).unwrap(), 1);
    assert_eq!(counter.switch::<u32>(2_u32).unwrap(), 5);
    assert_eq!(counter.switch::<u32>(3_u32).unwrap(), 11);
    assert!(counter.is_dead());
}

// CR-12
#[test]
fn getcurrent_is_the_greenlet_that_was_switched_to() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| Ok(getcurrent().downgrade()));
    let seen: greenlet::WeakGreenlet = child.switch(()).unwrap();
    assert_eq!(seen.upgrade(), Some(child));
}

// CR-13
#[test]
fn equality_and_hash_are_by_identity() {
    let make = || Greenlet::builder().name("same").build(|(): ()| Ok(()));
    let (one, other) = (make(), make());
    assert_eq!(one, one.clone());
    assert_ne!(one, other);
    let mut set = HashSet::from([one.clone(), one.clone(), other.clone()]);
    assert_eq!(set.len(), 2);
    one.switch::<()>(()).unwrap();
    assert!(set.remove(&one), "the hash does not change with the state");
    assert!(!set.contains(&one) && set.contains(&other));
}

// CR-14
#[test]
fn a_clone_is_the_same_greenlet_not_a_second_execution() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let child = Greenlet::new(move |(): ()| {
        inside.add("start");
        up::<()>(())?;
        inside.add("end");
        Ok(())
    });
    let copy = child.clone();
    child.switch::<()>(()).unwrap();
    copy.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["start", "end"]);
    assert!(child.is_dead() && copy.is_dead());
}

// CR-15
#[test]
fn one_value_of_each_type_can_be_attached() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let child = Greenlet::new(|(): ()| Ok(*getcurrent().attached::<u32>().unwrap()));
    assert!(child.attached::<u32>().is_none());
    assert!(child.attach(Rc::new(7_u32)));
    assert!(!child.attach(Rc::new(8_u32)), "there is room for one `u32`");
    assert!(child.attached::<&str>().is_none());
    assert!(child.attach(Rc::new("second")) && child.attach(Rc::new('3')));
    assert!(!child.attach(Rc::new("another second")));
    let below = Greenlet::builder().parent(&child).build(|(): ()| Ok(()));
    assert_eq!(below.nearest_attached::<&str>().as_deref(), Some(&"second"));
    assert!(below.attached::<&str>().is_none());
    assert_eq!(child.switch::<u32>(()).unwrap(), 7);
    assert_eq!(*child.attached::<u32>().unwrap(), 7, "a dead greenlet keeps it");
    assert_eq!(*child.attached::<char>().unwrap(), '3');

    let other = Greenlet::new(|(): ()| Ok(()));
    other.attach(Rc::new(drops.witness()));
    other.attach(Rc::new(Some(drops.witness())));
    assert!(other.attached::<&str>().is_none());
    drop(other);
    assert_eq!(drops.count(), 2);
}

// CR-16
#[test]
fn weak_handles_keep_nothing_alive() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let suspended = Greenlet::new(move |(): ()| {
        let _witness = witness;
        up::<()>(())
    });
    suspended.switch::<()>(()).unwrap();
    let weak = suspended.downgrade();
    assert_eq!(weak.upgrade().as_ref(), Some(&suspended));
    drop(suspended);
    assert_eq!(drops.count(), 1);
    assert!(weak.upgrade().is_none());
}

// CR-18
#[test]
fn creating_a_greenlet_ends_no_other() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let let_go = Greenlet::new(move |(): ()| {
        let ended = up::<()>(());
        inside.add("ended");
        ended
    });
    let_go.switch::<()>(()).unwrap();
    no_switch(|| {
        drop(let_go);
        let made = Greenlet::new(|(): ()| Ok(()));
        log.add("made");
        drop(made);
    });
    assert_eq!(log.take(), ["made", "ended"]);
}

// RN-1
#[test]
fn a_pending_greenlet_holds_its_function_until_it_is_ended() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let child = Greenlet::new(move |(): ()| {
        drop(witness);
        Ok(())
    });
    assert_eq!(drops.count(), 0);
    child.end();
    assert_eq!((drops.count(), child.state()), (1, State::Dead));
}

// RN-2
#[test]
fn a_function_runs_once() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let child = Greenlet::new(move |value: i32| {
        inside.add(format!("ran with {value}"));
        Ok(value)
    });
    for value in 1..4 {
        assert_eq!(child.switch::<i32>(value).unwrap(), value);
    }
    assert_eq!(log.take(), ["ran with 1"]);
}

// RN-3
#[test]
fn main_has_no_function_that_could_end() {
    let _no_leaks = NoLeaks::watch();
    let main = getcurrent();
    main.end();
    assert_eq!(main.state(), State::Active);
    assert_eq!(main.switch::<i32>(1).unwrap(), 1);
    let child = Greenlet::new(move |(): ()| {
        main.end();
        Ok(main.state())
    });
    assert_eq!(child.switch::<State>(()).unwrap(), State::Active);
}

// RN-9
#[test]
fn captures_are_dropped_before_the_parent_gets_the_result() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let (inside, in_destructor) = (log.clone(), log.clone());
    let capture = on_drop(move || {
        in_destructor.add("destructor begins");
        let resumed: &str = up("from the destructor").unwrap();
        in_destructor.add(format!("destructor got {resumed}"));
    });
    let child = Greenlet::new(move |(): ()| {
        let _capture = capture;
        inside.add("body ends");
        Ok("result")
    });
    log.add(child.switch::<&str>(()).unwrap());
    assert!(child.is_active());
    log.add(child.switch::<&str>("resumed").unwrap());
    assert!(child.is_dead());
    assert_eq!(
        log.take(),
        [
            "body ends",
            "destructor begins",
            "from the destructor",
            "destructor got resumed",
            "result"
        ]
    );
}

// RN-9
#[test]
fn a_function_that_is_never_run_is_dropped_once() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let pending = || {
        let witness = drops.witness();
        Greenlet::new(move |(): ()| {
            let _witness = witness;
            Ok(())
        })
    };
    drop(pending());
    assert_eq!(drops.count(), 1);
    let thrown_at = pending();
    assert!(thrown_at.kill().unwrap().downcast::<GreenletExit>().is_ok());
    assert_eq!(drops.count(), 2);
    drop(thrown_at);
    assert_eq!(drops.count(), 2);
}

/// A function of `N` bytes, aligned to 8.
fn counts_to<const N: usize>(drops: &Drops) -> Greenlet {
    let (bytes, witness) = ([1_u8; N], drops.witness());
    Greenlet::new(move |(): ()| {
        let _witness = witness;
        Ok(bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>())
    })
}

#[test]
fn functions_of_every_size_run_and_are_dropped_once() {
    let _no_leaks = NoLeaks::watch();
    macro_rules! each {
        ($($size:literal)*) => {$(
            let drops = Drops::new();
            drop(counts_to::<$size>(&drops)); // never started
            let ended = counts_to::<$size>(&drops);
            ended.end();
            assert_eq!(ended.state(), State::Dead);
            let thrown = counts_to::<$size>(&drops).throw::<usize>(anyhow::anyhow!("thrown"));
            assert_eq!(thrown.unwrap_err().to_string(), "thrown");
            assert_eq!(counts_to::<$size>(&drops).switch::<usize>(()).unwrap(), $size);
            assert_eq!(drops.count(), 4, "{} bytes", $size);
        )*};
    }
    // Sizes around the room in a node, and far above it.
    each!(0 1 8 15 16 17 23 24 25 31 32 33 40 64 1000 10000);
}

#[test]
fn functions_of_every_alignment_run() {
    let _no_leaks = NoLeaks::watch();
    macro_rules! each {
        ($($align:literal)*) => {$({
            #[repr(align($align))]
            struct Aligned(u8);
            let aligned = Aligned($align as u8);
            let greenlet = Greenlet::new(move |(): ()| {
                let aligned = std::hint::black_box(&aligned);
                Ok(((&raw const *aligned).addr() % $align, aligned.0))
            });
            assert_eq!(greenlet.switch::<(usize, u8)>(()).unwrap(), (0, $align as u8));
        })*};
    }
    each!(2 4 8 16 32 64 128);
}

#[test]
fn a_function_whose_destructor_panics_leaves_nothing_behind() {
    let _no_leaks = NoLeaks::watch();
    let (log, drops) = (Log::new(), Drops::new());
    let parent = Greenlet::new(|(): ()| up::<()>(()));
    parent.switch::<()>(()).unwrap();
    let (inside, witness) = (log.clone(), drops.witness());
    let panics = on_drop(move || {
        inside.add("dropped");
        panic!("in the destructor");
    });
    let never = Greenlet::builder().parent(&parent).build(move |(): ()| {
        let _captured = (&panics, &witness);
        Ok(())
    });
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(never)));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"in the destructor"));
    assert_eq!((log.take(), drops.count()), (vec!["dropped".to_owned()], 1));
    // The link to the parent is gone too, so this is the last handle.
    let weak = parent.downgrade();
    drop(parent);
    assert!(weak.upgrade().is_none());
}
