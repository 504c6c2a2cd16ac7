//! Generators: what they hand out, in which greenlet, and how they end.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};

use crate::support::{Drops, Log, NoLeaks, catch_reports, name, on_drop, reports, take_reports, up};
use greenlet::{
    Generator, GeneratorError, Greenlet, GreenletExit, LocalKey, StackError, State, SwitchForbidden, Tracer,
    TypeMismatch, Unwinding, Yielder, getcurrent, getmain, getparent, no_switch, raise, settrace,
    stacks_in_use, yield_,
};

fn count(to: u32) -> Generator<u32> {
    Generator::new(move |out| (1..=to).try_for_each(|n| out.yield_(n)))
}

fn all<T: 'static>(generator: Generator<T>) -> Vec<T> {
    generator.collect::<Result<_>>().unwrap()
}

fn is_kind(error: &anyhow::Error, predicate: fn(&GeneratorError) -> bool) -> bool {
    error.downcast_ref().is_some_and(predicate)
}

fn named<R: 'static>(name: &str, function: impl FnOnce(()) -> Result<R> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(function)
}

/// Logs, when it is dropped, what it is, and in which greenlet.
struct Note {
    log: Log,
    what: &'static str,
}

impl Drop for Note {
    fn drop(&mut self) {
        self.log.add(format!("{} in {}", self.what, name(&getcurrent())));
    }
}

fn note(log: &Log, what: &'static str) -> Note {
    Note {
        log: log.clone(),
        what,
    }
}

/// Yields when it is dropped, and logs whether that was refused.
struct YieldsLate {
    out: Yielder<u32>,
    log: Log,
}

impl Drop for YieldsLate {
    fn drop(&mut self) {
        self.log.add(match self.out.yield_(99) {
            Ok(()) => "yielded".into(),
            Err(error) if error.is::<Unwinding>() => "unwinding".into(),
            Err(error) => error.to_string(),
        });
    }
}

// ---- steps and items -------------------------------------------------------------------------------

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

// GN-1: an item is told from the end by the way that it comes, and not by the value.
#[test]
fn a_generator_of_units_ends_where_it_ends() {
    let units = Generator::new(|out| (0..4).try_for_each(|_| out.yield_(())));
    assert_eq!(all(units).len(), 4);
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

/// Sends values of a type both ways: `fresh` makes them, by number.
fn send_both_ways<T: PartialEq + std::fmt::Debug + 'static>(fresh: fn(u8) -> T) {
    let _no_leaks = NoLeaks::watch();
    let mut echo = Generator::<T, T>::with_input(move |out, mut value| {
        for n in 0..4 {
            assert_eq!(value, fresh(n));
            value = out.yield_(fresh(n + 100))?;
        }
        Ok(())
    });
    for n in 0..4 {
        assert_eq!(echo.send(fresh(n)).unwrap().unwrap(), fresh(n + 100));
    }
    assert!(echo.send(fresh(9)).is_none());
    assert!(echo.send(fresh(9)).is_none());
}

