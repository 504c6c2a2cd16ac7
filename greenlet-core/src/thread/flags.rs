//! The flags of a thread: reasons why a switch has more to do than to switch stacks.
//!
//! ```text
//!   the word of `SwitchFlags`, on a 64-bit machine
//!     bits 56..64   the flags of `flag`
//!     bits  1..56   0
//!     bit   0       1
//! ```

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

/// The flags. Each is a bit of [`SwitchFlags`].
pub(crate) mod flag {
    /// Set while the thread has many suspended greenlets (see `prefetch.rs`).
    ///
    /// It forbids nothing. A switch takes the cold path, where it records its target. It is the
    /// lowest bit, so that one shift tests all others.
    pub(crate) const PREFETCH: u32 = 1;

    /// Set while a tracer is installed.
    ///
    /// `settrace` sets and clears it. Each switch then sends a handle of its origin along, and the
    /// receiver calls the tracer.
    pub(crate) const TRACED: u32 = 1 << 1;

    /// Set while ends of greenlets are deferred.
    ///
    /// `ThreadState::defer` sets it, and `run_deferred` clears it as it takes the last entry. The
    /// next switch runs what is deferred.
    pub(crate) const DEFERRED: u32 = 1 << 2;

    /// Set inside a `no_switch` section.
    ///
    /// Switches are refused with `SwitchForbidden`, and ends of greenlets are deferred.
    pub(crate) const NO_SWITCH: u32 = 1 << 3;

    /// Set when the thread begins to end, and never cleared.
    ///
    /// Switches are refused with `ThreadExiting`. A destructor of a thread-local may still ask for
    /// the current greenlet: it gets a main greenlet that is dead from the start.
    pub(crate) const EXITING: u32 = 1 << 4;

    /// Set while `ThreadState::await_locks` is not 0.
    ///
    /// A switch then searches the ancestors of its target for a greenlet that is locked for an
    /// await.
    pub(crate) const AWAIT_LOCKS: u32 = 1 << 5;

    /// Set when a request is in the thread's inbox. The only flag that another thread sets.
    ///
    /// The thread clears it before it empties the inbox, and a request is added before the flag is
    /// set. So no request stays in the inbox while the flag is clear.
    pub(crate) const REMOTE_CALL: u32 = 1 << 6;

    /// Set if the current greenlet has no handle. It may have got another one since.
    ///
    /// The drop of a handle sets it. The greenlet's end checks it alone. The next switch compares the reference count, and sends a
    /// handle along if there is no other, so that the receiver ends the greenlet (rule DE-15). Each
    /// switch clears it. Without the flag, every switch would have to load the reference count.
    pub(crate) const NO_HANDLES: u32 = 1 << 7;
}

/// The flags of one thread.
///
/// Flags occupy the top byte of a word that is 1 when none is set, so `sp >= word` holds only for a
/// non-null `sp` with no flag: one comparison.
///
/// Other threads may set a flag, but never read or clear one.
pub(crate) struct SwitchFlags(AtomicUsize);

impl SwitchFlags {
    const SHIFT: u32 = usize::BITS - 8;
    const NO_FLAG: usize = 1;

    pub(super) const fn new() -> SwitchFlags {
        SwitchFlags(AtomicUsize::new(SwitchFlags::NO_FLAG))
    }

    #[inline]
    pub(crate) fn get(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) >> SwitchFlags::SHIFT) as u32
    }

    /// Returns `true` if no flag is set and `sp` is not null.
    #[inline]
    pub(crate) fn allows(&self, sp: *mut u8) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        if cfg!(all(
            target_pointer_width = "64",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )) {
            // User-space addresses have at most 56 bits there, so an address is below every word
            // that has a flag.
            sp.addr() >= word
        } else {
            word == SwitchFlags::NO_FLAG && !sp.is_null()
        }
    }

    /// Sets a flag, from any thread.
    pub(crate) fn raise(&self, flag: u32) {
        // One atomic operation: between a load and a store, a flag of another thread would be lost.
        self.0
            .fetch_or((flag as usize) << SwitchFlags::SHIFT, Ordering::Relaxed);
    }

    pub(super) fn lower(&self, flag: u32) {
        self.0
            .fetch_and(!((flag as usize) << SwitchFlags::SHIFT), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    #[test]
    fn a_switch_is_allowed_only_to_a_stack_pointer_and_only_without_flags() {
        let flags = SwitchFlags::new();
        let addresses = [1, 0x1000, 0x7fff_ffff, usize::MAX >> 9];
        let allowed = |flags: &SwitchFlags| {
            assert!(!flags.allows(ptr::null_mut()));
            let allowed = addresses.map(|address| flags.allows(ptr::without_provenance_mut(address)));
            assert!(allowed.iter().all(|one| *one == allowed[0]));
            allowed[0]
        };
        assert!(allowed(&flags));
        for bit in 0..8 {
            flags.raise(1 << bit);
            assert_eq!(flags.get(), 1 << bit);
            assert!(!allowed(&flags));
            flags.raise(flag::TRACED);
            flags.lower(1 << bit);
            assert_eq!(allowed(&flags), 1 << bit == flag::TRACED);
            flags.lower(flag::TRACED);
            assert!(allowed(&flags));
            assert_eq!(flags.get(), 0);
        }
    }
}
