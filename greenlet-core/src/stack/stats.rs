//! What stacks there are, and what they cost.
//!
//! Each thread counts the stacks that it has in use in a cell of its own, by a plain load and store: no
//! other thread writes there. Everything else is counted when somebody asks.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::slab::{self, Slab};
use super::{Stack, page_size, pool};
use crate::thread::ThreadState;

/// What stacks there are, and what they cost: see [`stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Stacks that greenlets and generators have: those of active greenlets, of generators, and [`leaked`](Stats::leaked) ones. All
    /// threads together; of each other thread, the stack of the greenlet that ended last counts too.
    pub in_use: usize,
    /// Of those, the stacks of greenlets that were suspended when their thread ended, or the process
    /// (see [`run_to_end`](crate::run_to_end)). They are never used again.
    pub leaked: usize,
    /// Stacks that wait to be used again, at hand in threads or in the pool. All threads together.
    pub idle: usize,
    /// Address space that is reserved for stacks, in bytes. It never shrinks.
    pub mapped_bytes: usize,
    /// How many mappings were made. The kernel may count fewer, for it joins neighbours, or many more,
    /// where guard pages are made by `mprotect`.
    pub mappings: usize,
    /// Memory that stacks hold, in use or idle, in bytes, as the kernel says. Without page tables.
    pub resident_bytes: usize,
}

/// Counts the stacks of the process.
///
/// The kernel is asked about each page of each stack that there is, so this is for tests, and for a look now
/// and then. It takes 0.1 ms for 1,000 stacks of 64 KiB, 20 ms for 100,000 of them, and 0.25 ms for 1,000 of the
/// default size (on a 2-core x86_64 machine; several times that where guards are made by `mprotect`). The counts are of one
/// moment only if no other thread starts or ends greenlets meanwhile. For the count of the calling thread,
/// [`stacks_in_use`](crate::stacks_in_use) costs next to nothing.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, stack};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// assert_eq!(stack::stats().in_use, 0); // pending: it has none yet
/// waiting.switch::<()>(())?;
/// let stats = stack::stats();
/// assert_eq!(stats.in_use, 1);
/// assert!(0 < stats.resident_bytes && stats.resident_bytes < stats.mapped_bytes);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn stats() -> Stats {
    let thread = ThreadState::current();
    let in_use = counted() - thread.idle_but_counted();
    Stats {
        in_use,
        leaked: LEAKED.load(Ordering::Relaxed),
        idle: pool::made().saturating_sub(in_use),
        mapped_bytes: slab::slabs().map(Slab::len).sum(),
        mappings: slab::slabs().count(),
        resident_bytes: slab::slabs().map(resident_bytes).sum(),
    }
}

/// How much of a stack has ever been touched since its memory was last given back, in bytes.
pub(crate) fn high_water(stack: &Stack) -> usize {
    let (start, len) = stack.pages();
    let untouched = pages(start, len).take_while(|is_resident| !is_resident).count();
    (len - untouched * page_size()).min(stack.size())
}

/// The memory of the stacks in a slab.
fn resident_bytes(slab: &Slab) -> usize {
    resident_pages(slab).unwrap_or_else(|| {
        let resident = |(start, len)| pages(start, len).filter(|is_resident| *is_resident).count();
        slab.stacks().map(resident).sum()
    }) * page_size()
}

/// The same, in pages. It asks for many stacks at once, guards and all, which is four times as fast. `None` where
/// the kernel, or an emulator, does not answer for guards.
fn resident_pages(slab: &Slab) -> Option<usize> {
    const AT_ONCE: usize = 4096;
    let page = page_size();
    let (start, len) = slab.cut_part();
    let mut answer = [0_u8; AT_ONCE];
    let mut count = 0;
    for offset in (0..len).step_by(AT_ONCE * page) {
        let len = (len - offset).min(AT_ONCE * page);
        // SAFETY: it writes a byte for each page of the range to `answer`, which has room for that.
        let status =
            unsafe { libc::mincore(start.wrapping_add(offset).cast(), len, answer.as_mut_ptr().cast()) };
        if status != 0 {
            return None;
        }
        for (index, state) in answer[..len / page].iter().enumerate() {
            if state & 1 != 0 && slab.is_usable(offset + index * page) {
                count += 1;
            }
        }
    }
    Some(count)
}

/// For each page of a stack, whether it has memory. Guards are left out: not every kernel, or emulator,
/// answers for them.
fn pages(start: *mut u8, len: usize) -> impl Iterator<Item = bool> {
    const AT_ONCE: usize = 256;
    let page = page_size();
    (0..len).step_by(AT_ONCE * page).flat_map(move |offset| {
        let len = (len - offset).min(AT_ONCE * page);
        let mut answer = [0_u8; AT_ONCE];
        // SAFETY: it writes a byte for each page of the range to `answer`, which has room for that.
        let status =
            unsafe { libc::mincore(start.wrapping_add(offset).cast(), len, answer.as_mut_ptr().cast()) };
        debug_assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        answer.into_iter().take(len / page).map(|page| page & 1 != 0)
    })
}

/// The count of one thread.
type Count = CachePadded<AtomicUsize>;

/// The counts of all threads.
struct Counts {
    all: Vec<&'static Count>,
    /// Those of threads that have ended; they are 0.
    free: Vec<&'static Count>,
}

static COUNTS: Mutex<Counts> = Mutex::new(Counts {
    all: Vec::new(),
    free: Vec::new(),
});

/// Stacks of greenlets that were suspended when their thread ended, and of generators that outlived their thread.
static LEAKED: AtomicUsize = AtomicUsize::new(0);

fn counted() -> usize {
    let counts = COUNTS.lock();
    let in_use: usize = counts.all.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    in_use + LEAKED.load(Ordering::Relaxed)
}

/// Counts something for one thread, which alone writes to it; [`stats`] reads it from any. `None` until
/// it is registered: nothing is counted before.
#[derive(Debug)]
pub(super) struct Counter(Option<&'static Count>);

impl Counter {
    pub(super) const fn none() -> Counter {
        Counter(None)
    }

    /// Gives the counter a place where [`stats`] finds it.
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

    /// Gives the place back when the thread ends. What is still counted belongs to generators that destructors of
    /// thread-locals own. It counts as leaked until they are dropped.
    pub(super) fn unregister(&mut self) {
        if let Some(count) = self.0.take() {
            LEAKED.fetch_add(count.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            COUNTS.lock().free.push(count);
        }
    }

    /// Adds 1.
    #[inline]
    pub(super) fn increment(&self) {
        self.add(1);
    }

    /// Subtracts 1.
    #[inline]
    pub(super) fn decrement(&self) {
        if self.0.is_none() {
            // The thread has ended, and the stack was counted as leaked then.
            LEAKED.fetch_sub(1, Ordering::Relaxed);
        }
        self.add(usize::MAX);
    }

    /// Moves 1 to the count of leaked stacks.
    pub(super) fn leak(&self) {
        self.decrement();
        LEAKED.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    fn add(&self, difference: usize) {
        if let Some(count) = self.0 {
            // Not `fetch_add`: nobody else writes, and it would lock the bus.
            count.store(
                count.load(Ordering::Relaxed).wrapping_add(difference),
                Ordering::Relaxed,
            );
        }
    }

    pub(super) fn get(&self) -> usize {
        self.0.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
