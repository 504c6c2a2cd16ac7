//! The bridge between synchronous code and futures.

mod cancel;
mod executors;
mod hooks;
#[cfg(all(feature = "tokio", feature = "futures-io"))]
mod io;
mod model;
mod poll_in_place;
#[cfg(feature = "tokio")]
mod pool;
mod soundness;
mod spawn;
mod stepper;
mod streams;

pub(crate) use spawn::{Handle, poll, ready};
