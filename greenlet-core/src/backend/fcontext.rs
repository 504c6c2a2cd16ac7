//! The portable backend: an adapter over the `context` crate (Boost.Context), and nothing else.
//!
//! A jump of `context` carries one word, and gives the resumed side the resume point of the other
//! side. Our contract has more words, and the suspended side stores its own resume point. So a jump
//! leaves a packet in its own frame, and the resumed side stores the resume point where the packet
//! says:
//!
//! ```text
//!   suspended side                            resumed side
//!   ├──────────────────────┤                  gets (resume point, address of the packet)
//!   │ packet: from, to,    │◄── one word ──── copies the packet
//!   │         word, data   │                  stores the resume point in packet.from
//!   ├──────────────────────┤
//! ```
//!
//! - **[packet-read-first]** The resumed side copies the packet before anything else happens on the
//!   thread. So the frame that holds the packet is unchanged then, even if its stack has been given
//!   up.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem;
use std::panic::Location;
use std::ptr::{self, NonNull};

use context::stack::Stack;
use context::{Context, Transfer};

use crate::backend::{Entry, SavedContext, SegmentEntry, Word, Words};

/// The name of this backend in reports.
pub(crate) const NAME: &str = "fcontext";

/// The resumed side stores the resume point after the jump, so a stack that switches to itself
/// would read a stale one.
pub(crate) const SELF_SWITCH_IS_NOOP: bool = false;

/// The size of the stack that `context` is told. It uses the size only to lay out the first frame
/// below the base, so the smallest size of our stacks is enough.
const TOLD_SIZE: usize = 4096;

/// The packet of a switch.
#[derive(Clone, Copy)]
struct Packet {
    /// The context of the sender.
    from: *const SavedContext,
    /// The context of the receiver.
    to: *const SavedContext,
    word: *const (),
    data: Word,
}

/// The packet of a step.
#[derive(Clone, Copy)]
struct StepPacket {
    /// Where the segment stores the resume point of its consumer. Null for a step back.
    from: *const Cell<*mut u8>,
    word: *const (),
    data: Words,
    is_final: bool,
}

/// Suspends this stack and resumes the one at `to`. Returns the resume point of the next side that
/// resumes this stack, and its packet.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack, and the stack at `to` expects a packet
///   of the type `P`.
#[inline(always)] // no frame of its own: `asan::leave_for_good`
unsafe fn jump<P: Copy>(to: *mut u8, packet: &P) -> (*mut u8, P) {
    // SAFETY: a resume point is a `Context`: one pointer, never null.
    let to = unsafe { mem::transmute::<*mut u8, Context>(to) };
    // SAFETY: its stack is suspended there, and nothing has resumed it since [resume-point].
    let transfer = unsafe { to.resume((&raw const *packet).expose_provenance()) };
    // SAFETY: it has just arrived. A stack is resumed by packets of one type: switches by switches,
    // steps by steps.
    unsafe { open(transfer) }
}

/// Returns the resume point of the suspended side, and its packet.
///
/// # Safety
///
/// - `transfer` has just arrived, with a packet of the type `P`.
#[inline]
unsafe fn open<P: Copy>(transfer: Transfer) -> (*mut u8, P) {
    let packet = ptr::with_exposed_provenance::<P>(transfer.data);
    // SAFETY: the sender's frame still holds the packet [packet-read-first].
    let packet = unsafe { packet.read() };
    (resume_point(transfer.context), packet)
}

#[inline]
fn resume_point(context: Context) -> *mut u8 {
    // SAFETY: a `Context` is one pointer (`repr(C)`), and has no destructor.
    unsafe { mem::transmute::<Context, *mut u8>(context) }
}

/// Returns the resume point of a fresh stack that begins with `start`.
///
/// # Safety
///
/// - As for [`init`].
unsafe fn fresh(base: *mut u8, start: extern "C" fn(Transfer) -> !) -> *mut u8 {
    let limit = base.wrapping_sub(TOLD_SIZE);
    // SAFETY: the caller passes a stack of at least this size. The value does not own it.
    let stack = unsafe { Stack::new(base.cast::<c_void>(), limit.cast::<c_void>()) };
    // SAFETY: the stack is writable and nobody uses it, says the caller.
    resume_point(unsafe { Context::new(&stack, start) })
}

/// Stores the sender's resume point in the sender's context. Returns the receiver's context and the
/// words.
///
/// # Safety
///
/// - The two come from the switch that has just resumed this stack.
#[inline]
unsafe fn accept(left: *mut u8, packet: Packet) -> (*const SavedContext, *const (), Word) {
    // SAFETY: the sender is suspended, or its frame is still unchanged [packet-read-first], so its
    // context is there.
    unsafe { (*packet.from).sp.set(left) };
    (packet.to, packet.word, packet.data)
}

extern "C" fn start(transfer: Transfer) -> ! {
    // SAFETY: `init` prepares stacks for switches only, so a switch has just resumed this one.
    let (left, packet) = unsafe { open(transfer) };
    // SAFETY: the two come from that switch.
    let (own, word, data) = unsafe { accept(left, packet) };
    // `pc` is null from now on: debuggers recognise this backend by that.
    // SAFETY: `own` is the context of this stack, which lives as long as the stack is in use.
    let entry = unsafe { (*own).pc.replace(ptr::null()) };
    // SAFETY: `init` has stored an `Entry` there.
    let entry = unsafe { mem::transmute::<*const u8, Entry>(entry) };
    // SAFETY: it is the first function on a fresh stack, and is called once.
    unsafe { entry(word, data, own) }
}

