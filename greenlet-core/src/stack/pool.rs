//! Reuse of stacks: a cache for each thread, and a pool that all threads share.
//!
//! ```text
//!   greenlet ends ──► thread's cache ──surplus──► pool: dirty ──over the limit──► pool: clean
//!                        (no lock)                  (a lock)                      (no memory)
//!   greenlet starts ◄── thread's cache ◄──refill── dirty, otherwise clean, otherwise a slab
//! ```

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::error::StackError;
use super::slab::{self, Slabs, Unguarded};
use super::stats::Counter;
use super::{CLASSES, Class, Stack, sys};

/// How many free stacks of one size a thread caches.
const CACHE_MAX: usize = 128;
/// How many stacks it exchanges with the pool at once.
const BATCH: usize = CACHE_MAX / 2;

/// The pool of one size.
struct Shared {
    /// Idle stacks with memory. They are reused first, because their pages may still be cached.
    dirty: Vec<Stack>,
    /// Idle stacks without memory.
    clean: Vec<Stack>,
    /// Carved stacks whose guards the system refused. They are tried again.
    unguarded: Vec<Unguarded>,
    slabs: Slabs,
}

static SHARED: [CachePadded<Mutex<Shared>>; CLASSES] = [const {
    CachePadded::new(Mutex::new(Shared {
        dirty: Vec::new(),
        clean: Vec::new(),
        unguarded: Vec::new(),
        slabs: Slabs::new(),
    }))
}; CLASSES];

static IDLE_LIMIT: AtomicUsize = AtomicUsize::new(1024);

/// Sets how many idle stacks of each size keep their memory in the pool that threads share.
///
/// Any other stack in the pool returns its memory to the system, at once or when it enters the
/// pool. The default is 1024. Each thread caches up to 128 more stacks of each size.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::stack;
/// stack::set_idle_limit(0); // a burst of greenlets is over: return its memory
/// assert_eq!(stack::idle_limit(), 0);
/// ```
pub fn set_idle_limit(stacks: usize) {
    IDLE_LIMIT.store(stacks, Ordering::Relaxed);
    for shared in &SHARED {
        let mut pool = shared.lock();
        let limit = stacks.min(pool.dirty.len());
        let surplus = pool.dirty.split_off(limit);
        drop(pool);
        share(surplus.into_iter());
    }
}

/// Returns how many idle stacks of each size keep their memory: see [`set_idle_limit`].
pub fn idle_limit() -> usize {
    IDLE_LIMIT.load(Ordering::Relaxed)
}

/// Returns how many stacks there are, in use or idle.
pub(super) fn total_stacks() -> usize {
    SHARED
        .iter()
        .map(|shared| {
            let shared = shared.lock();
            let unguarded: usize = shared.unguarded.iter().map(Unguarded::count).sum();
            shared.slabs.carved - unguarded
        })
        .sum()
}

/// The free stacks of one thread, and the count of the stacks that its greenlets use.
#[derive(Debug)]
pub(crate) struct StackCache {
    free: [Vec<Stack>; CLASSES],
    in_use: Counter,
}

impl StackCache {
    pub(crate) const fn new() -> StackCache {
        StackCache {
            free: [const { Vec::new() }; CLASSES],
            in_use: Counter::none(),
        }
    }

    /// Takes a stack of at least `size` bytes, if one is cached.
    #[inline]
    pub(crate) fn take(&mut self, size: usize) -> Option<Stack> {
        let class = Class::holding(size).ok()?;
        let stack = self.free[class.index()].pop()?;
        self.in_use.add(1);
        Some(stack)
    }

    /// Takes a stack of at least `size` bytes, and refills the cache.
    #[cold]
    #[inline(never)]
    pub(crate) fn fetch(&mut self, size: usize) -> Result<Stack, StackError> {
        let class = Class::holding(size)?;
        self.in_use.register();
        let stack = self.refill(class)?;
        self.in_use.add(1);
        Ok(stack)
    }

    /// Caches a stack that nothing runs on any more. Returns `true` if it moved others to the pool.
    #[inline]
    pub(crate) fn give(&mut self, stack: Stack) -> bool {
        self.in_use.add(-1);
        let free = &mut self.free[stack.class().index()];
        free.push(stack);
        if free.len() > CACHE_MAX {
            share(free.drain(..BATCH)); // the ones that have been idle for longest
            return true;
        }
        false
    }

    /// Counts one of the stacks in use as leaked.
    pub(crate) fn leak(&self) {
        self.in_use.leak();
    }

    /// Returns how many stacks of this thread are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Moves all stacks to the pool, because the thread ends.
    pub(crate) fn release(&mut self) {
        for free in &mut self.free {
            share(std::mem::take(free).into_iter());
        }
        self.in_use.unregister();
    }

    fn refill(&mut self, class: Class) -> Result<Stack, StackError> {
        let free = &mut self.free[class.index()];
        let unguarded = {
            let mut shared = SHARED[class.index()].lock();
            let shared = &mut *shared;
            for idle in [&mut shared.dirty, &mut shared.clean] {
                let from = idle.len().saturating_sub(BATCH);
                free.extend(idle.drain(from..));
                if let Some(stack) = free.pop() {
                    return Ok(stack);
                }
            }
            match shared.unguarded.pop() {
                Some(unguarded) => unguarded,
                None => {
                    // A batch grows with the number of stacks, so that a small program pays little.
                    let wanted = (shared.slabs.carved / 4).clamp(1, sys::guards_per_call());
                    shared.slabs.carve(class, wanted)?
                }
            }
        };
        // A system call, so without the lock.
        let outcome = slab::guard(unguarded, free);
        // Hand out the lowest stack first, so that greenlets lie in memory in creation order.
        free.reverse();
        match (free.pop(), outcome) {
            (Some(stack), Ok(())) => Ok(stack),
            (first, Err((unguarded, error))) => {
                SHARED[class.index()].lock().unguarded.push(unguarded);
                first.ok_or(error)
            }
            (None, Ok(())) => unreachable!("at least one stack was carved"),
        }
    }
}

/// Moves free stacks of one size to the pool. Stacks over the idle limit lose their memory first.
#[cold]
fn share(stacks: impl Iterator<Item = Stack>) {
    let mut stacks: Vec<Stack> = stacks.collect();
    let Some(first) = stacks.first() else { return };
    let shared = &SHARED[first.class().index()];
    let room = idle_limit().saturating_sub(shared.lock().dirty.len());
    let mut surplus = stacks.split_off(room.min(stacks.len()));
    sys::discard(&mut surplus); // a system call, so without the lock
    let mut shared = shared.lock();
    shared.dirty.append(&mut stacks);
    shared.clean.append(&mut surplus);
}
