//! The black-box tests of the project: one binary, one module for each question.

mod support;

/// The interface that the tests of generators use: the core has a copy of its own in it.
use greenlet as api;

mod attacks;
mod backtrace;
mod bridge;
mod bridge_attacks;
mod bridge_executors;
mod bridge_hooks;
mod bridge_in_place;
#[cfg(all(feature = "tokio", feature = "futures-io"))]
mod bridge_io;
mod bridge_model;
#[cfg(feature = "tokio")]
mod bridge_pool;
mod bridge_streams;
mod bridge_testing;
mod creation;
mod current;
mod cycles;
mod drop_counts;
mod exits;
mod facts;
mod finishing;
mod generator;
mod hazards;
mod last_handle;
mod locals;
mod matrix;
mod misuse;
mod native;
mod parents;
mod propagation;
mod record;
mod refusals;
mod scope;
mod scope_attacks;
mod smoke;
mod states;
mod switching;
mod switching_programs;
mod threads;
mod throwing;
mod tracing;
mod tree;
mod two_stage_exit;
mod values;
