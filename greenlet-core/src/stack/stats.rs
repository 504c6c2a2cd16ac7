//! Counts of stacks, and of the memory that they hold. Each thread counts the stacks that it uses.
//! [`stats`] computes everything else when it is called.

#![forbid(unsafe_code)]

use std::ops::ControlFlow::{Break, Continue};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::slab::{self, Slab};
use super::{Stack, page_size, pool, sys};

/// Counts of stacks, and of the memory that they hold: see [`stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The stacks of active greenlets, of generators, and [`leaked`](Stats::leaked) ones, of all
    /// threads together. Each other thread may also count the stack of the greenlet that ended
    /// last.
    pub in_use: usize,
    /// Of those, the stacks of greenlets that were suspended when their thread ended, or the
    /// process (see [`run_to_end`](crate::run_to_end)). They are never used again.
    pub leaked: usize,
    /// The stacks that can be reused, in threads' caches and in the pool.
    pub idle: usize,
    /// The address space that is reserved for stacks, in bytes. It never shrinks.
    pub mapped_bytes: usize,
    /// How many mappings were created. The kernel may count fewer, because it joins neighbours, or
    /// many more, where `mprotect` makes the guard pages.
    pub mappings: usize,
    /// The memory that stacks hold, in use or idle, in bytes, without page tables.
    pub resident_bytes: usize,
}

/// Counts the stacks of the process.
///
/// It asks the kernel about each page of each stack: 0.1 ms for 1,000 stacks of 64 KiB, 20 ms for
/// 100,000, several times as long where `mprotect` makes the guards. The counts belong to one
/// moment only if no other thread starts or ends greenlets meanwhile.
/// [`stacks_in_use`](crate::stacks_in_use) counts the stacks of the calling thread, at almost no
/// cost.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, stack};
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// let stats = stack::stats();
/// assert!(stats.in_use > 0 && stats.resident_bytes < stats.mapped_bytes);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn stats() -> Stats {
    let counts = COUNTS.lock();
    let counted: usize = counts.all.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    drop(counts);
    let leaked = LEAKED.load(Ordering::Relaxed);
    let in_use = counted + leaked - IDLE_BUT_COUNTED.get().map_or(0, |count| count());
    Stats {
        in_use,
        leaked,
        idle: pool::total_stacks().saturating_sub(in_use),
        mapped_bytes: slab::slabs().map(|slab| slab.len).sum(),
        mappings: slab::slabs().count(),
        resident_bytes: slab::slabs().map(resident_bytes).sum(),
    }
}

/// Returns how many stacks of the calling thread are idle, but counted as in use.
static IDLE_BUT_COUNTED: OnceLock<fn() -> usize> = OnceLock::new();

/// Sets the function for [`IDLE_BUT_COUNTED`]. Only the layer above knows these stacks.
pub(crate) fn set_idle_but_counted(count: fn() -> usize) {
    IDLE_BUT_COUNTED.get_or_init(|| count);
}

/// Returns how much of a stack was touched since its memory last went back to the system, in bytes.
pub(crate) fn high_water(stack: &Stack) -> usize {
    let (limit, len) = stack.pages();
    let mut untouched = len;
    let outcome = sys::visit_resident(limit, len, |offset| {
        untouched = offset;
        Break(())
    });
    debug_assert!(outcome.is_ok(), "{outcome:?}");
    (len - untouched).min(stack.size())
}

/// Returns the memory that the stacks of a slab hold, in bytes.
fn resident_bytes(slab: &Slab) -> usize {
    let (start, len) = slab.carved_part();
    let mut pages = 0;
    // One call for many stacks and their guards is four times as fast as one for each stack.
    let outcome = sys::visit_resident(start, len, |offset| {
        pages += usize::from(slab.is_usable(offset));
        Continue(())
    });
    if outcome.is_err() {
        pages = 0; // some kernels and emulators refuse a range that contains guards
        for (limit, len) in slab.stacks() {
            let outcome = sys::visit_resident(limit, len, |_| {
                pages += 1;
                Continue(())
            });
            debug_assert!(outcome.is_ok(), "{outcome:?}");
        }
    }
    pages * page_size()
}

/// The count of one thread.
type Count = CachePadded<AtomicUsize>;

/// The counts of all threads.
struct Counts {
    all: Vec<&'static Count>,
    /// The counts of threads that have ended. They are 0, and new threads reuse them.
    free: Vec<&'static Count>,
}

static COUNTS: Mutex<Counts> = Mutex::new(Counts {
    all: Vec::new(),
    free: Vec::new(),
});

/// Stacks of greenlets that were suspended when their thread ended, and of generators that outlived
/// their thread.
static LEAKED: AtomicUsize = AtomicUsize::new(0);

/// The count of one thread. Only that thread writes to it, and [`stats`] reads it from any thread.
///
/// It is `None` until it is registered, and counts nothing before.
#[derive(Debug)]
pub(super) struct Counter(Option<&'static Count>);

impl Counter {
    pub(super) const fn none() -> Counter {
        Counter(None)
    }

    /// Adds the count to those that [`stats`] reads.
    pub(super) fn register(&mut self) {
        if self.0.is_some() {
            return;
        }
        let mut counts = COUNTS.lock();
        let free = counts.free.pop();
        self.0 = Some(free.unwrap_or_else(|| {
            let count: &'static Count = Box::leak(Box::default());
            counts.all.push(count);
            count
        }));
    }

    /// Removes the count, because the thread ends. Stacks that are still counted belong to
    /// generators that destructors of thread-locals own. They count as leaked until they are
    /// dropped.
    pub(super) fn unregister(&mut self) {
        if let Some(count) = self.0.take() {
            let mut counts = COUNTS.lock();
            LEAKED.fetch_add(count.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            counts.free.push(count);
        }
    }

    /// Moves 1 to the count of leaked stacks.
    pub(super) fn leak(&self) {
        self.add(-1);
        LEAKED.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn add(&self, difference: isize) {
        let Some(count) = self.0 else {
            if difference < 0 {
                // The thread has ended, and the stack was counted as leaked then.
                LEAKED.fetch_sub(1, Ordering::Relaxed);
            }
            return;
        };
        // Only this thread writes, so the count needs no `fetch_add`, which would lock the bus.
        let sum = count.load(Ordering::Relaxed).wrapping_add_signed(difference);
        count.store(sum, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> usize {
        self.0.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
