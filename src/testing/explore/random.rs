//! Random numbers from a seed that a report prints.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) is
//! a few lines. So a printed seed gives the same orders with every version of every dependency.

#![forbid(unsafe_code)]

#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        // The upper half of a product is in range, and costs no division.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u32
    }
}
