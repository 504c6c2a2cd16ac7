//! Generators.

mod generator;
