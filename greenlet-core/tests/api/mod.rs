//! The interface with generators, without the crate that has it: so they are tested wherever the core is.

#![expect(unreachable_pub, reason = "of that crate")]

pub use greenlet_core::*;

#[path = "../../../src/generator/mod.rs"]
mod generator;

pub use generator::{Generator, GeneratorError, Yielder, yield_};
