//! Generators: what they hand out, to whom, and how they end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};
use greenlet::{
    Generator, GeneratorError, Greenlet, GreenletExit, ParentError, SwitchForbidden, Tracer, TypeMismatch,
    Yielder, getcurrent, getparent, no_switch, settrace, yield_,
};

use crate::support::{Drops, Log, NoLeaks, up};

fn count(to: u32) -> Generator<u32> {
    Generator::new(move |out| (1..=to).try_for_each(|n| out.yield_(n)))
}

fn all<T: 'static>(generator: Generator<T>) -> Vec<T> {
    generator.collect::<Result<_>>().unwrap()
}

fn is_kind(error: &anyhow::Error, predicate: fn(&GeneratorError) -> bool) -> bool {
    error.downcast_ref().is_some_and(predicate)
}

// GN-1, GN-5; gen::test_generator
#[test]
fn test_generator() {
    let log = Log::new();
    let seen = log.clone();
    let make = move || {
        let seen = seen.clone();
        Generator::new(move |out| {
            for n in 0..3 {
                seen.add(format!("made {n}"));
                out.yield_(n)?;
            }
            Ok(())
        })
    };
    for _ in 0..3 {
        for n in make() {
            log.add(format!("got {}", n.unwrap()));
        }
        let lines = ["made 0", "got 0", "made 1", "got 1", "made 2", "got 2"];
        assert_eq!(log.take(), lines);
    }
}

// GN-1
#[test]
fn a_generator_that_has_ended_only_ends() {
    let mut two = count(2);
    assert_eq!(two.by_ref().count(), 2);
    assert!(two.is_finished());
    assert!(two.next().is_none());
    assert!(two.next().is_none());
}

// GN-1: the item is told from the end by the greenlet's state, not by the value.
#[test]
fn a_generator_of_units_ends_where_it_ends() {
    let units = Generator::new(|out| (0..4).try_for_each(|_| out.yield_(())));
    assert_eq!(all(units).len(), 4);
}

// GN-2
#[test]
fn greenlets_take_turns_as_consumer_and_the_last_one_is_the_parent() {
    let shared = Rc::new(RefCell::new(count(4)));
    let consumer = || {
        let shared = shared.clone();
        Greenlet::new(move |(): ()| {
            let main = getparent().unwrap();
            loop {
                let Some(n) = shared.borrow_mut().next() else {
                    return Ok(None::<u32>);
                };
                main.switch::<()>(Some(n?))?;
            }
        })
    };
    let (first, second) = (consumer(), consumer());
    let step = |greenlet: &Greenlet| greenlet.switch::<Option<u32>>(()).unwrap();
    assert_eq!(step(&first), Some(1));
    assert_eq!(shared.borrow().greenlet().parent().as_ref(), Some(&first));
    assert_eq!(step(&second), Some(2));
    assert_eq!(shared.borrow().greenlet().parent().as_ref(), Some(&second));
    assert_eq!(shared.borrow_mut().next().unwrap().unwrap(), 3);
    assert_eq!(step(&first), Some(4));
    assert_eq!(step(&second), None, "the end goes to who asked");
    assert_eq!(step(&first), None);
}

// GN-3
#[test]
fn yields_come_from_any_depth_of_calls() {
    fn inorder(low: u32, high: u32, out: &Yielder<u32>) -> Result<()> {
        if low < high {
            let middle = low.midpoint(high);
            inorder(low, middle, out)?;
            out.yield_(middle)?;
            inorder(middle + 1, high, out)?;
        }
        Ok(())
    }
    let numbers = Generator::new(|out| inorder(0, 100, &out));
    assert_eq!(all(numbers), (0..100).collect::<Vec<_>>());
}

// GN-4; nest::test_genlet_bad
#[test]
fn test_genlet_bad() {
    let error = yield_(1_u8).unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_outside));

    let slot = Rc::new(RefCell::new(None));
    let inside = slot.clone();
    let mut generator = Generator::<u8>::new(move |out| {
        inside.replace(Some(out.clone()));
        out.yield_(1)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let yielder = slot.take().unwrap();
    let error = yielder.yield_(2).unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_outside), "main is not inside");
    assert!(generator.next().is_none());
}

