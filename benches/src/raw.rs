//! The limit: a bare switch that does nothing else. Frame pointer, base register and the address to
//! go on at are saved, one word is carried. No types, no parents, no checks; what is left running
//! is leaked.

use std::arch::{asm, naked_asm};

/// Where a suspended stack goes on.
pub type Resume = *mut u8;

/// Switches to `*to`, and writes to `*save` where to come back; carries one word each way.
///
/// # Safety
///
/// - `*to` was written by `switch` or `prepare`, and is used once; `save` is valid for a write.
#[cfg(target_arch = "x86_64")]
#[inline(always)] // it is what is measured
pub unsafe fn switch(save: *mut Resume, to: Resume, word: u64) -> u64 {
    let back;
    // SAFETY: what changes is declared; the rest is the contract.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]",
            "push rax",
            "mov [rdx], rsp",
            "mov rsp, rcx",
            "pop rax",
            "jmp rax",
            "2:",
            "pop rbx",
            "pop rbp",
            inlateout("rdi") word => back,
            inlateout("rdx") save => _,
            inlateout("rcx") to => _,
            lateout("rsi") _,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
    back
}

/// What a fresh stack runs: the first word, and whatever `prepare` was given.
pub type Entry = unsafe extern "C" fn(word: u64, data: *mut ()) -> !;

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn trampoline() {
    naked_asm!("pop rax", "pop rsi", "xor ebp, ebp", "call rax", "ud2")
}

/// Lays out a fresh stack.
///
/// # Safety
///
/// - `base` is the high end of a stack of which the words below belong to the caller, aligned to
///   16.
#[inline]
pub unsafe fn prepare(base: *mut u8, entry: Entry, data: *mut ()) -> Resume {
    // SAFETY: the contract.
    unsafe {
        let top = base.cast::<usize>();
        top.sub(3).write(data as usize);
        top.sub(4).write(entry as usize);
        top.sub(5).write(trampoline as *const () as usize);
        // At the call, after three words were popped, the stack is aligned again: base - 16.
        top.sub(5).cast()
    }
}
