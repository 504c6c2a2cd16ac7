//! NodePool: the memory of nodes, and the counts of who refers to one.
//!
//! Every greenlet has a node, and to make a greenlet should not cost what an allocator costs. So a thread keeps
//! chunks of slots, and hands out the one that was given back last. The chunks are also the list of all nodes
//! of the thread: who is made or goes is entered nowhere else.
//!
//! ```text
//!   NodePool ── first ─► Chunk ◄──► Chunk ◄──► Chunk ◄──► Chunk ◄─ last
//!           │           with room: ─────────┘ full: ───────────┘
//!           └─ recycled ─► a Slot of one of them, which is used first
//!
//!   Chunk:  live │ free ─► Slot ─► Slot         the free ones, the last one given back first
//!                │ Slot │ Slot │ Slot │ ..    each: counts │ chunk │ soon │ node │ space    (192 bytes)
//!                                                                               ▲
//!                                              InnerRc, InnerWeak, ThreadState::current
//! ```
//!
//! A node is counted as by `Rc`, which cannot have its memory from here on a stable compiler: `strong` counts the
//! [`InnerRc`]s; `weak` counts the [`InnerWeak`]s, and one more for all [`InnerRc`]s together.
//!
//! # Invariants
//!
//! - **K1** While `strong` is not 0, the node is initialised, and nobody has it exclusively.
//! - **K2** While `weak` is not 0, the slot is not free. When it becomes 0, the node has been dropped, or let go of.
//!   (The recycled slot is free then as well, but to its chunk it is not.)
//! - **K3** All pointers to a node come from its chunk, so that the counts in front of it can be reached from them.
//!   None leaves its thread: a `InnerRc` is not `Send`, and a chunk belongs to the `NodePool` of one hub.
//! - **K4** A chunk is in the list from when it is made until it is released, which is when none of its slots is
//!   in use. Those with a free slot stand before those without one, but for the first, which may just have
//!   become full. None but the first is empty.
//! - **K5** Whoever walks along the list runs no foreign code meanwhile, so the list stays as it is. A signal handler
//!   looks at `is_changing` first.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, UnsafeCell};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};

use crate::greenlet::Greenlet;
use crate::node::Inner;
use crate::node::closure::{self, ClosureStorage};
use crate::thread::ThreadState;
use crate::thread::prefetch::PrefetchHint;

/// How many slots are in a chunk: as many as fit into two pages of memory, with what an allocator adds.
const SLOTS: usize = 42;

/// The memory of one node. What a switch needs of it is in its first line of the cache.
#[repr(C, align(64))]
struct Slot {
    strong: Cell<u32>,
    weak: Cell<u32>,
    chunk: *const Chunk,
    /// Whose memory to fetch when the greenlet is switched to. That of the last greenlet here may be left (see `prefetch.rs`).
    prefetch_hint: Cell<PrefetchHint>,
    content: SlotContent,
    /// Not a part of the node, for what is not initialised is copied all the same where a node is made.
    closure: UnsafeCell<ClosureStorage>,
}

/// K1, K2: a node, or while the slot is free, the next free slot.
union SlotContent {
    node: ManuallyDrop<Inner>,
    next: *const Slot,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Slot>() == 192);

#[repr(C, align(64))]
struct Chunk {
    before: Cell<*const Chunk>,
    after: Cell<*const Chunk>,
    free: Cell<*const Slot>,
    /// How many slots are not free.
    live: Cell<usize>,
    slots: [MaybeUninit<Slot>; SLOTS],
}

/// The chunks of one thread.
pub(crate) struct NodePool {
    first: Cell<*const Chunk>,
    last: Cell<*const Chunk>,
    /// A slot for the next node, if it is not in use: most greenlets come and go one by one, in the same slot. To its
    /// chunk it is never free. Null if there is none.
    recycled: Cell<*const Slot>,
    /// Whether the list is being changed (K5).
    is_changing: Cell<bool>,
    /// Whether the thread ends: then no empty chunk is kept.
    is_closed: Cell<bool>,
}

impl NodePool {
    pub(crate) const fn new() -> NodePool {
        NodePool {
            first: Cell::new(ptr::null()),
            last: Cell::new(ptr::null()),
            recycled: Cell::new(ptr::null()),
            is_changing: Cell::new(false),
            is_closed: Cell::new(false),
        }
    }

