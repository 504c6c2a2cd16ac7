//! The assembly backend: one file an architecture, with the same names and headings in each.

/// The symbol of the trampoline. It is global, because the compiler may put its users into other
/// object files. It contains the version, so that two versions of this crate can be linked into one
/// program.
macro_rules! trampoline {
    () => {
        concat!(
            "greenlet_core_trampoline_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR"),
            "_",
            env!("CARGO_PKG_VERSION_PATCH")
        )
    };
}

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

use std::mem::offset_of;

use crate::backend::{PARENT_OFFSET, SavedContext};

/// The offset of the parent's node in a node, for the frame descriptions of the trampolines.
const PARENT: usize = PARENT_OFFSET;
/// The offset of the code address in a node.
const PC: usize = offset_of!(SavedContext, pc);
const _: () = {
    // The frame descriptions have one byte for each offset, and none for that of `sp`.
    assert!(PARENT < 128 && PC < 128);
    assert!(offset_of!(SavedContext, sp) == 0);
};

pub(crate) use arch::{init, init_segment, step, step_and_exit, step_back, switch, switch_and_exit};

/// The name of this backend in reports.
pub(crate) const NAME: &str = "asm";

/// A stack that switches to itself receives what it sends: it resumes at the resume point that it
/// has just stored.
pub(crate) const SELF_SWITCH_IS_NOOP: bool = true;
