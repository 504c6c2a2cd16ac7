//! Scopes: what borrows is ended before the scope is left, whatever is tried against it.
//!
//! The attacks that broke other libraries' borrowing coroutines are kept here, each under the number of
//! its report: corosensei issues 27 and 59 and pull request 60, generator-rs issues 49 and 59. (Corosensei's
//! 44, a borrowed stack, cannot be written: stacks are made by the library.)

use std::cell::{Cell, RefCell};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::mpsc;

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, GreenletExit, Unwinding, getcurrent, getparent, no_switch, raise, scope};

use crate::support::{Drops, Log};

/// Waits in main until it is told to end.
fn wait() -> Result<()> {
    getparent().unwrap().switch::<()>(())
}

/// Says when it is dropped, and that what it looks at then is still there.
struct Watch<'a> {
    log: &'a Log,
    looks_at: &'a str,
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
fn the_one_made_last_is_ended_first() {
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
fn dropping_the_last_handle_ends_it_as_everywhere() {
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
fn one_that_was_never_started_drops_its_captures_in_the_scope() {
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

/// corosensei issues 27 and 59, generator-rs issues 49 and 59: a handle is forgotten while the greenlet is
/// inside `std::thread::scope`, whose thread then outlived what it borrowed.
#[test]
fn forgetting_a_greenlet_inside_a_scoped_thread() {
    let mut text = "Happy".to_owned();
    let (to_thread, wait_for_main) = mpsc::channel::<()>();
    let (to_main, from_thread) = mpsc::channel();
    {
        let borrowed = text.as_str();
        // Dropped with the closure of the scope, before its greenlets are ended: the thread goes on then.
        scope(move |s| {
            let child = s.greenlet(move |(): ()| {
                std::thread::scope(move |threads| {
                    threads.spawn(move || {
                        let _ = wait_for_main.recv();
                        to_main.send(borrowed.to_owned()).unwrap();
                    });
                    wait()
                })
            });
            child.switch::<()>(()).unwrap();
            mem::forget(child);
            drop(to_thread);
        });
    }
    text.clear();
    text.push_str("Sad");
    assert_eq!(from_thread.recv().unwrap(), "Happy");
}

/// Of generator-rs issue 59: the function ends by a panic after its suspension, which must not get lost
/// together with the thread.
#[test]
fn forgetting_a_greenlet_that_panics_when_it_is_ended() {
    let text = "Happy".to_owned();
    let log = Log::new();
    crate::support::catch_reports();
    scope(|s| {
        let child = s.greenlet(|(): ()| -> Result<()> {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            let _ = wait();
            resume_unwind(Box::new("panic"));
        });
        child.switch::<()>(()).unwrap();
        mem::forget(child);
    });
    assert_eq!(log.take(), ["still there: Happy"]);
}

/// corosensei pull request 60: the handles of an inner and an outer coroutine are swapped, so that the
/// inner one was dropped by the outer scope.
#[test]
fn swapping_the_handles_of_an_inner_and_an_outer_scope() {
    let log = Log::new();
    scope(|outer| {
        let mut long_lived = outer.greenlet(|(): ()| wait());
        {
            let text = String::from("inner");
            let borrowed = &text;
            scope(|inner| {
                let log = &log;
                let mut short_lived = inner.greenlet(move |(): ()| {
                    let _watch = Watch {
                        log,
                        looks_at: borrowed,
                    };
                    wait()
                });
                short_lived.switch::<()>(()).unwrap();
                mem::swap(&mut short_lived, &mut long_lived);
            });
            log.add("inner scope left");
        }
        assert!(long_lived.is_dead());
    });
    assert_eq!(log.take(), ["still there: inner", "inner scope left"]);
}

#[test]
fn a_panic_of_the_closure_goes_on_after_the_greenlets_have_ended() {
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

/// The greenlet that holds the scope switches away inside it and is ended there, in each of the ways in
/// which a greenlet can be ended.
#[test]
fn ending_the_greenlet_that_holds_the_scope() {
    type End = fn(Greenlet);
    let ways: [(&str, End); 4] = [
        ("last handle", |greenlet| drop(greenlet)),
        ("kill", |greenlet| drop(greenlet.kill())),
        ("end", |greenlet| greenlet.end()),
        ("error", |greenlet| drop(greenlet.throw::<()>(anyhow!("some")))),
    ];
    for listens in [true, false] {
        for (way, end) in ways {
            if !listens && (way == "kill" || way == "error") {
                continue; // a throw is no order
            }
            let log = Log::new();
            let inside = log.clone();
            let holder = Greenlet::new(move |(): ()| {
                let text = String::from("text");
                let main = getparent().unwrap();
                scope(|s| -> Result<()> {
                    let child = s.greenlet(|(): ()| {
                        let _watch = Watch {
                            log: &inside,
                            looks_at: &text,
                        };
                        getparent().unwrap().switch_owned::<()>(())
                    });
                    child.switch::<()>(())?;
                    // A child of the holder would keep it, as its parent, from being let go of.
                    child.set_parent(&main)?;
                    mem::forget(child);
                    loop {
                        let outcome = main.switch::<()>(());
                        if listens {
                            outcome?;
                        }
                    }
                })
            });
            holder.switch::<()>(()).unwrap();
            end(holder);
            assert_eq!(log.take(), ["still there: text"], "{way}, listens: {listens}");
        }
    }
}

#[test]
fn forgetting_the_greenlet_that_holds_the_scope() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let holder = Greenlet::new(move |(): ()| {
            let text = String::from("text");
            scope(|s| {
                let child = s.greenlet(|(): ()| {
                    let borrowed = &text;
                    let ended = getparent().unwrap().switch::<()>(());
                    sender.send(borrowed.clone()).unwrap();
                    ended
                });
                child.switch::<()>(())?;
                mem::forget(child);
                getparent().unwrap().switch::<()>("in the scope")
            })
        });
        assert_eq!(holder.switch::<&str>(()).unwrap(), "in the scope");
        mem::forget(holder);
    })
    .join()
    .unwrap();
    assert_eq!(receiver.recv().unwrap(), "text", "ended with the thread");
}

/// A greenlet of the scope goes on while its holder never does.
#[test]
fn a_greenlet_of_the_scope_may_outrun_its_holder() {
    let handle = Rc::new(RefCell::new(None));
    let leave = handle.clone();
    let holder = Greenlet::new(move |(): ()| {
        let counter = Cell::new(0);
        let main = getparent().unwrap();
        scope(|s| {
            let builder = Greenlet::builder().parent(&main);
            let child = s.greenlet_with(builder, |(): ()| {
                loop {
                    counter.set(counter.get() + 1);
                    getparent().unwrap().switch::<()>(counter.get())?;
                    if false {
                        return Ok(());
                    }
                }
            });
            leave.replace(Some(child));
            main.switch::<()>(())
        })
    });
    holder.switch::<()>(()).unwrap();
    let child = handle.take().unwrap();
    assert_eq!(child.switch::<i32>(()).unwrap(), 1);
    assert_eq!(child.switch::<i32>(()).unwrap(), 2);
    drop(holder);
    assert!(child.is_dead());
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

/// Clean-up that goes elsewhere takes the holder's control along, as everywhere; the scope stays until it
/// is given back.
#[test]
fn clean_up_may_leave_the_holder_waiting() {
    let log = Log::new();
    let seen = log.clone();
    let holder = Greenlet::new(move |(): ()| {
        let text = String::from("text");
        let main = getparent().unwrap();
        scope(|s| {
            let child = s.greenlet(|(): ()| {
                let _watch = Watch {
                    log: &seen,
                    looks_at: &text,
                };
                let _ = getparent().unwrap().switch::<()>(());
                main.switch::<()>("gone elsewhere")
            });
            child.switch::<()>(()).unwrap();
            mem::forget(child);
        });
        Ok("scope left")
    });
    assert_eq!(holder.switch::<&str>(()).unwrap(), "gone elsewhere");
    assert!(log.take().is_empty());
    // The second stage is next.
    assert_eq!(holder.switch::<&str>(()).unwrap(), "scope left");
    assert_eq!(log.take(), ["still there: text"]);
}

#[test]
fn a_greenlet_that_ignores_its_exit_is_unwound() {
    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let child = s.greenlet(|(): ()| -> Result<()> {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            loop {
                let asked = wait();
                log.add(format!("{}", asked.is_ok()));
            }
        });
        child.switch::<()>(()).unwrap();
        mem::forget(child);
    });
    assert_eq!(log.take(), ["true", "false", "still there: text"][1..]);
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

/// The holder stands below the greenlet that it ends.
#[test]
fn the_holder_may_be_a_descendant_of_its_greenlet() {
    let holder = Greenlet::new(|(): ()| {
        let text = String::from("text");
        let main = getparent().unwrap();
        scope(|s| {
            let builder = Greenlet::builder().parent(&main);
            let child = s.greenlet_with(builder, |(): ()| {
                let ended = getparent().unwrap().switch::<()>(text.len());
                assert!(ended.is_err());
                ended
            });
            getparent().unwrap().switch::<()>(child.clone())?;
            let itself = getcurrent();
            itself.set_parent(&child)?;
            anyhow::Ok(())
        })?;
        Ok("left")
    });
    let child: Greenlet = holder.switch(()).unwrap();
    assert_eq!(child.switch::<usize>(()).unwrap(), 4);
    assert_eq!(holder.switch::<&str>(()).unwrap(), "left");
    assert!(child.is_dead());
}

#[test]
fn where_switching_is_refused_they_never_start() {
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
fn a_scope_that_makes_many_stays_small() {
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
fn an_exit_in_the_middle_is_an_ordinary_end() {
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
