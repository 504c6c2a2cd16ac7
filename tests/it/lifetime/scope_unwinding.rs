//! Nothing unwinds out of a scope before all of its greenlets have ended, whatever destructors do.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getmain, getparent, scope, stacks_in_use};

use super::scope::{Watch, wait};
use crate::support::Log;

/// Panics when it is dropped outside of a panic, with the payload that the function returns.
struct Bomb(fn() -> Option<Payload>);

/// A payload, which may have a destructor that panics.
struct Payload(#[expect(dead_code, reason = "it is dropped")] Option<Box<Bomb2>>);

struct Bomb2;

impl Drop for Bomb2 {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the destructor of a payload");
        }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            match (self.0)() {
                Some(payload) => panic_any(payload),
                None => panic!("plain"),
            }
        }
    }
}

const BOMBS: [fn() -> Option<Payload>; 3] = [
    || None,
    || Some(Payload(None)),
    || Some(Payload(Some(Box::new(Bomb2)))),
];

/// Sends a bomb instead of ending: it is dropped by the code that ends the greenlet.
fn send_bomb(bomb: fn() -> Option<Payload>) -> Result<()> {
    let _ = getparent().unwrap().switch::<()>(());
    let _ = getparent().unwrap().switch::<()>(Bomb(bomb));
    Ok(())
}

/// Runs a scope with a greenlet that borrows, created first so that it is ended last, and asserts
/// that it has ended when the scope unwinds.
#[track_caller]
fn assert_ended_before_the_unwinding<T>(
    inside: impl for<'scope, 'env> FnOnce(&'scope greenlet::Scope<'scope, 'env>) -> T,
) {
    let log = Log::new();
    let before = stacks_in_use();
    let mut smuggled: Option<Greenlet> = None;
    let outcome = {
        let text = String::from("text");
        let out = &mut smuggled;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                let victim = s.greenlet(|(): ()| {
                    let _watch = Watch {
                        log: &log,
                        looks_at: &text,
                    };
                    wait()
                });
                victim.switch::<()>(()).unwrap();
                *out = Some(victim);
                inside(s)
            });
        }));
        log.add("unwound");
        outcome
    };
    assert!(outcome.is_err(), "the scope did not unwind");
    std::mem::forget(outcome); // its payload may panic
    assert!(smuggled.unwrap().is_dead());
    assert_eq!(log.take(), ["still there: text", "unwound"]);
    assert_eq!(stacks_in_use(), before);
}

#[test]
fn payloads_of_several_failing_ends_do_not_unwind_past_the_others() {
    for first in BOMBS {
        for second in BOMBS {
            assert_ended_before_the_unwinding(|s| {
                for bomb in [first, second, first] {
                    let fails = s.greenlet(move |(): ()| send_bomb(bomb));
                    fails.switch::<()>(()).unwrap();
                    std::mem::forget(fails);
                }
            });
        }
    }
}

#[test]
fn the_result_of_the_function_is_dropped_where_its_panic_is_caught() {
    for bomb in BOMBS {
        assert_ended_before_the_unwinding(|s| {
            let fails = s.greenlet(|(): ()| send_bomb(|| None));
            fails.switch::<()>(()).unwrap();
            std::mem::forget(fails);
            Bomb(bomb)
        });
    }
}

#[test]
fn a_panic_of_the_function_and_failing_ends_do_not_unwind_past_the_others() {
    for bomb in BOMBS {
        assert_ended_before_the_unwinding(|s| {
            let fails = s.greenlet(move |(): ()| send_bomb(bomb));
            fails.switch::<()>(()).unwrap();
            std::mem::forget(fails);
            drop(Bomb(bomb));
        });
    }
}

/// Creating greenlets makes the list of a scope forget the dead. No user code runs meanwhile.
#[test]
fn greenlets_without_handles_are_not_ended_by_the_creation_of_others() {
    let runs = Cell::new(0);
    scope(|s| {
        for _ in 0..3 {
            let zombie = s.greenlet(|(): ()| {
                let _ = getparent().unwrap().switch::<()>(());
                runs.set(runs.get() + 1);
                let _ = getparent().unwrap().switch::<()>(Bomb(|| None));
                getmain().switch::<()>("to the holder")
            });
            zombie.switch::<()>(()).unwrap();
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(zombie)));
            assert!(dropped.is_err());
        }
        let before = runs.get();
        for _ in 0..100 {
            std::mem::forget(s.greenlet(|(): ()| Ok(())));
        }
        assert_eq!(runs.get(), before);
    });
}

/// The clean-up of one greenlet creates others, also while the list is walked.
#[test]
fn clean_up_may_create_greenlets_of_the_scope() {
    let ended = Cell::new(0);
    scope(|s| {
        let creates = s.greenlet(|(): ()| {
            let asked = wait();
            for _ in 0..100 {
                let late = s.greenlet(|(): ()| {
                    let asked = wait();
                    ended.set(ended.get() + 1);
                    asked
                });
                late.switch::<()>(())?;
                std::mem::forget(late);
            }
            asked
        });
        creates.switch::<()>(()).unwrap();
    });
    assert_eq!(ended.get(), 100);
}

/// The greenlet that holds a scope is unwound by force while a member panics: the end takes
/// precedence, so the holder ends.
#[test]
fn the_end_of_the_holder_takes_precedence_over_a_panic_of_a_member() {
    let steps: Rc<RefCell<Vec<&str>>> = Rc::default();
    let log = steps.clone();
    let holder = Greenlet::new(move |(): ()| -> Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                for bomb in BOMBS {
                    let member = s.greenlet(move |(): ()| send_bomb(bomb));
                    member.switch::<()>(()).unwrap();
                    std::mem::forget(member);
                }
                loop {
                    let _ = getmain().switch::<()>(()); // ignores the exit
                }
            })
        }));
        let payload = outcome.unwrap_err();
        log.borrow_mut().push(if greenlet::is_end(&*payload) {
            "an end"
        } else {
            "a panic"
        });
        std::panic::resume_unwind(payload)
    });
    holder.switch::<()>(()).unwrap();
    holder.end();
    assert!(holder.is_dead());
    assert_eq!(*steps.borrow(), ["an end"]);
}

/// A greenlet of the scope ends the greenlet that holds the scope, and so has to end first.
#[test]
fn a_member_may_end_the_holder_of_its_scope() {
    let ways: [fn(Greenlet); 2] = [|holder| holder.end(), |_| greenlet::end_suspended().unwrap()];
    for ends in ways {
        let log = Log::new();
        let (inside, before) = (log.clone(), stacks_in_use());
        let holder = Greenlet::new(move |(): ()| {
            let log = inside;
            let text = String::from("text");
            scope(|s| {
                let member = s.greenlet(|holder: Greenlet| -> Result<()> {
                    let _watch = Watch {
                        log: &log,
                        looks_at: &text,
                    };
                    ends(holder);
                    log.add("the member goes on");
                    wait()
                });
                member.switch::<()>(greenlet::getcurrent())
            })
        });
        let _ = holder.switch::<greenlet::Value>(());
        assert!(holder.is_dead(), "{holder:?}");
        assert_eq!(log.take(), ["still there: text"]);
        assert_eq!(stacks_in_use(), before);
    }
}
