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
//! - **M4** Slabs are listed, for whoever has an address and wants to know what is there. The list only
//!   ever grows at its head, and its records are never freed, or changed but for a counter: a signal handler can
//!   read it.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Around, Class, GuardHit, Stack, page_size, valgrind};
use crate::payload::error::{StackError, StackErrorKind};

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
    /// The slab that they are in, as it is listed.
    slab: Option<&'static Slab>,
    /// How many stacks have been cut.
    cut: usize,
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
            slab: None,
            cut: 0,
            grow_by: FIRST_SLAB,
        }
    }

    /// Cuts up to `wanted` stacks, side by side, that have no guards yet: [`guard`] makes them.
    pub(super) fn cut(&mut self, class: Class, wanted: usize) -> Result<Unguarded, StackError> {
        if self.left == 0 {
            self.grow(class)?;
        }
        let count = wanted.min(self.left);
        let start = self.next;
        self.left -= count;
        self.cut += count;
        if let Some(slab) = self.slab {
            slab.cut.fetch_add(count, Ordering::Relaxed);
        }
        self.next = start.wrapping_add(count * stride(class));
        Ok(Unguarded { start, count, class })
    }

    /// How many stacks have been cut so far.
    pub(super) fn count(&self) -> usize {
        self.cut
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
                    self.slab = Some(list(start.as_ptr(), count, class));
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
    let pages = class.usable() / page + 1;
    (pages | 1) * page
}

/// Where in its stride a stack has its guard: right below the usable part.
fn guard_offset(class: Class) -> usize {
    stride(class) - class.usable() - page_size()
}

/// A slab, as it is listed (M4).
#[derive(Debug)]
pub(super) struct Slab {
    start: *mut u8,
    count: usize,
    /// How many stacks have been cut from it: the lowest ones.
    cut: AtomicUsize,
    class: Class,
    before: *const Slab,
}

// SAFETY: nothing is written through its pointers; the stacks have their owners (M2).
unsafe impl Sync for Slab {}

static SLABS: AtomicPtr<Slab> = AtomicPtr::new(ptr::null_mut());

/// Enters a new slab into the list. It is leaked, as the slab is (M1).
fn list(start: *mut u8, count: usize, class: Class) -> &'static Slab {
    let slab = Box::into_raw(Box::new(Slab {
        start,
        count,
        cut: AtomicUsize::new(0),
        class,
        before: ptr::null(),
    }));
    let mut head = SLABS.load(Ordering::Relaxed);
    loop {
        // SAFETY: not in the list yet, so nobody else sees it.
        unsafe { (*slab).before = head };
        match SLABS.compare_exchange_weak(head, slab, Ordering::Release, Ordering::Relaxed) {
            // SAFETY: it is never freed, and from now on never changed but for its counter.
            Ok(_) => return unsafe { &*slab },
            Err(now) => head = now,
        }
    }
}

/// All slabs there are. Safe in a signal handler.
pub(super) fn slabs() -> impl Iterator<Item = &'static Slab> {
    let head = SLABS.load(Ordering::Acquire);
    // SAFETY: M4: records are initialised before they are listed, and never change or go.
    let all = unsafe { head.cast_const().as_ref() };
    // SAFETY: as above.
    std::iter::successors(all, |slab| unsafe { slab.before.as_ref() })
}

/// Finds the stack that `address` lies on, or whose guard page it lies in. Safe in a signal handler.
pub(super) fn stack_at(address: usize) -> Option<Around> {
    let slab = slabs().find(|slab| slab.bytes().contains(&address))?;
    let stride = stride(slab.class);
    let index = (address - slab.start.addr()) / stride;
    Some(Around {
        base: NonNull::new(slab.start.wrapping_add((index + 1) * stride))?,
        class: slab.class,
    })
}

/// Finds the stack whose guard page `address` lies in. Safe in a signal handler.
pub(super) fn guard_at(address: usize) -> Option<GuardHit> {
    let Around { base, class } = stack_at(address)?;
    let limit = base.addr().get() - class.usable();
    (limit - page_size()..limit).contains(&address).then(|| GuardHit {
        base: base.as_ptr(),
        size: class.size(),
        is_on_its_stack: false,
    })
}

impl Slab {
    fn bytes(&self) -> std::ops::Range<usize> {
        let start = self.start.addr();
        start..start + self.len()
    }

    /// The usable pages of each stack cut from it: where they start, and their length in bytes.
    pub(super) fn stacks(&self) -> impl Iterator<Item = (*mut u8, usize)> + use<> {
        let (start, class) = (self.start, self.class);
        let pages = move |index| {
            let base = start.wrapping_add((index + 1) * stride(class));
            (base.wrapping_sub(class.usable()), class.usable())
        };
        (0..self.cut.load(Ordering::Relaxed)).map(pages)
    }

