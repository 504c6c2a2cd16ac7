//! Tells Valgrind about stacks, which otherwise takes a switch for a stack that grows by megabytes.
//!
//! A client request is a sequence of instructions that has no effect outside Valgrind. Each stack
//! is announced once, after its creation. Nothing withdraws it, because slabs stay [slab-mapped]. A
//! switch announces nothing.
//!
//! Memcheck forbids what is below the stack pointer of a stack. A function that ends high on a
//! stack leaves it forbidden for the next user, whose function may begin lower: see [`reuse`].

use super::Stack;

/// Announces the usable pages of a stack: their limit, and their length in bytes.
pub(super) fn announce((limit, len): (*mut u8, usize)) {
    const STACK_REGISTER: usize = 0x1501;
    request(STACK_REGISTER, limit.addr(), limit.addr() + len);
}

/// Allows all accesses to a stack that gets a new user, as far as to its entry.
pub(crate) fn reuse(stack: &Stack) {
    const MAKE_MEMORY_UNDEFINED: usize = 0x4d43_0001;
    if cfg!(feature = "valgrind") {
        let limit = stack.pages().0.addr();
        request(MAKE_MEMORY_UNDEFINED, limit, stack.entry().addr().get() - limit);
    }
}

#[cfg(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn request(code: usize, first: usize, second: usize) {
    use std::arch::asm;

    let request = [code, first, second, 0, 0, 0];
    // SAFETY: the rotations add up to whole turns, and the last instruction moves a register onto
    // itself. So nothing changes. Valgrind reads the request and writes the result register.
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

/// Does nothing: the feature is off, or this architecture has no known client request.
#[cfg(not(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn request(_code: usize, _first: usize, _second: usize) {}
