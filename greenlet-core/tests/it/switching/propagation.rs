//! Errors and panics that leave a greenlet, and the error state that each greenlet has of its own.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};
use greenlet::{Greenlet, GreenletExit, Unwinding, Value, getcurrent, raise};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

type Payload = Box<dyn Any + Send>;

/// Switches to a greenlet, and returns the payload of the panic that the switch propagates.
fn panic_of(greenlet: &Greenlet) -> Payload {
    catch_unwind(AssertUnwindSafe(|| greenlet.switch::<Value>(()))).unwrap_err()
}

// EP-1
#[test]
fn an_error_propagates_parent_by_parent() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| -> Result<()> { bail!("root") });
    let transforms = Greenlet::new(move |(): ()| {
        child.set_parent(&getcurrent())?;
        let failed = child.switch::<()>(());
        assert!(child.is_dead());
        failed.map_err(|error| error.context("transformed"))
    });
    let lets_go = Greenlet::new(move |(): ()| {
        transforms.set_parent(&getcurrent())?;
        transforms.switch::<()>(())
    });
    let error = lets_go.switch::<()>(()).unwrap_err();
    assert_eq!(format!("{error:#}"), "transformed: root");
    assert!(lets_go.is_dead());
}

// EP-1
#[test]
fn a_panic_propagates_parent_by_parent() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let witness = |what: &'static str| {
        let log = log.clone();
        on_drop(move || log.add(what))
    };
    let (in_child, in_middle) = (witness("child unwound"), witness("middle unwound"));
    let middle = Greenlet::new(move |(): ()| {
        let _in_middle = in_middle;
        let child = Greenlet::new(move |(): ()| -> Result<()> {
            let _in_child = in_child;
            resume_unwind(Box::new("payload"))
        });
        child.switch::<()>(())
    });
    assert_eq!(*panic_of(&middle).downcast::<&str>().unwrap(), "payload");
    assert!(middle.is_dead());
    assert_eq!(log.take(), ["child unwound", "middle unwound"]);
    assert!(!std::thread::panicking());
}

// EP-2
#[test]
fn a_panic_goes_to_the_parent_and_not_to_the_resumer() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let child = Greenlet::new(|(): ()| {
        up::<()>(())?;
        resume_unwind(Box::new("payload"));
        #[expect(unreachable_code)]
        Ok(())
    });
    child.switch::<()>(()).unwrap();
    let child_inside = child.clone();
    let inside = log.clone();
    let resumer = Greenlet::new(move |(): ()| {
        child_inside.switch::<()>(())?;
        inside.add("resumer goes on");
        Ok(())
    });
    assert_eq!(*panic_of(&resumer).downcast::<&str>().unwrap(), "payload");
    assert!(child.is_dead() && resumer.is_active());
    resumer.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["resumer goes on"]);
}

// EP-3
#[test]
fn a_panic_ends_pending_parents_unrun_and_skips_dead_parents() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    let pending = Greenlet::builder().parent(&dead).build(move |(): ()| {
        drop(witness);
        Ok("ran")
    });
    let child = Greenlet::builder()
        .parent(&pending)
        .build(|(): ()| -> Result<()> { resume_unwind(Box::new(1_u8)) });
    assert_eq!(*panic_of(&child).downcast::<u8>().unwrap(), 1);
    assert!(pending.is_dead());
    assert_eq!(drops.count(), 1);
}

// EP-4
#[test]
fn a_parent_that_catches_returns_to_its_own_parent() {
    let _no_leaks = NoLeaks::watch();
    let parent = Greenlet::new(|(): ()| {
        let fails = Greenlet::new(|(): ()| -> Result<()> { bail!("an error") });
        let panics = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new("a panic")) });
        let error = fails.switch::<()>(()).unwrap_err();
        let payload = panic_of(&panics).downcast::<&str>().unwrap();
        Ok(format!("caught {error} and {payload}"))
    });
    assert_eq!(
        parent.switch::<String>(()).unwrap(),
        "caught an error and a panic"
    );
}

