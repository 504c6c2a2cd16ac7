//! Views of all greenlets: as a tree, as a graph, and with their backtraces. Panic messages that name
//! the greenlet.

#![forbid(unsafe_code)]

mod dot;
mod dump;
mod panics;
#[cfg(all(unix, feature = "signal"))]
mod signal;
mod tree;

pub use dump::{Dump, dump, dump_all_threads};
pub use panics::install_panic_hook;
#[cfg(all(unix, feature = "signal"))]
pub use signal::dump_on_signal;
pub use tree::{Tree, tree};
