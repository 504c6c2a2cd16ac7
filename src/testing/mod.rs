//! Helpers for tests: a recorder of switches, a check for leaks, and a stepper for bridged code.

pub(crate) mod leaks;
pub mod recorder;

pub use leaks::assert_no_leaks;

pub use crate::bridge::testing::*;
