//! The portable backend: an adapter over the `context` crate (Boost.Context), nothing else.
//!
//! `context` carries one word and hands the side that arrives the resume point of the side that left.
//! Our contract is two words, and the resume point goes to the side that left. So a switch leaves a
//! packet in its own frame:
//!
//! ```text
//!   side that leaves                         side that arrives
//!   ├───────────────────┤                    gets (resume point, &packet)
//!   │ packet            │◄── the one word ── writes the resume point to packet.context.sp
//!   │  seats, word, data│                    reads the rest, and never looks again
//!   ├───────────────────┤
//! ```
//!
//! - **F1** A packet is read by the side that arrives before anything else happens on the thread, so
//!   the frame it stands in still is as it was left, also where that stack is finished.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::Location;
use std::ptr::{self, NonNull};

use context::stack::Stack;
use context::{Context, Transfer};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

/// What this backend is called in reports.
pub(crate) const NAME: &str = "fcontext";

/// What comes back to a context is written by whoever comes back, so it is not there yet where a stack switches to itself.
pub(crate) const SELF_SWITCH_IS_NOOP: bool = false;

/// How much of the stack `context` is told of. It takes the size only to lay out the first frame below
/// the base, so the minimum that any stack of ours has will do.
const TOLD_SIZE: usize = 4096;

struct Packet {
    context: *const SavedContext,
    /// The context of who arrives.
    to: *const SavedContext,
    word: *const (),
    data: Word,
}

/// Takes the packet of the switch that arrived here.
///
/// # Safety
///
/// - `transfer` is what a switch of this module has just brought, and this is its first use (F1).
#[inline(always)]
unsafe fn arrive(transfer: Transfer) -> (*const SavedContext, *const (), Word) {
    let packet = ptr::with_exposed_provenance::<Packet>(transfer.data);
    // SAFETY: F1: the packet stands in the frame that switched here. `Context` is one pointer,
    // `repr(C)`, never null, and not dropped: it is kept as the resume point.
    unsafe {
        let resume: *mut u8 = std::mem::transmute::<Context, *mut u8>(transfer.context);
        (*(*packet).context).sp.set(resume);
        ((*packet).to, (*packet).word, (*packet).data)
    }
}

extern "C" fn start(transfer: Transfer) -> ! {
    // SAFETY: the first thing on this stack; every switch of this module carries a packet.
    let (own, word, data) = unsafe { arrive(transfer) };
    // SAFETY: `init` has put it there. It is the first function on a fresh stack, reached once.
    unsafe {
        // Taken out: what suspends itself later has no code there, by which others tell the backends apart.
        let entry = (*own).pc.replace(ptr::null());
        let entry = std::mem::transmute::<*const u8, Entry>(entry);
        entry(word, data, own)
    }
}

/// Prepares a fresh stack, whose context is `context`: a switch there calls `entry` on it.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 4096 bytes, aligned to 16, in use by nobody.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, context: &SavedContext) {
    context.pc.set(entry as *const u8);
    // SAFETY: the contract.
    context.sp.set(unsafe { fresh(base.as_ptr(), start) });
}

/// Returns the resume point of a fresh stack that starts at `start`.
///
/// # Safety
///
/// - As for [`init`].
unsafe fn fresh(base: *mut u8, start: extern "C" fn(Transfer) -> !) -> *mut u8 {
    // SAFETY: the range is inside the stack by the contract; `Stack` does not own it; the transmute is
    // of one non-null pointer.
    unsafe {
        let limit = base.sub(TOLD_SIZE);
        let stack = Stack::new(base.cast::<c_void>(), limit.cast::<c_void>());
        std::mem::transmute::<Context, *mut u8>(Context::new(&stack, start))
    }
}

