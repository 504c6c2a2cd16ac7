//! What `tests/overflow.rs` of the workspace says, about the core alone.

extern crate greenlet_core as greenlet;

#[path = "../../tests/overflow.rs"]
mod overflow;

fn main() -> std::process::ExitCode {
    overflow::main()
}
