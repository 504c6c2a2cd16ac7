//! The portable backend: an adapter over the `context` crate (Boost.Context), nothing else.
//!
//! `context` carries one word and hands the side that arrives the resume point of the side that left.
//! Our contract is two words, and the resume point goes to the side that left. So a switch leaves a
//! packet in its own frame:
//!
//! ```text
//!   side that leaves                         side that arrives
//!   ├───────────────────┤                    gets (resume point, &packet)
//!   │ packet            │◄── the one word ── writes the resume point to packet.seat.sp
//!   │  seat, word, data │                    reads word and data, and never looks again
//!   ├───────────────────┤
//! ```
//!
//! - **F1** A packet is read by the side that arrives before anything else happens on the thread, so
//!   the frame it stands in still is as it was left, also where that stack is finished.

use std::ffi::c_void;
use std::panic::Location;
use std::ptr::{self, NonNull};

use context::stack::Stack;
use context::{Context, Transfer};

use crate::backend::{Entry, Note, ResumePoint, Seat, Target, Word};

/// What this backend is called in reports.
pub(crate) const NAME: &str = "fcontext";

/// How much of the stack `context` is told of. It takes the size only to lay out the first frame below
/// the base, so the minimum that any stack of ours has will do.
const TOLD_SIZE: usize = 4096;

struct Packet {
    seat: *const Seat,
    word: *const (),
    data: Word,
}

/// Takes the packet of the switch that arrived here.
///
/// # Safety
///
/// - `transfer` is what a switch of this module has just brought, and this is its first use (F1).
#[inline(always)]
unsafe fn arrive(transfer: Transfer) -> (*const (), Word) {
    let packet = ptr::with_exposed_provenance::<Packet>(transfer.data);
    // SAFETY: F1: the packet stands in the frame that switched here. `Context` is one pointer,
    // `repr(C)`, never null, and not dropped: it is kept as the resume point.
    unsafe {
        let resume: *mut u8 = std::mem::transmute::<Context, *mut u8>(transfer.context);
        (*(*packet).seat).sp.set(resume);
        ((*packet).word, (*packet).data)
    }
}

extern "C" fn start<E: Entry>(transfer: Transfer) -> ! {
    // SAFETY: the first thing on this stack; every switch of this module carries a packet.
    let (word, data) = unsafe { arrive(transfer) };
    // SAFETY: the first function on a fresh stack, reached once.
    unsafe { E::enter(word, data) }
}

/// Prepares a fresh stack: a switch to the result calls `E::enter` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 4096 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init<E: Entry>(base: NonNull<u8>, _seat: &Seat) -> ResumePoint {
    let base = base.as_ptr();
    // SAFETY: the range is inside the stack by the contract; `Stack` does not own it; the transmute is
    // of one non-null pointer.
    unsafe {
        let limit = base.sub(TOLD_SIZE);
        let stack = Stack::new(base.cast::<c_void>(), limit.cast::<c_void>());
        let context = Context::new(&stack, start::<E>);
        std::mem::transmute::<Context, ResumePoint>(context)
    }
}

/// Leaves this stack for `target`, and returns what the next switch back brings.
///
/// # Safety
///
/// - B1 for `target`, B2 for this stack.
#[inline(always)]
pub(crate) unsafe fn switch(
    from: &Seat,
    note: Note,
    target: Target,
    word: *const (),
    data: Word,
) -> (*const (), Word) {
    from.note.set(Some(note));
    let packet = Packet {
        seat: from,
        word,
        data,
    };
    // SAFETY: B1 for `target`; whatever comes back is a switch of this module.
    unsafe {
        let to = std::mem::transmute::<ResumePoint, Context>(target.to);
        arrive(to.resume((&raw const packet).expose_provenance()))
    }
}

/// Leaves this stack for `target`, for good.
///
/// # Safety
///
/// - B1 for `target`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_final(target: Target, word: *const (), data: Word) -> ! {
    // The side that arrives writes our resume point here, and nobody uses it.
    let unused = Seat::new();
    // SAFETY: as for `switch`.
    unsafe {
        switch(&unused, Location::caller(), target, word, data);
    }
    unreachable!("a finished stack was switched to");
}