/// Prepares a fresh stack, whose context is `context`. The first switch there calls `entry`.
///
/// # Safety
///
/// - `base` is the high end of a writable stack of at least 4096 bytes, aligned to 16, which nobody
///   uses.
pub(crate) unsafe fn init(base: NonNull<u8>, entry: Entry, context: &SavedContext) {
    context.pc.set(entry as *const u8);
    // SAFETY: the caller passes such a stack.
    context.sp.set(unsafe { fresh(base.as_ptr(), start) });
}

/// Suspends this stack and resumes `to`. Returns this stack's context, and the words of the next
/// switch to it.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack. The two contexts are not the same.
#[inline(always)] // no frame of its own: `asan::leave_for_good`
pub(crate) unsafe fn switch(
    from: *const SavedContext,
    at: &'static Location<'static>,
    to: *const SavedContext,
    word: *const (),
    data: Word,
) -> (*const SavedContext, *const (), Word) {
    // SAFETY: it is the context of the running stack, which is alive.
    unsafe { (*from).suspended_at.set(Some(at)) };
    let packet = Packet { from, to, word, data };
    // SAFETY: it is the context of a suspended stack, which is alive [resume-point].
    let resume_point = unsafe { (*to).sp.get() };
    // SAFETY: the caller keeps both invariants, and only switches resume a stack that a switch
    // suspended.
    let (left, packet) = unsafe { jump(resume_point, &packet) };
    // SAFETY: the two come from the switch that has just resumed this stack.
    unsafe { accept(left, packet) }
}

/// Resumes `to`, and gives this stack up.
///
/// # Safety
///
/// - [resume-point] for `to`. Nothing on this stack is used any more, except what `data` points to,
///   until the other side has taken it.
#[inline(always)] // no frame of its own: `asan::leave_for_good`
pub(crate) unsafe fn switch_and_exit(to: *const SavedContext, word: *const (), data: Word) -> ! {
    // The resumed side stores our resume point here, and nobody uses it.
    let unused = SavedContext::new();
    // SAFETY: the caller keeps [resume-point]; nothing resumes this stack.
    unsafe { switch(&unused, Location::caller(), to, word, data) };
    unreachable!("a finished stack was switched to");
}

extern "C" fn start_segment(transfer: Transfer) -> ! {
    // SAFETY: `init_segment` prepares segments for steps only, so a step has just resumed this one.
    let (left, packet) = unsafe { open::<StepPacket>(transfer) };
    // SAFETY: a step names its segment's header, which is on this stack.
    let entry = unsafe { (*packet.from).replace(left) };
    // SAFETY: `init_segment` has stored a `SegmentEntry` there.
    let entry = unsafe { mem::transmute::<*mut u8, SegmentEntry>(entry) };
    let [first, second, third] = packet.data;
    // SAFETY: it is the first function on a fresh segment, and is called once.
    unsafe { entry(packet.word, first, packet.from, second, third) }
}

/// Prepares a fresh segment, and returns its resume point. The first step there calls `entry` with
/// `header`.
///
/// # Safety
///
/// - As for [`init`]; and `header` points to the segment's header.
pub(crate) unsafe fn init_segment(
    base: NonNull<u8>,
    entry: SegmentEntry,
    header: *const Cell<*mut u8>,
) -> *mut u8 {
    // SAFETY: the caller passes the header of the segment.
    unsafe { (*header).set(entry as *mut u8) };
    // SAFETY: the caller passes such a stack.
    unsafe { fresh(base.as_ptr(), start_segment) }
}

/// Suspends this stack in `from` and resumes the segment at `to`. Returns the resume point that the
/// step back leaves, a word if that is null, which it is after a final step, and the data.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack.
#[inline]
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
    // SAFETY: the caller keeps both invariants, and only steps resume a segment or its consumer.
    let (left, packet) = unsafe { jump(to, &packet) };
    let left = if packet.is_final { ptr::null_mut() } else { left };
    (left, packet.word, packet.data)
}

/// Suspends this segment and resumes the consumer at `to`. Returns the words of the next step.
///
/// # Safety
///
/// - [resume-point] for `to`, [stack-waits] for this stack.
#[inline]
pub(crate) unsafe fn step_back(to: *mut u8, data: Words) -> (*const (), Words) {
    let packet = StepPacket {
        from: ptr::null(),
        word: ptr::null(),
        data,
        is_final: false,
    };
    // SAFETY: the caller keeps both invariants, and only steps resume a segment or its consumer.
    let (left, packet) = unsafe { jump(to, &packet) };
    // SAFETY: a step names its segment's header, which is on this stack.
    unsafe { (*packet.from).set(left) };
    (packet.word, packet.data)
}

/// Resumes the consumer at `to`, and gives this segment up.
///
/// # Safety
///
/// - As for [`switch_and_exit`].
#[inline(always)] // no frame of its own: `asan::leave_for_good`
pub(crate) unsafe fn step_and_exit(to: *mut u8, word: *const (), data: Words) -> ! {
    let packet = StepPacket {
        from: ptr::null(),
        word,
        data,
        is_final: true,
    };
    // SAFETY: the caller keeps [resume-point]; nothing resumes this segment.
    unsafe { jump(to, &packet) };
    unreachable!("a finished segment was stepped");
}

/// Calls `f`. A backtrace always ends at the first frame.
///
/// # Safety
///
/// - None. The other backend requires a stack whose entry has been called and has not ended.
#[inline]
pub(crate) unsafe fn unlinked<R>(_base: NonNull<u8>, f: impl FnOnce() -> R) -> R {
    f()
}