#[test]
fn values_of_all_sizes_and_alignments_go_both_ways() {
    #[derive(Debug, PartialEq)]
    #[repr(align(64))]
    struct Aligned(u8);
    send_both_ways(|_| ());
    send_both_ways(|n| n);
    send_both_ways(u64::from);
    send_both_ways(f64::from);
    send_both_ways(|n| [n; 9]);
    send_both_ways(|n| [u64::from(n), 2]);
    send_both_ways(|n| u128::from(n) << 70);
    send_both_ways(|n| [u64::from(n), 2, 3]);
    send_both_ways(|n| (n, [u64::from(n), 3]));
    send_both_ways(|n| [u64::from(n), 2, 3, 4]);
    send_both_ways(|n| [n; 1000]);
    send_both_ways(Aligned);
    send_both_ways(|n| "text".repeat(usize::from(n)));
    send_both_ways(|n| (n % 2 == 0).then(|| Box::new(n)));
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

#[test]
fn what_it_returns_can_be_taken_once() {
    let mut generator = Generator::new(|out| {
        out.yield_(1)?;
        Ok([String::from("returned"), String::from("in several words")])
    });
    assert!(generator.take_return().is_none());
    assert_eq!(generator.by_ref().map(Result::unwrap).collect::<Vec<_>>(), [1]);
    assert_eq!(generator.take_return().unwrap()[0], "returned");
    assert!(generator.take_return().is_none());
    assert!(generator.next().is_none());
}

#[test]
fn functions_of_all_sizes_are_run_and_dropped_once() {
    fn check<const BYTES: usize>() {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let make = || {
            let (bytes, witness) = ([7_u8; BYTES], drops.witness());
            Generator::new(move |out| {
                let _witness = &witness;
                out.yield_(bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>())
            })
        };
        drop(make());
        assert_eq!(drops.count(), 1);
        assert_eq!(all(make()), [7 * BYTES]);
        assert_eq!(drops.count(), 2);
    }
    check::<0>();
    check::<100>();
    check::<1000>();
    check::<1025>();
    check::<50_000>();
}

// ---- greenlets ---------------------------------------------------------------------------------------

// GN-2
#[test]
fn the_function_runs_in_the_greenlet_that_steps_it() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let shared = Rc::new(Generator::new(move |out| {
        for n in 0..5_u32 {
            let parent = getparent().map_or("none".into(), |parent| name(&parent));
            seen.add(format!("{n} in {} below {parent}", name(&getcurrent())));
            out.yield_(n)?;
        }
        Ok(())
    }));
    let consumer = |name: &str| {
        let shared = shared.clone();
        named(name, move |()| {
            loop {
                up::<()>(shared.resume(()).transpose()?)?;
            }
            #[expect(unreachable_code, reason = "it gives the type")]
            Ok(())
        })
    };
    let (a, b) = (consumer("a"), consumer("b"));
    let step = |greenlet: &Greenlet| greenlet.switch::<Option<u32>>(()).unwrap();
    assert_eq!(shared.resume(()).unwrap().unwrap(), 0);
    assert_eq!([step(&a), step(&b), step(&a)], [Some(1), Some(2), Some(3)]);
    a.end();
    assert_eq!(
        shared.resume(()).unwrap().unwrap(),
        4,
        "suspended by a greenlet that is dead"
    );
    assert_eq!(step(&b), None, "the end goes to the greenlet that asked");
    assert_eq!(
        log.take(),
        [
            "0 in main below none",
            "1 in a below main",
            "2 in b below main",
            "3 in a below main",
            "4 in main below none"
        ]
    );
}

// GN-2
#[test]
fn greenlet_locals_are_those_of_the_consumer() {
    static DEPTH: LocalKey<u32> = LocalKey::new(|| 0);
    let mut generator = Generator::<u32>::new(|out| {
        loop {
            out.yield_(DEPTH.get())?;
        }
    });
    assert_eq!(generator.next().unwrap().unwrap(), 0);
    let inside = Greenlet::new(move |(): ()| {
        DEPTH.set(5);
        let item = generator.next().unwrap()?;
        Ok((generator, item))
    });
    let (mut generator, item) = inside.switch::<(Generator<u32>, u32)>(()).unwrap();
    assert_eq!((item, generator.next().unwrap().unwrap()), (5, 0));
}

// GN-2
#[test]
fn the_tracer_sees_no_steps() {
    let switches = Rc::new(Cell::new(0));
    let counted = switches.clone();
    let before = settrace(Some(Tracer::new(move |_| {
        counted.set(counted.get() + 1);
        Ok(())
    })));
    let items = all(count(3));
    settrace(before);
    assert_eq!((items, switches.get()), (vec![1, 2, 3], 0));
}

// GN-11
#[test]
fn a_function_may_switch_elsewhere_while_the_consumer_waits() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let other = Greenlet::new(move |mut back: Greenlet| {
        loop {
            seen.add(format!("for {}", name(&back)));
            back = back.switch::<Greenlet>(())?;
        }
        #[expect(unreachable_code, reason = "it gives the type")]
        Ok(())
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
    assert_eq!(log.take(), ["for main", "0", "for main", "1"]);
}

// GN-11
#[test]
fn what_is_sent_to_the_consumer_while_the_function_has_switched_comes_out_of_that_switch() {
    let _no_leaks = NoLeaks::watch();
    let shared = Rc::new(Generator::new(|out| {
        let got: u32 = up("from the function")?;
        out.yield_(got)?;
        out.yield_(got + 1)
    }));
    let stepped = shared.clone();
    let a = named("a", move |()| stepped.resume(()).unwrap());
    assert_eq!(a.switch::<&str>(()).unwrap(), "from the function");
    for refused in [
        shared.resume(()).unwrap().map(drop),
        shared.throw(anyhow!("early")).unwrap().map(drop),
        shared.close(),
    ] {
        let error = refused.unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_busy));
        assert!(error.to_string().starts_with("generator already executing"));
    }
    assert!(!shared.is_finished());
    assert_eq!(
        a.switch::<u32>(7_u32).unwrap(),
        7,
        "what the greenlet returns is the item"
    );
    assert!(a.is_dead());
    assert_eq!(
        shared.resume(()).unwrap().unwrap(),
        8,
        "suspended by a greenlet that is dead"
    );
    assert!(shared.resume(()).is_none());
}

