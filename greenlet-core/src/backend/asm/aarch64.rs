//! Stack switching for aarch64 (AAPCS64).
//!
//! # The stack at each moment
//!
//! ```text
//!   fresh (prepared by init)                    suspended (by switch)
//!
//!   base ─►├──────────────────┤                 │ frame that switched │
//!          │ not written      │                 ├─────────────────────┤
//!          │ address of entry │◄─ context.sp    │ x19                 │
//!          └──────────────────┘                 │ x29                 │◄─ context.sp
//!                                               └─────────────────────┘
//!
//!   context.pc: the trampoline                  context.pc: label 2 of that switch
//!
//!   running: the link is in the place of the    finished: the stack holds garbage.
//!            address of entry.
//! ```
//!
//! A segment stores the code address on its stack, so that its resume point is one word:
//!
//! ```text
//!   fresh (prepared by init_segment)            suspended (by step or step_back)
//!
//!   base ─►├────────────────────┤               │ frame that stepped    │
//!          │ address of header  │               ├───────────────────────┤
//!          │ not written        │               │ not written           │
//!          │ address of entry   │               │ x29                   │
//!          │ trampoline_segment │◄─ sp          │ x19                   │
//!          └────────────────────┘               │ label 2 of the step   │◄─ sp
//!                                               └───────────────────────┘
//! ```
//!
//! # The registers of a switch or step
//!
//! `x0` holds the word, and `x1` the data (a step: `x1`, `x3`, `x4`). `x2` holds the context that
//! is resumed; in a step to a segment the segment's resume point, and in a step back the resume
//! point that the segment leaves, or null after the final step. A step back has no word, except the
//! final one. These are argument registers of the C calling convention, so the trampolines call the
//! entry without moving them.
//!
//! # What is saved, and what is not
//!
//! The assembly saves `sp`, `x29` and `x19`. It stores the latter two, because the compiler does
//! not accept them as clobbered. All other registers are declared clobbered, so the compiler saves
//! those that are live. Not saved: FPCR (see `backend`), `x18` (the platform's), `tpidr_el0` (it
//! belongs to the thread).
//!
//! # Why inline, and why `br`
//!
//! As on x86_64: the only jump is an indirect branch, which is predicted by its history. A `ret`
//! without a call is mispredicted. So the four functions that return are `inline(always)`.

use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

personality!("mov w0, #3", "ret");

// The first code on a fresh stack: calls the entry, whose address it pops. The switch has set x0,
// x1 and x2.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!()),
    concat!(".hidden ", trampoline!()),
    concat!(".type ", trampoline!(), ", @function"),
    concat!(trampoline!(), ":"),
    ".cfi_startproc",
    boundary!(),
    // Until the link is stored, a backtrace ends here.
    ".cfi_undefined x30",
    "ldr x9, [sp]",
    "str x2, [sp]", // the link
    // The chain of frame pointers ends here.
    "mov x29, xzr",
    "mov x30, xzr",
    caller_is_ancestor!("0x8f", "30"), // breg31 (sp), x30
    ".cfi_offset x29, -16",
    ".cfi_offset x19, -8",
    "blr x9",
    // The entry does not return.
    "brk #1",
    ".cfi_endproc",
    concat!(".size ", trampoline!(), ", . - ", trampoline!()),
);

