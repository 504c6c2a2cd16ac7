//! Attacks on scopes: every greenlet that borrows is ended before the scope is left.
//!
//! Attacks that broke borrowing coroutines of other libraries cite their reports: corosensei issues
//! 27 and 59 and pull request 60, generator-rs issues 49 and 59. (Issue 44 of corosensei, a
//! borrowed stack, cannot be written: the library creates all stacks.)

use std::cell::{Cell, RefCell};
use std::mem;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::mpsc;

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, ScopedGenerator, getcurrent, getparent, scope};

use super::scope::{Watch, wait};
use crate::support::{Log, ThreadEnd};

/// corosensei issues 27 and 59, generator-rs issues 49 and 59: a handle is forgotten while the
/// greenlet is inside `std::thread::scope`. There, the scoped thread outlived the borrowed value.
#[test]
fn a_forgotten_greenlet_joins_its_scoped_thread_before_the_scope_is_left() {
    let mut text = "Happy".to_owned();
    let (to_thread, wait_for_main) = mpsc::channel::<()>();
    let (to_main, from_thread) = mpsc::channel();
    {
        let borrowed = text.as_str();
        // The closure of the scope drops the sender before the scope ends its greenlets, so the
        // thread can continue.
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

/// generator-rs issue 59: the function ends by a panic after its suspension. The panic must not get
/// lost together with the thread.
#[test]
fn a_forgotten_greenlet_that_panics_at_its_end_is_ended_by_the_scope() {
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

/// corosensei pull request 60: the handles of an inner and an outer coroutine are swapped. There,
/// the outer scope dropped the inner coroutine.
#[test]
fn greenlets_of_an_inner_scope_end_with_it_after_a_swap_of_handles() {
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

/// The holder of the scope switches away inside it and is ended there, in each of the ways in which
/// a greenlet can be ended.
#[test]
fn ending_the_holder_of_a_scope_ends_the_greenlets_of_the_scope() {
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
                continue; // a greenlet may ignore a throw
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
                    // A child of the holder would keep the holder alive by its parent link.
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

/// At the end of the thread the holder, the child and the borrowed value all stay in place.
/// `run_to_end` ends the child before its holder.
#[test]
fn forgetting_the_holder_of_a_scope_leaves_no_dangling_borrow() {
    for end in ThreadEnd::BOTH {
        let (sender, receiver) = mpsc::channel();
        end.of_thread(move || {
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
        .unwrap();
        let ended: Vec<String> = receiver.try_iter().collect();
        match end {
            ThreadEnd::Plain => assert!(ended.is_empty()),
            ThreadEnd::RunToEnd => assert_eq!(ended, ["text"]),
        }
    }
}

/// A greenlet of the scope continues, while its holder is never resumed.
#[test]
fn a_greenlet_of_a_scope_may_run_on_while_its_holder_stays_suspended() {
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

/// Clean-up that switches elsewhere keeps the holder suspended. The scope stays until the holder is
/// resumed.
#[test]
fn clean_up_may_keep_the_holder_of_a_scope_waiting() {
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
    // The second stage of the end follows.
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

/// The holder is a descendant of the greenlet that it ends.
#[test]
fn the_holder_of_a_scope_may_be_a_descendant_of_its_greenlet() {
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

/// Between two stages of the end, the destructor of an item lets another greenlet step the
/// generator, which stays suspended there.
#[test]
fn a_generator_that_is_stepped_between_the_stages_of_its_end_is_ended_with_that_consumer() {
    struct Steps(Greenlet);
    impl Drop for Steps {
        fn drop(&mut self) {
            self.0.switch::<()>(()).unwrap();
        }
    }

    let log = Log::new();
    let text = String::from("text");
    scope(|s| {
        let slot = Rc::new(RefCell::new(None::<ScopedGenerator<'_, Option<Steps>>>));
        let stepped = Rc::clone(&slot);
        let consumer = s.greenlet(move |(): ()| {
            let generator = stepped.borrow();
            generator.as_ref().unwrap().resume(()).unwrap().map(drop)
        });
        let steps = consumer.clone();
        let mut generator = s.generator(|out| {
            let _watch = Watch {
                log: &log,
                looks_at: &text,
            };
            let _ = out.yield_(None);
            let _ = out.yield_(Some(Steps(steps)));
            loop {
                wait()?; // in the other consumer now
            }
        });
        assert!(generator.next().unwrap().unwrap().is_none());
        slot.replace(Some(generator));
        mem::forget(slot);
        mem::forget(consumer);
    });
    assert_eq!(log.take(), ["still there: text"]);
}
