//! How the drop of a generator ends its function.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};

use super::{all, count, named, note};
use crate::support::{Drops, Log, NoLeaks, catch_reports, on_drop, reports, take_reports, up};
use greenlet::{Generator, GreenletExit, getcurrent, raise, stacks_in_use};

// GN-10
#[test]
fn dropping_a_generator_ends_its_function() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inner = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let _inner = note(&inner, "function");
        let error = out.yield_(1).unwrap_err();
        inner.add(error.is::<GreenletExit>().to_string());
        Err(error)
    });
    generator.next();
    drop(generator);
    assert_eq!(log.take(), ["true", "function in main"]);
}

// GN-10: the second stage of the end.
#[test]
fn dropping_a_generator_unwinds_a_function_that_ignores_the_exit() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inner = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let _inner = note(&inner, "function");
        loop {
            let _ = out.yield_(1);
            inner.add("goes on");
        }
    });
    generator.next();
    drop(generator);
    assert_eq!(log.take(), ["goes on", "function in main"]);
}

// GN-10
#[test]
fn dropping_an_unstarted_generator_drops_its_captures() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    drop(Generator::<()>::new(move |_| {
        let _witness = &witness;
        Ok(())
    }));
    assert_eq!(drops.count(), 1);
}

// GN-10, GN-7: the inner generators end with the outer one, even if an inner function yielded for
// it.
#[test]
fn dropping_a_generator_ends_the_generators_that_it_consumes() {
    for by_the_inner in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let witnesses = [drops.witness(), drops.witness()];
        let mut outer = Generator::new(move |outer| {
            let [mine, its] = witnesses;
            let _mine = mine;
            let passed_on = outer.clone();
            let inner = Generator::new(move |inner| {
                let _its = its;
                if by_the_inner {
                    passed_on.yield_(0)?;
                }
                inner.yield_(1)
            });
            for n in inner {
                outer.yield_(n?)?;
            }
            Ok(())
        });
        assert_eq!(outer.next().unwrap().unwrap(), u32::from(!by_the_inner));
        drop(outer);
        assert_eq!(drops.count(), 2);
    }
}

// GN-10: a forced unwind targets one generator, and passes through the generators inside it.
#[test]
fn a_forced_unwind_passes_through_inner_generators() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let (own, its) = (log.clone(), log.clone());
    let mut outer = Generator::<u32>::new(move |outer| {
        let _own = note(&own, "outer");
        let inner = Generator::<u32>::new(move |_| {
            let _its = note(&its, "inner");
            loop {
                let _ = outer.yield_(1);
            }
        });
        inner.resume(()).unwrap().map(drop)
    });
    outer.next().unwrap().unwrap();
    drop(outer);
    assert_eq!(log.take(), ["inner in main", "outer in main"]);
}

/// The outer function ends the inner one, whose clean-up yields for the outer generator.
#[test]
fn a_function_that_is_being_ended_may_yield_for_the_outer_generator() {
    let _no_leaks = NoLeaks::watch();
    let outer = Generator::new(|outer| {
        let passed_on = outer.clone();
        let mut inner = Generator::<u32>::new(move |inner| {
            let error = inner.yield_(0).unwrap_err();
            passed_on.yield_("while it is ended")?;
            Err(error)
        });
        inner.next().unwrap()?;
        drop(inner);
        outer.yield_("after")
    });
    assert_eq!(all(outer), ["while it is ended", "after"]);
}

// GN-10
#[test]
fn errors_and_panics_of_a_dropped_generator_are_reported() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let ends_with = |end: fn() -> Result<()>| {
        let mut generator = Generator::new(move |out| {
            let _ = out.yield_(1);
            end()
        });
        generator.next().unwrap().unwrap();
        drop(generator);
        take_reports()
    };
    assert_eq!(ends_with(|| bail!("disk full")), ["main: error disk full"]);
    assert_eq!(
        ends_with(|| resume_unwind(Box::new("broken"))),
        ["main: panic broken"]
    );
    assert_eq!(ends_with(|| raise(anyhow!("raised"))), ["main: error raised"]);
    assert!(ends_with(|| Ok(())).is_empty());
    assert!(ends_with(|| Err(GreenletExit::new().into())).is_empty());
    assert!(ends_with(|| Err(anyhow!(GreenletExit::new()).context("above it"))).is_empty());
}

// GN-10
#[test]
fn panics_of_destructors_are_reported_when_a_generator_is_dropped() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let panics = || on_drop(|| resume_unwind(Box::new("in a destructor")));
    // A capture.
    let captured = panics();
    drop(Generator::<()>::new(move |_| {
        let _captured = &captured;
        Ok(())
    }));
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
    // A local variable.
    let mut generator = Generator::new(move |out| {
        let _local = panics();
        out.yield_(1)
    });
    generator.next().unwrap().unwrap();
    drop(generator);
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
    // An item that is yielded during the end.
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::new(move |out| {
        let _witness = witness;
        out.yield_(1)
    });
    generator.next().unwrap().unwrap();
    let mut stubborn = Generator::new(move |out| {
        let _ = out.yield_(None);
        let _ = out.yield_(Some(panics()));
        let _inner = generator;
        out.yield_(None)
    });
    stubborn.next().unwrap().unwrap();
    drop(stubborn);
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
    assert_eq!(drops.count(), 1);
    // The return value.
    let mut generator = Generator::new(move |out| {
        let _ = out.yield_(1);
        Ok(panics())
    });
    generator.next().unwrap().unwrap();
    drop(generator);
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
}

