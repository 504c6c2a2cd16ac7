//! Tells Valgrind of our stacks, so that it knows a switch from a stack that grows by megabytes.
//!
//! By client requests: instructions that do nothing, except under Valgrind. A stack is announced once, when
//! it is made, and never withdrawn, for slabs stay (M1). Switching itself needs nothing.

/// Announces the memory from `start` to `end` as a stack.
#[cfg(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn record_creation_time(start: *mut u8, end: *mut u8) {
    use std::arch::asm;

    const STACK_REGISTER: usize = 0x1501;
    let request = [STACK_REGISTER, start.addr(), end.addr(), 0, 0, 0];
    // SAFETY: the rotations add up to whole turns and the last instruction moves a register onto itself, so
    // nothing changes; under Valgrind the request is read, and the result register written.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") request.as_ptr(),
            inout("rdx") 0_usize => _,
            inout("rdi") 0_usize => _,
            options(nostack)
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "ror x12, x12, #3", "ror x12, x12, #13", "ror x12, x12, #51", "ror x12, x12, #61",
            "orr x10, x10, x10",
            inout("x3") 0_usize => _,
            in("x4") request.as_ptr(),
            inout("x12") 0_usize => _,
            options(nostack)
        );
    }
}

/// Does nothing: the feature is off, or Valgrind has no requests that we know here.
#[cfg(not(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[inline(always)] // not even a call
pub(super) fn record_creation_time(_start: *mut u8, _end: *mut u8) {}
