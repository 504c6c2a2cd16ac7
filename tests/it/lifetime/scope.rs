//! Scopes: their greenlets borrow, and have ended when the scope is left.

use std::cell::Cell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, GreenletExit, Unwinding, getparent, no_switch, raise, scope};

use crate::support::{Drops, Log};

/// Suspends into main until the greenlet is ended.
pub(crate) fn wait() -> Result<()> {
    getparent().unwrap().switch::<()>(())
}

/// Logs when it is dropped, and that the value that it refers to is still there.
pub(crate) struct Watch<'a> {
    pub(crate) log: &'a Log,
    pub(crate) looks_at: &'a str,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.log.add(format!("still there: {}", self.looks_at));
    }
}

#[test]
fn greenlets_borrow_and_are_ended_when_the_scope_is_left() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let child = s.greenlet(|(): ()| {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            wait()
        });
        child.switch::<()>(()).unwrap();
        mem::forget(child);
        log.add("leaving");
    });
    log.add("left");
    assert_eq!(log.take(), ["leaving", "still there: text", "left"]);
}

#[test]
fn the_newest_greenlet_is_ended_first() {
    let log = Log::new();
    scope(|s| {
        for name in ["first", "second", "third"] {
            let log = &log;
            let child = s.greenlet(move |(): ()| {
                let ended = wait();
                log.add(name);
                ended
            });
            child.switch::<()>(()).unwrap();
            mem::forget(child);
        }
    });
    assert_eq!(log.take(), ["third", "second", "first"]);
}

#[test]
fn results_and_mutable_borrows_come_back() {
    let mut total = 0;
    let result = scope(|s| {
        let adder = s.greenlet(|mut n: u32| {
            let main = getparent().unwrap();
            while n > 0 {
                total += n;
                n = main.switch(())?;
            }
            Ok("done")
        });
        adder.switch::<()>(1_u32)?;
        adder.switch::<()>(2_u32)?;
        adder.switch::<&str>(0_u32)
    });
    assert_eq!((result.unwrap(), total), ("done", 3));
}

#[test]
fn dropping_the_last_handle_ends_a_greenlet_of_a_scope() {
    let drops = Drops::new();
    scope(|s| {
        let witness = drops.witness();
        let child = s.greenlet(|(): ()| {
            let _witness = witness;
            wait()
        });
        child.switch::<()>(()).unwrap();
        drop(child);
        assert_eq!(drops.count(), 1);
    });
}

#[test]
fn a_greenlet_that_never_started_drops_its_captures_in_the_scope() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let watch = Watch {
            log: &log,
            looks_at: &text,
        };
        mem::forget(s.greenlet(move |(): ()| {
            let _watch = &watch;
            Ok(())
        }));
        let watch = Watch {
            log: &log,
            looks_at: &text,
        };
        let killed = s.greenlet(move |(): ()| {
            let _watch = &watch;
            Ok(())
        });
        killed.kill().unwrap();
        log.add("killed");
    });
    log.add("left");
    assert_eq!(
        log.take(),
        ["still there: text", "killed", "still there: text", "left"]
    );
}

#[test]
fn handles_may_leave_the_scope_and_are_dead() {
    let text = String::from("text");
    let escaped = scope(|s| {
        let child = s.greenlet(|(): ()| {
            wait()?;
            Ok(text.len())
        });
        child.switch::<()>(()).unwrap();
        child
    });
    drop(text);
    assert!(escaped.is_dead());
    assert_eq!(escaped.switch::<u8>(5_u8).unwrap(), 5, "it goes to the parent");
}

#[test]
fn a_panic_of_the_closure_propagates_after_the_greenlets_have_ended() {
    let log = Log::new();
    let text = String::from("text");
    let payload = catch_unwind(AssertUnwindSafe(|| {
        scope(|s| {
            let child = s.greenlet(|(): ()| {
                let _watch = Watch {
                    log: &log,
                    looks_at: &text,
                };
                let ended = wait();
                log.add(format!("panicking: {}", std::thread::panicking()));
                ended
            });
            child.switch::<()>(()).unwrap();
            mem::forget(child);
            resume_unwind(Box::new("the closure's"));
        })
    }))
    .unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"the closure's"));
    assert_eq!(log.take(), ["panicking: false", "still there: text"]);
}

#[test]
fn raise_passes_through_a_scope() {
    let drops = Drops::new();
    let counted = drops.clone();
    let child = Greenlet::new(move |(): ()| {
        let witness = counted.witness();
        scope(|s| -> Result<()> {
            let inner = s.greenlet(|(): ()| {
                let _witness = &witness;
                getparent().unwrap().switch::<()>(())
            });
            inner.switch::<()>(())?;
            raise(anyhow!("raised"))
        })
    });
    let error = child.switch::<()>(()).unwrap_err();
    assert_eq!(error.to_string(), "raised");
    assert_eq!(drops.count(), 1);
}

