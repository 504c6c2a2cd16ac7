//! What stacks there are, and what they cost.
//!
//! Each thread counts the stacks that it has in use in a cell of its own, by a plain load and store: no
//! other thread writes there. Everything else is counted when somebody asks.

use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::slab::{self, Slab};
use super::{Stack, page_size, pool};
use crate::thread::Hub;

/// What stacks there are, and what they cost: see [`stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Stacks that greenlets have: those of active greenlets, and the few that were leaked because a
    /// greenlet refused to end. All threads together; of each other thread, the stack of the greenlet
    /// that ended last counts too.
    pub in_use: usize,
    /// The same, of the calling thread alone.
    pub in_use_here: usize,
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
/// The kernel is asked for each page that is reserved, so this is for tests, and for a look now and
/// then: some 100 µs for a thousand stacks of the default size. The counts are of one moment only if no
/// other thread starts or ends greenlets meanwhile.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, getparent, stack};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// assert_eq!(stack::stats().in_use_here, 0); // pending: it has none yet
/// waiting.switch::<()>(())?;
/// assert_eq!(stack::stats().in_use_here, 1);
/// drop(waiting);
/// assert_eq!(stack::stats().in_use_here, 0);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn stats() -> Stats {
    let hub = Hub::get();
    let in_use = counted() - hub.idle_but_counted();
    Stats {
        in_use,
        in_use_here: hub.stacks_in_use(),
        idle: pool::made().saturating_sub(in_use),
        mapped_bytes: slab::slabs().map(Slab::len).sum(),
        mappings: slab::slabs().count(),
        resident_bytes: slab::slabs()
            .map(|slab| resident(slab.start(), slab.len()).filter(|page| *page).count())
            .sum::<usize>()
            * page_size(),
    }
}

/// How much of a stack has ever been touched since its memory was last given back, in bytes.
pub(crate) fn high_water(stack: &Stack) -> usize {
    let (start, len) = stack.pages();
    let untouched = resident(start, len).take_while(|page| !page).count();
    (len - untouched * page_size()).min(stack.size())
}

/// For each page of a range that is mapped, whether it has memory.
fn resident(start: *mut u8, len: usize) -> impl Iterator<Item = bool> {
    const AT_ONCE: usize = 4096;
    let page = page_size();
    (0..len).step_by(AT_ONCE * page).flat_map(move |offset| {
        let len = (len - offset).min(AT_ONCE * page);
        let mut pages = vec![0_u8; len / page];
        // SAFETY: it writes a byte for each page of the range to `pages`.
        let answer =
            unsafe { libc::mincore(start.wrapping_add(offset).cast(), len, pages.as_mut_ptr().cast()) };
        debug_assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        pages.into_iter().map(|page| page & 1 != 0)
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

/// Stacks that were leaked, in threads that have ended.
static LEAKED: AtomicUsize = AtomicUsize::new(0);

fn counted() -> usize {
    let counts = COUNTS.lock();
    let in_use: usize = counts.all.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    in_use + LEAKED.load(Ordering::Relaxed)
}

/// Counts something for one thread, which alone writes to it; [`stats`] reads it from any.
#[derive(Debug)]
pub(super) struct Counter(&'static Count);

/// What counters count in that have not been registered. Nothing counts before.
static UNREGISTERED: Count = CachePadded::new(AtomicUsize::new(0));

impl Counter {
    pub(super) const fn none() -> Counter {
        Counter(&UNREGISTERED)
    }

    /// Gives the counter a place where [`stats`] finds it.
    pub(super) fn register(&mut self) {
        if !ptr::eq(self.0, &UNREGISTERED) {
            return;
        }
        let mut counts = COUNTS.lock();
        self.0 = counts.free.pop().unwrap_or_else(|| {
            let count: &'static Count = Box::leak(Box::default());
            counts.all.push(count);
            count
        });
    }

    /// Gives the place back: the thread ends. What is still counted is leaked.
    pub(super) fn unregister(&mut self) {
        if ptr::eq(self.0, &UNREGISTERED) {
            return;
        }
        let mut counts = COUNTS.lock();
        let count = std::mem::replace(&mut self.0, &UNREGISTERED);
        LEAKED.fetch_add(count.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        counts.free.push(count);
    }

    #[inline]
    pub(super) fn add_one(&self) {
        // Not `fetch_add`: nobody else writes, and it would lock the bus.
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn subtract_one(&self) {
        self.0
            .store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