/// Prepares a fresh stack, whose context is `context`. The first switch there calls `entry`.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 64 bytes, aligned to 16, which nobody
///   uses.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, context: &SavedContext) {
    let trampoline: *const u8;
    // SAFETY: the instructions only compute an address.
    unsafe {
        asm!(
            concat!("adrp {0}, ", trampoline!()),
            concat!("add {0}, {0}, :lo12:", trampoline!()),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    context.pc.set(trampoline);
    let sp = base.cast::<usize>().as_ptr().wrapping_sub(2);
    // SAFETY: the two words below `base` are inside the stack, says the caller.
    unsafe { sp.write(entry as usize) };
    context.sp.set(sp.cast());
}

/// Suspends this stack and resumes `to`. Returns this stack's context, and the words of the next
/// switch to it.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack.
#[inline(always)] // see the head of this file
pub(crate) unsafe fn switch(
    from: *const SavedContext,
    at: &'static Location<'static>,
    to: *const SavedContext,
    word: *const (),
    data: Word,
) -> (*const SavedContext, *const (), Word) {
    let (own, word_back, data_back);
    // SAFETY: the assembly declares or restores all registers that it changes. It writes this stack
    // and `from`, a `SavedContext`: three words in the order of its fields. It resumes a stack that
    // is suspended [resume-point], and nothing uses this one until the switch back [stack-waits].
    unsafe {
        asm!(
            "stp x29, x19, [sp, #-16]!",
            "adr x9, 2f", // the next switch to this stack jumps to label 2
            "mov x10, sp",
            "stp x10, x9, [x3]", // from.sp, from.pc
            "str x4, [x3, #16]", // from.suspended_at
            // `to` is read only now: if it is `from`, it is what was just stored.
            "ldp x10, x9, [x2]",
            "mov sp, x10", // the other stack
            "br x9",       // to label 2 of its own switch, or to the trampoline
            "2:",
            "ldp x29, x19, [sp], #16",
            inlateout("x0") word => word_back,
            inlateout("x1") data => data_back,
            inlateout("x2") to => own,
            inlateout("x3") from => _,
            inlateout("x4") ptr::from_ref(at) => _,
            out("x9") _, // not `lateout`: written before the inputs are read
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

/// Resumes `to`, and gives this stack up.
///
/// # Safety
///
/// - [resume-point] for `to`. Nothing on this stack is used any more, except what `data` points to,
///   until the other side has taken it.
#[inline(always)] // no frame of its own: `asan::leave_for_good`
pub(crate) unsafe fn switch_and_exit(to: *const SavedContext, word: *const (), data: Word) -> ! {
    // SAFETY: it resumes a stack that is suspended [resume-point]. Nothing is saved, because
    // nothing resumes this stack.
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

// The first code on a segment: calls the entry. The step has set x0, x1, x3, x4; the header's
// address goes to x2.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!(), "_segment"),
    concat!(".hidden ", trampoline!(), "_segment"),
    concat!(".type ", trampoline!(), "_segment, @function"),
    concat!(trampoline!(), "_segment:"),
    ".cfi_startproc",
    boundary!(),
    // Until sp is at the link, a backtrace ends here.
    ".cfi_undefined x30",
    // Load the entry's address, drop two words, and load the header's address. sp stays aligned to
    // 16.
    "ldr x9, [sp, #8]",
    "add sp, sp, #16",
    "ldr x2, [sp, #8]",
    // The chain of frame pointers ends here.
    "mov x29, xzr",
    "mov x30, xzr",
    // The caller is the consumer. Its CFA is its resume point, plus four words. The step has stored
    // the resume point in the first word of the header: breg31 (sp) 8, deref, deref, plus_uconst 32.
    ".cfi_escape 0x0f, 6, 0x8f, 8, 0x06, 0x06, 0x23, 32",
    ".cfi_offset x29, -16",
    ".cfi_offset x19, -24",
    ".cfi_offset x30, -32",
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

/// Prepares a fresh segment, and returns its resume point. The first step there calls `entry` with
/// `header`.
///
/// # Safety
///
/// - As for [`init`].
#[inline]
pub(crate) unsafe fn init_segment(
    base: NonNull<u8>,
    entry: SegmentEntry,
    header: *const Cell<*mut u8>,
) -> *mut u8 {
    let trampoline: *const u8;
    // SAFETY: the instructions only compute an address.
    unsafe {
        asm!(
            concat!("adrp {0}, ", trampoline!(), "_segment"),
            concat!("add {0}, {0}, :lo12:", trampoline!(), "_segment"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    let words = [trampoline as usize, entry as usize, 0, header as usize];
    let sp = base.cast::<usize>().as_ptr().wrapping_sub(4);
    // SAFETY: the four words below `base` are inside the stack, says the caller.
    unsafe { sp.cast::<[usize; 4]>().write(words) };
    sp.cast()
}

/// Suspends this stack in `from` and resumes the segment at `to`. Returns the resume point that the
/// step back leaves, a word if that is null, which it is after a final step, and the data.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack.
#[inline(always)] // see the head of this file
pub(crate) unsafe fn step(
    from: *const Cell<*mut u8>,
    to: *mut u8,
    word: *const (),
    data: Words,
) -> (*mut u8, *const (), Words) {
    let (left, word_back, first, second, third);
    // SAFETY: the assembly declares or restores all registers that it changes. It resumes a stack
    // that is suspended [resume-point], and nothing uses this one until the next step to it
    // [stack-waits].
    unsafe {
        asm!(
            "sub sp, sp, #32",
            "adr x9, 2f", // the step back jumps to label 2
            "stp x9, x19, [sp]",
            "str x29, [sp, #16]",
            "mov x9, sp",
            "str x9, [x5]", // the consumer's resume point
            "ldr x9, [x2]",
            "mov sp, x2", // the segment's stack
            "br x9",      // to label 2 of its `step_back`, or to the trampoline
            "2:",
            "ldr x19, [sp, #8]",
            "ldr x29, [sp, #16]",
            "add sp, sp, #32",
            inlateout("x5") from => _,
            inlateout("x2") to => left,
            out("x9") _, // not `lateout`: written before the inputs are read
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

/// Suspends this segment and resumes the consumer at `to`. Returns the words of the next step.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack.
#[inline(always)] // see the head of this file
pub(crate) unsafe fn step_back(to: *mut u8, data: Words) -> (*const (), Words) {
    let (word_back, first, second, third);
    // SAFETY: the assembly declares or restores all registers that it changes. It resumes a stack
    // that is suspended [resume-point], and nothing uses this one until the next step to it
    // [stack-waits].
    unsafe {
        asm!(
            "sub sp, sp, #32",
            "adr x9, 2f", // the next step jumps to label 2
            "stp x9, x19, [sp]",
            "str x29, [sp, #16]",
            "mov x2, sp", // the consumer receives the segment's resume point
            "ldr x9, [x5]",
            "mov sp, x5", // the consumer's stack
            "br x9",      // to label 2 of its `step`
            "2:",
            "ldr x19, [sp, #8]",
            "ldr x29, [sp, #16]",
            "add sp, sp, #32",
            inlateout("x5") to => _,
            out("x2") _, // these are not `lateout`: written before `to` is read
            out("x9") _,
            lateout("x0") word_back,
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

/// Resumes the consumer at `to`, and gives this segment up.
///
/// # Safety
///
/// - As for [`switch_and_exit`].
#[inline(always)] // no frame of its own: `asan::leave_for_good`
pub(crate) unsafe fn step_and_exit(to: *mut u8, word: *const (), data: Words) -> ! {
    // SAFETY: it resumes a stack that is suspended [resume-point]. Nothing is saved, because
    // nothing resumes this segment.
    unsafe {
        asm!(
            "ldr x9, [x5]",
            "mov sp, x5",
            "mov x2, xzr", // null: there is no resume point any more
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