    /// Makes a node of `what`, in the recycled slot. `make` runs no foreign code. `what` comes back if there is no such slot.
    #[inline(always)] // the call would be a third of it
    pub(crate) fn alloc_recycled<W>(&self, what: W, make: impl FnOnce(W) -> Inner) -> Result<InnerRc, W> {
        let recycled = self.recycled.get();
        // SAFETY: K2: a recycled one stays where it is.
        if recycled.is_null() || unsafe { (*recycled).weak.get() } != 0 {
            return Err(what);
        }
        // SAFETY: K2: nobody has it.
        Ok(unsafe { NodePool::init_slot(recycled, make(what)) })
    }

    /// Makes a node, in a slot. `make` runs no foreign code.
    #[inline]
    pub(crate) fn alloc(&self, make: impl FnOnce() -> Inner) -> InnerRc {
        // SAFETY: K2: the slot is free, and just taken.
        unsafe { NodePool::init_slot(self.take(), make()) }
    }

    /// Puts a node in a slot.
    ///
    /// # Safety
    ///
    /// - Nobody has the slot, and it was taken out of its list.
    #[inline(always)] // the node is written in place
    unsafe fn init_slot(slot: *const Slot, node: Inner) -> InnerRc {
        let slot = slot.cast_mut();
        // SAFETY: the contract; K3: the pointer to the node is made from that to the slot.
        unsafe {
            let place = (&raw mut (*slot).content.node).cast::<Inner>();
            place.write(node);
            compiler_fence(Ordering::Release); // for a signal handler: nobody is counted who is not there yet
            (*slot).weak.set(1);
            (*slot).strong.set(1);
            InnerRc(NonNull::new_unchecked(place))
        }
    }

    /// Takes a free slot.
    #[inline]
    fn take(&self) -> *const Slot {
        // SAFETY: K4.
        if let Some(chunk) = unsafe { self.first.get().as_ref() } {
            if !chunk.free.get().is_null() {
                return chunk.take();
            }
        }
        self.take_slow()
    }

    /// (`extern "C"`: it does not unwind, so nothing need be ready for that.)
    #[cold]
    #[inline(never)]
    extern "C" fn take_slow(&self) -> *const Slot {
        self.rotate_first();
        // SAFETY: K4.
        let first = unsafe { self.first.get().as_ref() };
        if first.is_none_or(|first| first.free.get().is_null()) {
            self.link(Chunk::allocate(), ptr::null(), self.first.get());
        }
        // SAFETY: K4; there is one now, and it has room.
        unsafe { &*self.first.get() }.take()
    }

    /// Makes room for another chunk to be the first: a full one goes to the others that are full, and an empty one back
    /// to the allocator.
    fn rotate_first(&self) {
        // SAFETY: K4.
        let Some(first) = (unsafe { self.first.get().as_ref() }) else {
            return;
        };
        if first.free.get().is_null() {
            self.unlink(first);
            self.link(first, self.last.get(), ptr::null());
        } else if first.live.get() == 0 {
            self.release(first);
        }
    }

    /// Releases a chunk of which no slot is in use.
    fn release(&self, chunk: *const Chunk) {
        self.unlink(chunk);
        // SAFETY: made by `allocate`; K4: nobody uses a slot of it, and it is in no list.
        unsafe { dealloc(chunk.cast_mut().cast(), Layout::new::<Chunk>()) };
    }

    /// Takes a slot back.
    ///
    /// # Safety
    ///
    /// - K2: both its counts are 0, and it is given back once. It came from here.
    unsafe fn free(&self, slot: *const Slot) {
        let recycled = self.recycled.get();
        if ptr::eq(slot, recycled) {
            return;
        }
        // SAFETY: K2.
        let has_recycled = !recycled.is_null() && unsafe { (*recycled).weak.get() } == 0;
        if has_recycled || self.is_closed.get() {
            // SAFETY: the contract.
            unsafe { self.free_to_chunk(slot) };
        } else {
            // What was the recycled one is one like the others from now on.
            self.recycled.set(slot);
        }
    }

