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
use super::{CLASSES, Class, Stack};
use crate::error::StackError;

/// How many free stacks of a size a thread keeps. It passes on, and fetches, half of that at a time.
const CACHE_MAX: usize = 128;
const BATCH: usize = CACHE_MAX / 2;

/// What all threads share, of one size.
struct Shared {
    /// Idle stacks with memory. Used before the others: they are warm, or at least mapped.
    dirty: Vec<Stack>,
    /// Idle stacks whose memory was given back.
    clean: Vec<Stack>,
    /// Cut from a slab, but the guard could not be made: to be tried again.
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
/// The memory of further ones goes back to the system. The default is 1024.
///
/// Each thread keeps up to 128 more at hand. A stack holds at most the memory that the deepest greenlet
/// on it has touched.
pub fn set_idle_limit(stacks: usize) {
    IDLE_LIMIT.store(stacks, Ordering::Relaxed);
}

/// How many idle stacks of each size may keep their memory: see [`set_idle_limit`].
pub fn idle_limit() -> usize {
    IDLE_LIMIT.load(Ordering::Relaxed)
}

/// The free stacks that one thread has at hand.
#[derive(Debug)]
pub(crate) struct StackCache {
    free: [Vec<Stack>; CLASSES],
}

impl StackCache {
    pub(crate) const fn new() -> StackCache {
        StackCache {
            free: [const { Vec::new() }; CLASSES],
        }
    }

    /// Gives out a stack of at least `size` bytes.
    #[inline]
    pub(crate) fn take(&mut self, size: usize) -> Result<Stack, StackError> {
        let class = Class::holding(size)?;
        match self.free[class.index()].pop() {
            Some(stack) => Ok(stack),
            None => self.refill(class),
        }
    }

    /// Takes back a stack that nothing runs on any more.
    #[inline]
    pub(crate) fn give(&mut self, stack: Stack) {
        let free = &mut self.free[stack.class.index()];
        free.push(stack);
        if free.len() > CACHE_MAX {
            let from = free.len() - BATCH;
            share(free.drain(from..));
        }
    }

    /// Gives everything to the pool, because the thread ends.
    pub(crate) fn release(&mut self) {
        for free in &mut self.free {
            share(std::mem::take(free).into_iter());
        }
    }

    #[cold]
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
                None => shared.slabs.cut(class)?,
            }
        };
        // Without the lock: it asks the kernel.
        slab::guard(unguarded).map_err(|(unguarded, error)| {
            SHARED[class.index()].lock().unguarded.push(unguarded);
            error
        })
    }
}

/// Moves free stacks of one size to the pool. Those over the bound lose their memory first.
#[cold]
fn share(stacks: impl ExactSizeIterator<Item = Stack>) {
    let mut stacks = stacks.peekable();
    let Some(first) = stacks.peek() else { return };
    let shared = &SHARED[first.class.index()];
    let room = idle_limit().saturating_sub(shared.lock().dirty.len());
    let mut stacks: Vec<Stack> = stacks.collect();
    let surplus = stacks.split_off(room.min(stacks.len()));
    for stack in &surplus {
        slab::discard(stack); // without the lock: it asks the kernel
    }
    let mut shared = shared.lock();
    shared.dirty.append(&mut stacks);
    shared.clean.extend(surplus);
}