    /// Where the part begins that has been cut into stacks, and its length in bytes.
    pub(super) fn cut_part(&self) -> (*mut u8, usize) {
        (self.start, self.cut.load(Ordering::Relaxed) * stride(self.class))
    }

    /// Says whether the page at `offset` bytes from the start is a stack's: no guard, and no spare one.
    pub(super) fn is_usable(&self, offset: usize) -> bool {
        offset % stride(self.class) > guard_offset(self.class)
    }

    /// The reserved address space, in bytes.
    pub(super) fn len(&self) -> usize {
        self.count * stride(self.class)
    }
}

/// Stacks-to-be, side by side, whose guard pages are still like the others. At least one.
#[derive(Debug)]
pub(super) struct Unguarded {
    start: *mut u8,
    count: usize,
    class: Class,
}

// SAFETY: it owns the range (M2).
unsafe impl Send for Unguarded {}

impl Unguarded {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The guard page of the lowest one.
    fn guard(&self) -> *mut u8 {
        self.start.wrapping_add(guard_offset(self.class))
    }

    /// The lowest one has its guard now (M3).
    fn take_guarded(&mut self) -> Stack {
        self.start = self.start.wrapping_add(stride(self.class));
        self.count -= 1;
        valgrind::record_creation_time(self.start.wrapping_sub(self.class.usable()), self.start);
        let base = NonNull::new(self.start).expect("a slab does not end at address 0");
        Stack::new(base, self.class)
    }
}

/// How guard pages are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum GuardKind {
    Unknown = 0,
    /// `madvise` was asked for, and has not been seen to work.
    Untried = 1,
    Madvise = 2,
    /// `madvise` for many pages at once.
    Batched = 3,
    Mprotect = 4,
}

static GUARD_KIND: AtomicU8 = AtomicU8::new(GuardKind::Unknown as u8);

fn guard_kind() -> GuardKind {
    match GUARD_KIND.load(Ordering::Relaxed) {
        1 => GuardKind::Untried,
        2 => GuardKind::Madvise,
        3 => GuardKind::Batched,
        4 => GuardKind::Mprotect,
        _ => {
            let asked = std::env::var_os("GREENLET_GUARD");
            let kind = match asked.as_ref().and_then(|kind| kind.to_str()) {
                Some("mprotect") => GuardKind::Mprotect,
                _ if cfg!(target_os = "linux") => GuardKind::Untried,
                _ => GuardKind::Mprotect,
            };
            set_guard_kind(kind);
            kind
        }
    }
}

fn set_guard_kind(kind: GuardKind) {
    GUARD_KIND.store(kind as u8, Ordering::Relaxed);
}

/// How many stacks to guard at once: as many as one call can do.
pub(super) fn guards_at_once() -> usize {
    match guard_kind() {
        GuardKind::Batched => MAX_BATCH,
        _ => 1,
    }
}

/// Makes the guard pages of stacks, and adds them to `done`. On an error those that are left are handed
/// back, to be tried again later.
pub(super) fn guard(mut stacks: Unguarded, done: &mut Vec<Stack>) -> Result<(), (Unguarded, StackError)> {
    while stacks.count > 0 {
        match install_guards(&stacks) {
            Ok(count) => done.extend((0..count).map(|_| stacks.take_guarded())),
            Err(error) => return Err((stacks, StackErrorKind::Guard { error }.into())),
        }
    }
    Ok(())
}

/// Linux 6.13: makes pages that fault, without splitting the mapping.
#[cfg(target_os = "linux")]
const MADV_GUARD_INSTALL: libc::c_int = 102;

const MAX_BATCH: usize = 64;

/// Makes the guard pages of the first of these stacks, and returns of how many.
fn install_guards(stacks: &Unguarded) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    loop {
        let page = page_size();
        match guard_kind() {
            GuardKind::Batched if stacks.count > 1 => match advise_guards(stacks) {
                Ok(count) => return Ok(count),
                Err(_) => set_guard_kind(GuardKind::Madvise),
            },
            GuardKind::Mprotect | GuardKind::Unknown => break,
            kind => {
                // SAFETY: the page is in a range that `stacks` owns (M2); nothing is stored there.
                if unsafe { libc::madvise(stacks.guard().cast(), page, MADV_GUARD_INSTALL) } == 0 {
                    if kind != GuardKind::Untried {
                        return Ok(1);
                    }
                    if is_guarded(stacks.guard()) {
                        // The first call for many will show whether they can be had in batches.
                        set_guard_kind(GuardKind::Batched);
                        return Ok(1);
                    }
                    // Emulators take unknown advice for a hint, and ignore it.
                    set_guard_kind(GuardKind::Mprotect);
                    continue;
                }
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error);
                }
                // The kernel does not know it.
                set_guard_kind(GuardKind::Mprotect);
            }
        }
    }
    protect_guard(stacks).map(|()| 1)
}

