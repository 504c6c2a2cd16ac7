//! Stacks for the peers that bring none: one mapping, 17 pages apart (an odd number, see the core's
//! `stack/slab.rs`), without guards. That is what their users would do by hand.
//!
//! All of these begin at the same place in a page, so what many of them need at a switch competes
//! for a few sets of the caches. Staggered ones begin on up to 32 different lines, as ours do.

use std::cell::RefCell;
use std::num::NonZeroUsize;

const PAGE: usize = 4096;
const STRIDE: usize = 17 * PAGE;
/// Less than there is, by what is lost where they are staggered.
const SIZE: usize = 16 * PAGE;

/// Maps `count` stacks; the addresses of their bases. Never unmapped.
pub fn map(count: usize) -> Vec<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: a new mapping at an address of the system's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), STRIDE * count, protection, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED, "no memory for {count} stacks");
    // SAFETY: advice about the new mapping.
    unsafe { libc::madvise(start, STRIDE * count, libc::MADV_NOHUGEPAGE) };
    (1..=count)
        .map(|index| start.cast::<u8>().wrapping_add(index * STRIDE))
        .collect()
}

/// The same, but the bases differ by up to half a page. Aligned to 64.
pub fn map_staggered(count: usize) -> Vec<*mut u8> {
    let lower = |base: *mut u8| base.wrapping_sub(base.addr() / PAGE % 32 * 64);
    map(count).into_iter().map(lower).collect()
}

/// A stack from a pool of this thread, for corosensei.
pub struct Pooled(*mut u8);

thread_local! {
    static FREE: RefCell<Vec<*mut u8>> = const { RefCell::new(Vec::new()) };
}

impl Pooled {
    pub fn take() -> Pooled {
        FREE.with_borrow_mut(|free| {
            if free.is_empty() {
                free.extend(map(1024).into_iter().rev());
            }
            Pooled(free.pop().expect("just filled"))
        })
    }

    /// Staggered ones, that are not from the pool (but would go to it).
    pub fn staggered(count: usize) -> Vec<Pooled> {
        map_staggered(count).into_iter().map(Pooled).collect()
    }

    /// The high end.
    pub fn base(&self) -> *mut u8 {
        self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // At the end of the thread the pool may be gone.
        let _ = FREE.try_with(|free| free.borrow_mut().push(self.0));
    }
}

// SAFETY: `SIZE` bytes below the base belong to this stack alone. There is no guard page: what runs
// on these in the benchmarks is known, and small.
unsafe impl corosensei::stack::Stack for Pooled {
    fn base(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.0.expose_provenance()).expect("a mapping is not at address 0")
    }

    fn limit(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.0.expose_provenance() - SIZE).expect("a mapping is not at address 0")
    }
}