    /// Gives a slot back to its chunk.
    ///
    /// # Safety
    ///
    /// - As for [`NodePool::give`].
    unsafe fn free_to_chunk(&self, slot: *const Slot) {
        // SAFETY: K4: the chunk of a slot that is not free is in the list.
        let chunk = unsafe { &*(*slot).chunk };
        let next = chunk.free.get();
        // SAFETY: nobody else uses the slot.
        unsafe { (*slot.cast_mut()).content.next = next };
        chunk.free.set(slot);
        chunk.live.set(chunk.live.get() - 1);
        if next.is_null() || chunk.live.get() == 0 {
            self.rebalance(chunk);
        }
    }

    /// A chunk has become empty, or has room again.
    #[cold]
    #[inline(never)]
    fn rebalance(&self, chunk: *const Chunk) {
        // SAFETY: K4: it is in the list still.
        let is_empty = unsafe { (*chunk).live.get() == 0 };
        let is_first = ptr::eq(chunk, self.first.get());
        if is_empty && (!is_first || self.is_closed.get()) {
            self.release(chunk);
        } else if !is_first {
            self.unlink(chunk);
            self.rotate_first();
            self.link(chunk, ptr::null(), self.first.get());
        }
    }

    /// The thread ends: from now on, no empty chunk is kept.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        let recycled = self.recycled.replace(ptr::null());
        // SAFETY: K2.
        unsafe {
            if !recycled.is_null() && (*recycled).weak.get() == 0 {
                self.free_to_chunk(recycled);
            }
        }
        // SAFETY: K4.
        if let Some(first) = unsafe { self.first.get().as_ref() } {
            if first.live.get() == 0 {
                self.release(first);
            }
        }
    }

    fn unlink(&self, chunk: *const Chunk) {
        // SAFETY: K4: it is in the list.
        let (before, after) = unsafe { ((*chunk).before.get(), (*chunk).after.get()) };
        self.change(|| self.join(before, after));
    }

    /// Puts a chunk that is in no list between two that stand beside each other, or at an end.
    fn link(&self, chunk: *const Chunk, before: *const Chunk, after: *const Chunk) {
        self.change(|| {
            self.join(before, chunk);
            self.join(chunk, after);
        });
    }

    /// Makes two chunks neighbours. Null is an end of the list.
    fn join(&self, before: *const Chunk, after: *const Chunk) {
        // SAFETY: K4: they are in the list, or about to be.
        let (here, there) = unsafe { (before.as_ref(), after.as_ref()) };
        here.map_or(&self.first, |before| &before.after).set(after);
        there.map_or(&self.last, |after| &after.before).set(before);
    }

    fn change(&self, change: impl FnOnce()) {
        self.is_changing.set(true);
        compiler_fence(Ordering::SeqCst);
        change();
        compiler_fence(Ordering::SeqCst);
        self.is_changing.set(false);
    }

    /// All nodes, with their numbers, in no order.
    pub(crate) fn all(&self) -> Vec<(u64, InnerWeak)> {
        let mut all = Vec::new();
        let _: Option<()> = self.find(|node| {
            all.push((node.id, node.downgrade()));
            None
        });
        all
    }

    /// The first node that `look` says something of. `None` also while the list is being changed: for signal
    /// handlers, which may come at any moment.
    pub(crate) fn find_from_handler<T>(&self, mut look: impl FnMut(&Inner) -> Option<T>) -> Option<T> {
        if self.is_changing.get() {
            return None;
        }
        self.find(|node| look(node))
    }

    /// `look` runs no foreign code (K5).
    fn find<T>(&self, mut look: impl FnMut(&InnerRc) -> Option<T>) -> Option<T> {
        let mut next = self.first.get();
        // SAFETY: K4, K5.
        while let Some(chunk) = unsafe { next.as_ref() } {
            for slot in &chunk.slots {
                let slot = slot.as_ptr();
                // SAFETY: `allocate` has initialised the counts of all slots; K1, K3. The reference is not dropped, so it
                // need not be counted.
                unsafe {
                    if (*slot).strong.get() == 0 {
                        continue;
                    }
                    let node = (&raw const (*slot).content.node).cast_mut().cast::<Inner>();
                    let node = ManuallyDrop::new(InnerRc(NonNull::new_unchecked(node)));
                    if let Some(found) = look(&node) {
                        return Some(found);
                    }
                }
            }
            next = chunk.after.get();
        }
        None
    }
}