/// A greenlet that steps a generator whose function switches away, again and again if it is stubborn.
fn suspended_in_a_function(log: &Log, is_stubborn: bool) -> Greenlet {
    let (own, inner) = (log.clone(), log.clone());
    let greenlet = named("a", move |()| {
        let _own = note(&own, "consumer");
        let mut generator = Generator::<u32>::new(move |_| {
            let _inner = note(&inner, "function");
            loop {
                let got = up::<()>(());
                if !is_stubborn {
                    got?;
                }
            }
        });
        generator.next().unwrap().map(drop)
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// GN-11, GN-9
#[test]
fn the_end_of_the_consumer_passes_through_the_function_first() {
    for is_stubborn in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let log = Log::new();
        let greenlet = suspended_in_a_function(&log, is_stubborn);
        drop(greenlet);
        assert_eq!(log.take(), ["function in a", "consumer in a"], "{is_stubborn}");
        let greenlet = suspended_in_a_function(&log, is_stubborn);
        greenlet.end();
        assert!(greenlet.is_dead());
        assert_eq!(log.take(), ["function in a", "consumer in a"], "{is_stubborn}");
    }
}

// GN-11, GN-9
#[test]
fn what_is_thrown_at_the_consumer_passes_through_the_function() {
    let log = Log::new();
    let greenlet = suspended_in_a_function(&log, false);
    let error = greenlet.throw::<()>(anyhow!("thrown")).unwrap_err();
    assert_eq!(error.to_string(), "thrown");
    let greenlet = suspended_in_a_function(&log, false);
    let exit = greenlet
        .throw::<GreenletExit>(GreenletExit::with_reason("why"))
        .unwrap();
    assert_eq!(exit.reason(), Some("why"));
    assert!(greenlet.is_dead());
    assert_eq!(
        log.take(),
        ["function in a", "consumer in a", "function in a", "consumer in a"]
    );
}

// GN-11
#[test]
fn a_consumer_may_end_while_its_generator_goes_on_elsewhere() {
    let _no_leaks = NoLeaks::watch();
    let mut generator = count(3);
    let a = Greenlet::new(move |(): ()| {
        generator.next().unwrap()?;
        Ok(generator)
    });
    let generator = a.switch::<Generator<u32>>(()).unwrap();
    assert!(a.is_dead());
    assert_eq!(all(generator), [2, 3]);
}

// GN-11
#[test]
fn a_greenlet_made_in_the_function_is_a_child_of_the_consumer() {
    let _no_leaks = NoLeaks::watch();
    let mut generator = Generator::new(|out| {
        let child = named("child", |()| Ok(name(&getparent().unwrap())));
        out.yield_(child.switch::<String>(())?)?;
        out.yield_("made".into())?;
        drop(child);
        Ok(())
    });
    assert_eq!(generator.next().unwrap().unwrap(), "main");
    let inside = named("a", move |()| Ok(all(generator)));
    assert_eq!(inside.switch::<Vec<String>>(()).unwrap(), ["made"]);
}

// ---- nesting -----------------------------------------------------------------------------------------

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
    let error = yielder.yield_(2).unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_outside), "it has ended");
    drop(generator);
    let error = yielder.clone().yield_(2).unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_outside), "it is gone");
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

// GN-4: a type of input is told from another one too.
#[test]
fn a_yield_finds_no_generator_that_is_sent_something_else() {
    let mut outer = Generator::<u32, &str>::with_input(|_, _| {
        let error = yield_(1_u32).unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_outside));
        Yielder::<u32, &str>::nearest()?.yield_(2).map(drop)
    });
    assert_eq!(outer.send("first").unwrap().unwrap(), 2);
}