// GN-4: by type, from the nearest outwards.
#[test]
fn a_yield_finds_the_nearest_generator_of_its_type() {
    let outer = Generator::<&str>::new(|_| {
        let inner = Generator::<u32>::new(|_| {
            yield_("to the outer one")?;
            yield_(1_u32)?;
            yield_("again")
        });
        for n in inner {
            assert_eq!(n?, 1);
            yield_("in between")?;
        }
        Ok(())
    });
    assert_eq!(all(outer), ["to the outer one", "in between", "again"]);
}

// GN-6, GC-3; nest::test_permutations
#[test]
fn test_permutations() {
    fn permutations(items: Vec<u8>) -> Generator<Vec<u8>> {
        Generator::new(move |out| {
            if items.len() <= 1 {
                return out.yield_(items);
            }
            let (first, rest) = (items[0], items[1..].to_vec());
            for shorter in permutations(rest) {
                let shorter = shorter?;
                for place in 0..=shorter.len() {
                    let mut longer = shorter.clone();
                    longer.insert(place, first);
                    out.yield_(longer)?;
                }
            }
            Ok(())
        })
    }
    let mut every = all(permutations(vec![1, 2, 3, 4, 5]));
    every.sort();
    every.dedup();
    assert_eq!(every.len(), 120);

    let in_lockstep = permutations(vec![1, 2, 3]).zip(permutations(vec![4, 5, 6]));
    assert_eq!(in_lockstep.filter(|(a, b)| a.is_ok() && b.is_ok()).count(), 6);
}

// GN-6; nest::test_nested_genlets
#[test]
fn test_nested_genlets() {
    let doubled = Generator::new(|out| {
        for n in count(4) {
            out.yield_(n? * 2)?;
        }
        Ok(())
    });
    assert_eq!(all(doubled), [2, 4, 6, 8]);
}

// GN-7, GN-8; nest::test_layered_genlets
#[test]
fn test_layered_genlets() {
    let log = Log::new();
    let seen = log.clone();
    let outer = Generator::new(move |outer| {
        let inner = Generator::new(move |inner| {
            for n in 1..=4_u32 {
                inner.yield_(n)?;
                outer.yield_(n * n)?;
            }
            Ok(())
        });
        for n in inner {
            seen.add(n?.to_string());
        }
        Ok(())
    });
    for square in outer {
        log.add(square.unwrap().to_string());
    }
    assert_eq!(log.take(), ["1", "1", "2", "4", "3", "9", "4", "16"]);
}

