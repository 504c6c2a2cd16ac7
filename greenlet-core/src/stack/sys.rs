//! The system calls that stacks are built on.
//!
//! Every function here is safe: a [`Region`] proves that its bytes have no other user, and the
//! kernel checks all other addresses.
//!
//! `MADV_GUARD_INSTALL` (Linux 6.13) makes guard pages without splitting the mapping. Where the
//! kernel does not know it, `mprotect` makes them, and each stack costs two mappings. The kernel's
//! limit (`vm.max_map_count`) then allows about 32,000 stacks. `GREENLET_GUARD=mprotect` in the
//! environment chooses that everywhere, for tests.
//!
//! # Invariants
//!
//! - **[above-zero]** Every `Address` is 4096 or more: `Region::map` checks it, and `above` only
//!   adds.
//! - **[region-owned]** A `Region` is the only owner of its bytes, which are mapped: nothing else
//!   uses what `mmap` returns, `split_off_start` divides it, and `Stack::new` takes a whole region
//!   over.

use std::cell::OnceCell;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::Stack;

/// An address in a [`Region`], or its end. It gives no right to use the memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address(NonNull<u8>);

// SAFETY: an address belongs to no thread. Only the owner of the memory may use it [region-owned].
unsafe impl Send for Address {}
// SAFETY: as for `Send`, because an `Address` is never written to.
unsafe impl Sync for Address {}

impl Address {
    #[inline]
    pub(super) fn pointer(self) -> NonNull<u8> {
        self.0
    }

    #[inline]
    pub(super) fn get(self) -> usize {
        self.0.addr().get()
    }

    pub(super) fn above(self, bytes: usize) -> Address {
        let above = |address: NonZeroUsize| address.checked_add(bytes);
        Address(
            self.0
                .map_addr(|address| above(address).expect("no mapping is that long")),
        )
    }

    /// Returns the address `bytes` below, for less than 4096. A checked subtraction would need a
    /// frame for its panic: 4 of the 187 instructions that a start and an end take together.
    #[inline]
    pub(super) fn below(self, bytes: usize) -> Address {
        Address(self.0.map_addr(|address| {
            // SAFETY: the address is 4096 or more [above-zero], so the difference is not 0.
            unsafe { NonZeroUsize::new_unchecked(address.get() - bytes % 4096) }
        }))
    }
}

/// A range of mapped memory, readable and writable, with one owner [region-owned].
///
/// Dropping it leaks the memory, as slabs need it. [`Region::unmap`] returns it to the system.
#[derive(Debug)]
pub(super) struct Region {
    start: Address,
    len: usize,
}

impl Region {
    pub(super) const EMPTY: Region = Region {
        start: Address(NonNull::new(ptr::without_provenance_mut(usize::MAX)).unwrap()),
        len: 0,
    };

    /// Maps `len` bytes of zeroes that cost no memory until they are touched.
    pub(super) fn map(len: usize) -> io::Result<Region> {
        // MAP_NORESERVE: the kernel must not account for all of a slab.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the system chooses the address, so the new mapping replaces no existing one.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).filter(|start| start.addr().get() >= 4096);
        let start = Address(start.expect("the system does not map address 0"));
        let region = Region { start, len };
        // With huge pages, one touched byte would cost two megabytes. A refusal does no harm.
        #[cfg(target_os = "linux")]
        let _ = region.advise(0, len, libc::MADV_NOHUGEPAGE);
        Ok(region)
    }

