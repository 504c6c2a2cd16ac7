//! The strategies of a search: which alternative a run takes.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::random::Random;
use super::step::{Bounds, Kind, Point, Step};

/// One in so many questions for a fault has one, in random orders.
const FAULT_RARITY: u32 = 8;

#[derive(Clone, Debug)]
pub(super) enum Strategy {
    /// The first alternative that the bound allows. [`advance`] makes a depth-first search of it.
    First,
    /// These alternatives, and then the first ones.
    Given(Vec<u32>),
    Random(Random),
    Pct(Pct),
}

impl Strategy {
    pub(super) fn pick(&mut self, nth: usize, point: &Point, ids: &[u64], preemptions_left: u32) -> u32 {
        match self {
            Strategy::First => next_allowed(point, 0, preemptions_left).expect("one alternative is free"),
            Strategy::Given(picks) => picks
                .get(nth)
                .map_or(0, |pick| (*pick).min(point.alternatives - 1)),
            Strategy::Random(random) if point.kind == Kind::Fault => pick_fault(random, point),
            Strategy::Random(random) => loop {
                let pick = random.below(point.alternatives);
                if point.cost(pick) <= preemptions_left {
                    return pick;
                }
            },
            Strategy::Pct(pct) => pct.pick(nth, point, ids),
        }
    }
}

fn pick_fault(random: &mut Random, point: &Point) -> u32 {
    match random.below(FAULT_RARITY) {
        0 => 1 + random.below(point.alternatives - 1),
        _ => 0,
    }
}

fn next_allowed(point: &Point, from: u32, preemptions_left: u32) -> Option<u32> {
    (from..point.alternatives).find(|alternative| point.cost(*alternative) <= preemptions_left)
}

/// Makes the path of the next run of a depth-first search out of the last one's: cuts it at the last
/// step that has another alternative, and takes that. Returns `false` if there is none.
pub(super) fn advance(path: &mut Vec<Step>, bounds: &Bounds) -> bool {
    while let Some(step) = path.last_mut() {
        let preemptions_left = bounds.preemptions.saturating_sub(step.preemptions);
        if let Some(next) = next_allowed(&step.point, step.picked + 1, preemptions_left) {
            step.picked = next;
            return true;
        }
        path.pop();
    }
    false
}

/// Returns which part of all orders a depth-first search has behind it, if every alternative leads to as
/// many orders.
pub(super) fn covered(path: &[Step]) -> f64 {
    let (mut covered, mut share) = (0.0, 1.0);
    for step in path {
        share /= f64::from(step.point.alternatives);
        covered += share * f64::from(step.picked);
    }
    covered
}

/// Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi and Nagarakatte, "A randomized
/// scheduler with probabilistic guarantees of finding bugs", ASPLOS 2010).
///
/// Each greenlet has a random priority, and the highest one that is ready runs. After `depth - 1` random
/// steps, the one that has run gets one of `depth - 1` low priorities.
#[derive(Clone, Debug)]
pub(super) struct Pct {
    random: Random,
    /// The numbers of these steps. A later one in this list leads to a lower priority.
    change_points: Vec<usize>,
    priorities: HashMap<u64, i64>,
    /// The lowest priority so far.
    lowest: i64,
}

impl Pct {
    /// `length` is that of the longest run so far: the change points are below it.
    pub(super) fn new(mut random: Random, depth: u32, length: usize) -> Pct {
        let length = length.max(1) as u32;
        Pct {
            change_points: (1..depth).map(|_| random.below(length) as usize).collect(),
            random,
            priorities: HashMap::new(),
            lowest: -i64::from(depth),
        }
    }

    fn pick(&mut self, nth: usize, point: &Point, ids: &[u64]) -> u32 {
        match point.kind {
            Kind::Value => return self.random.below(point.alternatives),
            Kind::Fault => return pick_fault(&mut self.random, point),
            Kind::Next => {}
        }
        for id in ids {
            let random = &mut self.random;
            self.priorities
                .entry(*id)
                .or_insert_with(|| (random.next() >> 1) as i64);
        }
        // A greenlet that yields waits for others. Without this it would run for ever.
        if let Some(running) = point.running.filter(|_| point.has_yielded) {
            self.lowest -= 1;
            self.priorities.insert(ids[running as usize], self.lowest);
        }
        let priority = |index: &usize| self.priorities[&ids[*index]];
        let highest = (0..ids.len()).max_by_key(priority).expect("some are ready");
        if let Some(change) = self.change_points.iter().position(|point| *point == nth) {
            self.priorities.insert(ids[highest], -1 - change as i64);
        }
        highest as u32
    }
}
