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
//!          │ not written      │      ├─────────────────────┤
//!          │ not written      │      │ rbp                 │
//!          │ address of entry │◄─ seat.sp      │ rbx       │◄─ seat.sp
//!          └──────────────────┘      └─────────────────────┘
//!
//!   seat.code: the trampoline        seat.code: label 2 of the switch that left
//!
//!   running: nothing of ours is on the stack.   finished: the stack holds garbage.
//! ```
//!
//! # What is saved, and what is not
//!
//! Saved: `rsp`, `rbp`, `rbx`, the address to go on at (in the seat). The compiler does not let us
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
use std::ptr::NonNull;

use crate::backend::{Entry, Note, Seat, Word};

// The first code on a fresh stack. It calls the entry by the C calling convention, which fixes where the arguments are:
// rdi and rsi hold the two words of the switch, rdx the seat. At its start, [rsp] is the address of the entry, rsp + 8 is aligned to 16.
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

/// Prepares a fresh stack, whose seat is `seat`: a switch there calls `entry` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 64 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, seat: &Seat) {
    let trampoline: *const u8;
    // SAFETY: computes an address, touches nothing.
    unsafe {
        asm!(
            concat!("lea {}, [rip + ", trampoline!(), "]"),
            out(reg) trampoline,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    seat.code.set(trampoline);
    // SAFETY: the three words below `base` are inside the stack, by the contract of this function. Two of them only keep
    // the alignment.
    unsafe {
        let top = base.cast::<usize>().as_ptr();
        top.sub(3).write(entry as usize);
        seat.sp.set(top.sub(3).cast());
    }
}

/// Leaves this stack for the one whose seat `to` is; returns its own seat, and what the next switch back brings. To
/// itself, it comes right back.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)] // a call here would cost more than the switch
pub(crate) unsafe fn switch(
    from: *const Seat,
    note: Note,
    to: *const Seat,
    word: *const (),
    data: Word,
) -> (*const Seat, *const (), Word) {
    let (own, word_back, data_back);
    // SAFETY: what the assembly changes is declared; the rest is this function's contract. A `Seat` is three words in
    // the order in which they are declared, and a note is its address.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "lea rax, [rip + 2f]",       // where to come back
            "mov [{from}], rsp",         // from.sp: the resume point
            "mov [{from} + 8], rax",     // from.code
            "mov [{from} + 16], {note}", // from.note
            // Not looked up before: where `to` is `from`, this is what was just written.
            "mov rsp, [rdx]",            // from here on, the other stack
            "jmp [rdx + 8]",             // to label 2 of the switch that left it, or to the trampoline
            "2:",                        // back
            "pop rbx",
            "pop rbp",
            // Wherever they are; all that is not pushed is clobbered, also where it is one of these.
            from = in(reg) from,
            note = in(reg) note.0.as_ptr(),
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

/// Leaves this stack for the one whose seat `to` is, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_final(to: *const Seat, word: *const (), data: Word) -> ! {
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
