//! Stack switching for x86_64 (System V and every other ABI of 64-bit mode that Rust names `C`).
//!
//! # Operations
//!
//! `init` lays out a fresh stack, `switch` leaves a stack and comes back to it, `switch_final` leaves
//! it for good. `trampoline` is the first code on a fresh stack.
//!
//! # The stack at each moment
//!
//! ```text
//!   fresh (made by init)             suspended (left by switch)
//!
//!   base ─►├──────────────────┤      │ frame that switched │
//!          │ 0 (ends a walk   │      ├─────────────────────┤
//!          │ by frame pointer)│      │ rbp                 │
//!          │ 0                │      │ rbx                 │
//!          │ address of start │      │ address of label 2  │◄─ resume point
//!          │ trampoline       │◄─ resume point
//!          └──────────────────┘
//!
//!   running: nothing of ours is on the stack.   finished: the stack holds garbage.
//! ```
//!
//! # What is saved, and what is not
//!
//! Saved: `rsp` (the resume point), `rbp`, `rbx`, the address to go on at. The compiler does not let us
//! name `rbp` and `rbx` as clobbered, so they are pushed. Every other register is declared clobbered:
//! the compiler saves those that are live, which in a small loop is none of them.
//! Not saved: MXCSR and the x87 control word (see `backend`), segment bases (they belong to the thread),
//! the shadow stack (user-space shadow stacks are not supported), the direction flag (clear by ABI).
//! The red zone is safe: `asm!` without `nostack` keeps the compiler from using it here.
//!
//! # Why inline, and why `pop; jmp`
//!
//! A switch that is called leaves by a `ret` whose target the return predictor cannot know. Inline, the
//! only jump is an indirect `jmp`, which is predicted by its history (1.6 ns against 2.9 and more).

use std::arch::{asm, global_asm};
use std::ptr::NonNull;

use crate::backend::{Entry, ResumePoint, Word};

// The first code on a fresh stack. At entry: rdi and rsi hold the two words of the switch, [rsp] the
// address of `start`, rsp + 8 is aligned to 16.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!()),
    concat!(".hidden ", trampoline!()),
    concat!(".type ", trampoline!(), ", @function"),
    concat!(trampoline!(), ":"),
    ".cfi_startproc",
    // There is no caller: a backtrace ends here.
    ".cfi_undefined rip",
    // rsp is aligned to 16 again, as a call wants it.
    "pop rax",
    // For those who walk by frame pointers.
    "xor ebp, ebp",
    "call rax",
    // `start` does not return.
    "ud2",
    ".cfi_endproc",
    concat!(".size ", trampoline!(), ", . - ", trampoline!()),
);

/// Calls the entry with the C calling convention, which fixes where the two words are.
unsafe extern "C" fn start<E: Entry>(word: *const (), data: Word) -> ! {
    // SAFETY: this is the first function on a fresh stack, reached once, by the trampoline.
    unsafe { E::enter(word, data) }
}

/// Prepares a fresh stack: a switch to the result calls `E::enter` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 64 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init<E: Entry>(base: NonNull<u8>) -> ResumePoint {
    let start: unsafe extern "C" fn(*const (), Word) -> ! = start::<E>;
    let trampoline: *const u8;
    // SAFETY: computes an address, touches nothing.
    unsafe {
        asm!(
            concat!("lea {}, [rip + ", trampoline!(), "]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: the four words below `base` are inside the stack, by the contract of this function.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(1).write(0);
        top.sub(2).write(0);
        top.sub(3).write(start as usize);
        top.sub(4).write(trampoline as usize);
        NonNull::new_unchecked(top.sub(4).cast())
    }
}

/// Leaves this stack for `to`, and returns what the next switch back brings.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
/// - `save` is valid for a write of a pointer.
#[inline(always)] // a call here would cost more than the switch
pub(crate) unsafe fn switch(
    save: *mut *mut u8,
    to: ResumePoint,
    word: *const (),
    data: Word,
) -> (*const (), Word) {
    let (word_back, data_back);
    // SAFETY: what the assembly changes is declared; the rest is this function's contract.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]", // where to come back
            "push rax",
            "mov [rdx], rsp", // *save: the resume point
            "mov rsp, rcx",   // from here on, the other stack
            "pop rax",
            "jmp rax", // to label 2 of the switch that left it, or to the trampoline
            "2:",      // back; the switch that came here popped our address
            "pop rbx",
            "pop rbp",
            inlateout("rdi") word => word_back,
            inlateout("rsi") data => data_back,
            inlateout("rdx") save => _,
            inlateout("rcx") to.as_ptr() => _,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
    (word_back, data_back)
}

/// Leaves this stack for `to`, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_final(to: ResumePoint, word: *const (), data: Word) -> ! {
    // SAFETY: as for `switch`; nothing is saved, since nobody comes back.
    unsafe {
        asm!(
            "mov rsp, rcx",
            "pop rax",
            "jmp rax",
            in("rdi") word,
            in("rsi") data,
            in("rcx") to.as_ptr(),
            options(noreturn),
        );
    }
}