    pub(super) fn start(&self) -> Address {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Splits the lowest `len` bytes off.
    pub(super) fn split_off_start(&mut self, len: usize) -> Region {
        assert!(len <= self.len);
        let start = self.start;
        self.start = start.above(len);
        self.len -= len;
        Region { start, len }
    }

    /// Returns the memory and its addresses to the system.
    pub(super) fn unmap(self) {
        // SAFETY: the region owns these bytes, and it ends here [region-owned].
        unsafe { libc::munmap(self.start.0.as_ptr().cast(), self.len) };
    }

    /// Makes every access to the page at `offset` fault. This can split a mapping in three.
    pub(super) fn protect_page(&self, offset: usize) -> io::Result<()> {
        // SAFETY: nothing else uses this page [region-owned].
        check(unsafe { libc::mprotect(self.at(offset, page_size()), page_size(), libc::PROT_NONE) })
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: nothing else uses these bytes, so any advice is harmless [region-owned].
        check(unsafe { libc::madvise(self.at(offset, len), len, advice) })
    }

    /// Returns a pointer to `len` bytes at `offset`.
    fn at(&self, offset: usize, len: usize) -> *mut libc::c_void {
        assert!(offset <= self.len && len <= self.len - offset);
        self.start.0.as_ptr().wrapping_add(offset).cast()
    }
}

fn check(status: libc::c_int) -> io::Result<()> {
    (status == 0).then_some(()).ok_or_else(io::Error::last_os_error)
}

pub(crate) fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: reads a constant of the system.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).expect("the system has a page size")
    })
}

const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Whether guards are made by `MADV_GUARD_INSTALL`, and not by `mprotect`.
static HAS_GUARD_ADVICE: OnceLock<bool> = OnceLock::new();

/// How many guards one call makes at most.
const MAX_BATCH: usize = 64;

/// Returns how many guards one call can make, as far as is known.
pub(super) fn guards_per_call() -> usize {
    match HAS_GUARD_ADVICE.get() {
        Some(true) => MAX_BATCH,
        _ => 1,
    }
}

impl Region {
    /// Makes guards at `first`, `first + stride`, and so on. Returns how many, at least one.
    pub(super) fn install_guards(&self, first: usize, stride: usize) -> io::Result<usize> {
        if *HAS_GUARD_ADVICE.get_or_init(|| self.probe_guard_advice(first)) {
            if let Some(count) = self.advise_guards(first, stride) {
                return Ok(count);
            }
            self.advise_guard(first)?;
        } else {
            self.protect_guard(first)?;
        }
        Ok(1)
    }

    /// Tries to make a guard at `offset` by advice. Returns `false` if that is impossible here.
    fn probe_guard_advice(&self, offset: usize) -> bool {
        let wanted = std::env::var_os("GREENLET_GUARD");
        if !cfg!(target_os = "linux") || wanted.is_some_and(|kind| kind == "mprotect") {
            return false;
        }
        match self.advise_guard(offset) {
            // Emulators ignore unknown advice without an error, but a write fails only in a guard.
            // SAFETY: the kernel writes less than a page, which nothing else uses [region-owned].
            Ok(()) => unsafe { libc::uname(self.at(offset, page_size()).cast()) != 0 },
            Err(error) => error.raw_os_error() != Some(libc::EINVAL), // the advice is unknown
        }
    }

    fn advise_guard(&self, offset: usize) -> io::Result<()> {
        self.advise(offset, page_size(), MADV_GUARD_INSTALL)
    }

    /// As [`Region::install_guards`], in one call (Linux 6.14). `None` if the kernel made none.
    #[cfg(target_os = "linux")]
    fn advise_guards(&self, first: usize, stride: usize) -> Option<usize> {
        /// Names the calling process. In a forked child it names the child.
        const PIDFD_SELF: libc::c_int = -10000;
        let page = |offset| libc::iovec {
            iov_base: self.at(offset, page_size()),
            iov_len: page_size(),
        };
        let mut pages = [page(first); MAX_BATCH];
        let offsets = (first..self.len).step_by(stride).take(MAX_BATCH);
        let count = offsets.len();
        for (entry, offset) in pages.iter_mut().zip(offsets) {
            *entry = page(offset);
        }
        let (number, pages) = (libc::SYS_process_madvise, pages.as_ptr());
        // SAFETY: nothing else uses these pages [region-owned].
        let bytes = unsafe { libc::syscall(number, PIDFD_SELF, pages, count, MADV_GUARD_INSTALL, 0) };
        let count = usize::try_from(bytes).ok()? / page_size();
        (count > 0).then_some(count)
    }

    #[cfg(not(target_os = "linux"))]
    fn advise_guards(&self, _first: usize, _stride: usize) -> Option<usize> {
        None
    }