// EP-5
#[test]
fn every_kind_of_panic_and_error_reaches_the_parent() {
    let _no_leaks = NoLeaks::watch();
    #[derive(Debug, PartialEq)]
    struct Own(u8);
    let text = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new(String::from("text"))) });
    assert_eq!(*panic_of(&text).downcast::<String>().unwrap(), "text");
    // `panic_any` calls the panic hook, so its one line on standard error is expected.
    let own = Greenlet::new(|(): ()| -> Result<()> { panic_any(Own(3)) });
    assert_eq!(*panic_of(&own).downcast::<Own>().unwrap(), Own(3));
    // A `GreenletExit` as a panic payload is an ordinary panic.
    let exit = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new(GreenletExit::new())) });
    assert!(panic_of(&exit).is::<GreenletExit>());
    // An error from code that cannot return one: `raise`.
    fn deep() -> u32 {
        raise(anyhow!("raised"))
    }
    let raises = Greenlet::new(|(): ()| Ok(deep()));
    assert_eq!(raises.switch::<u32>(()).unwrap_err().to_string(), "raised");
}

// EP-6
#[test]
fn the_very_error_and_the_very_payload_arrive() {
    let _no_leaks = NoLeaks::watch();
    let error = anyhow!(std::fmt::Error);
    let address = error.downcast_ref::<std::fmt::Error>().map(std::ptr::from_ref);
    let fails = Greenlet::new(move |(): ()| -> Result<()> { Err(error) });
    let got = fails.switch::<()>(()).unwrap_err();
    assert_eq!(
        got.downcast_ref::<std::fmt::Error>().map(std::ptr::from_ref),
        address
    );

    let payload: Payload = Box::new([7_u8; 100]);
    let address = std::ptr::from_ref(&*payload).cast::<u8>();
    let panics = Greenlet::new(move |(): ()| -> Result<()> { resume_unwind(payload) });
    let got = panic_of(&panics);
    assert_eq!(std::ptr::from_ref(&*got).cast::<u8>(), address);
}

// EP-7
#[test]
fn a_greenlet_that_failed_is_dead_like_any_other() {
    let _no_leaks = NoLeaks::watch();
    let fails = Greenlet::new(|(): ()| -> Result<()> { bail!("once") });
    let panics = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new("once")) });
    assert!(fails.switch::<()>(()).is_err());
    drop(panic_of(&panics));
    for dead in [fails, panics] {
        assert!(dead.is_dead());
        assert_eq!(dead.switch::<i32>(1).unwrap(), 1);
        assert_eq!(dead.switch::<i32>(2).unwrap(), 2);
    }
}

// EP-8
#[test]
fn a_panic_that_main_does_not_catch_ends_the_thread() {
    let _no_leaks = NoLeaks::watch();
    let thread = std::thread::spawn(|| {
        let panics = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new("uncaught")) });
        panics.switch::<()>(())
    });
    assert_eq!(
        *thread.join().unwrap_err().downcast::<&str>().unwrap(),
        "uncaught"
    );
    let thread = std::thread::spawn(|| {
        let fails = Greenlet::new(|(): ()| -> Result<()> { bail!("uncaught") });
        fails.switch::<()>(())
    });
    assert_eq!(thread.join().unwrap().unwrap_err().to_string(), "uncaught");
}

// XS-1
#[test]
fn a_greenlet_never_starts_in_the_middle_of_a_panic() {
    let _no_leaks = NoLeaks::watch();
    let asks = || Greenlet::new(|(): ()| Ok(std::thread::panicking()));
    let log = Log::new();
    let inside = log.clone();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let _in_unwinding = on_drop(move || {
            let refused = asks().switch::<bool>(()).unwrap_err();
            inside.add(format!("refused: {}", refused.is::<Unwinding>()));
        });
        resume_unwind(Box::new("payload"));
    }));
    // The panic is over once it has been caught.
    assert!(!asks().switch::<bool>(()).unwrap());
    assert_eq!(*payload.unwrap_err().downcast::<&str>().unwrap(), "payload");
    assert_eq!(log.take(), ["refused: true"]);
}

