//! `Greenlet::backtrace` ends at the first frame of the greenlet, and taking one has no side effects.
//! `linked.rs` is about backtraces that the running greenlet captures itself.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{
    Greenlet, Tracer, Unwinding, check_switch_allowed, getcurrent, getparent, no_switch, raw, settrace, stack,
};

use crate::support::Log;

/// Returns the number of frames of a backtrace. A greenlet has few, since its backtrace ends at its
/// first frame.
fn frames(backtrace: &Backtrace) -> usize {
    let text = backtrace.to_string();
    text.lines()
        .filter(|line| {
            line.trim_start()
                .split(':')
                .next()
                .unwrap()
                .parse::<u32>()
                .is_ok()
        })
        .count()
}

#[inline(never)]
fn waits_deep(depth: u32) -> Result<u32> {
    if depth > 0 {
        return Ok(black_box(waits_deep(depth - 1)?));
    }
    getparent().unwrap().switch::<u32>(())
}

#[inline(never)]
fn outer_body(depth: u32) -> Result<u32> {
    Ok(black_box(waits_deep(depth)?))
}

fn suspended(depth: u32) -> Greenlet {
    let greenlet = Greenlet::new(outer_body);
    greenlet.switch::<()>(depth).unwrap();
    greenlet
}

#[test]
fn a_backtrace_shows_the_calls_of_a_suspended_greenlet() {
    let greenlet = suspended(3);
    let text = greenlet.backtrace().unwrap().to_string();
    let deep = text.lines().filter(|line| line.ends_with("waits_deep"));
    assert_eq!(deep.count(), 4, "{text}");
    assert!(
        text.find("waits_deep").unwrap() < text.find("outer_body").unwrap(),
        "{text}"
    );
    assert!(!text.contains("it_shows_where"), "{text}");
    assert_eq!(greenlet.switch::<u32>(5_u32).unwrap(), 5);
}

// HZ-12
#[test]
fn a_backtrace_ends_at_the_first_frame() {
    let shallow = frames(&suspended(0).backtrace().unwrap());
    assert!(shallow > 3 && shallow < 40, "{shallow} frames");
    let deep = frames(&suspended(20).backtrace().unwrap());
    assert_eq!(deep, shallow + 20);
}

#[test]
fn a_backtrace_can_be_taken_repeatedly() {
    let greenlet = suspended(2);
    let used = greenlet.stack_usage().unwrap().used;
    let first = frames(&greenlet.backtrace().unwrap());
    let after_first = greenlet.stack_usage().unwrap().used;
    for _ in 0..100 {
        assert_eq!(frames(&greenlet.backtrace().unwrap()), first);
    }
    assert_eq!(greenlet.stack_usage().unwrap().used, after_first, "it grows");
    // The room of a few frames. Those of a debug build with a sanitizer are the largest.
    assert!(after_first - used < 3000, "{used} -> {after_first}");
    assert_eq!(greenlet.switch::<u32>(5_u32).unwrap(), 5);
}

#[test]
fn pending_and_dead_greenlets_have_no_backtrace() {
    let greenlet = Greenlet::new(|(): ()| Ok(()));
    assert!(greenlet.backtrace().unwrap_err().is_pending());
    greenlet.switch::<()>(()).unwrap();
    let error = greenlet.backtrace().unwrap_err();
    assert!(error.is_dead());
    assert_eq!(
        error.to_string(),
        "no backtrace: the greenlet has ended, and its stack is gone"
    );
}

#[inline(never)]
fn who_asks_for_itself() -> Backtrace {
    getcurrent().backtrace().unwrap()
}

#[test]
fn a_running_greenlet_gets_its_own_backtrace() {
    let text = who_asks_for_itself().to_string();
    assert!(text.contains("who_asks_for_itself"), "{text}");
}

#[test]
fn main_and_other_ancestors_have_backtraces() {
    #[inline(never)]
    fn outer_waits_here(inner: &Greenlet) -> Result<String> {
        black_box(inner.switch::<String>(()))
    }
    #[inline(never)]
    fn main_waits_here() -> String {
        let outer = Greenlet::new(|(): ()| {
            let inner = Greenlet::new(|(): ()| {
                let outer = getparent().unwrap();
                let main = outer.parent().unwrap();
                let of_outer = outer.backtrace().unwrap().to_string();
                assert!(of_outer.contains("outer_waits_here"), "{of_outer}");
                assert!(!of_outer.contains("main_waits_here\n"), "{of_outer}");
                Ok(main.backtrace().unwrap().to_string())
            });
            outer_waits_here(&inner)
        });
        black_box(outer.switch(()).unwrap())
    }
    let text = main_waits_here();
    assert!(text.contains("main_waits_here"), "{text}");
    assert!(
        text.contains("main_and_other_ancestors_have_backtraces"),
        "{text}"
    );
}

#[test]
fn taking_a_backtrace_changes_nothing_and_is_not_traced() {
    let greenlet = suspended(1);
    let (place, state) = (greenlet.suspended_at().unwrap(), greenlet.state());
    let events = Rc::new(Cell::new(0));
    let counted = events.clone();
    let before = settrace(Some(Tracer::new(move |_| {
        counted.set(counted.get() + 1);
        Ok(())
    })));
    drop(greenlet.backtrace().unwrap());
    settrace(before);
    assert_eq!(events.get(), 0, "a tracer sees the backtrace");
    assert_eq!(
        (greenlet.suspended_at().unwrap(), greenlet.state()),
        (place, state)
    );
    assert!(getcurrent().is_main());
    assert!(check_switch_allowed().is_ok());
}

