//! Steps: which items a generator yields, what it is sent, what it returns.

use anyhow::Result;

use super::{all, count};
use crate::support::{Drops, Log, NoLeaks};
use greenlet::{Generator, Yielder};

// GN-1, GN-5; gen::test_generator
#[test]
fn a_generator_alternates_with_its_consumer() {
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
fn a_finished_generator_has_no_more_items() {
    let mut two = count(2);
    assert_eq!(two.by_ref().count(), 2);
    assert!(two.is_finished());
    assert!(two.next().is_none());
    assert!(two.next().is_none());
}

// GN-1: the end is distinguished from an item by an `Option`, not by the value.
#[test]
fn a_generator_of_units_has_one_item_for_each_yield() {
    let units = Generator::new(|out| (0..4).try_for_each(|_| out.yield_(())));
    assert_eq!(all(units).len(), 4);
}

// GN-3
#[test]
fn a_yield_works_at_any_depth_of_calls() {
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

/// Sends values of a type both ways. `fresh` creates the value of a number.
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
fn values_of_all_sizes_and_alignments_are_sent_both_ways() {
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
fn the_first_sent_value_is_the_argument_of_the_function() {
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
fn the_return_value_can_be_taken_once() {
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