// GN-7: the generator in the middle is not resumed for what does not concern it.
#[test]
fn a_yield_over_two_levels_leaves_the_middle_suspended() {
    let middle_is_suspended = Log::new();
    let seen = middle_is_suspended.clone();
    let mut outer = Generator::new(move |outer| {
        let middle = getcurrent().downgrade();
        let mut inner = Generator::new(move |_| {
            for n in 0..3_u32 {
                outer.yield_(n)?;
                let middle = middle.upgrade().unwrap();
                seen.add(format!("{} {}", middle.is_active(), middle.is_current()));
            }
            Ok(())
        });
        let nothing: Option<Result<()>> = inner.next();
        assert!(nothing.is_none());
        Ok(())
    });
    assert_eq!(outer.by_ref().map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(middle_is_suspended.take(), ["true false"; 3]);
}

// GN-9
#[test]
fn an_error_is_the_last_item() {
    let mut generator = Generator::new(|out| {
        out.yield_(1)?;
        bail!("no more today")
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert_eq!(
        generator.next().unwrap().unwrap_err().to_string(),
        "no more today"
    );
    assert!(generator.next().is_none());
}

// GN-9
#[test]
fn a_panic_goes_on_in_the_consumer_and_then_it_has_ended() {
    let mut generator = Generator::new(|out| {
        out.yield_(1)?;
        std::panic::resume_unwind(Box::new("broken"));
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let payload = catch_unwind(AssertUnwindSafe(|| generator.next())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"broken"));
    assert!(generator.next().is_none());
}

// GN-1: an exit ends it, like any return.
#[test]
fn an_exit_just_ends_it() {
    let mut generator = Generator::new(|out| {
        out.yield_(1)?;
        Err(GreenletExit::new().into())
    });
    assert_eq!(generator.by_ref().map(Result::unwrap).collect::<Vec<_>>(), [1]);
    assert!(generator.is_finished());

    let mut killed = count(3);
    killed.next();
    killed.greenlet().kill().unwrap();
    assert!(killed.next().is_none());
    let mut killed_before_its_start = count(3);
    killed_before_its_start.greenlet().kill().unwrap();
    assert!(killed_before_its_start.next().is_none());
}

// GN-10
#[test]
fn dropping_it_ends_the_function_whoever_has_handles() {
    let drops = Drops::new();
    let witness = drops.witness();
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::new(move |out| {
        let _witness = witness;
        let _itself = getcurrent(); // in Python, this would keep it for ever
        let error = out.yield_(1).unwrap_err();
        seen.add(error.is::<GreenletExit>().to_string());
        let error = out.yield_(2).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Err(error)
    });
    generator.next();
    let handle = generator.greenlet().clone();
    crate::support::catch_reports();
    drop(generator);
    assert!(handle.is_dead());
    assert_eq!(drops.count(), 1);
    assert_eq!(log.take(), ["true", "true"]);
}

// GN-10: the second stage.
#[test]
fn dropping_it_unwinds_a_function_that_does_not_listen() {
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::new(move |out| {
        let _witness = witness;
        out.yield_(1)?;
        unreachable!()
    });
    generator.next();
    let stubborn_drops = Drops::new();
    let witness = stubborn_drops.witness();
    let mut stubborn = Generator::new(move |out| {
        let _witness = witness;
        let main = getparent().unwrap();
        let _ = out.yield_(1);
        loop {
            let _ = main.switch::<()>(()); // any error is ignored
        }
    });
    stubborn.next();
    drop(stubborn);
    assert_eq!(stubborn_drops.count(), 1);
    drop(generator);
    assert_eq!(drops.count(), 1);
}

// GN-10
#[test]
fn one_that_was_not_started_drops_what_it_captured() {
    let drops = Drops::new();
    let witness = drops.witness();
    drop(Generator::<()>::new(move |_| {
        let _witness = &witness;
        Ok(())
    }));
    assert_eq!(drops.count(), 1);
}

// GN-10, GN-7: the inner ones go with the outer one, also where an inner one yielded.
#[test]
fn dropping_it_ends_what_it_steps() {
    for by_the_inner in [false, true] {
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

#[test]
fn values_are_sent_in_and_the_first_goes_to_the_function() {
    let log = Log::new();
    let seen = log.clone();
    let mut echo = Generator::with_input(move |out, first: &str| {
        seen.add(first);
        let mut n = 0;
        loop {
            n += 1;
            let next = out.yield_(n)?;
            seen.add(next);
            if next == "stop" {
                return Ok(());
            }
        }
    });
    assert_eq!(echo.send("a").unwrap().unwrap(), 1);
    assert_eq!(echo.send("b").unwrap().unwrap(), 2);
    assert!(echo.send("stop").is_none());
    assert!(echo.send("nobody hears it").is_none());
    assert_eq!(log.take(), ["a", "b", "stop"]);
}

/// A generator that switches to main's other child between its values, as a function does that waits.
#[test]
fn a_function_may_switch_elsewhere_while_the_consumer_waits() {
    let log = Log::new();
    let seen = log.clone();
    let other = Greenlet::new(move |mut back: Greenlet| {
        loop {
            seen.add("other");
            back = back.switch::<Greenlet>(())?;
            if false {
                return Ok(());
            }
        }
    });
    let asked = other.clone();
    let generator = Generator::new(move |out| {
        for n in 0..2 {
            asked.switch::<()>(getcurrent())?;
            out.yield_(n)?;
        }
        Ok(())
    });
    for n in generator {
        log.add(n.unwrap().to_string());
    }
    assert_eq!(log.take(), ["other", "0", "other", "1"]);
}

#[test]
fn what_comes_to_the_consumer_instead_is_an_error_and_the_generator_is_busy() {
    let main = getcurrent();
    let hub = Greenlet::new(move |first: &str| {
        // Whoever asks goes on with main instead.
        main.switch::<&str>(first)?;
        Ok("over")
    });
    let asked = hub.clone();
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let answer: &str = asked.switch("instead")?;
        seen.add(answer);
        let error = out.yield_(1).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    });
    let error = generator.next().unwrap().unwrap_err();
    let value = error.downcast::<TypeMismatch>().unwrap().into_value().unwrap();
    assert_eq!(value.downcast::<&str>().unwrap(), "instead");
    let error = generator.next().unwrap().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_busy));
    assert!(!generator.is_finished());

    // Its end goes to the last consumer, as the end of any child does.
    let end = generator.greenlet().switch::<()>("goes on");
    assert!(end.unwrap_err().is::<TypeMismatch>());
    assert_eq!(log.take(), ["goes on", "true"]);
    assert!(generator.next().is_none());
}

#[test]
fn a_refused_step_changes_nothing() {
    let mut generator = count(2);
    let refused = no_switch(|| generator.next()).unwrap().unwrap_err();
    assert!(refused.is::<SwitchForbidden>());
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let refused = no_switch(|| generator.next()).unwrap().unwrap_err();
    assert!(refused.is::<SwitchForbidden>());
    assert_eq!(generator.next().unwrap().unwrap(), 2);
    assert!(generator.next().is_none());
}

#[test]
fn a_refused_yield_can_be_repeated() {
    let generator = Generator::new(|out| {
        let refused = no_switch(|| out.yield_(1)).unwrap_err();
        assert!(refused.is::<SwitchForbidden>());
        out.yield_(2)
    });
    assert_eq!(all(generator), [2]);
}

#[test]
fn what_is_thrown_in_past_the_generator_sets_it_adrift() {
    let mut generator = Generator::new(|out| {
        let error = out.yield_(1).unwrap_err();
        assert_eq!(error.to_string(), "surprise");
        let error = out.yield_(2).unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_cut_short));
        Ok(())
    });
    generator.next();
    let ended = generator.greenlet().throw::<()>(anyhow!("surprise"));
    assert!(ended.is_err());
    assert!(generator.next().is_none());
}

