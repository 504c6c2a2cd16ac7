//! The bridge between synchronous code and futures.

mod adapters;
mod cancel;
mod executors;
mod hooks;
mod hooks_at_ends;
#[cfg(all(feature = "tokio", feature = "futures-io"))]
mod io;
mod model;
mod nested;
mod nested_drivers;
mod poll_in_place;
mod poller_ends;
#[cfg(feature = "tokio")]
mod pool;
#[cfg(feature = "tokio")]
mod pool_ends;
mod soundness;
#[cfg(feature = "tracing")]
mod spans;
mod spawn;
mod spawn_ends;
mod stack_bytes;
mod stepper;
mod streams;
mod watchdog;

pub(crate) use spawn::{Handle, poll, ready};