/// Makes the guard page of the first of these stacks by `mprotect`, which takes two of the mappings that the
/// kernel allows a process.
///
/// A process that has used up all of them cannot even allocate memory. So, once stacks are many, some
/// mappings are held back, and are let go of when the kernel refuses the next guard.
fn protect_guard(stacks: &Unguarded) -> io::Result<()> {
    const MANY: usize = 1024;
    static MADE: Mutex<(usize, Option<HeldBack>)> = Mutex::new((0, None));

    let (count, held_back) = &mut *MADE.lock();
    if *count >= MANY && held_back.is_none() {
        *held_back = Some(HeldBack::new()?);
    }
    // SAFETY: the page is in a range that `stacks` owns (M2); nothing is stored there.
    if unsafe { libc::mprotect(stacks.guard().cast(), page_size(), libc::PROT_NONE) } == 0 {
        *count += 1;
        return Ok(());
    }
    let error = io::Error::last_os_error();
    *held_back = None;
    Err(error)
}

/// Mappings that serve nothing but to be let go of.
struct HeldBack(NonNull<u8>);

// SAFETY: it owns the mapping.
unsafe impl Send for HeldBack {}

impl HeldBack {
    const MAPPINGS: usize = 256;

    fn new() -> io::Result<HeldBack> {
        let page = page_size();
        let held_back = HeldBack(map(HeldBack::MAPPINGS * page)?);
        for index in (0..HeldBack::MAPPINGS).step_by(2) {
            let start = held_back.0.as_ptr().wrapping_add(index * page);
            // SAFETY: the page is in the mapping that was just made.
            if unsafe { libc::mprotect(start.cast(), page, libc::PROT_NONE) } != 0 {
                return Err(io::Error::last_os_error()); // dropping it gives back what it has
            }
        }
        Ok(held_back)
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // SAFETY: it owns the mapping, and nothing is stored there.
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), HeldBack::MAPPINGS * page_size());
        }
    }
}

/// Makes many guard pages by one call (Linux 6.14 for the process's own memory, named by a tag
/// that stays right in a forked child).
#[cfg(target_os = "linux")]
fn advise_guards(stacks: &Unguarded) -> io::Result<usize> {
    const PIDFD_SELF: libc::c_int = -10000;
    let none = libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    };
    let mut pages = [none; MAX_BATCH];
    let count = stacks.count.min(MAX_BATCH);
    for (index, page) in pages[..count].iter_mut().enumerate() {
        page.iov_base = stacks.guard().wrapping_add(index * stride(stacks.class)).cast();
        page.iov_len = page_size();
    }
    // SAFETY: as for `madvise`: the pages are in a range that `stacks` owns (M2).
    let bytes = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            PIDFD_SELF,
            pages.as_ptr(),
            count,
            MADV_GUARD_INSTALL,
            0,
        )
    };
    match usize::try_from(bytes) {
        Ok(bytes @ 1..) => Ok(bytes / page_size()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says whether a page that was made a guard is one: the kernel is asked to write to it.
#[cfg(target_os = "linux")]
fn is_guarded(guard: *mut u8) -> bool {
    // SAFETY: the page is ours and unused, so it may be written to; if it is a guard the call fails.
    unsafe { libc::uname(guard.cast()) != 0 }
}

/// Reserves memory, readable and writable, that nothing has touched.
pub(super) fn map(len: usize) -> io::Result<NonNull<u8>> {
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

/// Gives the memory of idle stacks of one size back to the system. Their address space, and their
/// guards, stay.
pub(super) fn discard(stacks: &mut [Stack]) {
    // Neighbours are given back by one call, which skips the guard between them.
    stacks.sort_unstable_by_key(Stack::base);
    let neighbours = |low: &Stack, high: &Stack| {
        low.base().as_ptr().wrapping_add(stride(high.class())) == high.base().as_ptr()
    };
    for run in stacks.chunk_by(neighbours) {
        let (lowest, highest) = (&run[0], &run[run.len() - 1]);
        let start = lowest.base().as_ptr().wrapping_sub(lowest.class().usable());
        let len = highest.base().addr().get() - start.addr();
        // SAFETY: the ranges are those of the stacks, and of the guards and unused pages between them;
        // whoever calls has the stacks, so nothing there is in use. Guards of both kinds stay.
        unsafe {
            libc::madvise(start.cast(), len, libc::MADV_DONTNEED);
        }
    }
}
