//! Stack switching for aarch64 (AAPCS64).
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
//!          │ address of entry │◄─ context.sp      │ x19       │
//!          └──────────────────┘      │ x29                 │◄─ context.sp
//!                                    └─────────────────────┘
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
//!          │ address of header  │         ├───────────────────────┤
//!          │ not written        │         │ not written           │
//!          │ address of entry   │         │ x29                   │
//!          │ trampoline_segment │◄─ sp    │ x19                   │
//!          └────────────────────┘         │ label 2 of the step   │◄─ sp
//!                                         └───────────────────────┘
//! ```
//!
//! # What is saved, and what is not
//!
//! Saved: `sp`, `x29`, `x19`, the address to go on at (in the context). The compiler does not let us
//! name `x29` and `x19` as clobbered, so they are stored. Every other register is declared clobbered:
//! the compiler saves those that are live. Not saved: FPCR (see `backend`), `x18` (the platform's),
//! `tpidr_el0` (it belongs to the thread).
//!
//! # Why inline, and why `br`
//!
//! As on x86_64: the only jump is an indirect branch, which is predicted by its history; a `ret` that
//! answers no call is not.

use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

// The first code on a fresh stack. It calls the entry by the C calling convention, which fixes where the arguments are:
// x0 and x1 hold the two words of the switch, x2 the context. At its start, [sp] is the address of the entry, sp is aligned to 16.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!()),
    concat!(".hidden ", trampoline!()),
    concat!(".type ", trampoline!(), ", @function"),
    concat!(trampoline!(), ":"),
    ".cfi_startproc",
    // There is no caller: a backtrace ends here.
    ".cfi_undefined x30",
    "ldr x9, [sp], #16",
    // For those who walk by frame pointers.
    "mov x29, xzr",
    "mov x30, xzr",
    "blr x9",
    // The entry does not return.
    "brk #1",
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
            concat!("adrp {0}, ", trampoline!()),
            concat!("add {0}, {0}, :lo12:", trampoline!()),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    context.pc.set(trampoline);
    // SAFETY: the two words below `base` are inside the stack, by the contract of this function.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(2).write(entry as usize);
        context.sp.set(top.sub(2).cast());
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
            "stp x29, x19, [sp, #-16]!",
            "adr x9, 2f", // where to come back
            "mov x10, sp",
            "stp x10, x9, [x3]",  // from.sp: the resume point; from.pc
            "str x4, [x3, #16]",  // from.suspended_at
            // Not looked up before: where `to` is `from`, this is what was just written.
            "ldp x10, x9, [x2]",
            "mov sp, x10", // from here on, the other stack
            "br x9",       // to label 2 of the switch that left it, or to the trampoline
            "2:",
            "ldp x29, x19, [sp], #16",
            inlateout("x0") word => word_back,
            inlateout("x1") data => data_back,
            inlateout("x2") to => own,
            inlateout("x3") from => _,
            inlateout("x4") ptr::from_ref(at) => _,
            out("x9") _, // written before the others are read
            out("x10") _,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _,
            lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _,
            lateout("v8") _, lateout("v9") _, lateout("v10") _, lateout("v11") _,
            lateout("v12") _, lateout("v13") _, lateout("v14") _, lateout("v15") _,
            clobber_abi("C"),
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
            "ldp x10, x9, [x2]",
            "mov sp, x10",
            "br x9",
            in("x0") word,
            in("x1") data,
            in("x2") to,
            options(noreturn),
        );
    }
}

// The first code on a segment. It calls the entry by the C calling convention: x0, x1, x3 and x4 hold the words of the step, x2
// the header. At its start, [sp] is its own address, sp is aligned to 16.
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
    // The caller's stack pointer is that of its `step` plus the four words that it pops. `step` has left it in the first word of
    // the header, whose address is at [sp + 8]: DW_OP_breg31 8, deref, deref, plus_uconst 32.
    ".cfi_escape 0x0f, 6, 0x8f, 8, 0x06, 0x06, 0x23, 32",
    ".cfi_offset x29, -16",
    ".cfi_offset x19, -24",
    ".cfi_offset x30, -32",
    "ldr x9, [sp, #8]",
    "add sp, sp, #16",
    "ldr x2, [sp, #8]",
    // For frame-pointer walkers: the chain ends.
    "mov x29, xzr",
    "mov x30, xzr",
    "blr x9",
    // The entry does not return.
    "brk #1",
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
            concat!("adrp {0}, ", trampoline!(), "_segment"),
            concat!("add {0}, {0}, :lo12:", trampoline!(), "_segment"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: the four words below `base` are inside the stack, by the contract of this function.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(1).write(header as usize);
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
            "sub sp, sp, #32",
            "adr x9, 2f", // where to come back
            "stp x9, x19, [sp]",
            "str x29, [sp, #16]",
            "mov x9, sp",
            "str x9, [x5]",
            "ldr x9, [x2]",
            "mov sp, x2", // from here on, the other stack
            "br x9",
            "2:",
            "ldr x19, [sp, #8]",
            "ldr x29, [sp, #16]",
            "add sp, sp, #32",
            inlateout("x5") from => _,
            inlateout("x2") to => left,
            out("x9") _, // written before the others are read
            inlateout("x0") word => word_back,
            inlateout("x1") data[0] => first,
            inlateout("x3") data[1] => second,
            inlateout("x4") data[2] => third,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _,
            lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _,
            lateout("v8") _, lateout("v9") _, lateout("v10") _, lateout("v11") _,
            lateout("v12") _, lateout("v13") _, lateout("v14") _, lateout("v15") _,
            clobber_abi("C"),
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
            "sub sp, sp, #32",
            "adr x9, 2f", // where to come back
            "stp x9, x19, [sp]",
            "str x29, [sp, #16]",
            "mov x2, sp", // the consumer gets the resume point
            "ldr x9, [x5]",
            "mov sp, x5", // from here on, the other stack
            "br x9",
            "2:",
            "ldr x19, [sp, #8]",
            "ldr x29, [sp, #16]",
            "add sp, sp, #32",
            inlateout("x5") to => _,
            out("x2") _, // written before `to` is read
            out("x9") _,
            inlateout("x0") word => word_back,
            inlateout("x1") data[0] => first,
            inlateout("x3") data[1] => second,
            inlateout("x4") data[2] => third,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _,
            lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _,
            lateout("v8") _, lateout("v9") _, lateout("v10") _, lateout("v11") _,
            lateout("v12") _, lateout("v13") _, lateout("v14") _, lateout("v15") _,
            clobber_abi("C"),
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
            "ldr x9, [x5]",
            "mov sp, x5",
            "mov x2, xzr", // no resume point
            "br x9",
            in("x5") to,
            in("x0") word,
            in("x1") data[0],
            in("x3") data[1],
            in("x4") data[2],
            options(noreturn),
        );
    }
}
