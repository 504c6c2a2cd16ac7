//! The future that runs a synchronous function in a greenlet.

mod builder;
mod cancel_when;
mod drive;
mod future;

pub use builder::{SpawnBuilder, greenlet_spawn};
pub use cancel_when::CancelWhen;
pub use future::{Spawn, SpawnResult, UseLocalSetOrPinnedPool};
