//! The memory that greenlets run on.
//!
//! A stack is carved out of a slab, a large mapping that holds many stacks of one size (`slab.rs`;
//! `sys.rs` has the system calls). A thread caches free stacks, and exchanges them with a pool that
//! all threads share (`pool.rs`). `default_size.rs` has the size of a stack if none is asked for.
//! `fault.rs` tells a touched guard page from other faults.
//!
//! ```text
//!   base  ─► ├───────────────┤ highest address, aligned to a page
//!            │ room          │ the header of a generator's stack; zeros on a greenlet's
//!   entry ─► ├───────────────┤ the first frame begins here
//!            │ usable pages  │ a page costs memory once it was touched
//!   limit ─► ├───────────────┤ lowest usable address
//!            │ guard page    │ touching it is a stack overflow
//!            ├───────────────┤
//!            │ spare page    │ only if the stride would be an even number of pages
//!            └───────────────┘
//! ```
//!
//! - **[header-room]** No frame uses the room above the entry of a stack. Fresh memory is zero, and
//!   the owner of a header clears it at its end. So the room tells a generator's stack from a
//!   greenlet's.

#![deny(unsafe_code)] // `sys`, `fault`, `label` and `valgrind` allow it

use std::ptr::NonNull;

mod default_size;
pub(crate) mod error;
#[allow(unsafe_code)] // handles signals
mod fault;
#[allow(unsafe_code)] // reads the room above an entry
pub(crate) mod label;
mod pool;
mod slab;
mod stats;
#[allow(unsafe_code)] // calls the system
mod sys;
#[allow(unsafe_code)] // has assembly
pub(crate) mod valgrind;

pub use default_size::{DEFAULT_SIZE, default_size, set_default_size};
pub(crate) use default_size::{UNSPECIFIED, explicit, is_default, or_default};
use error::{StackError, StackErrorKind};
pub(crate) use fault::{GuardHit, SignalStack, install as install_fault_handler};
pub(crate) use pool::StackCache;
pub use pool::{idle_limit, set_idle_limit};
pub use stats::{Stats, stats};
pub(crate) use stats::{high_water, set_idle_but_counted};
pub(crate) use sys::page_size;
use sys::{Address, Region};
#[cfg(test)]
pub(crate) use {slab::guard_at, sys::discard};

/// The size of the smallest stack, in bytes.
///
/// It is enough for a function that makes few calls, and not for a panic with a backtrace.
pub const MIN_SIZE: usize = 16 << 10;

/// The size of the largest stack, in bytes: 1 GiB, or 128 MiB where addresses are 32 bits wide.
pub const MAX_SIZE: usize = MIN_SIZE << (CLASSES - 1);

/// Sizes are rounded up to [`MIN_SIZE`] times a power of two, so that stacks can be reused.
const CLASSES: usize = if cfg!(target_pointer_width = "64") { 17 } else { 14 };

/// The room above the entry of a stack, in bytes [header-room].
pub(crate) const HEADER_ROOM: usize = 2 * LINE;

/// Entries are spread over this many bytes below the base: 32 cache lines, half a page.
const STAGGER: usize = 32 * LINE;
const LINE: usize = 64;

/// A stack with a guard page. It owns its memory exclusively, and is not tied to a thread.
///
/// Dropping it leaks the memory. [`StackCache::give`] makes it available again. It is one word,
/// because each start and each end of a greenlet moves it: the entry, and the class in the low bits.
#[derive(Debug)]
pub(crate) struct Stack(Address);

/// An entry is aligned to a line, and is on the page below the base.
const _: () = assert!(CLASSES <= LINE && HEADER_ROOM + STAGGER <= 4096);

impl Stack {
    /// Takes over a region of one stride, whose guard is installed.
    fn new(region: Region, class: Class) -> Stack {
        assert_eq!(region.len(), class.stride());
        let base = region.start().above(region.len());
        Stack(entry_for(base).above(class.index()))
    }

