//! Stack switching for x86_64 (System V and every other ABI of 64-bit mode that Rust names `C`).
//!
//! # Operations
//!
//! `init` lays out a fresh stack, `switch` leaves a stack and comes back to it, `switch_and_exit` leaves
//! it for good. `trampoline` is the first code on a fresh stack. For segments: `init_segment`, `step`, `step_back`,
//! `step_and_exit` and `trampoline_segment`.
//!
//! # The stack at each moment
//!
//! ```text
//!   fresh (made by init)             suspended (left by switch)
//!
//!   base ─►├──────────────────┤      │ frame that switched │
//!          │ not written      │      ├─────────────────────┤
//!          │ not written      │      │ rbp                 │
//!          │ address of entry │◄─ context.sp      │ rbx       │◄─ context.sp
//!          └──────────────────┘      └─────────────────────┘
//!
//!   context.pc: the trampoline        context.pc: label 2 of the switch that left
//!
//!   running: nothing of ours is on the stack.   finished: the stack holds garbage.
//! ```
//!
//! A segment keeps the code on the stack, so that its resume point is one word:
//!
//! ```text
//!   fresh (made by init_segment)          suspended (left by step or step_back)
//!
//!   base ─►├────────────────────┤         │ frame that left       │
//!          │ not written        │         ├───────────────────────┤
//!          │ address of header  │         │ rbp                   │
//!          │ address of entry   │         │ rbx                   │
//!          │ trampoline_segment │◄─ sp    │ label 2 of the step   │◄─ sp
//!          └────────────────────┘         └───────────────────────┘
//! ```
//!
//! # What is saved, and what is not
//!
//! Saved: `rsp`, `rbp`, `rbx`, the address to go on at (in the context). The compiler does not let us
//! name `rbp` and `rbx` as clobbered, so they are pushed. Every other register is declared clobbered:
//! the compiler saves those that are live, which in a small loop is none of them.
//! Not saved: MXCSR and the x87 control word (see `backend`), segment bases (they belong to the thread),
//! the shadow stack (user-space shadow stacks are not supported), the direction flag (clear by ABI).
//! The red zone is safe: `asm!` without `nostack` keeps the compiler from using it here.
//!
//! # Why inline, and why `jmp`
//!
//! A switch that is called leaves by a `ret` whose target the return predictor cannot know. Inline, the
//! only jump is an indirect `jmp`, which is predicted by its history (1.6 ns against 2.9 and more).

use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

// The first code on a fresh stack. It calls the entry by the C calling convention, which fixes where the arguments are:
// rdi and rsi hold the two words of the switch, rdx the context. At its start, [rsp] is the address of the entry, rsp + 8 is aligned to 16.
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
    // The entry does not return.
    "ud2",
    ".cfi_endproc",
    concat!(".size ", trampoline!(), ", . - ", trampoline!()),
);

/// Prepares a fresh stack, whose context is `context`: a switch there calls `entry` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 64 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, context: &SavedContext) {
    let trampoline: *const u8;
    // SAFETY: computes an address, touches nothing.
    unsafe {
        asm!(
            concat!("lea {}, [rip + ", trampoline!(), "]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    context.pc.set(trampoline);
    // SAFETY: the three words below `base` are inside the stack, by the contract of this function. Two of them only keep
    // the alignment.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(3).write(entry as usize);
        context.sp.set(top.sub(3).cast());
    }
}

/// Leaves this stack for the one whose context `to` is; returns its own context, and what the next switch back brings. To
/// itself, it comes right back.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)] // a call here would cost more than the switch
pub(crate) unsafe fn switch(
    from: *const SavedContext,
    at: &'static Location<'static>,
    to: *const SavedContext,
    word: *const (),
    data: Word,
) -> (*const SavedContext, *const (), Word) {
    let (own, word_back, data_back);
    // SAFETY: what the assembly changes is declared; the rest is this function's contract. A `SavedContext` is three words in
    // the order in which they are declared.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]",       // where to come back
            "mov [{from}], rsp",         // from.sp: the resume point
            "mov [{from} + 8], rax",     // from.pc
            "mov [{from} + 16], {at}", // from.suspended_at
            // Not looked up before: where `to` is `from`, this is what was just written.
            "mov rsp, [rdx]",            // from here on, the other stack
            "jmp [rdx + 8]",             // to label 2 of the switch that left it, or to the trampoline
            "2:",                        // back
            "pop rbx",
            "pop rbp",
            // Wherever they are; all that is not pushed is clobbered, also where it is one of these.
            from = in(reg) from,
            at = in(reg) ptr::from_ref(at),
            inlateout("rdx") to => own,
            out("rax") _, // written before they are read
            inlateout("rdi") word => word_back,
            inlateout("rsi") data => data_back,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
    (own, word_back, data_back)
}

/// Leaves this stack for the one whose context `to` is, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_and_exit(to: *const SavedContext, word: *const (), data: Word) -> ! {
    // SAFETY: as for `switch`; nothing is saved, since nobody comes back.
    unsafe {
        asm!(
            "mov rsp, [rdx]",
            "jmp [rdx + 8]",
            in("rdx") to,
            in("rdi") word,
            in("rsi") data,
            options(noreturn),
        );
    }
}