    /// Makes a guard by `mprotect`.
    ///
    /// A process without a mapping left cannot even allocate memory. So this reserves some mappings
    /// once stacks are many, and releases them when the kernel refuses a guard.
    fn protect_guard(&self, offset: usize) -> io::Result<()> {
        const MANY: usize = 1024;
        static STATE: Mutex<(usize, ReservedMappings)> = Mutex::new((0, ReservedMappings(None)));

        let (guards, reserved) = &mut *STATE.lock();
        if *guards >= MANY && reserved.0.is_none() {
            reserved.reserve()?;
        }
        let outcome = self.protect_page(offset);
        match outcome {
            Ok(()) => *guards += 1,
            Err(_) => reserved.release(),
        }
        outcome
    }
}

/// Mappings that are useless, except that releasing them makes room for others.
struct ReservedMappings(Option<Region>);

impl ReservedMappings {
    fn reserve(&mut self) -> io::Result<()> {
        const COUNT: usize = 256;
        let region = self.0.insert(Region::map(COUNT * page_size())?);
        let mut guards = (0..COUNT).step_by(2);
        let outcome = guards.try_for_each(|index| region.protect_page(index * page_size()));
        outcome.inspect_err(|_| self.release())
    }

    fn release(&mut self) {
        self.0.take().into_iter().for_each(Region::unmap);
    }
}

/// Returns the addresses of the calling thread's own stack. `None` if the system does not say.
pub(super) fn thread_stack() -> Option<Range<usize>> {
    thread_local! {
        /// Asked once: for the first thread, the C library reads a file of `/proc`.
        static ADDRESSES: OnceCell<Option<Range<usize>>> = const { OnceCell::new() };
    }
    // Fails at the end of the thread.
    let found = ADDRESSES.try_with(|addresses| addresses.get_or_init(ask_thread_stack).clone());
    found.ok().flatten()
}

/// musl says how far the first thread's stack has grown, and not how far it can grow.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn ask_thread_stack() -> Option<Range<usize>> {
    None
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn ask_thread_stack() -> Option<Range<usize>> {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let (mut start, mut len) = (ptr::null_mut(), 0);
    // SAFETY: the function has no conditions.
    let thread = unsafe { libc::pthread_self() };
    // SAFETY: the thread is alive, and the attributes are a local to write to.
    check(unsafe { libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) }).ok()?;
    // SAFETY: the attributes are initialised, and the results are locals to write to.
    let status = unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut len) };
    // SAFETY: the attributes are initialised, and are not used any more.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    check(status).ok()?;
    Some(start.addr()..start.addr().saturating_add(len))
}

/// Returns the memory of idle stacks of one size to the system. Addresses and guards stay.
pub(crate) fn discard(stacks: &mut [Stack]) {
    stacks.sort_unstable_by_key(Stack::base);
    let address = |stack: &Stack| stack.base().addr().get();
    // One call covers a run of neighbours, and skips the guards between them.
    for run in stacks.chunk_by(|low, high| address(low) + high.class().stride() == address(high)) {
        let start = run[0].pages().0;
        let len = address(&run[run.len() - 1]) - start.addr();
        // SAFETY: neighbours leave no gap, so these stacks own the range [region-owned]. Nothing
        // runs on them, because they are borrowed mutably. Their next users expect no content.
        unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
    }
}

/// Calls `visit` with the offset of each page that has memory, lowest first, until it breaks.
pub(super) fn visit_resident(
    start: *mut u8,
    len: usize,
    mut visit: impl FnMut(usize) -> ControlFlow<()>,
) -> io::Result<()> {
    /// Small enough for the frame of a greenlet on the smallest stack.
    const PAGES_PER_CALL: usize = 2048;
    let page = page_size();
    let mut answer = [0_u8; PAGES_PER_CALL];
    for first in (0..len).step_by(PAGES_PER_CALL * page) {
        let len = (len - first).min(PAGES_PER_CALL * page);
        // SAFETY: `answer` has a byte for each page. The kernel only looks at the range.
        check(unsafe { libc::mincore(start.wrapping_add(first).cast(), len, answer.as_mut_ptr().cast()) })?;
        for (index, state) in answer[..len / page].iter().enumerate() {
            if state & 1 != 0 && visit(first + index * page).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
