//! Generators inside generators: which one a yield belongs to.

use std::cell::RefCell;
use std::rc::Rc;

use super::{all, count, is_kind};
use crate::support::{Log, NoLeaks};
use greenlet::{Generator, GeneratorError, Greenlet, Yielder, yield_};

// GN-4; nest::test_genlet_bad
#[test]
fn a_yield_outside_every_generator_is_refused() {
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

// GN-4: the search is by type, from the nearest generator outwards.
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

// GN-4: the type of input must match too.
#[test]
fn a_yield_ignores_generators_of_another_input_type() {
    let mut outer = Generator::<u32, &str>::with_input(|_, _| {
        let error = yield_(1_u32).unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_outside));
        Yielder::<u32, &str>::nearest()?.yield_(2).map(drop)
    });
    assert_eq!(outer.send("first").unwrap().unwrap(), 2);
}

// GN-4: another greenlet does not run in the function, even if the function created it.
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
fn recursive_generators_make_all_permutations() {
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
fn a_generator_may_consume_another_one() {
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
fn an_inner_function_may_yield_for_the_outer_generator() {
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
fn two_hundred_generators_can_nest() {
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
