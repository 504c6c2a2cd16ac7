//! Greenlets.

pub mod bridge;
mod generator;
mod leaks;
pub mod record;

pub use bridge::*;
pub use generator::{Generator, GeneratorError, Yielder, yield_};
pub use greenlet_core::*;
pub use leaks::assert_no_leaks;

/// Runs the code in the pages under `docs/`.
#[cfg(doctest)]
#[doc = include_str!("../docs/testing.md")]
struct Pages;
