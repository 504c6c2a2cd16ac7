//! Helpers for tests: a search through all orders, a recorder of switches, a check for leaks, and a stepper
//! for bridged code.

pub mod explore;
pub(crate) mod leaks;
pub mod recorder;

pub use leaks::assert_no_leaks;

pub use crate::bridge::testing::*;