impl Chunk {
    /// Makes a chunk, all of whose slots are free. It is in no list yet.
    fn allocate() -> *const Chunk {
        let layout = Layout::new::<Chunk>();
        // SAFETY: a chunk has a size.
        let chunk = unsafe { alloc(layout) }.cast::<Chunk>();
        if chunk.is_null() {
            handle_alloc_error(layout);
        }
        let mut next: *const Slot = ptr::null();
        // The lowest first, so that a crowd lies in memory in the order of its making.
        for index in (0..SLOTS).rev() {
            // SAFETY: inside the chunk, which is ours; nothing there is dropped by being written.
            unsafe {
                let slot = (&raw mut (*chunk).slots).cast::<Slot>().add(index);
                (&raw mut (*slot).strong).write(Cell::new(0));
                (&raw mut (*slot).weak).write(Cell::new(0));
                (&raw mut (*slot).chunk).write(chunk);
                (&raw mut (*slot).prefetch_hint).write(Cell::new(PrefetchHint::NONE));
                (&raw mut (*slot).content).write(SlotContent { next });
                next = slot;
            }
        }
        // SAFETY: as above.
        unsafe {
            (&raw mut (*chunk).before).write(Cell::new(ptr::null()));
            (&raw mut (*chunk).after).write(Cell::new(ptr::null()));
            (&raw mut (*chunk).free).write(Cell::new(next));
            (&raw mut (*chunk).live).write(Cell::new(0));
        }
        chunk
    }

    /// Takes a free slot, of which there is one.
    #[inline]
    fn take(&self) -> *const Slot {
        let slot = self.free.get();
        // SAFETY: K2: it is free, so it says which is the next.
        self.free.set(unsafe { (*slot).content.next });
        self.live.set(self.live.get() + 1);
        slot
    }
}

/// The slot that a node is in.
///
/// # Safety
///
/// - The node is in a slot, and the pointer was made from that to the slot (K3).
#[inline]
unsafe fn slot_of(node: *const Inner) -> *const Slot {
    // SAFETY: the contract.
    unsafe { node.byte_sub(std::mem::offset_of!(Slot, content)).cast() }
}

/// A counted reference to a node, as an `Rc`.
pub(crate) struct InnerRc(NonNull<Inner>);

impl InnerRc {
    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: K2, K3. (The node may be half-dropped: `drop_unstarted`.)
        unsafe { &*slot_of(self.0.as_ptr()) }
    }

    #[inline(always)] // part of the fast path: nothing
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.0.as_ptr()
    }

    #[inline]
    pub(crate) fn is(&self, other: &InnerRc) -> bool {
        self.0 == other.0
    }

    /// How many references to the node are counted.
    #[inline]
    pub(crate) fn strong_count(&self) -> u32 {
        self.slot().strong.get()
    }

    #[inline]
    pub(crate) fn downgrade(&self) -> InnerWeak {
        let weak = &self.slot().weak;
        weak.set(incremented(weak.get()));
        InnerWeak(self.0)
    }

    /// The prefetch hint of the slot.
    #[inline]
    pub(crate) fn prefetch_hint(&self) -> &Cell<PrefetchHint> {
        &self.slot().prefetch_hint
    }

    /// Gives the count away, to whoever takes it with [`InnerRc::from_raw`].
    #[inline]
    pub(crate) fn into_raw(self) -> *const Inner {
        ManuallyDrop::new(self).as_ptr()
    }

    /// Takes over a count.
    ///
    /// # Safety
    ///
    /// - [`InnerRc::into_raw`] gave it, and nobody else takes it.
    #[inline]
    pub(crate) unsafe fn from_raw(node: *const Inner) -> InnerRc {
        // SAFETY: the contract: it was a reference.
        InnerRc(unsafe { NonNull::new_unchecked(node.cast_mut()) })
    }

    /// Counts one more reference to a node.
    ///
    /// # Safety
    ///
    /// - The node lives: somebody else counts it. The pointer comes from [`InnerRc::as_ptr`] (K3).
    #[inline]
    pub(crate) unsafe fn clone_from_raw(node: *const Inner) -> InnerRc {
        // SAFETY: the contract; this one is not dropped.
        let borrowed = ManuallyDrop::new(unsafe { InnerRc::from_raw(node) });
        InnerRc::clone(&borrowed)
    }
}

