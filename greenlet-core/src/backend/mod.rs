//! The bare stack switch, behind a contract of three functions.
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
//!   init::<E>(base)            a fresh stack; the first switch to it calls E::enter(word, data)
//!   switch(save, to, w, d)     leaves; where to come back is written to *save; returns what the
//!                              next switch to *save brings
//!   switch_final(to, w, d)     leaves for good; this stack is never come back to
//! ```
//!
//! ```text
//!   base  ─►┌──────────────────────┐ high addresses, aligned to STACK_ALIGN
//!           │ frames of the body   │
//!           │ ...                  │
//!           │ frame that switched  │
//!           ├──────────────────────┤
//!   *save ─►│ what this backend    │ written by `switch` on its way out,
//!           │ needs to come back   │ used up by the switch that comes back
//!           └──────────────────────┘ low addresses
//! ```
//!
//! # Invariants, kept by the callers (`switch.rs`, `entry.rs`)
//!
//! - **B1** A resume point (what `init` returned or `switch` wrote to `*save`) is switched to at most
//!   once, while its stack is mapped, and on the thread that made it.
//! - **B2** Nothing runs on a stack between its `switch` away and the switch that comes back.
//! - **B3** Nothing unwinds out of `Entry::enter`.
//!
//! Floating-point control words (MXCSR, x87, FPCR) are not part of a resume point in `asm`: they belong
//! to the thread, and a greenlet that changes them changes them for all. `fcontext` saves and loads the
//! x86 ones at every switch, which is most of its cost.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

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

pub(crate) use imp::{NAME, init, switch, switch_final};

/// Where a suspended stack goes on. Opaque: only the backend that made it can read it.
pub(crate) type ResumePoint = NonNull<u8>;

/// What a switch carries besides the descriptor: a pointer, or any value that fits. It may be padding or
/// nothing at all, so it need not be initialised.
pub(crate) type Word = MaybeUninit<*mut ()>;

/// The first function on a new stack.
pub(crate) trait Entry {
    /// Receives the two words of the first switch to the stack.
    ///
    /// # Safety
    ///
    /// Called by the backend alone, once, as the first function on a fresh stack.
    unsafe fn enter(word: *const (), data: Word) -> !;
}