// GN-10
#[test]
fn a_panic_of_a_destructor_propagates_out_of_close() {
    let _no_leaks = NoLeaks::watch();
    let captured = on_drop(|| resume_unwind(Box::new("in a destructor")));
    let generator = Generator::<()>::new(move |_| {
        let _captured = &captured;
        Ok(())
    });
    let payload = catch_unwind(AssertUnwindSafe(|| generator.close())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"in a destructor"));
    assert!(generator.is_finished());
}

// GN-10
#[test]
fn a_function_that_stops_every_unwind_is_left_suspended() {
    let log = Log::new();
    let inner = log.clone();
    catch_reports();
    let before = stacks_in_use();
    let mut generator = Generator::<u32>::new(move |out| {
        loop {
            let _ = catch_unwind(AssertUnwindSafe(|| out.yield_(1)));
            inner.add("goes on");
        }
    });
    generator.next().unwrap().unwrap();
    drop(generator);
    assert_eq!(take_reports(), ["main: refused to end"]);
    assert_eq!(log.take().len(), 2, "one exit, and one forced unwinding");
    assert_eq!(stacks_in_use(), before + 1, "its stack is leaked");
}

// GN-10
#[test]
fn a_function_that_is_being_ended_may_switch() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let consumer = named("a", move |()| {
        let mut generator = Generator::<u32>::new(move |out| {
            let error = out.yield_(1).unwrap_err();
            seen.add(up::<String>("from its clean-up")?);
            Err(error)
        });
        generator.next().unwrap()?;
        drop(generator);
        Ok("after")
    });
    assert_eq!(consumer.switch::<&str>(()).unwrap(), "from its clean-up");
    assert_eq!(consumer.switch::<&str>(String::from("answer")).unwrap(), "after");
    assert_eq!(log.take(), ["answer"]);
}

// GN-10: both stages of the consumer's end, while the consumer drops a generator.
#[test]
fn a_consumer_can_be_ended_while_it_drops_a_generator() {
    for is_stubborn in [false, true] {
        let _no_leaks = NoLeaks::watch();
        catch_reports();
        let log = Log::new();
        let (own, inner) = (log.clone(), log.clone());
        let consumer = named("a", move |()| {
            let _own = note(&own, "consumer");
            let mut generator = Generator::new(move |out| {
                let _inner = note(&inner, "function");
                let _ = out.yield_(1);
                while up::<()>(()).is_ok() || is_stubborn {}
                Ok(())
            });
            generator.next().unwrap()?;
            drop(generator);
            up::<()>(())
        });
        consumer.switch::<()>(()).unwrap();
        consumer.end();
        assert!(consumer.is_dead());
        assert_eq!(log.take(), ["function in a", "consumer in a"]);
        assert!(take_reports().is_empty());
    }
}

#[test]
fn a_function_may_drop_the_last_handle_of_another_generator() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inner = log.clone();
    let slot: Rc<RefCell<Option<Rc<Generator<u32>>>>> = Rc::default();
    let takes = slot.clone();
    let mut outer = Generator::<u32>::new(move |out| {
        let _inner = note(&inner, "function");
        let itself = takes.take();
        out.yield_(1)?;
        drop(itself);
        out.yield_(2)
    });
    let other = Rc::new(count(1));
    slot.replace(Some(other));
    assert_eq!(outer.next().unwrap().unwrap(), 1);
    assert_eq!(outer.next().unwrap().unwrap(), 2);
    drop(outer);
    assert_eq!(log.take(), ["function in main"]);
}

// GN-14, GN-10
#[test]
fn a_generator_can_be_dropped_while_its_consumer_panics() {
    let _no_leaks = NoLeaks::watch();
    for is_stubborn in [false, true] {
        let log = Log::new();
        let inner = log.clone();
        let payload = catch_unwind(AssertUnwindSafe(|| {
            let mut generator = Generator::<u32>::new(move |out| {
                let _inner = note(&inner, "function");
                loop {
                    let got = out.yield_(1);
                    if !is_stubborn {
                        got?;
                    }
                }
            });
            generator.next();
            resume_unwind(Box::new("consumer"));
        }));
        assert_eq!(payload.unwrap_err().downcast_ref(), Some(&"consumer"));
        assert_eq!(log.take(), ["function in main"]);
        assert!(!std::thread::panicking());
    }
}

// GN-14, GN-10
#[test]
fn a_panic_of_the_function_while_the_consumer_panics_is_reported() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let mut generator = Generator::<u32>::new(|out| {
            let _ = out.yield_(1);
            resume_unwind(Box::new("function"))
        });
        generator.next();
        resume_unwind(Box::new("consumer"));
    }));
    assert_eq!(payload.unwrap_err().downcast_ref(), Some(&"consumer"));
    assert_eq!(take_reports(), ["main: panic function"]);
    assert!(!std::thread::panicking());
}

thread_local! {
    static KEPT: RefCell<Vec<Generator<u32>>> = const { RefCell::new(Vec::new()) };
}

// GN-15
#[test]
fn a_generator_in_a_thread_local_is_ended_when_the_thread_local_is_dropped() {
    for is_first in [false, true] {
        let reported = std::thread::spawn(move || {
            catch_reports();
            if is_first {
                KEPT.with(|_| ());
            }
            let mut generator = Generator::new(|out| {
                let _note = on_drop(|| assert!(getcurrent().is_main()));
                let error = out.yield_(1).unwrap_err();
                // Generators work as usual even late in the end of a thread.
                assert_eq!(all(count(3)), [1, 2, 3]);
                bail!("ended: {error}")
            });
            generator.next().unwrap().unwrap();
            let unrun = count(1);
            KEPT.with_borrow_mut(|kept| kept.extend([generator, unrun]));
            reports()
        });
        let reported = reported.join().unwrap();
        let lines = reported.lock().unwrap();
        assert!(lines.len() <= 1, "{lines:?}"); // empty if the list of reports was dropped before
    }
}
