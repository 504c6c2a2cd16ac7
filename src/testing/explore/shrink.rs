//! Makes the order of a failure shorter: removes and lowers choices as long as the test still fails.

#![forbid(unsafe_code)]

use super::report::Order;

/// Returns the shortest order that `fails` returns for one that it is given. It runs the test with the
/// choices of a candidate, and returns the order that this led to if the test fails in the same way.
///
/// The candidates of each round: without a stretch of the choices, with 0 in its place, with one
/// choice lowered. Stretches are halved, as in delta debugging (Zeller and Hildebrandt, "Simplifying and
/// isolating failure-inducing input", IEEE TSE 2002).
pub(super) fn shrink(
    found: Order,
    mut runs: usize,
    mut fails: impl FnMut(Vec<u32>) -> Option<Order>,
) -> Order {
    let mut shortest = found;
    let mut try_out = |candidate: Vec<u32>, shortest: &mut Order| {
        if runs == 0 || size(&candidate) >= size(shortest.choices()) {
            return false;
        }
        runs -= 1;
        let led_to = fails(candidate).filter(|order| size(order.choices()) < size(shortest.choices()));
        led_to.map(|order| *shortest = order).is_some()
    };
    loop {
        let before = shortest.clone();
        let mut stretch = before.choices().len();
        while stretch > 0 {
            let mut start = 0;
            while start < shortest.choices().len() {
                let end = (start + stretch).min(shortest.choices().len());
                let mut without = shortest.choices().to_vec();
                without.drain(start..end);
                let mut zeroed = shortest.choices().to_vec();
                zeroed[start..end].fill(0);
                if !try_out(without, &mut shortest) && !try_out(zeroed, &mut shortest) {
                    start += stretch;
                }
            }
            stretch /= 2;
        }
        for index in 0..shortest.choices().len() {
            let mut lowered = shortest.choices().to_vec();
            let Some(choice) = lowered.get_mut(index).filter(|choice| **choice > 1) else {
                continue;
            };
            *choice = 1;
            let _ = try_out(lowered, &mut shortest);
        }
        if shortest == before {
            return shortest;
        }
    }
}

/// Orders are compared by their length, then by the number of choices that are not 0, then by these.
fn size(choices: &[u32]) -> (usize, usize, &[u32]) {
    let length = choices
        .iter()
        .rposition(|choice| *choice != 0)
        .map_or(0, |last| last + 1);
    let choices = &choices[..length];
    (
        length,
        choices.iter().filter(|choice| **choice != 0).count(),
        choices,
    )
}
