//! The bridge between synchronous code and futures.

mod executors;
mod hooks;
#[cfg(all(feature = "tokio", feature = "futures-io"))]
mod io;
mod model;
mod nested_drivers;
mod poll_in_place;
#[cfg(feature = "tokio")]
mod pool;
mod soundness;
mod spawn;
mod spawn_ends;
mod stepper;
mod streams;

pub(crate) use spawn::{Handle, poll, ready};