#[test]
fn clean_up_may_switch_and_make_more_greenlets_of_the_scope() {
    let log = Log::new();
    scope(|s| {
        let log = &log;
        let child = s.greenlet(move |(): ()| {
            let ended = wait();
            let last_wish = s.greenlet(move |(): ()| {
                log.add("last wish");
                Ok(())
            });
            last_wish.switch::<()>(())?;
            let suspended = s.greenlet(move |(): ()| {
                let ended = wait();
                log.add("it, too");
                ended
            });
            suspended.switch::<()>(())?;
            mem::forget(suspended);
            ended
        });
        child.switch::<()>(()).unwrap();
        mem::forget(child);
    });
    assert_eq!(log.take(), ["last wish", "it, too"]);
}

#[test]
fn scopes_nest() {
    let log = Log::new();
    let outer_text = String::from("outer");
    scope(|outer| {
        let child = outer.greenlet(|(): ()| {
            let inner_text = format!("inner of {outer_text}");
            let _watch = Watch {
                log: &log,
                looks_at: &outer_text,
            };
            scope(|inner| {
                let grandchild = inner.greenlet(|(): ()| {
                    let _watch = Watch {
                        log: &log,
                        looks_at: &inner_text,
                    };
                    wait()
                });
                grandchild.switch::<()>(())?;
                mem::forget(grandchild);
                wait()
            })
        });
        child.switch::<()>(()).unwrap();
        mem::forget(child);
    });
    assert_eq!(log.take(), ["still there: inner of outer", "still there: outer"]);
}

#[test]
fn greenlets_do_not_start_in_a_no_switch_section() {
    let log = Log::new();
    let text = String::from("text");
    let outcome = no_switch(|| {
        scope(|s| {
            let child = s.greenlet(|(): ()| {
                let _watch = Watch {
                    log: &log,
                    looks_at: &text,
                };
                Ok(())
            });
            let outcome = child.switch::<()>(());
            mem::forget(child);
            outcome
        })
    });
    assert!(outcome.is_err());
    assert!(log.take().is_empty());

    struct InDrop(Log);
    impl Drop for InDrop {
        fn drop(&mut self) {
            let text = String::from("text");
            let drops = Drops::new();
            scope(|s| {
                let witness = drops.witness();
                let borrowed = &text;
                let child = s.greenlet(move |(): ()| {
                    let _witness = &witness;
                    Ok(borrowed.len())
                });
                let refused = child.switch::<usize>(()).unwrap_err();
                self.0.add(refused.is::<Unwinding>().to_string());
                drop(refused);
                mem::forget(child);
            });
            self.0.add(drops.count().to_string());
        }
    }
    let in_drop = InDrop(log.clone());
    let _ = catch_unwind(AssertUnwindSafe(move || {
        let _in_drop = in_drop;
        resume_unwind(Box::new(()));
    }));
    assert_eq!(log.take(), ["true", "1"]);
}

#[test]
fn a_scope_that_creates_many_greenlets_stays_small() {
    let count = Cell::new(0);
    scope(|s| {
        for _ in 0..10_000 {
            let child = s.greenlet(|(): ()| {
                count.set(count.get() + 1);
                Ok(())
            });
            child.switch::<()>(()).unwrap();
        }
        let listed = format!("{s:?}");
        let digits = listed.chars().filter(char::is_ascii_digit).collect::<String>();
        assert!(digits.parse::<usize>().unwrap() < 100, "{listed}");
    });
    assert_eq!(count.get(), 10_000);
}

#[test]
fn a_generator_of_the_scope_is_ended_too() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let mut generator = s.generator(|out| {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            out.yield_(1)?;
            out.yield_(2)
        });
        assert_eq!(generator.next().unwrap().unwrap(), 1);
        mem::forget(generator);
    });
    assert_eq!(log.take(), ["still there: text"]);
}

#[test]
fn a_generator_of_the_scope_is_ended_when_it_is_dropped() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        for _ in 0..100 {
            let generator = s.generator(|out| {
                let _watch = Watch {
                    log: &log,
                    looks_at: &text,
                };
                out.yield_(1)?;
                Ok("not reached")
            });
            assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
            assert!(log.take().is_empty());
            drop(generator);
            assert_eq!(log.take(), ["still there: text"]);
        }
        let listed = format!("{s:?}");
        let digits = listed.chars().filter(char::is_ascii_digit).collect::<String>();
        assert!(digits.parse::<usize>().unwrap() < 20, "{listed}");
    });
}

/// The function of the generator is inside a switch, so it ends with the greenlet that steps it.
#[test]
fn a_generator_that_is_executing_is_ended_with_its_consumer() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let generator = s.generator(|out| {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            wait()?;
            out.yield_(1)
        });
        let consumer = s.greenlet(move |(): ()| generator.resume(()).unwrap());
        consumer.switch::<()>(()).unwrap();
        mem::forget(consumer);
        assert!(log.take().is_empty());
    });
    assert_eq!(log.take(), ["still there: text"]);
}

#[test]
fn an_exit_inside_a_scope_ends_its_greenlets() {
    let text = String::from("text");
    let child = scope(|s| {
        let child = s.greenlet(|(): ()| {
            let error = wait().unwrap_err();
            assert_eq!(text, "text");
            Err::<(), _>(error)
        });
        child.switch::<()>(()).unwrap();
        let exit: GreenletExit = child.throw(GreenletExit::new()).unwrap();
        assert_eq!(exit.reason(), None);
        child
    });
    assert!(child.is_dead());
}
