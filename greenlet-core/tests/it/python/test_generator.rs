//! `test_generator.py` and `test_generator_nested.py`: generators that are made of greenlets.

use anyhow::Result;
use greenlet::{Generator, Yielder, yield_};

use crate::support::NoLeaks;

fn count(n: u32) -> Generator<u32> {
    Generator::new(move |_| (0..n).try_for_each(yield_))
}

fn all<Y: 'static>(generator: Generator<Y>) -> Vec<Y> {
    generator.map(Result::unwrap).collect()
}

#[test]
fn test_generator() {
    let _watch = NoLeaks::watch();
    let mut seen = Vec::new();
    for _ in 0..3 {
        for item in count(5) {
            seen.push(item.unwrap());
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

#[test]
fn test_genlet_simple() {
    let _watch = NoLeaks::watch();
    fn nested(item: u32) -> Result<()> {
        yield_(item) // from any depth of calls
    }
    let deep = Generator::new(|_: Yielder<u32>| (0..5).try_for_each(nested));
    assert_eq!(all(deep), all(count(5)));
}

#[test]
fn test_genlet_bad() {
    assert!(yield_(10).is_err(), "outside of a generator");
}

#[test]
fn test_nested_genlets() {
    let _watch = NoLeaks::watch();
    fn nested(n: u32) -> Generator<u32> {
        Generator::new(move |_| {
            if n == 0 {
                return Ok(());
            }
            for item in nested(n - 1) {
                yield_(item?)?;
            }
            yield_(n)
        })
    }
    assert_eq!(all(nested(5)), [1, 2, 3, 4, 5]);
}

#[test]
fn test_permutations() {
    let _watch = NoLeaks::watch();
    fn permutations(items: Vec<u32>) -> Generator<Vec<u32>> {
        Generator::new(move |_| {
            if items.len() <= 1 {
                return yield_(items);
            }
            for &first in &items {
                let rest = items.iter().copied().filter(|item| *item != first).collect();
                for permutation in permutations(rest) {
                    yield_([vec![first], permutation?].concat())?;
                }
            }
            Ok(())
        })
    }
    let found = all(permutations(vec![0, 1, 2, 3]));
    assert_eq!(found.len(), 4 * 3 * 2);
    assert!(found.contains(&vec![0, 1, 2, 3]) && found.contains(&vec![3, 2, 1, 0]));
    let pairs: Vec<_> = permutations(vec![0, 1, 2, 3])
        .zip(permutations(vec![0, 1, 2]))
        .collect();
    assert_eq!(pairs.len(), 6);
}

#[test]
fn test_layered_genlets() {
    let _watch = NoLeaks::watch();
    // The inner one yields to the outer one's consumer by the outer one's yielder.
    let outer = Generator::new(|outer: Yielder<u32>| {
        let inner = Generator::new(move |_: Yielder<u32>| (1..5_u32).try_for_each(yield_));
        for n in inner {
            let n = n?;
            outer.yield_(n)?;
            outer.yield_(n * n)?;
        }
        Ok(())
    });
    assert_eq!(all(outer), [1, 1, 2, 4, 3, 9, 4, 16]);
}
