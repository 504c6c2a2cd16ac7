//! The black-box tests of the core: one binary, with one folder for each subject.
//!
//! The tests name the crate `greenlet`, as most users do.

extern crate greenlet_core as greenlet;

mod support;

mod debug;
mod generators;
mod lifetime;
mod python;
mod switching;