/// Where a node keeps the function that it has not called yet.
///
/// # Safety
///
/// - The slot of the node is not free, and the pointer comes from [`InnerRc::as_ptr`] (K3).
#[inline]
pub(crate) unsafe fn closure_storage(node: *const Inner) -> *mut ClosureStorage {
    // SAFETY: the contract; K2.
    unsafe { (*slot_of(node)).closure.get() }
}

/// How many references to a node are counted.
///
/// # Safety
///
/// - The node lives, and the pointer comes from [`InnerRc::as_ptr`] (K3).
#[inline]
pub(crate) unsafe fn strong_count(node: *const Inner) -> u32 {
    // SAFETY: the contract; K1.
    unsafe { (*slot_of(node)).strong.get() }
}

/// Counts a node once more, for whoever takes that back with [`uncount`].
///
/// # Safety
///
/// - As for [`strong_count`].
#[inline]
pub(crate) unsafe fn increment_strong(node: *const Inner) {
    // SAFETY: the contract; K1.
    let strong = unsafe { &(*slot_of(node)).strong };
    strong.set(incremented(strong.get()));
}

/// Takes back what [`count`] or [`InnerRc::into_raw`] gave away, where it is known not to be the last count.
///
/// # Safety
///
/// - As for [`InnerRc::from_raw`]; and somebody else counts the node.
#[inline]
pub(crate) unsafe fn decrement_strong(node: *const Inner) {
    // SAFETY: the contract; K1.
    let strong = unsafe { &(*slot_of(node)).strong };
    debug_assert!(strong.get() > 1);
    strong.set(strong.get() - 1);
}

/// Releases the count that a greenlet has of itself, after [`Inner::leave`].
pub(crate) fn release_left(greenlet: Greenlet) {
    // SAFETY: `switch::begin` gave that count away, and only a greenlet that finishes takes it back, which
    // this one never does. The handle is another count.
    unsafe { decrement_strong(greenlet.inner().as_ptr()) };
    // CAUTION: runs arbitrary user code if this was the last handle, and the last one of its parent.
    drop(greenlet);
}

/// Counts one more. Four thousand million of them can only have been forgotten.
#[inline]
fn incremented(count: u32) -> u32 {
    match count.wrapping_add(1) {
        0 => abort_on_overflow(),
        more => more,
    }
}

/// (`extern "C"`: as above.)
#[cold]
#[inline(never)]
extern "C" fn abort_on_overflow() -> ! {
    eprintln!("greenlet: a greenlet has too many handles");
    std::process::abort()
}

impl Deref for InnerRc {
    type Target = Inner;

