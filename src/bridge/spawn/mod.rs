//! The future that runs a synchronous function in a greenlet.

mod builder;
mod drive;
mod future;

pub use builder::{SpawnBuilder, greenlet_spawn};
pub use future::{Spawn, SpawnResult};