// GN-4: another greenlet does not run in the function, also where the function has made it.
#[test]
fn another_greenlet_cannot_yield_for_the_function() {
    let _no_leaks = NoLeaks::watch();
    let mut generator = Generator::new(|out| {
        let helper = out.clone();
        let child = Greenlet::new(move |(): ()| {
            let errors = [helper.yield_(9).unwrap_err(), yield_(9).unwrap_err()];
            Ok(errors
                .iter()
                .all(|error| is_kind(error, GeneratorError::is_outside)))
        });
        assert!(child.switch::<bool>(())?);
        out.yield_(3)
    });
    assert_eq!(generator.next().unwrap().unwrap(), 3);
    assert!(generator.next().is_none());
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

// GN-7
#[test]
fn a_yield_over_two_levels_leaves_the_inner_generator_executing() {
    let _no_leaks = NoLeaks::watch();
    let inner: Rc<RefCell<Option<Rc<Generator<()>>>>> = Rc::default();
    let made = inner.clone();
    let outer = Generator::new(move |outer| {
        let inner = Rc::new(Generator::new(move |_| {
            (0..3_u32).try_for_each(|n| outer.yield_(n))
        }));
        made.replace(Some(inner.clone()));
        assert!(inner.resume(()).is_none());
        Ok(())
    });
    for (expected, n) in outer.enumerate() {
        assert_eq!(n.unwrap() as usize, expected);
        let inner = inner.borrow();
        let error = inner.as_ref().unwrap().resume(()).unwrap().unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_busy));
    }
    assert!(inner.take().unwrap().is_finished());
}

// GN-6
#[test]
fn two_hundred_generators_stand_within_each_other() {
    fn nested(depth: u32) -> Generator<u32> {
        Generator::new(move |out| {
            if depth > 0 {
                for n in nested(depth - 1) {
                    out.yield_(n? + 1)?;
                }
            }
            out.yield_(0)
        })
    }
    let _no_leaks = NoLeaks::watch();
    assert_eq!(all(nested(200)).len(), 201);
}

// ---- errors and panics -------------------------------------------------------------------------------

// GN-9
#[test]
fn an_error_is_the_last_item() {
    let mut generator = Generator::<u32>::new(|out| {
        out.yield_(1)?;
        bail!("no more today")
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert_eq!(
        generator.next().unwrap().unwrap_err().to_string(),
        "no more today"
    );
    assert!(generator.is_finished());
    assert!(generator.next().is_none());
}

// GN-9: it goes on in the consumer, as any error does.
#[test]
fn an_exit_of_the_function_is_its_last_item() {
    let mut generator = Generator::<u32>::new(|out| {
        out.yield_(1)?;
        Err(GreenletExit::new().into())
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert!(generator.next().unwrap().unwrap_err().is::<GreenletExit>());
    assert!(generator.next().is_none());
}

// GN-9
#[test]
fn a_panic_goes_on_in_the_consumer_and_then_it_has_ended() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inner = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let _inner = note(&inner, "function");
        out.yield_(1)?;
        resume_unwind(Box::new("broken"));
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let payload = catch_unwind(AssertUnwindSafe(|| generator.next())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"broken"));
    assert_eq!(log.take(), ["function in main"]);
    assert!(!std::thread::panicking());
    assert!(generator.next().is_none());
}

// GN-9
#[test]
fn an_error_that_is_raised_in_the_function_ends_the_consumer() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let (own, inner) = (log.clone(), log.clone());
    let consumer = named("a", move |()| {
        let _own = note(&own, "consumer");
        let mut generator = Generator::<u32>::new(move |_| {
            let _inner = note(&inner, "function");
            raise(anyhow!("raised"))
        });
        generator.next();
        Ok(())
    });
    assert_eq!(consumer.switch::<()>(()).unwrap_err().to_string(), "raised");
    assert_eq!(log.take(), ["function in a", "consumer in a"]);
}

// GN-12
#[test]
fn what_is_thrown_at_the_function_comes_out_of_its_yield() {
    let generator = Generator::new(|out| {
        let error = out.yield_(1).unwrap_err();
        out.yield_(error.downcast::<u32>().unwrap())?;
        Ok("returned")
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert_eq!(generator.throw(anyhow::Error::msg(2_u32)).unwrap().unwrap(), 2);
    let error = generator.throw(anyhow!("through")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "through");
    assert!(generator.is_finished());
    let error = generator.throw(anyhow!("after the end")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "after the end");

    let generator = Generator::new(|out| out.yield_(1).map_or(Ok("caught"), |()| bail!("no error")));
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert!(generator.throw(anyhow!("stop")).is_none());
    assert_eq!(generator.take_return(), Some("caught"));
}

// GN-12
#[test]
fn what_is_thrown_before_the_start_ends_the_function_unrun() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let generator = Generator::<u32>::new(move |_| {
        let _witness = &witness;
        unreachable!()
    });
    let error = generator.throw(anyhow!("early")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "early");
    assert_eq!(drops.count(), 1);
    assert!(generator.is_finished());
    assert!(generator.resume(()).is_none());
}

// GN-13
#[test]
fn a_closed_function_gets_an_exit() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let generator = Generator::<u32>::new(move |out| {
        let error = out.yield_(1).unwrap_err();
        let exit = error.downcast_ref::<GreenletExit>().unwrap();
        seen.add(exit.reason().unwrap());
        Err(error.context("under a context"))
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    generator.close().unwrap();
    assert_eq!(log.take(), ["the generator was closed"]);
    assert!(generator.is_finished());
    generator.close().unwrap();

    let unrun = count(1);
    unrun.close().unwrap();
    assert!(unrun.is_finished());
}

// GN-13
#[test]
fn what_a_closed_function_leaves_instead_goes_to_the_consumer() {
    let ends_with = |end: fn() -> Result<&'static str>| {
        let generator = Generator::new(move |out| {
            let _ = out.yield_(1);
            end()
        });
        generator.resume(()).unwrap().unwrap();
        generator
    };
    let generator = ends_with(|| Ok("returned"));
    generator.close().unwrap();
    assert_eq!(generator.take_return(), Some("returned"));
    let error = ends_with(|| bail!("disk full")).close().unwrap_err();
    assert_eq!(error.to_string(), "disk full");
    let error = ends_with(|| Err(GreenletExit::with_reason("another").into()))
        .close()
        .unwrap_err();
    assert_eq!(
        error.downcast::<GreenletExit>().unwrap().reason(),
        Some("another")
    );
    let generator = ends_with(|| resume_unwind(Box::new("broken")));
    let payload = catch_unwind(AssertUnwindSafe(|| generator.close())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"broken"));
}

// GN-13
#[test]
fn a_closed_function_that_yields_stays_suspended() {
    let generator = Generator::new(|out| {
        let _ = out.yield_(1);
        let got = out.yield_(2);
        got?;
        out.yield_(3)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    let error = generator.close().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_exit_ignored));
    assert_eq!(generator.resume(()).unwrap().unwrap(), 3);
    generator.close().unwrap();
}

/// The exit of the consumer is no answer to the exit of the function.
// GN-13
#[test]
fn the_end_of_the_consumer_while_it_closes_a_generator_goes_on() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let consumer = named("a", move |()| {
        let generator = Generator::new(|out| {
            let _ = out.yield_(1);
            up::<()>(())
        });
        generator.resume(()).unwrap()?;
        let closed = generator.close();
        seen.add(closed.as_ref().unwrap_err().to_string());
        closed
    });
    consumer.switch::<()>(()).unwrap();
    let _: GreenletExit = consumer
        .throw(GreenletExit::with_reason("the consumer is to end"))
        .unwrap();
    assert!(consumer.is_dead());
    assert_eq!(log.take(), ["greenlet exit: the consumer is to end"]);
}

