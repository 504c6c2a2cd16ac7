//! Reuse of stacks: what a thread keeps at hand, and what threads share.
//!
//! ```text
//!   greenlet ends ──► the thread's cache ──surplus──► shared: dirty ──bound──► shared: clean
//!   greenlet starts ◄─     (no lock)     ◄──refill───     (a lock)   ◄────────   (pages given back)
//!                                        ◄──────────── slabs: never used yet
//! ```

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::slab::{self, Slabs, Unguarded};
use super::stats::Counter;
use super::{CLASSES, Class, Stack};
use crate::payload::error::StackError;

/// How many free stacks of a size a thread keeps. It passes on, and fetches, half of that at a time.
const CACHE_MAX: usize = 128;
const BATCH: usize = CACHE_MAX / 2;

/// What all threads share, of one size.
struct Shared {
    /// Idle stacks with memory. Used before the others: they are warm, or at least mapped.
    dirty: Vec<Stack>,
    /// Idle stacks whose memory was given back.
    clean: Vec<Stack>,
    /// Cut from a slab, but the guards could not be made: to be tried again.
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

/// Sets how many idle stacks of each size may keep their memory in the pool that threads share.
/// The memory of further ones goes back to the system: of those in the pool at once, of others when
/// they come there. The default is 1024.
///
/// Each thread keeps up to 128 more at hand. A stack holds at most the memory that the deepest greenlet
/// on it has touched.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::stack;
///
/// stack::set_idle_limit(0); // a burst of greenlets is over: let go of all that can be let go of
/// assert_eq!(stack::idle_limit(), 0);
/// ```
pub fn set_idle_limit(stacks: usize) {
    IDLE_LIMIT.store(stacks, Ordering::Relaxed);
    for shared in &SHARED {
        let mut surplus = {
            let mut shared = shared.lock();
            let from = stacks.min(shared.dirty.len());
            shared.dirty.split_off(from)
        };
        slab::discard(&mut surplus); // without the lock: it asks the kernel
        shared.lock().clean.append(&mut surplus);
    }
}

/// How many idle stacks of each size may keep their memory: see [`set_idle_limit`].
pub fn idle_limit() -> usize {
    IDLE_LIMIT.load(Ordering::Relaxed)
}

/// How many stacks have been made so far: those in use, and those that are idle.
pub(super) fn made() -> usize {
    SHARED
        .iter()
        .map(|shared| {
            let shared = shared.lock();
            let unguarded: usize = shared.unguarded.iter().map(Unguarded::count).sum();
            shared.slabs.count() - unguarded
        })
        .sum()
}

/// The free stacks that one thread has at hand, and the count of those that it has given out.
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

    /// Gives out a stack of at least `size` bytes, if there is one at hand.
    #[inline]
    pub(crate) fn take(&mut self, size: usize) -> Option<Stack> {
        let class = Class::holding(size).ok()?;
        let stack = self.free[class.index()].pop()?;
        self.in_use.increment();
        Some(stack)
    }

    /// Gives out a stack of at least `size` bytes when none is at hand.
    ///
    /// # Errors
    ///
    /// [`StackError`] if the size is out of range, or if the system gives none.
    #[cold]
    #[inline(never)]
    pub(crate) fn fetch(&mut self, size: usize) -> Result<Stack, StackError> {
        let class = Class::holding(size)?;
        self.in_use.register();
        let stack = self.refill(class)?;
        self.in_use.increment();
        Ok(stack)
    }

    /// Takes back a stack that nothing runs on any more. Says whether others were passed on to the pool for it.
    #[inline]
    pub(crate) fn give(&mut self, stack: Stack) -> bool {
        self.in_use.decrement();
        let free = &mut self.free[stack.class().index()];
        free.push(stack);
        if free.len() > CACHE_MAX {
            // Those that have been idle for longest.
            share(free.drain(..BATCH));
            return true;
        }
        false
    }

    /// Counts one of the stacks that are in use as leaked.
    pub(crate) fn leak(&self) {
        self.in_use.leak();
    }

    /// How many of the stacks that this thread was given are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Gives everything to the pool, because the thread ends.
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
                    // The more there are, the more at once: a program with three greenlets pays for three.
                    let wanted = (shared.slabs.count() / 4).clamp(1, slab::guards_at_once());
                    shared.slabs.cut(class, wanted)?
                }
            }
        };
        // Without the lock: it asks the kernel.
        let outcome = slab::guard(unguarded, free);
        // The lowest first, so that a crowd of greenlets lies in memory in the order of its making.
        free.reverse();
        match (free.pop(), outcome) {
            (Some(stack), Ok(())) => Ok(stack),
            (first, Err((unguarded, error))) => {
                SHARED[class.index()].lock().unguarded.push(unguarded);
                first.ok_or(error)
            }
            (None, Ok(())) => unreachable!("at least one stack was cut"),
        }
    }
}

/// Moves free stacks of one size to the pool. Those over the bound lose their memory first.
#[cold]
fn share(stacks: impl Iterator<Item = Stack>) {
    let mut stacks: Vec<Stack> = stacks.collect();
    let Some(first) = stacks.first() else { return };
    let shared = &SHARED[first.class().index()];
    let room = idle_limit().saturating_sub(shared.lock().dirty.len());
    let mut surplus = stacks.split_off(room.min(stacks.len()));
    slab::discard(&mut surplus); // without the lock: it asks the kernel
    let mut shared = shared.lock();
    shared.dirty.append(&mut stacks);
    shared.clean.append(&mut surplus);
}