// XS-2
#[test]
fn an_error_being_handled_belongs_to_its_greenlet() {
    let _no_leaks = NoLeaks::watch();
    let handles = |name: &'static str| {
        Greenlet::new(move |(): ()| {
            let error = anyhow!("error of {name}");
            let payload = catch_unwind(|| resume_unwind(Box::new(name))).unwrap_err();
            up::<()>(())?;
            Ok(format!(
                "{error}, panic of {}",
                payload.downcast::<&str>().unwrap()
            ))
        })
    };
    let (one, two) = (handles("one"), handles("two"));
    one.switch::<()>(()).unwrap();
    two.switch::<()>(()).unwrap();
    assert_eq!(one.switch::<String>(()).unwrap(), "error of one, panic of one");
    assert_eq!(two.switch::<String>(()).unwrap(), "error of two, panic of two");
}

// XS-5
#[test]
fn dropping_a_greenlet_while_a_panic_unwinds_does_not_disturb_it() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let dropped = Greenlet::new(move |(): ()| {
        let ended = up::<()>(());
        inside.add("ended");
        let _ = catch_unwind(|| resume_unwind(Box::new("another panic")));
        ended
    });
    dropped.switch::<()>(()).unwrap();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let _dropped = dropped;
        resume_unwind(Box::new("payload"));
    }));
    log.add(*payload.unwrap_err().downcast::<&str>().unwrap());
    // The next transfer ends it, since transfers are allowed again.
    Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
    log.add("main goes on");
    assert_eq!(log.take(), ["payload", "ended", "main goes on"]);
}

// XS-6, EX-9
#[test]
fn an_error_propagates_after_its_clean_up_has_switched_away() {
    let _no_leaks = NoLeaks::watch();
    for is_exit in [true, false] {
        let log = Log::new();
        let inside = log.clone();
        let child = Greenlet::new(move |(): ()| {
            let _clean_up = on_drop(move || {
                let got: &str = up("in the middle of clean-up").unwrap();
                inside.add(format!("clean-up got {got}"));
            });
            up::<()>(())
        });
        child.switch::<()>(()).unwrap();
        let error = if is_exit {
            GreenletExit::new().into()
        } else {
            anyhow!("boom")
        };
        assert_eq!(child.throw::<&str>(error).unwrap(), "in the middle of clean-up");
        assert!(child.is_active());
        let end = child.switch::<Value>("resumed");
        match end {
            Ok(value) => assert!(is_exit && value.is_exit()),
            Err(error) => assert_eq!((is_exit, error.to_string()), (false, "boom".to_owned())),
        }
        assert!(child.is_dead());
        assert_eq!(log.take(), ["clean-up got resumed"]);
    }
}

// XS-7
#[test]
fn thread_locals_and_held_borrows_are_the_threads_not_the_greenlets() {
    let _no_leaks = NoLeaks::watch();
    thread_local!(static SHARED: Cell<u32> = const { Cell::new(0) });
    let cell = Rc::new(RefCell::new(1));
    let borrowed = Rc::clone(&cell);
    let child = Greenlet::new(move |(): ()| {
        SHARED.set(SHARED.get() + 1);
        let guard = borrowed.borrow_mut();
        up::<()>(())?; // the borrow is held while others run
        drop(guard);
        Ok(SHARED.get())
    });
    child.switch::<()>(()).unwrap();
    assert_eq!(SHARED.get(), 1);
    assert!(cell.try_borrow().is_err());
    SHARED.set(5);
    assert_eq!(child.switch::<u32>(()).unwrap(), 5);
    assert!(cell.try_borrow().is_ok());
}

// XS-8
#[test]
fn a_greenlet_has_its_whole_stack_however_deep_its_starter_is() {
    let _no_leaks = NoLeaks::watch();
    /// Uses half a mebibyte of stack, then calls.
    fn deep<R>(kibibytes: usize, bottom: &dyn Fn() -> R) -> R {
        let block = [kibibytes as u8; 1024];
        let result = if kibibytes == 0 {
            bottom()
        } else {
            deep(kibibytes - 1, bottom)
        };
        std::hint::black_box(&block);
        result
    }
    let nested = |levels: u32| {
        /// Starts a greenlet that uses much stack, and starts the next one at that depth.
        fn start(levels: u32) -> Result<u32> {
            if levels == 0 {
                return Ok(0);
            }
            let child = Greenlet::builder()
                .stack_size(2 << 20)
                .build(move |(): ()| deep(512, &|| start(levels - 1)));
            Ok(child.switch::<u32>(())? + 1)
        }
        start(levels)
    };
    assert_eq!(nested(10).unwrap(), 10);
}
