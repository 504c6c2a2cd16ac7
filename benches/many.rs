//! A million suspended greenlets, each on a guarded stack, beside the page faults alone: the guard
//! and the first touch of a page, by the same system calls in batches of the same size.
//!
//! In slices, in turns, and all of it stays: the last slices of both are made beside two million
//! stacks.

use std::hint::black_box;
use std::time::{Duration, Instant};

use greenlet_benches::Group;
use greenlet_core::{Greenlet, getparent};

const SLICE: u64 = 10_000;
const SLICES: usize = 100;

/// What both take, with room to spare.
const MEMORY: u64 = 11 << 30;

const PAGE: usize = 4096;
/// A guard page and 64 KiB.
const STRIDE: usize = 17 * PAGE;
const BATCH: usize = 64;
/// Linux 6.13.
const MADV_GUARD_INSTALL: libc::c_int = 102;

fn create() -> impl FnMut(u64) -> Duration {
    let mut made = Vec::with_capacity(SLICE as usize * SLICES);
    move |count| {
        let start = Instant::now();
        for n in 0..count {
            let greenlet = Greenlet::builder().stack_size(64 << 10).build(|n: u64| {
                let main = getparent().unwrap();
                main.switch::<u64>(n)
            });
            assert_eq!(greenlet.switch::<u64>(black_box(n)).unwrap(), n);
            made.push(greenlet);
        }
        start.elapsed()
    }
}

/// One mapping for all, as ours.
struct Bare {
    next: *mut u8,
    /// The process itself, as `process_madvise` wants it.
    process: libc::c_int,
}

impl Bare {
    fn map() -> Bare {
        let len = STRIDE * SLICE as usize * SLICES;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new mapping at an address of the system's choice, and advice about it; a
        // descriptor of this process.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED, "no address space");
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
            let process = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
            Bare {
                next: start.cast(),
                process: libc::c_int::try_from(process).expect("a descriptor"),
            }
        }
    }

    /// Guards up to [`BATCH`] stacks, and touches the page at the base of each.
    fn guard_and_touch(&mut self, count: usize) {
        let guards: [libc::iovec; BATCH] = std::array::from_fn(|index| libc::iovec {
            iov_base: self.next.wrapping_add(index * STRIDE).cast(),
            iov_len: PAGE,
        });
        // SAFETY: the pages belong to our mapping, and nothing is in them.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.process,
                guards.as_ptr(),
                count,
                MADV_GUARD_INSTALL,
                0,
            )
        };
        assert_eq!(usize::try_from(advised), Ok(count * PAGE), "guards in one batch");
        for _ in 0..count {
            self.next = self.next.wrapping_add(STRIDE);
            // SAFETY: the last word of a stack of ours.
            unsafe { self.next.cast::<u64>().sub(1).write_volatile(1) };
        }
    }
}

fn page_faults() -> impl FnMut(u64) -> Duration {
    let mut bare = Bare::map();
    move |count| {
        let start = Instant::now();
        let mut left = count as usize;
        while left > 0 {
            let batch = left.min(BATCH);
            bare.guard_and_touch(batch);
            left -= batch;
        }
        start.elapsed()
    }
}

/// Why it cannot be measured here.
fn hindrance() -> Option<String> {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|all| {
        let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        line?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    if available.is_none_or(|kib| kib << 10 < MEMORY) {
        return Some(format!("it takes {} GiB of free memory", MEMORY >> 30));
    }
    // SAFETY: one page of our own, advised and unmapped.
    let has_guards = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0);
        let advised = libc::madvise(page, PAGE, MADV_GUARD_INSTALL);
        libc::munmap(page, PAGE);
        advised == 0
    };
    (!has_guards).then(|| String::from("the kernel has no MADV_GUARD_INSTALL (Linux 6.13)"))
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("create at 1,000,000", 1)
            .add_timed("greenlet", create)
            .add_timed("page faults alone", page_faults)
            .goal("page faults alone", 1.3)
            .fixed(SLICE, SLICES)
            .unless(hindrance()),
    ]
}
