//! Stack switching for x86_64 (System V, and every other 64-bit ABI that Rust calls `C`).
//!
//! # The stack at each moment
//!
//! ```text
//!   fresh (prepared by init)                    suspended (by switch)
//!
//!   base ─►├──────────────────┤                 │ frame that switched │
//!          │ not written      │                 ├─────────────────────┤
//!          │ the link, later  │                 │ rbp                 │
//!          │ address of entry │◄─ context.sp    │ rbx                 │◄─ context.sp
//!          └──────────────────┘                 └─────────────────────┘
//!
//!   context.pc: the trampoline                  context.pc: label 2 of that switch
//!
//!   running: the link is on the stack.          finished: the stack holds garbage.
//! ```
//!
//! A segment stores the code address on its stack, so that its resume point is one word:
//!
//! ```text
//!   fresh (prepared by init_segment)            suspended (by step or step_back)
//!
//!   base ─►├────────────────────┤               │ frame that stepped    │
//!          │ not written        │               ├───────────────────────┤
//!          │ address of header  │               │ rbp                   │
//!          │ address of entry   │               │ rbx                   │
//!          │ trampoline_segment │◄─ sp          │ label 2 of the step   │◄─ sp
//!          └────────────────────┘               └───────────────────────┘
//! ```
//!
//! # The registers of a switch or step
//!
//! `rdi` holds the word, and `rsi` the data (a step: `rsi`, `rcx`, `r8`). `rdx` holds the context
//! that is resumed; in a step to a segment the segment's resume point, and in a step back the
//! resume point that the segment leaves, or null after the final step. A step back has no word,
//! except the final one. These are the argument
//! registers of the C calling convention, so the trampolines call the entry without moving them.
//!
//! # What is saved, and what is not
//!
//! The assembly saves `rsp`, `rbp` and `rbx`. It pushes the latter two, because the compiler does
//! not accept them as clobbered. All other registers are declared clobbered, so the compiler saves
//! those that are live: in a small loop none. Not saved: MXCSR and the x87 control word (see
//! `backend`), segment bases (they belong to the thread), the shadow stack (not supported), the
//! direction flag (clear by the ABI). The compiler does not use the red zone around an `asm!`
//! without `nostack`.
//!
//! # Why inline, and why `jmp`
//!
//! A switch that is a call returns by a `ret` that is mispredicted. Inline, the only jump is an
//! indirect `jmp`, which is predicted by its history: 1.6 ns instead of 2.9. So the four functions
//! that return are `inline(always)`.

use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

personality!("mov eax, 3", "ret");

// The first code on a fresh stack: calls the entry, whose address it pops. The switch has set rdi,
// rsi and rdx.
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
    ".cfi_undefined rip",
    // rsp is `base` - 16 now, aligned to 16 as a call requires.
    "pop rax",
    "mov [rsp], rdx", // the link
    // The chain of frame pointers ends here.
    "xor ebp, ebp",
    caller_is_ancestor!("0x77", "16"), // breg7 (rsp), rip
    ".cfi_offset rbp, -8",
    ".cfi_offset rbx, -16",
    // Not a `call`: the processor would predict that the next `ret` of the resumed stack's caller
    // returns here.
    "lea r9, [rip + 2f]",
    "push r9",
    "jmp rax",
    // The entry does not return.
    "2:",
    "ud2",
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
            concat!("lea {}, [rip + ", trampoline!(), "]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    context.pc.set(trampoline);
    let sp = base.cast::<usize>().as_ptr().wrapping_sub(3);
    // SAFETY: the three words below `base` are inside the stack, says the caller.
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
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]",     // the next switch to this stack jumps to label 2
            "mov [{from}], rsp",       // from.sp
            "mov [{from} + 8], rax",   // from.pc
            "mov [{from} + 16], {at}", // from.suspended_at
            // `to` is read only now: if it is `from`, it is what was just stored.
            "mov rsp, [rdx]",          // the other stack
            "jmp [rdx + 8]",           // to label 2 of its own switch, or to the trampoline
            "2:",
            "pop rbx",
            "pop rbp",
            from = in(reg) from,
            at = in(reg) ptr::from_ref(at),
            inlateout("rdx") to => own,
            out("rax") _, // not `lateout`: written before the inputs are read
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
            "mov rsp, [rdx]",
            "jmp [rdx + 8]",
            in("rdx") to,
            in("rdi") word,
            in("rsi") data,
            options(noreturn),
        );
    }
}

// The first code on a segment: calls the entry. The step has set rdi, rsi, rcx, r8; the header's
// address goes to rdx.
global_asm!(
    ".text",
    ".balign 16",
    concat!(".globl ", trampoline!(), "_segment"),
    concat!(".hidden ", trampoline!(), "_segment"),
    concat!(".type ", trampoline!(), "_segment, @function"),
    concat!(trampoline!(), "_segment:"),
    ".cfi_startproc",
    boundary!(),
    // Until rsp is at the link, a backtrace ends here.
    ".cfi_undefined rip",
    // The step has dropped the address of this code. Pop the entry's, and load the header's. rsp is
    // aligned to 16 now.
    "pop rax",
    "mov rdx, [rsp]",
    // The chain of frame pointers ends here.
    "xor ebp, ebp",
    // The caller is the consumer. Its CFA is its resume point, plus three words. The step has stored
    // the resume point in the first word of the header: breg7 (rsp) 0, deref, deref, plus_uconst 24.
    ".cfi_escape 0x0f, 6, 0x77, 0, 0x06, 0x06, 0x23, 24",
    ".cfi_offset rbp, -8",
    ".cfi_offset rbx, -16",
    ".cfi_offset rip, -24",
    // Not a `call`: the processor would predict that the next `ret` of the resumed stack's caller
    // returns here.
    "lea r9, [rip + 2f]",
    "push r9",
    "jmp rax",
    // The entry does not return.
    "2:",
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
            concat!("lea {}, [rip + ", trampoline!(), "_segment]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    let words = [trampoline as usize, entry as usize, header as usize];
    let sp = base.cast::<usize>().as_ptr().wrapping_sub(4);
    // SAFETY: the four words below `base` are inside the stack, says the caller.
    unsafe { sp.cast::<[usize; 3]>().write(words) };
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
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]", // the step back jumps to label 2
            "push rax",
            "mov [{from}], rsp",  // the consumer's resume point
            "lea rsp, [rdx + 8]", // the segment's stack, without the address that follows
            "jmp [rdx]",          // to label 2 of its `step_back`, or to the trampoline
            "2:",
            "pop rbx",
            "pop rbp",
            from = in(reg) from,
            inlateout("rdx") to => left,
            out("rax") _, // not `lateout`: written before the inputs are read
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
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]", // the next step jumps to label 2
            "push rax",
            "mov rdx, rsp",        // the consumer receives the segment's resume point
            "lea rsp, [{to} + 8]", // the consumer's stack, without the address that follows
            "jmp [{to}]",          // to label 2 of its `step`
            "2:",
            "pop rbx",
            "pop rbp",
            to = in(reg) to,
            out("rdx") _, // these are not `lateout`: written before `to` is read
            out("rax") _,
            lateout("rdi") word_back,
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
            "lea rsp, [{to} + 8]",
            "xor edx, edx", // null: there is no resume point any more
            "jmp [{to}]",
            to = in(reg) to,
            in("rdi") word,
            in("rsi") data[0],
            in("rcx") data[1],
            in("r8") data[2],
            options(noreturn),
        );
    }
}
