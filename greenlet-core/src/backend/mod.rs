//! The bare stack switch. It knows nothing of greenlets. This file is the contract, and the only
//! place that chooses between its two implementations:
//!
//! - `asm`: inline assembly, the default on x86_64 and aarch64;
//! - `fcontext`: the `context` crate, on all other architectures, or by the feature `fcontext`.
//!
//! # The functions
//!
//! ```text
//!   init(base, entry, context)       prepares a fresh stack. The first switch there calls
//!                                    entry(word, data, context)
//!   switch(from, at, to, word, data) saves this stack in `from`, with the source location `at`, and
//!                                    resumes `to`. Returns `from` and the words of the next switch
//!   switch_and_exit(to, word, data)  resumes `to`, and gives this stack up
//! ```
//!
//! A backtrace that reaches a stack's first frame continues in the nearest ancestor that is suspended:
//! [`PARENT_OFFSET`]. With `fcontext` it ends at the first frame.
//!
//! ```text
//!   unlinked(base, f)                calls f, with backtraces that end at the first frame of the
//!                                    stack with this base
//! ```
//!
//! A segment is a stack that runs as a part of the greenlet that steps it (`generator/`). Its resume
//! point is one word.
//!
//! ```text
//!   init_segment(base, entry, header)  prepares a fresh segment, and returns its resume point. The
//!                                      first step there calls entry(word, .., header, ..)
//!   step(from, to, word, data)         saves this stack in `from`, the first word of the segment's
//!                                      header, and resumes the segment at `to`. Returns the data of
//!                                      the step back, and the resume point that the segment leaves.
//!                                      After a final step that is null, and there is a word
//!   step_back(to, data)                suspends the segment, and resumes the consumer at `to`.
//!                                      Returns the words of the next step
//!   step_and_exit(to, word, data)      resumes the consumer at `to`, and gives the segment up
//! ```
//!
//! ```text
//!      base ─►┌─────────────────────────┐ high addresses, aligned to STACK_ALIGN
//!             │ frames of the function  │
//!             │ ...                     │
//!             │ frame that switched     │
//!             ├─────────────────────────┤
//!   from.sp ─►│ what this backend needs │ written by the switch that suspends,
//!             │ to resume the stack     │ consumed by the switch that resumes
//!             └─────────────────────────┘ low addresses
//! ```
//!
//! # Invariants, kept by the callers (`switch/`, `generator/`)
//!
//! - **[resume-point]** The target's resume point was written by `init`, `switch`, or a step, on
//!   this thread, and has not been used since. Its stack is mapped. If [`SELF_SWITCH_IS_NOOP`], the
//!   target may also be the running stack's own context, whatever that holds.
//! - **[stack-waits]** Nothing runs on a stack between the switch that suspends it and the one that
//!   resumes it.
//! - **[entry-never-unwinds]** Nothing unwinds out of an entry: there is no caller to unwind into.
//!
//! `asm` does not save the floating-point control words (MXCSR, x87, FPCR): they belong to the
//! thread, so a greenlet that changes them changes them for all. `fcontext` saves those of x86 at
//! every switch, which is most of its cost.

pub(crate) mod abort;
pub(crate) mod asan;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr;

#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(target_pointer_width = "64")
))]
compile_error!("x86_64 and aarch64 are supported with pointers of 64 bits only: not x32, nor arm64_32");

/// How the names of our symbols begin.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(feature = "fcontext")
))]
macro_rules! prefix {
    () => {
        "greenlet_core_"
    };
}
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), feature = "fcontext"))]
macro_rules! prefix {
    () => {
        "greenlet_core_fcontext_"
    };
}

/// The name of a symbol of ours. It contains the version and the backend, so that two versions of
/// this crate can be linked into one program, and both backends.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! symbol {
    ($name:literal) => {
        concat!(
            prefix!(),
            $name,
            "_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR"),
            "_",
            env!("CARGO_PKG_VERSION_PATCH")
        )
    };
}

#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(feature = "fcontext")
))]
mod asm;
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(feature = "fcontext")
))]
use asm as imp;

#[cfg(any(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    feature = "fcontext"
))]
mod fcontext;
#[cfg(any(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    feature = "fcontext"
))]
use fcontext as imp;

