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
//!   │  seats, word, data│                    reads the rest, and never looks again
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

use crate::backend::{Entry, Note, Seat, Word};

/// What this backend is called in reports.
pub(crate) const NAME: &str = "fcontext";

/// What comes back to a seat is written by whoever comes back, so it is not there yet where a stack switches to itself.
pub(crate) const ECHOES: bool = false;

/// How much of the stack `context` is told of. It takes the size only to lay out the first frame below
/// the base, so the minimum that any stack of ours has will do.
const TOLD_SIZE: usize = 4096;

struct Packet {
    seat: *const Seat,
    /// The seat of who arrives.
    to: *const Seat,
    word: *const (),
    data: Word,
}

/// Takes the packet of the switch that arrived here.
///
/// # Safety
///
/// - `transfer` is what a switch of this module has just brought, and this is its first use (F1).
#[inline(always)]
unsafe fn arrive(transfer: Transfer) -> (*const Seat, *const (), Word) {
    let packet = ptr::with_exposed_provenance::<Packet>(transfer.data);
    // SAFETY: F1: the packet stands in the frame that switched here. `Context` is one pointer,
    // `repr(C)`, never null, and not dropped: it is kept as the resume point.
    unsafe {
        let resume: *mut u8 = std::mem::transmute::<Context, *mut u8>(transfer.context);
        (*(*packet).seat).sp.set(resume);
        ((*packet).to, (*packet).word, (*packet).data)
    }
}

extern "C" fn start(transfer: Transfer) -> ! {
    // SAFETY: the first thing on this stack; every switch of this module carries a packet.
    let (own, word, data) = unsafe { arrive(transfer) };
    // SAFETY: `init` has put it there. It is the first function on a fresh stack, reached once.
    unsafe {
        // Taken out: what suspends itself later has no code there, by which others tell the backends apart.
        let entry = (*own).code.replace(ptr::null());
        let entry = std::mem::transmute::<*const u8, Entry>(entry);
        entry(word, data, own)
    }
}

/// Prepares a fresh stack, whose seat is `seat`: a switch there calls `entry` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 4096 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, seat: &Seat) {
    seat.code.set(entry as *const u8);
    let base = base.as_ptr();
    // SAFETY: the range is inside the stack by the contract; `Stack` does not own it; the transmute is
    // of one non-null pointer.
    unsafe {
        let limit = base.sub(TOLD_SIZE);
        let stack = Stack::new(base.cast::<c_void>(), limit.cast::<c_void>());
        let context = Context::new(&stack, start);
        seat.sp.set(std::mem::transmute::<Context, *mut u8>(context));
    }
}

/// Leaves this stack for the one whose seat `to` is; returns its own seat, and what the next switch back brings.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack; they are not the same.
#[inline(always)]
pub(crate) unsafe fn switch(
    from: *const Seat,
    note: Note,
    to: *const Seat,
    word: *const (),
    data: Word,
) -> (*const Seat, *const (), Word) {
    // SAFETY: B2: the seat is this stack's.
    unsafe { (*from).note.set(Some(note)) };
    let packet = Packet {
        seat: from,
        to,
        word,
        data,
    };
    // SAFETY: B1 for `to`: it is a resume point, so not null; whatever comes back is a switch of this module.
    unsafe {
        let to = std::mem::transmute::<*mut u8, Context>((*to).sp.get());
        arrive(to.resume((&raw const packet).expose_provenance()))
    }
}

/// Leaves this stack for the one whose seat `to` is, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_final(to: *const Seat, word: *const (), data: Word) -> ! {
    // The side that arrives writes our resume point here, and nobody uses it.
    let unused = Seat::new();
    // SAFETY: as for `switch`.
    unsafe {
        switch(&unused, Note::at(Location::caller()), to, word, data);
    }
    unreachable!("a finished stack was switched to");
}
