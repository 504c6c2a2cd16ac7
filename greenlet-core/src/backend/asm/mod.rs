//! The assembly backend: one file an architecture, with the same names and headings in each.
//!
//! # Linked backtraces
//!
//! A greenlet's first frame has no caller. The frame description of its trampoline names one all the
//! same, so that a backtrace continues in the parent, up to `main`:
//!
//! ```text
//!   base ─►├───────────┤
//!          │ not used  │
//!          │ link      │───► context of the greenlet   its `parent` ───► context of the parent
//!          ├───────────┤     (the start of its node)                    `sp`, `pc` ───► the caller
//!          │ entry ... │
//! ```
//!
//! The description is a program: it takes the first ancestor whose `sp` is not null, and skips those
//! that are dead or pending. The unwinder runs it when it gets there, so a switch has no part in it,
//! and a start has one store: the link.
//!
//! - **[ancestor-suspended]** Only an ancestor of the running greenlet is looked at, so none of them
//!   runs. Each is suspended and has its resume point in `sp`, or its `sp` is null.
//! - A greenlet owns a handle of its parent, so the nodes are alive. The greenlet's own node is alive
//!   as long as its first frame is.
//! - [`unlinked`] ends the backtrace at the first frame, where the greenlet does not run.
//! - An exception must not continue in the parent: [`boundary!`].

/// The symbol of the trampoline. It is global, because the compiler may put its users into other
/// object files.
macro_rules! trampoline {
    () => {
        symbol!("trampoline")
    };
}

/// Marks the frame of a trampoline as the boundary between two stacks.
///
/// The personality is called if an exception or a forced unwind gets there. The entries catch both,
/// so that happens only if code outside of their `catch_unwind` unwinds.
///
/// The caller's stack may be at a lower address. Debuggers reject that, except from a signal frame.
macro_rules! boundary {
    () => {
        concat!(
            ".cfi_personality 0x1b, ", // relative to this place, 4 bytes
            trampoline!(),
            "_personality\n",
            ".cfi_signal_frame"
        )
    };
}

/// Defines the personality of [`boundary!`], which makes whoever unwinds abort the process. The
/// instructions return 3, which is `_URC_FATAL_PHASE1_ERROR`.
macro_rules! personality {
    ($($instruction:literal),+) => {
        std::arch::global_asm!(
            ".text",
            concat!(".hidden ", trampoline!(), "_personality"),
            concat!(".type ", trampoline!(), "_personality, @function"),
            concat!(trampoline!(), "_personality:"),
            ".cfi_startproc",
            $($instruction,)+
            ".cfi_endproc",
            concat!(".size ", trampoline!(), "_personality, . - ", trampoline!(), "_personality"),
        );
    };
}

