//! Greenlets.

pub mod bridge;
mod generator;

pub use bridge::*;
pub use generator::{Generator, GeneratorError, Yielder, yield_};
pub use greenlet_core::*;
