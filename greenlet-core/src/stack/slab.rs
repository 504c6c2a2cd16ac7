//! Slabs: one mapping, many stacks.
//!
//! ```text
//!   start                                                                       start + len
//!   ├─┬──────────────┬─┬──────────────┬─┬──────────────┬ ... ┬─┬──────────────┤
//!   │g│ stack 0      │g│ stack 1      │g│ stack 2      │     │g│ stack n-1    │
//!   └─┴──────────────┴─┴──────────────┴─┴──────────────┴ ... ┴─┴──────────────┘
//!    └── stride ────┘  an odd number of pages
//! ```
//!
//! The stride is odd because all stacks of a program are used at the same depths: a power of two apart, their
//! tops would compete for the same few sets of the cache.
//!
//! Guard pages are made with `MADV_GUARD_INSTALL` (Linux 6.13), which keeps the slab one mapping, and
//! with `mprotect` where the kernel does not know that, which makes two mappings of each stack, so the
//! kernel's limit (`vm.max_map_count`) ends it at about 32,000 stacks. `GREENLET_GUARD=mprotect` in the
//! environment chooses the second, for tests.
//!
//! # Invariants
//!
//! - **M1** Slabs are never unmapped. What is given back to the system are the pages of idle stacks.
//! - **M2** Every stack cut from a slab is cut once; from then on its `Stack` owns its range.
//! - **M3** No stack is given out without its guard.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Class, Stack, page_size};
use crate::error::{StackError, StackErrorKind};

/// How many stacks the first slab of a size holds. Each further one holds twice as many.
const FIRST_SLAB: usize = 16;

/// No slab reserves more address space than this, in bytes, unless it holds one stack only.
const MAX_SLAB: usize = if cfg!(target_pointer_width = "64") {
    1 << 40
} else {
    64 << 20
};

/// The slabs of one size: where the next stack is cut.
#[derive(Debug)]
pub(super) struct Slabs {
    /// The lowest address that is not cut yet, and how many stacks there are room for.
    next: *mut u8,
    left: usize,
    /// How many stacks the next slab is to hold.
    grow_by: usize,
}

// SAFETY: the pointer is to memory that the `Slabs` owns (M2).
unsafe impl Send for Slabs {}

impl Slabs {
    pub(super) const fn new() -> Slabs {
        Slabs {
            next: ptr::null_mut(),
            left: 0,
            grow_by: FIRST_SLAB,
        }
    }

    /// Cuts a stack that has no guard yet: [`guard`] makes it one.
    pub(super) fn cut(&mut self, class: Class) -> Result<Unguarded, StackError> {
        if self.left == 0 {
            self.grow(class)?;
        }
        let start = self.next;
        self.left -= 1;
        self.next = start.wrapping_add(stride(class));
        Ok(Unguarded { start, class })
    }

    #[cold]
    fn grow(&mut self, class: Class) -> Result<(), StackError> {
        let stride = stride(class);
        let mut count = self.grow_by.min(MAX_SLAB / stride).max(1);
        loop {
            match map(stride * count) {
                Ok(start) => {
                    self.next = start.as_ptr();
                    self.left = count;
                    self.grow_by = count.saturating_mul(2);
                    return Ok(());
                }
                // Memory may be limited (address space, overcommit): a smaller slab may still do.
                Err(_) if count > 1 => count /= 2,
                Err(error) => {
                    return Err(StackErrorKind::Map { size: stride, error }.into());
                }
            }
        }
    }
}

/// The distance from one stack to the next, in bytes: guard and stack, an odd number of pages.
fn stride(class: Class) -> usize {
    let page = page_size();
    let pages = class.size().div_ceil(page) + 1;
    (pages | 1) * page
}

/// A stack-to-be, of which the lowest page is still like the others.
#[derive(Debug)]
pub(super) struct Unguarded {
    start: *mut u8,
    class: Class,
}

// SAFETY: it owns the range (M2).
unsafe impl Send for Unguarded {}

/// How guard pages are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum GuardKind {
    Unknown = 0,
    Madvise = 1,
    Mprotect = 2,
}

static GUARD_KIND: AtomicU8 = AtomicU8::new(GuardKind::Unknown as u8);

fn guard_kind() -> GuardKind {
    match GUARD_KIND.load(Ordering::Relaxed) {
        1 => GuardKind::Madvise,
        2 => GuardKind::Mprotect,
        _ => {
            let asked = std::env::var_os("GREENLET_GUARD");
            let kind = match asked.as_ref().and_then(|kind| kind.to_str()) {
                Some("mprotect") => GuardKind::Mprotect,
                _ if cfg!(target_os = "linux") => GuardKind::Madvise,
                _ => GuardKind::Mprotect,
            };
            GUARD_KIND.store(kind as u8, Ordering::Relaxed);
            kind
        }
    }
}

/// Linux 6.13: makes pages that fault, without splitting the mapping.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Makes the guard page of a stack. On an error the stack is handed back, to be tried again later.
pub(super) fn guard(stack: Unguarded) -> Result<Stack, (Unguarded, StackError)> {
    let page = page_size();
    let start = stack.start.cast::<libc::c_void>();
    if guard_kind() == GuardKind::Madvise {
        // SAFETY: the page is the lowest of a range that `stack` owns (M2); nothing is stored there.
        if unsafe { libc::madvise(start, page, MADV_GUARD_INSTALL) } == 0 {
            return Ok(finish(stack));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err((stack, StackErrorKind::Guard { error }.into()));
        }
        // The kernel does not know it.
        GUARD_KIND.store(GuardKind::Mprotect as u8, Ordering::Relaxed);
    }
    // SAFETY: as above.
    if unsafe { libc::mprotect(start, page, libc::PROT_NONE) } == 0 {
        return Ok(finish(stack));
    }
    let error = io::Error::last_os_error();
    Err((stack, StackErrorKind::Guard { error }.into()))
}

/// M3: the guard is there.
fn finish(stack: Unguarded) -> Stack {
    let base = stack.start.wrapping_add(stride(stack.class));
    Stack {
        base: NonNull::new(base).expect("a slab does not end at address 0"),
        class: stack.class,
    }
}

/// Reserves memory, readable and writable, that nothing has touched.
fn map(len: usize) -> io::Result<NonNull<u8>> {
    // MAP_NORESERVE: a slab is mostly address space. MAP_STACK: no huge pages, which would make a
    // touched byte cost two megabytes.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    #[cfg(target_os = "linux")]
    // SAFETY: advice about the mapping that was just made; that it is not taken is no harm.
    unsafe {
        libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
    }
    Ok(NonNull::new(start.cast()).expect("the system does not map address 0"))
}

/// Gives the memory of an idle stack back to the system. Its address space, and its guard, stay.
pub(super) fn discard(stack: &Stack) {
    // SAFETY: the range is the stack's, and whoever calls has the stack, so nothing on it is in use.
    unsafe {
        libc::madvise(stack.limit().cast(), stack.size(), libc::MADV_DONTNEED);
    }
}