    #[inline(always)] // part of the fast path: nothing
    fn deref(&self) -> &Inner {
        // SAFETY: K1.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for InnerRc {
    #[inline]
    fn clone(&self) -> InnerRc {
        let strong = &self.slot().strong;
        strong.set(incremented(strong.get()));
        InnerRc(self.0)
    }
}

impl Drop for InnerRc {
    #[inline]
    fn drop(&mut self) {
        let strong = &self.slot().strong;
        strong.set(strong.get() - 1);
        if strong.get() == 0 {
            // SAFETY: that was the last one.
            unsafe { drop_node(self.0) };
        }
    }
}

/// Drops a node, and gives its slot back if nobody refers to that either.
///
/// # Safety
///
/// - `strong` has just become 0.
#[inline(never)]
unsafe fn drop_node(node: NonNull<Inner>) {
    // SAFETY: K1: nobody else can get at the node: no reference is left, and none can be made.
    let (it, slot) = unsafe { (node.as_ref(), &*slot_of(node.as_ptr())) };
    let thread = ThreadState::current();
    let is_recycled = ptr::eq(slot, thread.pool.recycled.get()) && slot.weak.get() == 1;
    if is_recycled && !thread.has_any_flag() && it.try_release_fast() {
        slot.weak.set(0); // K2
    } else {
        // SAFETY: the contract.
        unsafe { drop_node_slow(node) };
    }
}

/// [`drop_node`], where there is more to do than to keep the slot.
///
/// # Safety
///
/// - As for [`drop_node`].
#[cold]
#[inline(never)]
unsafe fn drop_node_slow(node: NonNull<Inner>) {
    // Also where a destructor panics. The weak reference that all strong ones have together.
    let _weak = InnerWeak(node);
    // SAFETY: K1: nobody else can get at the node: no reference is left, and none can be made.
    // CAUTION: runs foreign code, twice.
    unsafe {
        if node.as_ref().status.is_pending() {
            drop_unstarted(node);
        }
        node.drop_in_place();
    }
}

/// Drops the function of a greenlet that was never started. Should that panic, the node is dropped all the same.
///
/// # Safety
///
/// - As for [`drop_node`], which does the rest.
#[cold]
#[inline(never)]
unsafe fn drop_unstarted(node: NonNull<Inner>) {
    struct OnPanic(NonNull<Inner>);

    impl Drop for OnPanic {
        fn drop(&mut self) {
            // SAFETY: as `drop_node` would have done.
            unsafe { self.0.drop_in_place() };
        }
    }

    let on_panic = OnPanic(node);
    // CAUTION: runs foreign code.
    closure::clear(&ManuallyDrop::new(InnerRc(node)));
    std::mem::forget(on_panic);
}

/// A counted reference to a node that does not keep it.
#[derive(Debug)]
pub(crate) struct InnerWeak(NonNull<Inner>);

impl InnerWeak {
    #[inline]
    fn slot(&self) -> *const Slot {
        // SAFETY: K2, K3.
        unsafe { slot_of(self.0.as_ptr()) }
    }

    /// The prefetch hint of the slot, whether or not the node is alive.
    #[inline]
    pub(crate) fn prefetch_hint(&self) -> &Cell<PrefetchHint> {
        // SAFETY: this reference keeps the slot from being free. K2.
        unsafe { &(*self.slot()).prefetch_hint }
    }

    #[cfg(test)]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.0.as_ptr()
    }

    /// A reference to the node, if it still lives.
    pub(crate) fn upgrade(&self) -> Option<InnerRc> {
        // SAFETY: K2: the slot is not free. Only the count is looked at: the node may be gone.
        let strong = unsafe { &(*self.slot()).strong };
        if strong.get() == 0 {
            return None;
        }
        strong.set(incremented(strong.get()));
        Some(InnerRc(self.0))
    }
}

impl Clone for InnerWeak {
    fn clone(&self) -> InnerWeak {
        // SAFETY: K2.
        let weak = unsafe { &(*self.slot()).weak };
        weak.set(incremented(weak.get()));
        InnerWeak(self.0)
    }
}

