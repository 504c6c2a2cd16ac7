//! What the recipes share: a runner of checks, a comparison of speeds, and servers.
//!
//! None of this is for copying: the code to copy is in `../glue`.

pub mod backend;
pub mod bench;
pub mod proxy;
mod runner;

pub use runner::{Check, Future, main, measured, message_of_panic};