// ---- drops -------------------------------------------------------------------------------------------

// GN-10
#[test]
fn dropping_it_ends_the_function() {
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

// GN-10: the second stage.
#[test]
fn dropping_it_unwinds_a_function_that_does_not_listen() {
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
fn one_that_was_not_started_drops_what_it_captured() {
    let _no_leaks = NoLeaks::watch();
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

// GN-10: a forced unwinding is for one generator, and passes through those within it.
#[test]
fn a_stubborn_function_is_unwound_through_the_one_within_it() {
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

/// The inner function is ended by the outer one when it yields for that.
#[test]
fn an_inner_function_that_is_being_ended_may_yield_for_the_outer_one() {
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
fn what_a_dropped_function_leaves_is_reported() {
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
fn destructors_that_panic_are_reported_and_the_function_is_ended() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let panics = || on_drop(|| resume_unwind(Box::new("in a destructor")));
    // Of what it captured.
    let captured = panics();
    drop(Generator::<()>::new(move |_| {
        let _captured = &captured;
        Ok(())
    }));
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
    // Of a local.
    let mut generator = Generator::new(move |out| {
        let _local = panics();
        out.yield_(1)
    });
    generator.next().unwrap().unwrap();
    drop(generator);
    assert_eq!(take_reports(), ["main: panic in a destructor"]);
    // Of an item that comes back while it is ended.
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
    // Of what it returns.
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
fn a_destructor_that_panics_when_it_is_closed_goes_on_in_the_consumer() {
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
fn a_function_that_catches_every_unwinding_is_left_suspended() {
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
    assert_eq!(log.take().len(), 4);
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

// GN-10: both stages of the consumer's end, while it drops a generator.
#[test]
fn a_consumer_that_is_ended_while_it_drops_a_generator_ends() {
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
fn one_that_is_forgotten_stays_as_it_is() {
    let before = stacks_in_use();
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::new(move |out| {
        let _witness = witness;
        out.yield_(1)
    });
    generator.next().unwrap().unwrap();
    std::mem::forget(generator);
    assert_eq!((drops.count(), stacks_in_use()), (0, before + 1));
    // Others are none the wiser.
    assert_eq!(all(count(3)), [1, 2, 3]);
}

#[test]
fn stacks_are_given_back_with_the_end_of_the_function_and_the_last_yielder() {
    let _no_leaks = NoLeaks::watch();
    let before = stacks_in_use();
    for _ in 0..1000 {
        let mut generator = count(1);
        generator.next().unwrap().unwrap();
    }
    assert_eq!(stacks_in_use(), before);
    let kept = Rc::new(RefCell::new(None));
    let keeps = kept.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        keeps.replace(Some(out));
        Ok(())
    });
    assert_eq!(stacks_in_use(), before + 1);
    assert!(generator.next().is_none());
    assert_eq!(stacks_in_use(), before + 1, "there is a yielder");
    kept.take();
    assert_eq!(stacks_in_use(), before);
}

#[test]
fn generators_that_have_ended_have_no_stacks() {
    let _no_leaks = NoLeaks::watch();
    let before = stacks_in_use();
    let ended: Vec<Generator<u32>> = (0..100)
        .map(|_| count(0))
        .inspect(|generator| assert!(generator.resume(()).is_none()))
        .collect();
    assert_eq!(stacks_in_use(), before);
    drop(ended);
}

// ---- within itself -----------------------------------------------------------------------------------

fn cyclic<Y: 'static>(
    function: impl FnOnce(Yielder<Y>, Rc<Generator<Y>>) -> Result<()> + 'static,
) -> Rc<Generator<Y>> {
    Rc::new_cyclic(|weak: &std::rc::Weak<Generator<Y>>| {
        let weak = weak.clone();
        Generator::new(move |out| {
            let itself = weak.upgrade().unwrap();
            function(out, itself)
        })
    })
}

#[test]
fn a_function_cannot_step_its_own_generator() {
    let generator = cyclic(|out, itself| {
        let errors = [
            itself.resume(()).unwrap().map(drop).unwrap_err(),
            itself.throw(anyhow!("thrown")).unwrap().map(drop).unwrap_err(),
            itself.close().unwrap_err(),
        ];
        assert!(errors.iter().all(|error| is_kind(error, GeneratorError::is_busy)));
        assert!(!itself.is_finished());
        drop(itself);
        out.yield_(1)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert!(generator.resume(()).is_none());
}

#[test]
fn a_function_that_drops_a_handle_of_its_own_generator_goes_on() {
    let _no_leaks = NoLeaks::watch();
    let generator = cyclic(|out, itself| {
        drop(itself);
        out.yield_(1)?;
        out.yield_(2)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert_eq!(generator.resume(()).unwrap().unwrap(), 2);
    drop(generator);
}

/// The last handle is in the function, so it goes with what the function leaves: after the function, in the consumer.
#[test]
fn a_function_may_have_the_last_handle_of_its_own_generator() {
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

#[test]
fn one_that_its_own_function_keeps_is_leaked_with_it() {
    let before = stacks_in_use();
    let generator = cyclic(|out, itself| {
        out.yield_(1)?;
        drop(itself);
        Ok(())
    });
    generator.resume(()).unwrap().unwrap();
    drop(generator); // a cycle, as of any `Rc`s
    assert_eq!(stacks_in_use(), before + 1);
}

// ---- refusals ----------------------------------------------------------------------------------------

// GN-14
#[test]
fn a_step_in_a_section_without_switches_is_allowed() {
    let mut generator = count(2);
    assert_eq!(no_switch(|| generator.next()).unwrap().unwrap(), 1);
    assert_eq!(generator.next().unwrap().unwrap(), 2);
    assert!(no_switch(|| generator.next()).is_none());
}

// GN-14
#[test]
fn a_yield_out_of_a_section_without_switches_is_refused() {
    let generator = Generator::new(|out| {
        for _ in 0..2 {
            let refused = no_switch(|| out.yield_(String::from("back"))).unwrap_err();
            let value = refused
                .downcast::<SwitchForbidden>()
                .unwrap()
                .into_value()
                .unwrap();
            assert_eq!(value.downcast::<String>().unwrap(), "back");
            let refused = no_switch(|| {
                no_switch(|| ()); // the outer one goes on
                no_switch(|| out.yield_("nested".into())).is_err() && out.yield_("outer".into()).is_err()
            });
            assert!(refused);
        }
        out.yield_("yielded".into())
    });
    assert_eq!(no_switch(|| all(generator)), ["yielded"]);
}

// GN-14: the section may be of the function, and the yield of one within it.
#[test]
fn a_yield_over_two_levels_out_of_a_section_is_refused() {
    let outer = Generator::new(|outer| {
        let passed_on = outer.clone();
        let inner = Generator::new(move |inner| {
            assert!(passed_on.yield_(1).unwrap_err().is::<SwitchForbidden>());
            inner.yield_(2)
        });
        let item = no_switch(|| inner.resume(())).unwrap()?;
        outer.yield_(item)
    });
    assert_eq!(no_switch(|| all(outer)), [2]);
}

// GN-14
#[test]
fn a_step_while_a_panic_unwinds_is_refused_and_changes_nothing() {
    let generator = Rc::new(Generator::with_input(|out, mut text: String| {
        loop {
            let length = text.len();
            text = out.yield_(length)?;
            if length == 0 {
                return Ok(());
            }
        }
    }));
    let late = generator.clone();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _late = on_drop(move || {
            let error = late.resume("back".into()).unwrap().unwrap_err();
            let value = error.downcast::<Unwinding>().unwrap().into_value().unwrap();
            assert_eq!(value.downcast::<String>().unwrap(), "back");
            let error = late.throw(anyhow!("thrown")).unwrap().unwrap_err();
            assert!(error.is::<Unwinding>());
        });
        resume_unwind(Box::new(()));
    }));
    assert_eq!(generator.resume("four".into()).unwrap().unwrap(), 4);
}

// GN-14
#[test]
fn a_yield_while_the_function_unwinds_is_refused() {
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::new(move |out| {
        let _late = YieldsLate { out, log: seen };
        resume_unwind(Box::new(()))
    });
    catch_unwind(AssertUnwindSafe(|| generator.next().map(drop))).unwrap_err();
    assert_eq!(log.take(), ["unwinding"]);
    let _: &Generator<u32> = &generator;
}

// GN-14
#[test]
fn a_yield_in_a_destructor_that_the_exit_reaches_is_an_item() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let generator = Generator::<u32>::new(move |out| {
        let late = YieldsLate {
            out: out.clone(),
            log: seen,
        };
        out.yield_(1)?;
        drop(late);
        Ok(())
    });
    generator.resume(()).unwrap().unwrap();
    let error = generator.close().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_exit_ignored));
    assert!(generator.resume(()).unwrap().unwrap_err().is::<GreenletExit>());
    assert_eq!(log.take(), ["yielded"]);
}

// GN-14, GN-10
#[test]
fn it_can_be_dropped_while_its_consumer_panics() {
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
fn a_panic_in_its_function_while_its_consumer_panics_is_reported() {
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

#[test]
fn without_a_stack_the_first_step_says_so() {
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::builder().stack_size(1).build(move |out| {
        let _witness = &witness;
        out.yield_(1)
    });
    assert_eq!(drops.count(), 1);
    assert!(!generator.is_finished());
    assert!(generator.next().unwrap().unwrap_err().is::<StackError>());
    assert!(generator.is_finished());
    assert!(generator.next().is_none());
}

#[test]
fn a_builder_names_it_and_sizes_its_stack() {
    let generator = Generator::builder().name("numbers").stack_size(64 << 10);
    let generator = generator.build(|out: Yielder<u32>| {
        let usage = getcurrent().stack_usage().unwrap();
        assert!(usage.size == 64 << 10 && usage.used < usage.size, "{usage:?}");
        out.yield_(1)
    });
    let text = format!("{generator:?}");
    assert!(text.contains("numbers") && text.contains(file!()), "{text}");
    let inside = Greenlet::new(move |(): ()| Ok(all(generator)));
    assert_eq!(inside.switch::<Vec<u32>>(()).unwrap(), [1]);
}

// ---- what depends on the stack -----------------------------------------------------------------------

#[test]
fn the_usage_of_a_stack_is_that_of_the_one_it_is_parked_on() {
    let greenlet = Greenlet::builder().stack_size(512 << 10).build(|(): ()| {
        let generator = Generator::builder().stack_size(128 << 10).build(|out| {
            let deep = black_box([1_u8; 5000]);
            up::<()>(())?;
            black_box(deep);
            out.yield_(1)
        });
        generator.resume(()).unwrap()?;
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    let usage = greenlet.stack_usage().unwrap();
    assert_eq!(usage.size, 128 << 10);
    // AddressSanitizer moves `deep` to its fake stack.
    let deep = if cfg!(feature = "asan") { 0 } else { 5000 };
    assert!(usage.used > deep && usage.used < usage.size, "{usage:?}");
    greenlet.switch::<()>(()).unwrap();
    assert_eq!(greenlet.stack_usage().unwrap().size, 512 << 10);
    assert_eq!(getmain().stack_usage(), None);
}

#[inline(never)]
fn waits_in_the_function() -> Result<()> {
    black_box(up::<()>(()))
}

#[inline(never)]
fn steps_once(generator: &Generator<u32>) -> Result<u32> {
    black_box(generator.resume(()).unwrap())
}

#[test]
fn a_backtrace_of_a_greenlet_in_a_function_has_the_function() {
    let greenlet = Greenlet::new(|(): ()| {
        let generator = Generator::new(|out| {
            waits_in_the_function()?;
            out.yield_(1)
        });
        steps_once(&generator)
    });
    greenlet.switch::<()>(()).unwrap();
    let text = greenlet.backtrace().unwrap().to_string();
    assert!(text.contains("waits_in_the_function"), "{text}");
    if greenlet::BACKEND == "asm" {
        assert!(text.contains("steps_once"), "{text}");
    }
    assert_eq!(greenlet.switch::<u32>(()).unwrap(), 1);
}

/// What there is left of the generator's stack counts, also in the main greenlet.
#[test]
fn a_backtrace_of_a_full_stack_is_refused() {
    /// Calls itself until too little is left.
    fn descend(other: &Greenlet) -> bool {
        let frame = black_box([1_u8; 512]);
        let is_refused = other.switch::<bool>(getmain()).unwrap() || descend(other);
        black_box(frame);
        is_refused
    }
    let other = Greenlet::new(|main: Greenlet| -> Result<()> {
        loop {
            main.switch::<Greenlet>(main.backtrace().is_err())?;
        }
    });
    let generator = Generator::builder()
        .stack_size(64 << 10)
        .build(move |out| out.yield_(descend(&other)));
    assert!(getmain().backtrace().is_ok());
    assert!(generator.resume(()).unwrap().unwrap());
}

#[test]
#[cfg(not(feature = "fcontext"))]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    ignore = "the frames end at the first one there"
)]
fn a_captured_backtrace_goes_on_into_the_consumer() {
    #[inline(never)]
    fn captures() -> String {
        black_box(std::backtrace::Backtrace::force_capture()).to_string()
    }
    let generator = Generator::new(|out| out.yield_(captures()));
    #[inline(never)]
    fn asks(generator: &Generator<String>) -> String {
        black_box(generator.resume(()).unwrap().unwrap())
    }
    let consumer = Greenlet::new(move |(): ()| Ok((asks(&generator), generator)));
    let (text, generator) = consumer.switch::<(String, Generator<String>)>(()).unwrap();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in\n{text}"));
    assert!(place("captures") < place("asks"), "{text}");
    drop(generator);
}

thread_local! {
    static KEPT: RefCell<Vec<Generator<u32>>> = const { RefCell::new(Vec::new()) };
}

// GN-15
#[test]
fn one_in_a_thread_local_is_ended_whenever_that_is_dropped() {
    for is_first in [false, true] {
        let reported = std::thread::spawn(move || {
            catch_reports();
            if is_first {
                KEPT.with(|_| ());
            }
            let mut generator = Generator::new(|out| {
                let _note = on_drop(|| assert!(getcurrent().is_main()));
                let error = out.yield_(1).unwrap_err();
                // Late, but as ever.
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
        assert!(lines.len() <= 1, "{lines:?}"); // none, where the list was dropped before
    }
}

#[test]
fn two_thousand_generators_take_turns() {
    let _no_leaks = NoLeaks::watch();
    let mut generators: Vec<Generator<u32>> = (0..2000).map(|_| count(3)).collect();
    for round in 1..=3 {
        for generator in &mut generators {
            assert_eq!(generator.next().unwrap().unwrap(), round);
        }
    }
    assert!(generators.iter_mut().all(|generator| generator.next().is_none()));
}

/// What it was and what it is: three parts of the core that look at a greenlet's state are not confused by a function.
#[test]
fn a_greenlet_in_a_function_is_as_any_suspended_one() {
    let greenlet = Greenlet::new(|(): ()| {
        let generator = Generator::new(|out| {
            up::<()>(())?;
            out.yield_(1)
        });
        generator.resume(()).unwrap()
    });
    greenlet.switch::<()>(()).unwrap();
    assert_eq!(greenlet.state(), State::Active);
    assert!(!greenlet.is_current());
    assert_eq!(greenlet.suspended_at().unwrap().file(), file!());
    let error = greenlet.switch::<String>(()).unwrap_err();
    assert!(error.is::<TypeMismatch>(), "{error}");
}
