//! The black-box tests of the core: one binary, one folder for each subject.
//!
//! The tests call the crate `greenlet`, as most users know it.

extern crate greenlet_core as greenlet;

mod support;

mod debug;
mod generators;
mod lifetime;
mod switching;