#[test]
fn a_generator_cannot_be_stepped_from_below_itself() {
    let slot = Rc::new(RefCell::new(None::<Generator<u32>>));
    let inside = slot.clone();
    let below = Rc::new(RefCell::new(None));
    let leave = below.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let child = Greenlet::new(move |(): ()| {
            let error = inside.borrow_mut().as_mut().unwrap().next().unwrap().unwrap_err();
            assert!(error.is::<ParentError>());
            Ok(())
        });
        leave.replace(Some(child));
        out.yield_(1)?;
        out.yield_(2)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    slot.replace(Some(generator));
    let child: Greenlet = below.take().unwrap();
    // The child ends into the generator's function, which has not been stepped.
    let _ = child.switch::<()>(());
    assert!(child.is_dead());
    drop(slot.take());
}

#[test]
fn greenlets_of_the_function_yield_for_it() {
    let drops = Drops::new();
    let witness = drops.witness();
    let generator = Generator::new(move |out| {
        let helper = out.clone();
        let child = Greenlet::new(move |(): ()| {
            let _witness = witness;
            helper.yield_("child 1")?;
            helper.yield_("child 2")
        });
        out.yield_("own 1")?;
        child.switch::<()>(())?;
        out.yield_("own 2")
    });
    let items = generator.map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(items, ["own 1", "child 1", "child 2", "own 2"]);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_function_that_drops_its_own_generator_has_nobody_to_yield_to() {
    let slot = Rc::new(RefCell::new(None::<Generator<u32>>));
    let inside = slot.clone();
    let log = Log::new();
    let seen = log.clone();
    let main = getcurrent();
    let mut generator = Generator::new(move |out| {
        main.switch::<()>("not an item")?;
        drop(inside.take());
        let error = out.yield_(1).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    });
    assert!(generator.next().unwrap().unwrap_err().is::<TypeMismatch>());
    let greenlet = generator.greenlet().clone();
    slot.replace(Some(generator));
    assert!(greenlet.switch::<()>(()).unwrap_err().is::<TypeMismatch>());
    assert_eq!(log.take(), ["true"]);
    assert!(greenlet.is_dead());
}

/// A greenlet that panics as soon as it is switched to: the panic goes to its parent.
fn panics_into(parent: &Greenlet) -> Greenlet {
    Greenlet::builder()
        .parent(parent)
        .build(|(): ()| -> Result<()> { panic!("past the generator") })
}

#[test]
fn a_step_that_unwinds_sets_it_adrift() {
    let main = getcurrent();
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        panics_into(&main).switch::<()>(())?;
        let error = out.yield_(1).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    });
    catch_unwind(AssertUnwindSafe(|| generator.next())).unwrap_err();
    let error = generator.next().unwrap().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_busy));
    assert!(generator.greenlet().switch::<()>(()).is_err());
    assert_eq!(log.take(), ["true"]);
    assert!(generator.next().is_none());
}