pub(crate) use imp::{
    NAME, SELF_SWITCH_IS_NOOP, init, init_segment, step, step_and_exit, step_back, switch, switch_and_exit,
    unlinked,
};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod callers;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use callers::without_callers;

/// Calls `f`. A backtrace shows the callers: nothing hides them on this architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn without_callers<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// `true` if backtraces end at [`without_callers`].
pub(crate) const HIDES_CALLERS: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// A suspended stack, as others see it.
#[repr(C)] // the assembly uses the offsets of the fields
#[derive(Debug)]
pub(crate) struct SavedContext {
    /// The resume point, null before there is one. Otherwise opaque. The owner may move it
    /// elsewhere and back.
    pub(crate) sp: Cell<*mut u8>,
    /// The code that resumes the stack, if the backend saves it here.
    pub(crate) pc: Cell<*const u8>,
    /// The source location of the switch that suspended the stack.
    pub(crate) suspended_at: Cell<Option<&'static Location<'static>>>,
}

impl SavedContext {
    pub(crate) const fn new() -> SavedContext {
        SavedContext {
            sp: Cell::new(ptr::null_mut()),
            pc: Cell::new(ptr::null()),
            suspended_at: Cell::new(None),
        }
    }
}

/// Where a node has the pointer to its parent's node, or null: behind its context.
pub(crate) const PARENT_OFFSET: usize = size_of::<SavedContext>();

/// A word of data that a switch carries: a pointer, or a value that fits. A value may have padding,
/// so the word need not be initialised.
pub(crate) type Word = MaybeUninit<*mut ()>;

/// The first function on a stack. Only the backend calls it, once, with the two words of the first
/// switch there and the stack's context.
pub(crate) type Entry = unsafe extern "C" fn(word: *const (), data: Word, own: *const SavedContext) -> !;

/// The data of a step, in registers: 2.3 ns for three words. Through memory it takes 6.6 ns,
/// because a load of the whole value waits for the stores of its words.
pub(crate) type Words = [Word; 3];

/// The first function on a segment. Only the backend calls it, once, with the words of the first
/// step there and the segment's header.
pub(crate) type SegmentEntry = unsafe extern "C" fn(
    word: *const (),
    first: Word,
    header: *const Cell<*mut u8>,
    second: Word,
    third: Word,
) -> !;

/// Makes the linker refuse a program with two copies of this crate.
///
/// Each copy would have a current greenlet for the same thread, so both would resume the same stack.
/// Cargo refuses a second copy by the key `links`. This function is for copies that Cargo does not
/// see: it defines a symbol that all copies share.
// Never inlined or generic, so that there is one instance in each copy. Its own name, which the
// caller refers to, differs between the copies. So the linker takes in both instances.
#[cold]
#[inline(never)]
pub(crate) fn mark_copy() {
    // The benchmarks have both backends in one program, and use one after the other.
    #[cfg(not(greenlet_core_copy_for_benchmarks))]
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64"
    ))]
    // SAFETY: the assembly has no instruction.
    #[expect(named_asm_labels, reason = "the label is to clash with that of another copy")]
    unsafe {
        std::arch::asm!(
            ".globl greenlet_core_is_in_this_program_twice",
            "greenlet_core_is_in_this_program_twice:",
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Returns how far an address is above the stack pointer. It wraps around if it is not above.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(crate) fn depth_below(address: *const u8) -> usize {
    let depth;
    // SAFETY: the instructions only compute with registers.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("sub {}, rsp", inout(reg) address.addr() => depth, options(nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "mov {0}, sp",
            "sub {0}, {1}, {0}",
            out(reg) depth,
            in(reg) address.addr(),
            options(nomem, nostack, preserves_flags)
        );
    }
    depth
}

/// Returns how far an address is above the stack pointer. It wraps around if it is not above.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(never)]
pub(crate) fn depth_below(address: *const u8) -> usize {
    let here = 0_u8;
    address
        .addr()
        .wrapping_sub(std::hint::black_box(&raw const here).addr())
}

/// Returns an address on the running stack, below the frame of the caller.
#[inline]
pub(crate) fn stack_pointer() -> *const u8 {
    ptr::without_provenance(depth_below(ptr::null()).wrapping_neg())
}

/// Starts to load the cache line at `address`, which may be any address, without waiting for it.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is a hint, which never faults and changes no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction is a hint, which never faults and changes no memory.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
