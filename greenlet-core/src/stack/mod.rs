//! Where stacks come from.
//!
//! Stacks are cut from slabs: large mappings, reserved but not touched, that hold many stacks of one
//! size, each above a guard page (`slab.rs`). A thread keeps free stacks at hand, and exchanges them
//! with a pool that all threads share (`pool.rs`). A touch of a guard page is told from other faults in
//! `fault.rs`. [`stats`] says what there is.
//!
//! ```text
//!   base  ─► ├───────────────┤ high addresses
//!            │ room          │ a segment's header; zeros on a greenlet's stack
//!   entry ─► ├───────────────┤ the first frame goes here
//!            │ usable: size  │ costs memory where it was touched
//!   limit ─► ├───────────────┤
//!            │ guard page    │ touching it is a stack overflow
//!            └───────────────┘
//! ```
//!
//! A stack reserves address space, and costs the memory that was touched: a greenlet that never goes
//! deep costs one page, whatever its size.
//!
//! - `[header-room]` No frame uses the room above the entry of a stack. Fresh memory is zero, and the owner of a header clears
//!   it at its end. So the room tells a segment from a greenlet's stack.

use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::payload::error::{StackError, StackErrorKind};

mod fault;
mod pool;
mod slab;
mod stats;
mod valgrind;

pub(crate) use fault::{GuardHit, SignalStack, install as install_fault_handler};
pub(crate) use pool::StackCache;
pub use pool::{idle_limit, set_idle_limit};
pub(crate) use stats::high_water;
pub use stats::{Stats, stats};

/// The smallest stack, in bytes. Enough for a function that calls little; a panic with a backtrace, or
/// formatted output in a debug build, wants more.
pub const MIN_SIZE: usize = 16 << 10;

/// The size of a stack that no size was asked for, in bytes.
///
/// It is address space, not memory. Generous, because a stack cannot grow: it holds a panic with a
/// symbolised backtrace in a debug build.
pub const DEFAULT_SIZE: usize = 256 << 10;

/// The largest stack, in bytes: 1 GiB, and less where addresses are 32 bits wide.
pub const MAX_SIZE: usize = MIN_SIZE << (CLASSES - 1);

/// Sizes are rounded up to a power of two times [`MIN_SIZE`], so that a stack can serve many greenlets.
const CLASSES: usize = if cfg!(target_pointer_width = "64") { 17 } else { 14 };

/// How much room there is above the entry of a stack, in bytes.
pub(crate) const HEADER_ROOM: usize = 2 * LINE;

/// By how much the entries of stacks differ, in bytes: 32 lines of a cache, half a page.
const STAGGER: usize = 32 * LINE;
const LINE: usize = 64;

/// One guarded stack. Not dropped, but given back ([`StackCache::give`]).
///
/// One word, since each start and each end moves it about: its base, which is aligned to a page, with the class in the
/// lowest bits.
#[derive(Debug)]
pub(crate) struct Stack(NonNull<u8>);

/// Where the class is.
const CLASS_BITS: usize = 0xff;
const _: () = assert!(CLASSES <= CLASS_BITS);

// SAFETY: a stack is memory that whoever has the `Stack` owns; no thread is special to it. (A stack
// that something still runs on is not given away: see `ThreadState::retire`.)
unsafe impl Send for Stack {}

impl Stack {
    fn new(base: NonNull<u8>, class: Class) -> Stack {
        debug_assert_eq!(base.addr().get() & CLASS_BITS, 0);
        Stack(base.map_addr(|address| address | usize::from(class.0)))
    }