#[test]
fn a_yield_that_unwinds_sets_it_adrift() {
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        catch_unwind(AssertUnwindSafe(|| out.yield_(1))).unwrap_err();
        let error = out.yield_(2).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert!(generator.greenlet().is_yielding());
    assert!(panics_into(generator.greenlet()).switch::<()>(()).is_err());
    assert_eq!(log.take(), ["true"]);
    assert!(generator.next().is_none());
}

#[test]
fn a_step_to_a_greenlet_of_the_function_that_unwinds_sets_it_adrift() {
    let main = getcurrent();
    let mut generator = Generator::<u32>::new(move |out| {
        let helper = out.clone();
        let child = Greenlet::new(move |(): ()| {
            helper.yield_(1)?;
            panics_into(&main).switch::<()>(())
        });
        child.switch::<()>(())?;
        out.yield_(2)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    catch_unwind(AssertUnwindSafe(|| generator.next())).unwrap_err();
    let error = generator.next().unwrap().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_busy));
}

#[test]
fn what_is_thrown_into_a_greenlet_that_yields_for_the_function_sets_it_adrift() {
    let main = getcurrent();
    let slot = Rc::new(RefCell::new(None::<Greenlet>));
    let made = slot.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let helper = out.clone();
        let child = Greenlet::new(move |(): ()| {
            let error = helper.yield_(1).unwrap_err();
            main.switch::<()>(error.to_string())
        });
        made.replace(Some(child.clone()));
        child.switch::<()>(())?;
        out.yield_(2)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let child = slot.take().unwrap();
    assert_eq!(child.throw::<String>(anyhow!("surprise")).unwrap(), "surprise");
    // It is in another switch now.
    let error = generator.next().unwrap().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_busy));
}

/// What runs where something comes to the function, before that is there: it yields, and nobody waits.
#[test]
fn nobody_waits_for_what_is_yielded_while_something_else_arrives() {
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::<u32>::new(|out| {
        let error = out.yield_(1).unwrap_err();
        assert!(error.is::<TypeMismatch>());
        let error = out.yield_(2).unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_cut_short));
        Ok(())
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let is_first = RefCell::new(true);
    settrace(Some(Tracer::new(move |event| {
        if !event.target.is_main() && is_first.replace(false) {
            let error = yield_(33_u32).unwrap_err();
            seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        }
        Ok(())
    })));
    let greenlet = generator.greenlet().clone();
    let end = greenlet.switch::<()>("not a step").unwrap_err();
    settrace(None);
    assert!(end.is::<TypeMismatch>());
    assert_eq!(log.take(), ["true"]);
    assert!(generator.next().is_none());
}

