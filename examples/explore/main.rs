//! A gallery of concurrency mistakes. A search through all orders finds each one, and passes its
//! correction.
//!
//! ```text
//! cargo run --release --example explore                 the whole gallery
//! cargo run --release --example explore lost_wake_up    one of them, with the report of its failure
//! ```

mod awaits;
mod greenlets;
mod scheduler;

use anyhow::Result;
use greenlet::testing::explore::{Choices, Explore, Report};

/// A test with a mistake, or with its correction if the second argument is `true`.
type Test = fn(&Choices, bool) -> Result<()>;

/// Each test, with a part of the error that its mistake leads to.
const GALLERY: [(&str, Test, &str); 12] = [
    ("lost_wake_up", greenlets::lost_wake_up, "deadlock: waits"),
    ("abba", greenlets::abba, "deadlock: ab, ba"),
    ("if_for_while", greenlets::if_for_while, "there is no item"),
    (
        "released_twice",
        greenlets::released_twice,
        "two tasks hold a semaphore of one",
    ),
    ("unfair_queue", greenlets::unfair_queue, "served"),
    ("stale_timer", greenlets::stale_timer, "ended the sleep"),
    ("double_wake", greenlets::double_wake, "ended the sleep"),
    (
        "borrow_over_switch",
        greenlets::borrow_over_switch,
        "already borrowed",
    ),
    (
        "check_then_act",
        awaits::check_then_act,
        "2 connections in a pool of one",
    ),
    (
        "cancel_between_two_awaits",
        awaits::cancel_between_two_awaits,
        "a job was lost",
    ),
    (
        "item_for_a_dropped_getter",
        awaits::item_for_a_dropped_getter,
        "the item was lost",
    ),
    (
        "missed_notify",
        awaits::missed_notify,
        "deadlock: nothing will wake \"bob\"",
    ),
];

fn search(test: Test, is_correct: bool) -> Report {
    Explore::new().run(|choices| test(choices, is_correct))
}

fn is_found(report: &Report, message: &str) -> bool {
    report
        .failure()
        .is_some_and(|failure| failure.message().contains(message))
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let (mut shown, mut found, mut hold) = (0, 0, 0);
    println!("{:26} {:>9}  {:12} correction", "mistake", "found in", "replay");
    for (name, test, message) in GALLERY {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        shown += 1;
        let (mistake, correction) = (search(test, false), search(test, true));
        found += usize::from(is_found(&mistake, message));
        hold += usize::from(correction.is_complete());
        let (orders, replay) = match mistake.failure() {
            Some(failure) => (failure.found_at().to_string(), failure.order().to_string()),
            None => ("never".to_owned(), String::new()),
        };
        println!("{name:26} {orders:>9}  {replay:12} {correction}");
        if !wanted.is_empty() {
            println!("\n{mistake}");
        }
    }
    println!("{found} of {shown} mistakes found, {hold} of {shown} corrections hold");
    std::process::exit(i32::from(found < shown || hold < shown));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_found_and_every_correction_holds_in_all_orders() {
        for (name, test, message) in GALLERY {
            let mistake = search(test, false);
            assert!(is_found(&mistake, message), "{name}: {mistake}");
            let correction = search(test, true);
            assert!(correction.is_complete(), "{name}: {correction}");
        }
    }

    #[test]
    fn the_printed_order_replays_each_mistake() {
        for (name, test, message) in GALLERY {
            let order = search(test, false).failure().expect(name).order().to_string();
            let replayed = Explore::new().replay(&order).run(|choices| test(choices, false));
            assert!(is_found(&replayed, message), "{name}: {replayed}");
        }
    }

    #[test]
    fn random_orders_find_every_mistake() {
        for (name, test, _) in GALLERY {
            for explore in [Explore::random(20_000), Explore::pct(20_000, 3)] {
                let report = explore.seed(1).run(|choices| test(choices, false));
                assert!(report.failure().is_some(), "{name}: {report}");
            }
        }
    }
}