/// Leaves this stack for the one whose context `to` is; returns its own context, and what the next switch back brings.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack; they are not the same.
#[inline(always)]
pub(crate) unsafe fn switch(
    from: *const SavedContext,
    at: &'static Location<'static>,
    to: *const SavedContext,
    word: *const (),
    data: Word,
) -> (*const SavedContext, *const (), Word) {
    // SAFETY: B2: the context is this stack's.
    unsafe { (*from).suspended_at.set(Some(at)) };
    let packet = Packet {
        context: from,
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

/// Leaves this stack for the one whose context `to` is, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   other side has taken it.
#[inline(always)]
pub(crate) unsafe fn switch_and_exit(to: *const SavedContext, word: *const (), data: Word) -> ! {
    // The side that arrives writes our resume point here, and nobody uses it.
    let unused = SavedContext::new();
    // SAFETY: as for `switch`.
    unsafe {
        switch(&unused, Location::caller(), to, word, data);
    }
    unreachable!("a finished stack was switched to");
}

/// What a step carries, in the frame that makes it (F1).
struct StepPacket {
    /// Where the segment finds the resume point of its consumer. Null for a step back.
    from: *const Cell<*mut u8>,
    word: *const (),
    data: Words,
    is_final: bool,
}

/// Leaves this stack with a packet; returns the resume point of the other side, and its packet.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)]
unsafe fn go(to: *mut u8, packet: &StepPacket) -> (*mut u8, *const StepPacket) {
    // SAFETY: B1: `to` is a resume point, so not null.
    let transfer = unsafe {
        let to = std::mem::transmute::<*mut u8, Context>(to);
        to.resume((&raw const *packet).expose_provenance())
    };
    opened(transfer)
}

#[inline(always)]
fn opened(transfer: Transfer) -> (*mut u8, *const StepPacket) {
    // SAFETY: a `Context` is one pointer, `repr(C)`, and not dropped: it is kept as the resume point.
    let left = unsafe { std::mem::transmute::<Context, *mut u8>(transfer.context) };
    (left, ptr::with_exposed_provenance(transfer.data))
}

extern "C" fn start_segment(transfer: Transfer) -> ! {
    let (left, packet) = opened(transfer);
    // SAFETY: F1: a `step` brought it. `init_segment` has left the entry where the resume point of the consumer goes.
    unsafe {
        let (from, word, [first, second, third]) = ((*packet).from, (*packet).word, (*packet).data);
        let entry = (*from).replace(left);
        let entry = std::mem::transmute::<*mut u8, SegmentEntry>(entry);
        entry(word, first, from, second, third)
    }
}

/// Prepares a fresh segment, and returns its resume point: a step there calls `entry` with `header`.
///
/// # Safety
///
/// - As for [`init`]; and the header is there.
pub(crate) unsafe fn init_segment(
    base: NonNull<u8>,
    entry: SegmentEntry,
    header: *const Cell<*mut u8>,
) -> *mut u8 {
    // SAFETY: the contract.
    unsafe {
        (*header).set(entry as *mut u8);
        fresh(base.as_ptr(), start_segment)
    }
}

/// Leaves this stack for the segment whose resume point is `to`, and writes its own resume point to `from`. Returns the
/// resume point that the step back leaves, and its words. The resume point is null after a final step.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)]
pub(crate) unsafe fn step(
    from: *const Cell<*mut u8>,
    to: *mut u8,
    word: *const (),
    data: Words,
) -> (*mut u8, *const (), Words) {
    let packet = StepPacket {
        from,
        word,
        data,
        is_final: false,
    };
    // SAFETY: the contract; F1.
    unsafe {
        let (left, packet) = go(to, &packet);
        let left = if (*packet).is_final { ptr::null_mut() } else { left };
        (left, (*packet).word, (*packet).data)
    }
}

/// Leaves this segment for the consumer whose resume point is `to`. Returns the words of the next step.
///
/// # Safety
///
/// - B1 for `to`, B2 for this stack.
#[inline(always)]
pub(crate) unsafe fn step_back(to: *mut u8, word: *const (), data: Words) -> (*const (), Words) {
    let packet = StepPacket {
        from: ptr::null(),
        word,
        data,
        is_final: false,
    };
    // SAFETY: the contract; F1; what comes back is a `step`, which names the header.
    unsafe {
        let (left, packet) = go(to, &packet);
        (*(*packet).from).set(left);
        ((*packet).word, (*packet).data)
    }
}

/// Leaves this segment for the consumer whose resume point is `to`, for good.
///
/// # Safety
///
/// - B1 for `to`; nothing on this stack is needed any more, but for what `data` points to until the
///   consumer has taken it.
#[inline(always)]
pub(crate) unsafe fn step_and_exit(to: *mut u8, word: *const (), data: Words) -> ! {
    let packet = StepPacket {
        from: ptr::null(),
        word,
        data,
        is_final: true,
    };
    // SAFETY: the contract.
    unsafe { go(to, &packet) };
    unreachable!("a finished segment was stepped");
}