/// It throws at the generator with its last handle gone, so it is ended in the generator's context.
#[test]
fn nobody_waits_for_what_the_clean_up_of_who_throws_yields() {
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::<u32>::new(|out| {
        let error = out.yield_(1).unwrap_err();
        assert_eq!(error.to_string(), "thrown");
        Ok(())
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let greenlet = generator.greenlet().clone();
    let throws = Greenlet::new(move |(): ()| {
        up::<()>(())?;
        greenlet.throw::<()>(anyhow!("thrown")).unwrap_err();
        let error = yield_(33_u32).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    });
    throws.switch::<()>(()).unwrap();
    assert!(throws.switch_owned::<()>(()).unwrap_err().is::<TypeMismatch>());
    assert_eq!(log.take(), ["true"]);
    assert!(generator.next().is_none());
}

/// While the tracer looks at a step that arrives at the function, the consumer is ended; so nobody waits any more.
#[test]
fn a_consumer_that_is_ended_while_its_step_arrives_does_not_wait() {
    let log = Log::new();
    let seen = log.clone();
    let generator = Rc::new(RefCell::new(Generator::<u32>::new(move |out| {
        out.yield_(1)?;
        let error = out.yield_(2).unwrap_err();
        seen.add(is_kind(&error, GeneratorError::is_cut_short).to_string());
        Ok(())
    })));
    let stepped = generator.clone();
    let consumer = Greenlet::new(move |(): ()| {
        for _ in 0..2 {
            let item = stepped.borrow_mut().next().unwrap();
            up::<()>(item.is_ok())?;
        }
        Ok(false)
    });
    assert!(consumer.switch::<bool>(()).unwrap());
    let function = generator.borrow().greenlet().clone();
    let (ended, is_first) = (consumer.clone(), RefCell::new(true));
    settrace(Some(Tracer::new(move |event| {
        if event.target == function && is_first.replace(false) {
            let _ = ended.throw::<()>(GreenletExit::new());
        }
        Ok(())
    })));
    let _ = consumer.switch::<bool>(());
    settrace(None);
    let function = generator.borrow().greenlet().clone();
    while !function.is_dead() {
        let _ = function.switch::<()>(());
    }
    assert_eq!(log.take(), ["true"]);
}

#[test]
fn nobody_waits_for_what_is_yielded_below_a_generator_that_was_not_started() {
    let main = getcurrent();
    let yields_below = |generator: &Generator<u32>| {
        let main = main.clone();
        let below = Greenlet::new(move |(): ()| {
            let error = yield_(7_u32).unwrap_err();
            main.switch::<()>(is_kind(&error, GeneratorError::is_cut_short))
        });
        below.set_parent(generator.greenlet()).unwrap();
        below.switch::<bool>(()).unwrap()
    };
    let mut generator = count(1);
    assert!(yields_below(&generator));
    assert_eq!(all(count(2)), [1, 2]);
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let generator = count(1);
    assert!(generator.greenlet().throw::<()>(anyhow!("killed")).is_err());
    assert!(yields_below(&generator));
}

#[test]
fn a_greenlet_that_yields_for_it_is_parked_where_it_does() {
    let slot = Rc::new(RefCell::new(None::<Greenlet>));
    let made = slot.clone();
    let line = Rc::new(RefCell::new(0));
    let noted = line.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let helper = out.clone();
        let child = Greenlet::new(move |(): ()| {
            noted.replace(line!() + 1);
            helper.yield_(1)
        });
        made.replace(Some(child.clone()));
        child.switch::<()>(())
    });
    generator.next().unwrap().unwrap();
    let parked_at = slot.borrow().as_ref().unwrap().parked_at().unwrap();
    assert_eq!((parked_at.file(), parked_at.line()), (file!(), *line.borrow()));
}

#[test]
fn it_is_parked_where_it_yields() {
    let line = Rc::new(RefCell::new(0));
    let noted = line.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        noted.replace(line!() + 1);
        out.yield_(1)?;
        getparent().unwrap().switch::<()>("elsewhere")
    });
    assert!(!generator.greenlet().is_yielding());
    generator.next();
    assert!(generator.greenlet().is_yielding());
    let parked_at = generator.greenlet().parked_at().unwrap();
    assert_eq!((parked_at.file(), parked_at.line()), (file!(), *line.borrow()));
    generator.next().unwrap().unwrap_err();
    assert!(!generator.greenlet().is_yielding());
    assert_eq!(
        generator.greenlet().parked_at().unwrap().line(),
        *line.borrow() + 1
    );
}