    /// Returns the highest address of the stack, aligned to a page.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.0.below(self.0.get() % 4096).above(4096).pointer()
    }

    #[inline]
    fn class(&self) -> Class {
        Class((self.0.get() % LINE) as u8)
    }

    /// Returns where the first frame begins: see [`entry_for`].
    #[inline]
    pub(crate) fn entry(&self) -> NonNull<u8> {
        self.0.below(self.0.get() % LINE).pointer()
    }

    /// Returns the usable size, without the guard page, in bytes.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.class().size()
    }

    /// Returns the lowest usable address.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> *mut u8 {
        self.pages().0
    }

    /// Returns the usable pages: the limit, and the length in bytes.
    pub(crate) fn pages(&self) -> (*mut u8, usize) {
        let len = self.class().usable();
        (self.base().as_ptr().wrapping_sub(len), len)
    }
}

/// Returns where the first frame on the stack with this base begins: [`HEADER_ROOM`] below it, and
/// up to [`STAGGER`] bytes more, depending on the address.
///
/// All bases are aligned to a page, and most greenlets are suspended at a similar depth. Without
/// the stagger, the frames of 1,000 greenlets compete for a few sets of the second-level cache. A
/// ring of 1,000 bare switches then takes 49 ns a hop instead of 10.
fn entry_for(base: Address) -> Address {
    let line = (base.get() >> 12) % (STAGGER / LINE);
    base.below(HEADER_ROOM + line * LINE)
}

/// A stack that an address is on, and that other code owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    base: Address,
    class: Class,
}

impl Around {
    /// Finds the stack that an address is on. `None` if it is on none of ours. Safe in a signal
    /// handler.
    pub(crate) fn of(address: *const u8) -> Option<Around> {
        let (base, class) = slab::stack_at(address.addr())?;
        Some(Around { base, class })
    }

    /// Returns where the room above the entry begins [header-room].
    pub(crate) fn room(self) -> NonNull<u8> {
        entry_for(self.base).pointer()
    }

    /// Returns the bytes from an address on the stack to its base, and the size of the stack.
    pub(crate) fn usage(self, address: *const u8) -> (usize, usize) {
        (self.base.get() - address.addr(), self.class.size())
    }
}

/// Returns the lowest address and the length of the usable pages of the stack that an address is
/// on. `None` if it is on none of ours.
pub(crate) fn bounds_at(address: *const u8) -> Option<(*const u8, usize)> {
    let Around { base, class } = Around::of(address)?;
    let len = class.usable();
    Some((base.pointer().as_ptr().wrapping_sub(len).cast_const(), len))
}

/// Returns the bytes from an address on the running stack to its base, and the size of the stack:
/// one of ours, or the thread's own. `None` if it is another library's, or if the system does not
/// say.
pub(crate) fn usage_at(address: *const u8) -> Option<(usize, usize)> {
    if let Some(around) = Around::of(address) {
        return Some(around.usage(address));
    }
    let own = sys::thread_stack().filter(|own| own.contains(&address.addr()))?;
    Some((own.end - address.addr(), own.len()))
}

/// A size of stacks: the exponent of a power of two.
#[derive(Clone, Copy, Debug)]
struct Class(u8);

impl Class {
    /// Returns the smallest class that holds `size` bytes.
    fn holding(size: usize) -> Result<Class, StackError> {
        let (asked, min, max) = (size, MIN_SIZE, MAX_SIZE);
        if asked < min {
            return Err(StackErrorKind::TooSmall { asked, min }.into());
        }
        if asked > max {
            return Err(StackErrorKind::TooLarge { asked, max }.into());
        }
        let units = size.div_ceil(MIN_SIZE).next_power_of_two();
        Ok(Class(units.trailing_zeros() as u8))
    }

    fn size(self) -> usize {
        MIN_SIZE << self.0
    }

    /// Returns the length of the usable pages, in bytes. They have room for the bytes that
    /// [`entry_for`] skips.
    fn usable(self) -> usize {
        (self.size() + STAGGER + HEADER_ROOM).next_multiple_of(page_size())
    }

    /// Returns the distance from one stack to the next, in bytes: usable pages, guard, and spare
    /// page.
    ///
    /// It is an odd number of pages. A power of two would make the stacks compete for a few sets of
    /// the cache, because all of them are used at the same depths.
    fn stride(self) -> usize {
        let page = page_size();
        let pages = self.usable() / page + 1;
        (pages | 1) * page
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}