// The first code on a segment. It calls the entry by the C calling convention: rdi, rsi, rcx and r8 hold the words of the step,
// rdx the header. At its start, [rsp] is its own address, rsp + 8 is aligned to 16.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!(), "_segment"),
    concat!(".hidden ", trampoline!(), "_segment"),
    concat!(".type ", trampoline!(), "_segment, @function"),
    concat!(trampoline!(), "_segment:"),
    ".cfi_startproc",
    // The caller is the consumer, which may be on any stack: above or below this one, and debuggers take only the frames of
    // signals for frames that may go up.
    ".cfi_signal_frame",
    // The caller's stack pointer is that of its `step` plus the three words that it pops. `step` has left it in the first word of
    // the header, whose address is at [rsp]: DW_OP_breg7 0, deref, deref, plus_uconst 24.
    ".cfi_escape 0x0f, 6, 0x77, 0, 0x06, 0x06, 0x23, 24",
    ".cfi_offset rbp, -8",
    ".cfi_offset rbx, -16",
    ".cfi_offset rip, -24",
    "add rsp, 8",
    "pop rax",
    "mov rdx, [rsp]",
    // For frame-pointer walkers: the chain ends.
    "xor ebp, ebp",
    "call rax",
    // The entry does not return.
    "ud2",
    ".cfi_endproc",
    concat!(
        ".size ",
        trampoline!(),
        "_segment, . - ",
        trampoline!(),
        "_segment"
    ),
);

/// Prepares a fresh segment, and returns its resume point: a step there calls `entry` with `header`.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 64 bytes, aligned to 16, in use by nobody.
#[inline(always)] // a few stores
pub(crate) unsafe fn init_segment(
    base: NonNull<u8>,
    entry: SegmentEntry,
    header: *const Cell<*mut u8>,
) -> *mut u8 {
    let trampoline: *const u8;
    // SAFETY: computes an address, touches nothing.
    unsafe {
        asm!(
            concat!("lea {}, [rip + ", trampoline!(), "_segment]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: the four words below `base` are inside the stack, by the contract of this function.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(2).write(header as usize);
        top.sub(3).write(entry as usize);
        top.sub(4).write(trampoline as usize);
        top.sub(4).cast()
    }
}

/// Leaves this stack for the segment whose resume point is `to`, and writes its own resume point to `from`. Returns the
/// resume point that the step back leaves, and its words. The resume point is null after a final step.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)] // a call here would cost more than the switch
pub(crate) unsafe fn step(
    from: *const Cell<*mut u8>,
    to: *mut u8,
    word: *const (),
    data: Words,
) -> (*mut u8, *const (), Words) {
    let (left, word_back, first, second, third);
    // SAFETY: what the assembly changes is declared; the rest is this function's contract.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]", // where to come back
            "push rax",
            "mov [{from}], rsp",
            "mov rsp, rdx", // from here on, the other stack
            "jmp [rdx]",
            "2:",
            "add rsp, 8",
            "pop rbx",
            "pop rbp",
            from = in(reg) from,
            inlateout("rdx") to => left,
            out("rax") _, // written before the others are read
            inlateout("rdi") word => word_back,
            inlateout("rsi") data[0] => first,
            inlateout("rcx") data[1] => second,
            inlateout("r8") data[2] => third,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
    (left, word_back, [first, second, third])
}

/// Leaves this segment for the consumer whose resume point is `to`. Returns the words of the next step.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)] // a call here would cost more than the switch
pub(crate) unsafe fn step_back(to: *mut u8, word: *const (), data: Words) -> (*const (), Words) {
    let (word_back, first, second, third);
    // SAFETY: what the assembly changes is declared; the rest is this function's contract.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]", // where to come back
            "push rax",
            "mov rdx, rsp", // the consumer gets the resume point
            "mov rsp, {to}", // from here on, the other stack
            "jmp [rsp]",
            "2:",
            "add rsp, 8",
            "pop rbx",
            "pop rbp",
            to = in(reg) to,
            out("rdx") _, // written before `to` is read
            out("rax") _,
            inlateout("rdi") word => word_back,
            inlateout("rsi") data[0] => first,
            inlateout("rcx") data[1] => second,
            inlateout("r8") data[2] => third,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
    (word_back, [first, second, third])
}

/// Leaves this segment for the consumer whose resume point is `to`, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   consumer has taken it.
#[inline(always)]
pub(crate) unsafe fn step_and_exit(to: *mut u8, word: *const (), data: Words) -> ! {
    // SAFETY: as for `step_back`; nothing is saved, since nobody comes back.
    unsafe {
        asm!(
            "mov rsp, {to}",
            "xor edx, edx", // no resume point
            "jmp [rsp]",
            to = in(reg) to,
            in("rdi") word,
            in("rsi") data[0],
            in("rcx") data[1],
            in("r8") data[2],
            options(noreturn),
        );
    }
}