/// The function is in a `yield_` of its own, or has ended, and a greenlet that it made yields for it.
#[test]
fn nobody_waits_for_what_a_greenlet_yields_between_steps() {
    let main = getcurrent();
    let slot = Rc::new(RefCell::new(None::<Greenlet>));
    let made = slot.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let helper = out.clone();
        made.replace(Some(Greenlet::new(move |(): ()| {
            for _ in 0..2 {
                let error = helper.yield_(7).unwrap_err();
                main.switch::<()>(is_kind(&error, GeneratorError::is_cut_short))?;
            }
            Ok(())
        })));
        out.yield_(1)?;
        out.yield_(2)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let helper = slot.take().unwrap();
    assert!(helper.switch::<bool>(()).unwrap());
    assert_eq!(generator.next().unwrap().unwrap(), 2);
    assert!(generator.next().is_none());
    assert!(helper.switch::<bool>(()).unwrap());
}

#[test]
fn with_a_tracer_the_items_are_the_same() {
    let mut generator = Generator::with_input(|out, first: u32| {
        let mut n = first;
        loop {
            n = out.yield_(n * 2)?;
        }
    });
    let switches = Rc::new(RefCell::new(0));
    let counted = switches.clone();
    let before = settrace(Some(Tracer::new(move |_| {
        *counted.borrow_mut() += 1;
        Ok(())
    })));
    let items = [1, 2, 3].map(|n| generator.send(n).unwrap().unwrap());
    settrace(before);
    assert_eq!(items, [2, 4, 6]);
    assert_eq!(*switches.borrow(), 6);
    assert_eq!(generator.send(4).unwrap().unwrap(), 8);
}

/// The one who ends a greenlet becomes its parent meanwhile: from below, that must not make a ring.
#[test]
fn a_greenlet_can_be_ended_from_below() {
    let log = Log::new();
    let seen = log.clone();
    let main = getcurrent();
    let upper = Greenlet::new(move |(): ()| {
        let itself = getcurrent().downgrade();
        let seen_below = seen.clone();
        let below = Greenlet::new(move |(): ()| {
            itself.upgrade().unwrap().end();
            seen_below.add("below: ended it");
            Ok("below has ended")
        });
        let error = below.switch::<()>(()).unwrap_err();
        seen.add(format!("upper: {error}"));
        // Its start looks at the whole lineage.
        let third = Greenlet::new(|(): ()| Ok("from the third"));
        seen.add(third.switch::<&str>(()).unwrap());
        Err::<(), _>(error)
    });
    assert_eq!(upper.switch::<&str>(()).unwrap(), "below has ended");
    assert!(upper.is_dead());
    assert!(main.is_current());
    assert_eq!(
        log.take(),
        [
            "upper: greenlet exit: the owner of the greenlet ended it",
            "from the third",
            "below: ended it"
        ]
    );
}

#[test]
fn an_error_that_has_another_generators_end_is_an_error() {
    let _no_leaks = NoLeaks::watch();
    let mut outer: Generator<u32> = Generator::new(|_| {
        let raw: Rc<RefCell<Option<Greenlet>>> = Rc::default();
        let (put, me) = (Rc::clone(&raw), getcurrent().downgrade());
        let mut inner: Generator<u32> = Generator::new(move |_| {
            *put.borrow_mut() = Some(getcurrent());
            let outer = me.upgrade().unwrap();
            let _: greenlet::Value = outer.switch("past the generator")?;
            Ok(())
        });
        assert!(inner.next().unwrap().is_err());
        let raw = raw.take().unwrap();
        raw.switch::<u32>(())?; // its end, in an error of ours
        Ok(())
    });
    let error = outer.next().unwrap().unwrap_err();
    assert!(error.is::<greenlet::TypeMismatch>(), "{error}");
    assert!(outer.next().is_none());
}

#[test]
fn an_error_that_has_an_item_is_no_item() {
    let _no_leaks = NoLeaks::watch();
    let other = Greenlet::new(|(): ()| up::<()>(()));
    other.switch::<()>(()).unwrap();
    let mut generator: Generator<u8> = Generator::new(move |out| {
        // So the item goes to the other one, who waits for something else, and fails with it to us.
        getcurrent().set_parent(&other)?;
        drop(other);
        out.yield_(7)
    });
    let error = generator.next().unwrap().unwrap_err();
    assert!(error.is::<TypeMismatch>(), "{error}");
    let busy = generator.next().unwrap().unwrap_err();
    assert!(busy.downcast::<GeneratorError>().unwrap().is_busy());
}
