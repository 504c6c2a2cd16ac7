//! Views of all greenlets: as a tree, as a graph, and with their backtraces.

#![forbid(unsafe_code)]

mod dot;
mod dump;
#[cfg(all(unix, feature = "signal"))]
mod signal;
mod tree;

pub use dump::{Dump, dump, dump_all_threads};
#[cfg(all(unix, feature = "signal"))]
pub use signal::dump_on_signal;
pub use tree::{Tree, tree};
