//! What `tests/memory.rs` and `tests/soak.rs` of the workspace say, about the core alone.

extern crate greenlet_core as greenlet;

#[path = "../../tests/memory.rs"]
mod memory;
#[path = "../../tests/soak.rs"]
mod soak;