#[test]
fn a_greenlet_locked_for_an_await_has_a_backtrace() {
    let greenlet = suspended(1);
    assert!(raw::lock_for_await(&greenlet));
    let text = greenlet.backtrace().unwrap().to_string();
    assert!(text.contains("waits_deep"), "{text}");
    assert!(
        greenlet
            .switch::<u32>(1_u32)
            .unwrap_err()
            .is::<greenlet::AwaitInProgress>()
    );
    drop(greenlet.backtrace().unwrap());
    raw::unlock(&greenlet);
    assert_eq!(greenlet.switch::<u32>(5_u32).unwrap(), 5);
}

#[test]
fn a_backtrace_can_be_taken_in_a_no_switch_section() {
    let greenlet = suspended(1);
    no_switch(|| {
        drop(greenlet.backtrace().unwrap());
        assert!(check_switch_allowed().is_err(), "the section is left too early");
    });
    assert!(check_switch_allowed().is_ok());
}

#[test]
fn a_backtrace_can_be_taken_during_a_panic() {
    struct Asks(Greenlet);
    impl Drop for Asks {
        fn drop(&mut self) {
            assert!(self.0.switch::<u32>(1_u32).unwrap_err().is::<Unwinding>());
            let text = self.0.backtrace().unwrap().to_string();
            assert!(text.contains("waits_deep"), "{text}");
        }
    }
    let greenlet = suspended(1);
    let asks = Asks(greenlet.clone());
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _asks = asks;
        std::panic::resume_unwind(Box::new(()));
    }))
    .unwrap_err();
    assert_eq!(greenlet.switch::<u32>(5_u32).unwrap(), 5);
}

#[test]
fn errors_exits_and_mismatches_still_arrive_after_a_backtrace() {
    let greenlet = suspended(0);
    drop(greenlet.backtrace().unwrap());
    let error = greenlet.throw::<()>(anyhow::anyhow!("thrown")).unwrap_err();
    assert_eq!(error.to_string(), "thrown");

    let greenlet = suspended(0);
    drop(greenlet.backtrace().unwrap());
    let error = greenlet.switch::<()>("no number").unwrap_err();
    assert!(error.is::<greenlet::TypeMismatch>());

    let greenlet = suspended(0);
    drop(greenlet.backtrace().unwrap());
    assert!(greenlet.kill().unwrap().is_exit());

    let weak = {
        let greenlet = suspended(0);
        drop(greenlet.backtrace().unwrap());
        greenlet.downgrade()
    };
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_greenlet_that_ends_another_has_a_backtrace() {
    // It is suspended in code of the library, not in a switch of the user.
    let log = Log::new();
    let asked = Greenlet::new({
        let log = log.clone();
        move |(): ()| {
            let ended = Greenlet::new(move |(): ()| {
                let exit = getparent().unwrap().switch::<()>(());
                // During the end, the parent is the greenlet that ends this one.
                log.add(getparent().unwrap().backtrace()?.to_string());
                exit
            });
            ended.switch::<()>(())?;
            drop(ended);
            Ok(7)
        }
    });
    assert_eq!(asked.switch::<i32>(()).unwrap(), 7);
    let text = log.take().remove(0);
    assert!(text.contains("teardown::"), "{text}"); // names of functions depend on what is inlined

    let tracer = Tracer::new(|event| {
        if event.target.name() == Some("asked in a tracer") {
            getparent().unwrap().switch::<()>(())?;
        }
        Ok(())
    });
    settrace(Some(tracer));
    let greenlet = Greenlet::builder()
        .name("asked in a tracer")
        .build(|(): ()| Ok(5));
    greenlet.switch::<()>(()).unwrap();
    settrace(None);
    let text = greenlet.backtrace().unwrap().to_string();
    assert!(text.contains("a_greenlet_that_ends_another"), "{text}");
    assert_eq!(greenlet.switch::<i32>(()).unwrap(), 5);
}

#[test]
fn a_backtrace_on_a_nearly_full_stack_is_refused() {
    #[inline(never)]
    fn dig(left: usize) -> Result<()> {
        let mut page = [0_u8; 1024];
        black_box(&mut page);
        let usage = getcurrent().stack_usage().unwrap();
        if usage.size - usage.used < left {
            return getparent().unwrap().switch(());
        }
        dig(left)?;
        black_box(&mut page);
        Ok(())
    }
    let greenlet = Greenlet::builder().stack_size(stack::MIN_SIZE * 4).build(dig);
    greenlet.switch::<()>(9_000_usize).unwrap();
    assert!(greenlet.backtrace().unwrap_err().is_stack_too_full());
    greenlet.switch::<()>(()).unwrap();
    let greenlet = Greenlet::builder().stack_size(stack::MIN_SIZE * 4).build(dig);
    greenlet.switch::<()>(15_000_usize).unwrap();
    drop(greenlet.backtrace().unwrap());
    greenlet.switch::<()>(()).unwrap();
}