impl Drop for InnerWeak {
    #[inline]
    fn drop(&mut self) {
        let slot = self.slot();
        // SAFETY: K2.
        let weak = unsafe { &(*slot).weak };
        weak.set(weak.get() - 1);
        if weak.get() == 0 {
            // SAFETY: K2: that was the last one, so the node has been dropped. K3: the hub is this thread's.
            unsafe { ThreadState::current().pool.free(slot) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Greenlet, WeakGreenlet, getcurrent};

    /// Looks at all of a thread's chunks: K2, K4. Returns how many there are, and how many slots are in use.
    fn check(slots: &NodePool) -> (usize, usize) {
        let (mut chunks, mut in_use, mut all_full) = (0, 0, false);
        let mut before = ptr::null();
        let mut next = slots.first.get();
        // SAFETY: K4; nothing runs meanwhile.
        while let Some(chunk) = unsafe { next.as_ref() } {
            assert_eq!(chunk.before.get(), before);
            // SAFETY: `allocate` initialised the counts.
            let counts = chunk.slots.iter().map(|slot| unsafe {
                let slot = slot.as_ptr();
                ((*slot).strong.get(), (*slot).weak.get())
            });
            let live = counts.filter(|&(strong, weak)| {
                assert!(weak > 0 || strong == 0);
                weak > 0
            });
            let has_recycled =
                free_recycled(slots).is_some_and(|recycled| chunk.slots.as_ptr_range().contains(&recycled));
            assert_eq!(live.count() + usize::from(has_recycled), chunk.live.get());
            let mut free = 0;
            let mut slot = chunk.free.get();
            while !slot.is_null() {
                // SAFETY: K2: what is in the list of the free is free.
                slot = unsafe { (*slot).content.next };
                free += 1;
            }
            assert_eq!(free + chunk.live.get(), SLOTS);
            if chunks > 0 {
                assert!(chunk.live.get() > 0, "an empty chunk is kept");
                assert!(
                    !all_full || free == 0,
                    "a chunk with room stands behind full ones"
                );
                all_full |= free == 0;
            }
            chunks += 1;
            in_use += chunk.live.get();
            before = next;
            next = chunk.after.get();
        }
        assert_eq!(slots.last.get(), before);
        (chunks, in_use - usize::from(free_recycled(slots).is_some()))
    }

    /// The recycled slot, if it is not in use.
    fn free_recycled(slots: &NodePool) -> Option<*const MaybeUninit<Slot>> {
        let recycled = slots.recycled.get();
        // SAFETY: K2.
        (!recycled.is_null() && unsafe { (*recycled).weak.get() } == 0).then_some(recycled.cast())
    }

    /// On a thread of its own, which has nothing but its main greenlet.
    fn on_a_thread(test: impl FnOnce(&NodePool) + Send + 'static) {
        let run = move || {
            let _main = getcurrent();
            test(&ThreadState::current().pool);
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn blocks_stay_in_order_whatever_comes_and_goes() {
        on_a_thread(|slots| {
            let seed = fastrand::u64(..);
            println!("seed {seed}");
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut handles: Vec<Greenlet> = Vec::new();
            let mut weak: Vec<WeakGreenlet> = Vec::new();
            for round in 0..20 {
                let (most, grows) = (rng.usize(..400), round % 2 == 0);
                for _ in 0..600 {
                    match rng.u8(..12) {
                        0..4 => handles.push(Greenlet::new(|(): ()| Ok(()))),
                        4..8 if !handles.is_empty() && (!grows || handles.len() > most) => {
                            drop(handles.swap_remove(rng.usize(..handles.len())));
                        }
                        8 if !handles.is_empty() => {
                            weak.push(handles[rng.usize(..handles.len())].downgrade());
                        }
                        9 if !weak.is_empty() => drop(weak.swap_remove(rng.usize(..weak.len()))),
                        // One that ends is done with by another way, and with a name by the first again.
                        10.. if !handles.is_empty() => {
                            let ends = &handles[rng.usize(..handles.len())];
                            ends.switch::<()>(()).unwrap();
                            if rng.bool() {
                                ends.attach(std::rc::Rc::new(()));
                            }
                        }
                        _ => {}
                    }
                    check(slots);
                }
            }
            drop(handles);
            assert!(weak.iter().all(|weak| weak.upgrade().is_none()));
            drop(weak);
            let (chunks, in_use) = check(slots);
            assert_eq!(in_use, 1); // main
            assert!(chunks <= 3, "{chunks}"); // its own, that of the recycled slot, and an empty one
        });
    }

    #[test]
    fn one_after_the_other_they_use_the_spare_record_unless_somebody_has_it() {
        on_a_thread(|slots| {
            let run = || {
                let greenlet = Greenlet::new(|(): ()| Ok(()));
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            drop(run());
            let recycled = free_recycled(slots).unwrap();
            for _ in 0..3 {
                let one = run();
                assert_eq!(free_recycled(slots), None);
                assert!(ptr::eq(recycled.cast(), one.inner().slot()));
                let two = run();
                assert_eq!(check(slots).1, 3);
                drop((one, two));
                assert_eq!(check(slots).1, 1);
                assert_eq!(free_recycled(slots), Some(recycled));
            }
            let weak = run().downgrade(); // the slot is kept, so another one is recycled
            assert_eq!(free_recycled(slots), None);
            drop(run());
            assert_ne!(free_recycled(slots).unwrap(), recycled);
            assert!(weak.upgrade().is_none());
            drop(weak);
            assert_eq!(check(slots).1, 1);
        });
    }

    #[test]
    fn the_last_handle_of_a_parent_is_noticed_where_its_child_has_the_spare_record() {
        on_a_thread(|slots| {
            let in_spare = Greenlet::new(|(): ()| Ok(()));
            let parent = Greenlet::new(|(): ()| {
                crate::getmain().switch::<()>(())?;
                crate::getmain().switch::<()>(())
            });
            parent.switch::<()>(()).unwrap();
            let weak = parent.downgrade();
            drop(in_spare);
            let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok(()));
            assert!(ptr::eq(slots.recycled.get(), child.inner().slot()));
            child.switch::<()>(()).unwrap(); // it ended into the parent, which has come back
            drop(parent);
            assert!(weak.upgrade().unwrap().is_active());
            drop(child);
            assert!(weak.upgrade().is_none(), "nobody has a handle of it");
        });
    }

    #[test]
    fn what_one_had_that_few_have_the_next_in_its_record_has_not() {
        on_a_thread(|slots| {
            let dropped = std::rc::Rc::new(());
            let make = || {
                let locals = crate::Locals::new();
                let greenlet = Greenlet::builder()
                    .name("one of few")
                    .stack_size(16 << 10)
                    .locals(locals)
                    .build(|(): ()| Ok(()));
                assert!(greenlet.attach(std::rc::Rc::clone(&dropped)));
                greenlet
            };
            for started in [true, false] {
                let one = make();
                if started {
                    one.switch::<()>(()).unwrap();
                }
                let place = one.inner().slot() as *const Slot;
                assert_eq!(std::rc::Rc::strong_count(&dropped), 2);
                drop(one);
                assert_eq!(std::rc::Rc::strong_count(&dropped), 1);
                let next = Greenlet::new(|(): ()| Ok(()));
                assert!(ptr::eq(place, next.inner().slot()), "the slot is used again");
                assert!(next.name().is_none() && next.locals().is_none());
                assert!(next.attached::<()>().is_none());
                assert_eq!(next.inner().stack_size(), crate::stack::DEFAULT_SIZE);
                next.switch::<()>(()).unwrap();
                // Also where it gets these when it has ended.
                next.set_locals(crate::Locals::new());
                assert!(next.attach(std::rc::Rc::clone(&dropped)));
                drop(next);
                assert_eq!(std::rc::Rc::strong_count(&dropped), 1);
                assert_eq!(check(slots).1, 1);
            }
        });
    }

    #[test]
    fn a_record_is_not_used_again_while_a_weak_handle_points_to_it() {
        on_a_thread(|slots| {
            let gone = Greenlet::new(|(): ()| Ok(()));
            let weak = gone.downgrade();
            drop(gone);
            assert_eq!(check(slots).1, 2);
            let others: Vec<Greenlet> = (0..2 * SLOTS).map(|_| Greenlet::new(|(): ()| Ok(()))).collect();
            assert!(weak.upgrade().is_none());
            assert_eq!(check(slots).1, 2 + others.len());
            drop(weak);
            assert_eq!(check(slots).1, 1 + others.len());
        });
    }

    #[test]
    fn a_function_stays_in_its_own_record() {
        on_a_thread(|slots| {
            macro_rules! each {
                ($($size:literal)*) => {$({
                    let bytes = std::hint::black_box([0xA5_u8; $size]);
                    let greenlet = Greenlet::new(move |(): ()| Ok(bytes[0]));
                    assert_eq!(check(slots).1, 2, "{} bytes", $size);
                    assert_eq!(greenlet.switch::<u8>(()).unwrap(), 0xA5);
                })*};
            }
            each!(1 8 24 31 32 33 40 41 48 100 1000);
            assert_eq!(check(slots).1, 1);
        });
    }

    #[test]
    fn blocks_that_become_empty_are_released() {
        on_a_thread(|slots| {
            let many: Vec<Greenlet> = (0..100 * SLOTS).map(|_| Greenlet::new(|(): ()| Ok(()))).collect();
            assert_eq!(check(slots), (101, 100 * SLOTS + 1));
            drop(many);
            let (chunks, in_use) = check(slots);
            assert_eq!(in_use, 1);
            assert!(chunks <= 3, "{chunks}");
        });
    }
}