/// Describes the caller of a greenlet's first frame: where its nearest suspended ancestor resumes.
///
/// Each node on the way has its resume point in `sp`, or a null pointer [ancestor-suspended].
///
/// The arguments are the operation `DW_OP_breg` of the stack pointer, which is at the link, and the
/// column of the return address.
#[cfg(not(feature = "valgrind"))]
macro_rules! caller_is_ancestor {
    ($breg:literal, $return_address:literal) => {
        concat!(
            // The CFA: `sp` of the ancestor, plus the two words that its switch has pushed. If there
            // is no ancestor, it has no meaning.
            ".cfi_escape 0x0f, 30\n",
            ".cfi_escape ",
            $breg,
            ", 0, 0x06\n",                    //      0  breg 0, deref            node
            ".cfi_escape 0x23, 24, 0x06\n",   //            3  plus_uconst, deref       parent
            ".cfi_escape 0x12, 0x28, 6, 0\n", //          6  dup, bra 16              parent
            ".cfi_escape 0x13, ",
            $breg,
            ", 0\n",                                //     10  drop, breg 0             any
            ".cfi_escape 0x2f, 12, 0\n",            //              13  skip 28
            ".cfi_escape 0x12, 0x06\n",             //               16  dup, deref               parent sp
            ".cfi_escape 0x12, 0x28, 4, 0\n",       //         18  dup, bra 26              parent sp
            ".cfi_escape 0x13, 0x2f, 0xe9, 0xff\n", //   22  drop, skip 3             parent
            ".cfi_escape 0x16, 0x13\n",             //               26  swap, drop               sp
            ".cfi_escape 0x23, 16\n",               //                 28  plus_uconst              sp + 16
            // The address of the return address: `pc` of the ancestor. If there is no ancestor, the
            // null pointer in `parent` of the last node: a backtrace ends there.
            ".cfi_escape 0x10, ",
            $return_address,
            ", 27\n",
            ".cfi_escape ",
            $breg,
            ", 0, 0x06\n",                     //      0  breg 0, deref            node
            ".cfi_escape 0x23, 24\n",          //                  3  plus_uconst              &parent
            ".cfi_escape 0x12, 0x06\n",        //                5  dup, deref               &parent parent
            ".cfi_escape 0x12, 0x28, 4, 0\n",  //          7  dup, bra 15              &parent parent
            ".cfi_escape 0x13, 0x2f, 12, 0\n", //        11  drop, skip 27            &parent
            ".cfi_escape 0x16, 0x13\n",        //               15  swap, drop               parent
            ".cfi_escape 0x12, 0x06\n",        //               17  dup, deref               parent sp
            ".cfi_escape 0x28, 3, 0\n",        //               19  bra 25                   parent
            ".cfi_escape 0x2f, 0xea, 0xff\n",  //         22  skip 3                   parent
            ".cfi_escape 0x23, 8",             //                    25  plus_uconst              &pc
        )
    };
}

/// Valgrind warns of operations that it does not know, so a backtrace ends at the first frame.
#[cfg(feature = "valgrind")]
macro_rules! caller_is_ancestor {
    ($breg:literal, $return_address:literal) => {
        ""
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
use std::ptr::NonNull;

pub(crate) use arch::{init, init_segment, step, step_and_exit, step_back, switch, switch_and_exit};

use crate::backend::{PARENT_OFFSET, SavedContext};

// The offsets in `caller_is_ancestor`.
const _: () = {
    assert!(offset_of!(SavedContext, sp) == 0);
    assert!(offset_of!(SavedContext, pc) == 8);
    assert!(PARENT_OFFSET == 24);
};

/// The name of this backend in reports.
pub(crate) const NAME: &str = "asm";

/// A stack that switches to itself receives what it sends: it resumes at the resume point that it
/// has just stored.
pub(crate) const SELF_SWITCH_IS_NOOP: bool = true;

/// Calls `f`, with backtraces that end at the first frame of the stack with this base.
///
/// # Safety
///
/// - [`init`] has prepared the stack, and its entry has been called and has not ended.
pub(crate) unsafe fn unlinked<R>(base: NonNull<u8>, f: impl FnOnce() -> R) -> R {
    /// A node without a parent, for the walk of `caller_is_ancestor`.
    static NO_PARENT: [usize; PARENT_OFFSET / size_of::<usize>() + 1] =
        [0; PARENT_OFFSET / size_of::<usize>() + 1];

    struct Relink {
        link: *mut *const usize,
        before: *const usize,
    }

    impl Drop for Relink {
        fn drop(&mut self) {
            // SAFETY: as below: the stack is that of the caller of `unlinked`.
            unsafe { self.link.write(self.before) };
        }
    }

    let link = base.cast::<*const usize>().as_ptr().wrapping_sub(2);
    // SAFETY: the link is on the stack, whose entry has been called, says the caller. Nothing but an
    // unwinder reads it.
    let before = unsafe { link.replace(NO_PARENT.as_ptr()) };
    let _relink = Relink { link, before };
    f()
}
