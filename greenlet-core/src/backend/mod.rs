//! The bare stack switch, behind a contract of three functions; and the bare step, behind four.
//!
//! A backend knows nothing of greenlets: it knows stacks, two machine words, and where to go on. Two
//! implementations stand behind the same names, and this file is the only one that chooses:
//!
//! - `asm`: inline assembly for x86_64 and aarch64, the default there;
//! - `fcontext`: the `context` crate, by the feature of that name and on every other architecture.
//!
//! # The contract
//!
//! ```text
//!   init(base, entry, context)         a fresh stack, with its context; the first switch there calls entry(w, d, context)
//!   switch(from, at, to, w, d)    leaves for the context `to`; where to come back is written to the context `from`, with
//!                                   `at`; returns that context, and what the next switch there brings
//!   switch_and_exit(to, w, d)          leaves for the context `to` for good; this stack is never come back to
//! ```
//!
//! A segment is a stack whose code runs as a part of the greenlet that steps it (`segment/`). Its resume point is one word.
//!
//! ```text
//!   init_segment(base, entry, header)   a fresh segment; returns its resume point; the first step there calls entry(.., header, ..)
//!   step(from, to, w, d)                leaves for the segment at `to`; where to come back is written to `from`, which is the first word of
//!                                       its header; returns what the next step back brings, and the resume point that it leaves
//!   step_back(to, w, d)                 leaves the segment for the consumer at `to`; returns what the next step brings
//!   step_and_exit(to, w, d)                leaves the segment for good
//! ```
//!
//! ```text
//!   base  ─►┌──────────────────────┐ high addresses, aligned to STACK_ALIGN
//!           │ frames of the body   │
//!           │ ...                  │
//!           │ frame that switched  │
//!           ├──────────────────────┤
//! from.sp ─►│ what this backend    │ written by `switch` on its way out,
//!           │ needs to come back   │ used up by the switch that comes back
//!           └──────────────────────┘ low addresses
//! ```
//!
//! # Invariants, kept by the callers (`switch.rs`, `entry.rs`)
//!
//! - **B1** The context that is switched to holds a resume point (what `init` or `switch` wrote there), its stack is mapped,
//!   and the thread is the one that made it. A resume point is switched to at most once. Where the backend [`SELF_SWITCH_IS_NOOP`], the
//!   context may also be that of the stack that runs, whatever it holds.
//! - **B2** Nothing runs on a stack between its `switch` away and the switch that comes back.
//! - **B3** Nothing unwinds out of an entry.
//!
//! Floating-point control words (MXCSR, x87, FPCR) are not part of a resume point in `asm`: they belong
//! to the thread, and a greenlet that changes them changes them for all. `fcontext` saves and loads the
//! x86 ones at every switch, which is most of its cost.

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
};

/// What is kept of a stack that is suspended, outside of it.
#[repr(C)] // the assembly knows where each is
#[derive(Debug)]
pub(crate) struct SavedContext {
    /// The resume point: where the stack goes on. Opaque, but for null, before there is one. Others may take it out and
    /// put it back.
    pub(crate) sp: Cell<*mut u8>,
    /// The code that goes on there, if the backend keeps it here.
    pub(crate) pc: Cell<*const u8>,
    /// Where in the source the stack was left.
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

/// What a switch carries besides the tag: a pointer, or any value that fits. It may be padding or
/// nothing at all, so it need not be initialised.
pub(crate) type Word = MaybeUninit<*mut ()>;

/// The first function on a new stack: it gets the two words of the first switch there, and the context of the stack.
///
/// The backend alone calls it, once, as the first function on a fresh stack.
pub(crate) type Entry = unsafe extern "C" fn(word: *const (), data: Word, own: *const SavedContext) -> !;

/// What a step carries, in registers. Through memory, a value that is written word by word and read as a whole has to wait: three words
/// take 6.6 ns then, and 2.3 in registers.
pub(crate) type Words = [Word; 3];

/// The first function on a segment: it gets the words of the first step there, and the header of the segment.
///
/// The backend alone calls it, once, as the first function on a fresh stack.
pub(crate) type SegmentEntry = unsafe extern "C" fn(
    word: *const (),
    first: Word,
    header: *const Cell<*mut u8>,
    second: Word,
    third: Word,
) -> !;

/// Returns an address on the running stack, below the frame of the caller.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)] // one instruction
pub(crate) fn stack_pointer() -> *const u8 {
    let at: *const u8;
    // SAFETY: reads a register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, rsp", out(reg) at, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mov {}, sp", out(reg) at, options(nomem, nostack, preserves_flags));
    }
    at
}

/// Returns an address on the running stack, below the frame of the caller.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(never)]
pub(crate) fn stack_pointer() -> *const u8 {
    let here = 0_u8;
    std::hint::black_box(&raw const here)
}

/// Asks for the memory at an address, which may be any at all, without waiting for it.
#[inline(always)] // one instruction, or nothing
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which touches nothing and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