    /// The high end of the stack, aligned to a page.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        let base = self.0.as_ptr().map_addr(|address| address & !CLASS_BITS);
        // SAFETY: `new` was given a base that is not null, and has set no other bits than these.
        unsafe { NonNull::new_unchecked(base) }
    }

    #[inline]
    fn class(&self) -> Class {
        Class((self.0.addr().get() & CLASS_BITS) as u8)
    }

    /// Says whether it has just the size that is asked for.
    #[inline]
    pub(crate) fn has_size(&self, bytes: usize) -> bool {
        match bytes {
            DEFAULT_SIZE => self.class() == Class::DEFAULT,
            _ => self.size() == bytes,
        }
    }

    /// Where the first frame goes: [`HEADER_ROOM`] below the base, or up to [`STAGGER`] further down, by the address.
    ///
    /// All stacks start at the start of a page, and most greenlets are suspended at a like depth. Without
    /// this, what 1,000 of them need at a switch competes for a few sets of the second-level cache: a ring
    /// of 1,000 bare switches takes 49 ns a hop, and 10 with it.
    #[inline]
    pub(crate) fn entry(&self) -> NonNull<u8> {
        entry_below(self.base())
    }

    /// The usable size, without the guard page, in bytes.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.class().size()
    }

    /// The lowest usable address.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> *mut u8 {
        self.pages().0
    }

    /// The usable pages: where they start, and their length in bytes.
    pub(crate) fn pages(&self) -> (*mut u8, usize) {
        let len = self.class().usable();
        (self.base().as_ptr().wrapping_sub(len), len)
    }
}

/// The entry of the stack with that base.
#[inline]
fn entry_below(base: NonNull<u8>) -> NonNull<u8> {
    let line = (base.addr().get() >> 12) % (STAGGER / LINE);
    // SAFETY: at most `STAGGER + HEADER_ROOM` below the base, which is inside the stack.
    unsafe { base.byte_sub(HEADER_ROOM + line * LINE) }
}

/// Returns the lowest address and the length of the usable pages of the stack that an address is on. `None` if it is on
/// none of ours.
pub(crate) fn bounds_at(address: *const u8) -> Option<(*const u8, usize)> {
    let (start, len) = Around::of(address)?.pages();
    Some((start.cast_const(), len))
}

/// A stack that an address lies on, which somebody else owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    base: NonNull<u8>,
    class: Class,
}

impl Around {
    /// Finds the stack that an address lies on. `None` if it is on none of ours. Safe in a signal handler.
    pub(crate) fn of(address: *const u8) -> Option<Around> {
        slab::stack_at(address.addr())
    }

    /// The room above the entry: see `[header-room]`.
    pub(crate) fn room(self) -> NonNull<u8> {
        entry_below(self.base)
    }

    /// How many bytes there are from an address on the stack to its base, and how many it may use.
    pub(crate) fn usage(self, address: *const u8) -> (usize, usize) {
        (self.base.addr().get() - address.addr(), self.class.size())
    }

    /// The usable pages: where they start, and their length in bytes.
    fn pages(self) -> (*mut u8, usize) {
        let len = self.class.usable();
        (self.base.as_ptr().wrapping_sub(len), len)
    }
}

/// A size of stacks: the index of a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class(u8);

impl Class {
    /// The class of [`DEFAULT_SIZE`].
    const DEFAULT: Class = Class((DEFAULT_SIZE / MIN_SIZE).trailing_zeros() as u8);

    /// The smallest class that holds `size` bytes.
    #[inline]
    fn holding(size: usize) -> Result<Class, StackError> {
        if size == DEFAULT_SIZE {
            return Ok(Class::DEFAULT);
        }
        Class::holding_odd(size)
    }

    #[cold]
    fn holding_odd(size: usize) -> Result<Class, StackError> {
        if size < MIN_SIZE {
            return Err(StackErrorKind::TooSmall {
                asked: size,
                min: MIN_SIZE,
            }
            .into());
        }
        if size > MAX_SIZE {
            return Err(StackErrorKind::TooLarge {
                asked: size,
                max: MAX_SIZE,
            }
            .into());
        }
        let units = size.div_ceil(MIN_SIZE).next_power_of_two();
        Ok(Class(units.trailing_zeros() as u8))
    }

    fn size(self) -> usize {
        MIN_SIZE << self.0
    }

    /// The size in whole pages, in bytes, with room for what [`Stack::entry`] skips.
    fn usable(self) -> usize {
        (self.size() + STAGGER + HEADER_ROOM).next_multiple_of(page_size())
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The size of a memory page, in bytes.
pub(crate) fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: asks for a constant of the system.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).expect("the system has a page size")
    })
}

/// The stack whose guard page an address lies in: its base, and its size.
#[cfg(test)]
pub(crate) fn guard_below(address: *mut u8) -> Option<(*mut u8, usize)> {
    slab::guard_at(address.addr()).map(|hit| (hit.base, hit.size))
}
