//! Records: the memory of nodes, and the counts of who refers to one.
//!
//! Every greenlet has a node, and to make a greenlet should not cost what an allocator costs. So a thread keeps
//! blocks of records, and hands out the one that was given back last. The blocks are also the list of all nodes
//! of the thread: who is made or goes is entered nowhere else.
//!
//! ```text
//!   Records ── first ─► Block ◄──► Block ◄──► Block ◄──► Block ◄─ last
//!           │           with room: ─────────┘ full: ───────────┘
//!           └─ spare ─► a Record of one of them, which is used first
//!
//!   Block:  live │ free ─► Record ─► Record         the free ones, the last one given back first
//!                │ Record │ Record │ Record │ ..    each: counts │ block │ soon │ node │ space    (192 bytes)
//!                                                                               ▲
//!                                              NodeRef, WeakNodeRef, Hub::current
//! ```
//!
//! A node is counted as by `Rc`, which cannot have its memory from here on a stable compiler: `strong` counts the
//! [`NodeRef`]s; `weak` counts the [`WeakNodeRef`]s, and one more for all [`NodeRef`]s together.
//!
//! # Invariants
//!
//! - **K1** While `strong` is not 0, the node is initialised, and nobody has it exclusively.
//! - **K2** While `weak` is not 0, the record is not free. When it becomes 0, the node has been dropped, or let go of.
//!   (The spare record is free then as well, but to its block it is not.)
//! - **K3** All pointers to a node come from its block, so that the counts in front of it can be reached from them.
//!   None leaves its thread: a `NodeRef` is not `Send`, and a block belongs to the `Records` of one hub.
//! - **K4** A block is in the list from when it is made until it is released, which is when none of its records is
//!   in use. Those with a free record stand before those without one, but for the first, which may just have
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
use crate::node::Node;
use crate::node::closure::{self, Space};
use crate::thread::Hub;
use crate::thread::prefetch::Soon;

/// How many records are in a block: as many as fit into two pages of memory, with what an allocator adds.
const RECORDS: usize = 42;

/// The memory of one node. What a switch needs of it is in its first line of the cache.
#[repr(C, align(64))]
struct Record {
    strong: Cell<u32>,
    weak: Cell<u32>,
    block: *const Block,
    /// Whose memory to fetch when the greenlet is switched to. That of the last greenlet here may be left (H2 in `ahead.rs`).
    soon: Cell<Soon>,
    content: Content,
    /// Not a part of the node, for what is not initialised is copied all the same where a node is made.
    space: UnsafeCell<Space>,
}

/// K1, K2: a node, or while the record is free, the next free record.
union Content {
    node: ManuallyDrop<Node>,
    next: *const Record,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Record>() == 192);

#[repr(C, align(64))]
struct Block {
    before: Cell<*const Block>,
    after: Cell<*const Block>,
    free: Cell<*const Record>,
    /// How many records are not free.
    live: Cell<usize>,
    records: [MaybeUninit<Record>; RECORDS],
}

/// The blocks of one thread.
pub(crate) struct Records {
    first: Cell<*const Block>,
    last: Cell<*const Block>,
    /// A record for the next node, if it is not in use: most greenlets come and go one by one, in the same record. To its
    /// block it is never free. Null if there is none.
    spare: Cell<*const Record>,
    /// Whether the list is being changed (K5).
    is_changing: Cell<bool>,
    /// Whether the thread ends: then no empty block is kept.
    is_closed: Cell<bool>,
}

impl Records {
    pub(crate) const fn new() -> Records {
        Records {
            first: Cell::new(ptr::null()),
            last: Cell::new(ptr::null()),
            spare: Cell::new(ptr::null()),
            is_changing: Cell::new(false),
            is_closed: Cell::new(false),
        }
    }

    /// Makes a node of `what`, in the spare record. `make` runs no foreign code. `what` comes back if there is no such record.
    #[inline(always)] // the call would be a third of it
    pub(crate) fn hold_in_spare<W>(&self, what: W, make: impl FnOnce(W) -> Node) -> Result<NodeRef, W> {
        let spare = self.spare.get();
        // SAFETY: K2: a spare one stays where it is.
        if spare.is_null() || unsafe { (*spare).weak.get() } != 0 {
            return Err(what);
        }
        // SAFETY: K2: nobody has it.
        Ok(unsafe { Records::put(spare, make(what)) })
    }

    /// Makes a node, in a record. `make` runs no foreign code.
    #[inline]
    pub(crate) fn hold(&self, make: impl FnOnce() -> Node) -> NodeRef {
        // SAFETY: K2: the record is free, and just taken.
        unsafe { Records::put(self.take(), make()) }
    }

    /// Puts a node in a record.
    ///
    /// # Safety
    ///
    /// - Nobody has the record, and it was taken out of its list.
    #[inline(always)] // the node is written in place
    unsafe fn put(record: *const Record, node: Node) -> NodeRef {
        let record = record.cast_mut();
        // SAFETY: the contract; K3: the pointer to the node is made from that to the record.
        unsafe {
            let place = (&raw mut (*record).content.node).cast::<Node>();
            place.write(node);
            compiler_fence(Ordering::Release); // for a signal handler: nobody is counted who is not there yet
            (*record).weak.set(1);
            (*record).strong.set(1);
            NodeRef(NonNull::new_unchecked(place))
        }
    }

    /// Takes a free record.
    #[inline]
    fn take(&self) -> *const Record {
        // SAFETY: K4.
        if let Some(block) = unsafe { self.first.get().as_ref() } {
            if !block.free.get().is_null() {
                return block.take();
            }
        }
        self.take_from_another()
    }

    /// (`extern "C"`: it does not unwind, so nothing need be ready for that.)
    #[cold]
    #[inline(never)]
    extern "C" fn take_from_another(&self) -> *const Record {
        self.retire_first();
        // SAFETY: K4.
        let first = unsafe { self.first.get().as_ref() };
        if first.is_none_or(|first| first.free.get().is_null()) {
            self.link(Block::allocate(), ptr::null(), self.first.get());
        }
        // SAFETY: K4; there is one now, and it has room.
        unsafe { &*self.first.get() }.take()
    }

    /// Makes room for another block to be the first: a full one goes to the others that are full, and an empty one back
    /// to the allocator.
    fn retire_first(&self) {
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

    /// Releases a block of which no record is in use.
    fn release(&self, block: *const Block) {
        self.unlink(block);
        // SAFETY: made by `allocate`; K4: nobody uses a record of it, and it is in no list.
        unsafe { dealloc(block.cast_mut().cast(), Layout::new::<Block>()) };
    }

    /// Takes a record back.
    ///
    /// # Safety
    ///
    /// - K2: both its counts are 0, and it is given back once. It came from here.
    unsafe fn give(&self, record: *const Record) {
        let spare = self.spare.get();
        if ptr::eq(record, spare) {
            return;
        }
        // SAFETY: K2.
        let has_spare = !spare.is_null() && unsafe { (*spare).weak.get() } == 0;
        if has_spare || self.is_closed.get() {
            // SAFETY: the contract.
            unsafe { self.give_to_block(record) };
        } else {
            // What was the spare one is one like the others from now on.
            self.spare.set(record);
        }
    }

    /// Gives a record back to its block.
    ///
    /// # Safety
    ///
    /// - As for [`Records::give`].
    unsafe fn give_to_block(&self, record: *const Record) {
        // SAFETY: K4: the block of a record that is not free is in the list.
        let block = unsafe { &*(*record).block };
        let next = block.free.get();
        // SAFETY: nobody else uses the record.
        unsafe { (*record.cast_mut()).content.next = next };
        block.free.set(record);
        block.live.set(block.live.get() - 1);
        if next.is_null() || block.live.get() == 0 {
            self.settle(block);
        }
    }

    /// A block has become empty, or has room again.
    #[cold]
    #[inline(never)]
    fn settle(&self, block: *const Block) {
        // SAFETY: K4: it is in the list still.
        let is_empty = unsafe { (*block).live.get() == 0 };
        let is_first = ptr::eq(block, self.first.get());
        if is_empty && (!is_first || self.is_closed.get()) {
            self.release(block);
        } else if !is_first {
            self.unlink(block);
            self.retire_first();
            self.link(block, ptr::null(), self.first.get());
        }
    }

    /// The thread ends: from now on, no empty block is kept.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        let spare = self.spare.replace(ptr::null());
        // SAFETY: K2.
        unsafe {
            if !spare.is_null() && (*spare).weak.get() == 0 {
                self.give_to_block(spare);
            }
        }
        // SAFETY: K4.
        if let Some(first) = unsafe { self.first.get().as_ref() } {
            if first.live.get() == 0 {
                self.release(first);
            }
        }
    }

    fn unlink(&self, block: *const Block) {
        // SAFETY: K4: it is in the list.
        let (before, after) = unsafe { ((*block).before.get(), (*block).after.get()) };
        self.change(|| self.join(before, after));
    }

    /// Puts a block that is in no list between two that stand beside each other, or at an end.
    fn link(&self, block: *const Block, before: *const Block, after: *const Block) {
        self.change(|| {
            self.join(before, block);
            self.join(block, after);
        });
    }

    /// Makes two blocks neighbours. Null is an end of the list.
    fn join(&self, before: *const Block, after: *const Block) {
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
    pub(crate) fn all(&self) -> Vec<(u64, WeakNodeRef)> {
        let mut all = Vec::new();
        let _: Option<()> = self.find(|node| {
            all.push((node.id, node.downgrade()));
            None
        });
        all
    }

    /// The first node that `look` says something of. `None` also while the list is being changed: for signal
    /// handlers, which may come at any moment.
    pub(crate) fn find_from_handler<T>(&self, mut look: impl FnMut(&Node) -> Option<T>) -> Option<T> {
        if self.is_changing.get() {
            return None;
        }
        self.find(|node| look(node))
    }

    /// `look` runs no foreign code (K5).
    fn find<T>(&self, mut look: impl FnMut(&NodeRef) -> Option<T>) -> Option<T> {
        let mut next = self.first.get();
        // SAFETY: K4, K5.
        while let Some(block) = unsafe { next.as_ref() } {
            for record in &block.records {
                let record = record.as_ptr();
                // SAFETY: `allocate` has initialised the counts of all records; K1, K3. The reference is not dropped, so it
                // need not be counted.
                unsafe {
                    if (*record).strong.get() == 0 {
                        continue;
                    }
                    let node = (&raw const (*record).content.node).cast_mut().cast::<Node>();
                    let node = ManuallyDrop::new(NodeRef(NonNull::new_unchecked(node)));
                    if let Some(found) = look(&node) {
                        return Some(found);
                    }
                }
            }
            next = block.after.get();
        }
        None
    }
}

impl Block {
    /// Makes a block, all of whose records are free. It is in no list yet.
    fn allocate() -> *const Block {
        let layout = Layout::new::<Block>();
        // SAFETY: a block has a size.
        let block = unsafe { alloc(layout) }.cast::<Block>();
        if block.is_null() {
            handle_alloc_error(layout);
        }
        let mut next: *const Record = ptr::null();
        // The lowest first, so that a crowd lies in memory in the order of its making.
        for index in (0..RECORDS).rev() {
            // SAFETY: inside the block, which is ours; nothing there is dropped by being written.
            unsafe {
                let record = (&raw mut (*block).records).cast::<Record>().add(index);
                (&raw mut (*record).strong).write(Cell::new(0));
                (&raw mut (*record).weak).write(Cell::new(0));
                (&raw mut (*record).block).write(block);
                (&raw mut (*record).soon).write(Cell::new(Soon::NOBODY));
                (&raw mut (*record).content).write(Content { next });
                next = record;
            }
        }
        // SAFETY: as above.
        unsafe {
            (&raw mut (*block).before).write(Cell::new(ptr::null()));
            (&raw mut (*block).after).write(Cell::new(ptr::null()));
            (&raw mut (*block).free).write(Cell::new(next));
            (&raw mut (*block).live).write(Cell::new(0));
        }
        block
    }

    /// Takes a free record, of which there is one.
    #[inline]
    fn take(&self) -> *const Record {
        let record = self.free.get();
        // SAFETY: K2: it is free, so it says which is the next.
        self.free.set(unsafe { (*record).content.next });
        self.live.set(self.live.get() + 1);
        record
    }
}

/// The record that a node is in.
///
/// # Safety
///
/// - The node is in a record, and the pointer was made from that to the record (K3).
#[inline]
unsafe fn record_of(node: *const Node) -> *const Record {
    // SAFETY: the contract.
    unsafe { node.byte_sub(std::mem::offset_of!(Record, content)).cast() }
}

/// A counted reference to a node, as an `Rc`.
pub(crate) struct NodeRef(NonNull<Node>);

impl NodeRef {
    #[inline]
    fn record(&self) -> &Record {
        // SAFETY: K2, K3. (The node may be half-dropped: `drop_unstarted`.)
        unsafe { &*record_of(self.0.as_ptr()) }
    }

    #[inline(always)] // part of the fast path: nothing
    pub(crate) fn as_ptr(&self) -> *const Node {
        self.0.as_ptr()
    }

    #[inline]
    pub(crate) fn is(&self, other: &NodeRef) -> bool {
        self.0 == other.0
    }

    /// How many references to the node are counted.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.record().strong.get()
    }

    pub(crate) fn downgrade(&self) -> WeakNodeRef {
        let weak = &self.record().weak;
        weak.set(one_more(weak.get()));
        WeakNodeRef(self.0)
    }

    /// Gives the count away, to whoever takes it with [`NodeRef::from_counted`].
    #[inline]
    pub(crate) fn into_counted(self) -> *const Node {
        ManuallyDrop::new(self).as_ptr()
    }

    /// Takes over a count.
    ///
    /// # Safety
    ///
    /// - [`NodeRef::into_counted`] gave it, and nobody else takes it.
    #[inline]
    pub(crate) unsafe fn from_counted(node: *const Node) -> NodeRef {
        // SAFETY: the contract: it was a reference.
        NodeRef(unsafe { NonNull::new_unchecked(node.cast_mut()) })
    }

    /// Counts one more reference to a node.
    ///
    /// # Safety
    ///
    /// - The node lives: somebody else counts it. The pointer comes from [`NodeRef::as_ptr`] (K3).
    #[inline]
    pub(crate) unsafe fn counting(node: *const Node) -> NodeRef {
        // SAFETY: the contract; this one is not dropped.
        let borrowed = ManuallyDrop::new(unsafe { NodeRef::from_counted(node) });
        NodeRef::clone(&borrowed)
    }
}

/// What a node remembers for `ahead.rs`.
///
/// # Safety
///
/// - The record of the node is not free, and the pointer comes from [`NodeRef::as_ptr`] (K3).
#[inline]
pub(crate) unsafe fn soon_of<'a>(node: *const Node) -> &'a Cell<Soon> {
    // SAFETY: the contract; K2.
    unsafe { &(*record_of(node)).soon }
}

/// Where a node keeps the function that it has not called yet.
///
/// # Safety
///
/// - The record of the node is not free, and the pointer comes from [`NodeRef::as_ptr`] (K3).
#[inline]
pub(crate) unsafe fn space_of(node: *const Node) -> *mut Space {
    // SAFETY: the contract; K2.
    unsafe { (*record_of(node)).space.get() }
}

/// How many references to a node are counted.
///
/// # Safety
///
/// - The node lives, and the pointer comes from [`NodeRef::as_ptr`] (K3).
#[inline]
pub(crate) unsafe fn count_of(node: *const Node) -> u32 {
    // SAFETY: the contract; K1.
    unsafe { (*record_of(node)).strong.get() }
}

/// Counts a node once more, for whoever takes that back with [`uncount`].
///
/// # Safety
///
/// - As for [`count_of`].
#[inline]
pub(crate) unsafe fn count(node: *const Node) {
    // SAFETY: the contract; K1.
    let strong = unsafe { &(*record_of(node)).strong };
    strong.set(one_more(strong.get()));
}

/// Takes back what [`count`] or [`NodeRef::into_counted`] gave away, where it is known not to be the last count.
///
/// # Safety
///
/// - As for [`NodeRef::from_counted`]; and somebody else counts the node.
#[inline]
pub(crate) unsafe fn uncount(node: *const Node) {
    // SAFETY: the contract; K1.
    let strong = unsafe { &(*record_of(node)).strong };
    debug_assert!(strong.get() > 1);
    strong.set(strong.get() - 1);
}

/// Releases the count that a greenlet has of itself, after [`Node::leave`].
pub(crate) fn release_left(greenlet: Greenlet) {
    // SAFETY: `switch::begin` gave that count away, and only a greenlet that finishes takes it back, which
    // this one never does. The handle is another count.
    unsafe { uncount(greenlet.node().as_ptr()) };
    // CAUTION: runs arbitrary user code if this was the last handle, and the last one of its parent.
    drop(greenlet);
}

/// Counts one more. Four thousand million of them can only have been forgotten.
#[inline]
fn one_more(count: u32) -> u32 {
    match count.wrapping_add(1) {
        0 => too_many(),
        more => more,
    }
}

/// (`extern "C"`: as above.)
#[cold]
#[inline(never)]
extern "C" fn too_many() -> ! {
    eprintln!("greenlet: a greenlet has too many handles");
    std::process::abort()
}

impl Deref for NodeRef {
    type Target = Node;

    #[inline(always)] // part of the fast path: nothing
    fn deref(&self) -> &Node {
        // SAFETY: K1.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for NodeRef {
    #[inline]
    fn clone(&self) -> NodeRef {
        let strong = &self.record().strong;
        strong.set(one_more(strong.get()));
        NodeRef(self.0)
    }
}

impl Drop for NodeRef {
    #[inline]
    fn drop(&mut self) {
        let strong = &self.record().strong;
        strong.set(strong.get() - 1);
        if strong.get() == 0 {
            // SAFETY: that was the last one.
            unsafe { drop_node(self.0) };
        }
    }
}

/// Drops a node, and gives its record back if nobody refers to that either.
///
/// # Safety
///
/// - `strong` has just become 0.
#[inline(never)]
unsafe fn drop_node(node: NonNull<Node>) {
    // SAFETY: K1: nobody else can get at the node: no reference is left, and none can be made.
    let (it, record) = unsafe { (node.as_ref(), &*record_of(node.as_ptr())) };
    let hub = Hub::get();
    let is_spare = ptr::eq(record, hub.records.spare.get()) && record.weak.get() == 1;
    if is_spare && !hub.has_any_flag() && it.is_let_go_of() {
        record.weak.set(0); // K2
    } else {
        // SAFETY: the contract.
        unsafe { drop_node_with_more(node) };
    }
}

/// [`drop_node`], where there is more to do than to keep the record.
///
/// # Safety
///
/// - As for [`drop_node`].
#[cold]
#[inline(never)]
unsafe fn drop_node_with_more(node: NonNull<Node>) {
    // Also where a destructor panics. The weak reference that all strong ones have together.
    let _weak = WeakNodeRef(node);
    // SAFETY: K1: nobody else can get at the node: no reference is left, and none can be made.
    // CAUTION: runs foreign code, twice.
    unsafe {
        if node.as_ref().standing.is_pending() {
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
unsafe fn drop_unstarted(node: NonNull<Node>) {
    struct OnPanic(NonNull<Node>);

    impl Drop for OnPanic {
        fn drop(&mut self) {
            // SAFETY: as `drop_node` would have done.
            unsafe { self.0.drop_in_place() };
        }
    }

    let on_panic = OnPanic(node);
    // CAUTION: runs foreign code.
    closure::clear(&ManuallyDrop::new(NodeRef(node)));
    std::mem::forget(on_panic);
}

/// A counted reference to a node that does not keep it.
#[derive(Debug)]
pub(crate) struct WeakNodeRef(NonNull<Node>);

impl WeakNodeRef {
    #[inline]
    fn record(&self) -> *const Record {
        // SAFETY: K2, K3.
        unsafe { record_of(self.0.as_ptr()) }
    }

    /// A reference to the node, if it still lives.
    pub(crate) fn upgrade(&self) -> Option<NodeRef> {
        // SAFETY: K2: the record is not free. Only the count is looked at: the node may be gone.
        let strong = unsafe { &(*self.record()).strong };
        if strong.get() == 0 {
            return None;
        }
        strong.set(one_more(strong.get()));
        Some(NodeRef(self.0))
    }
}

impl Clone for WeakNodeRef {
    fn clone(&self) -> WeakNodeRef {
        // SAFETY: K2.
        let weak = unsafe { &(*self.record()).weak };
        weak.set(one_more(weak.get()));
        WeakNodeRef(self.0)
    }
}

impl Drop for WeakNodeRef {
    #[inline]
    fn drop(&mut self) {
        let record = self.record();
        // SAFETY: K2.
        let weak = unsafe { &(*record).weak };
        weak.set(weak.get() - 1);
        if weak.get() == 0 {
            // SAFETY: K2: that was the last one, so the node has been dropped. K3: the hub is this thread's.
            unsafe { Hub::get().records.give(record) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Greenlet, WeakGreenlet, getcurrent};

    /// Looks at all of a thread's blocks: K2, K4. Returns how many there are, and how many records are in use.
    fn check(records: &Records) -> (usize, usize) {
        let (mut blocks, mut in_use, mut all_full) = (0, 0, false);
        let mut before = ptr::null();
        let mut next = records.first.get();
        // SAFETY: K4; nothing runs meanwhile.
        while let Some(block) = unsafe { next.as_ref() } {
            assert_eq!(block.before.get(), before);
            // SAFETY: `allocate` initialised the counts.
            let counts = block.records.iter().map(|record| unsafe {
                let record = record.as_ptr();
                ((*record).strong.get(), (*record).weak.get())
            });
            let live = counts.filter(|&(strong, weak)| {
                assert!(weak > 0 || strong == 0);
                weak > 0
            });
            let has_spare =
                free_spare(records).is_some_and(|spare| block.records.as_ptr_range().contains(&spare));
            assert_eq!(live.count() + usize::from(has_spare), block.live.get());
            let mut free = 0;
            let mut record = block.free.get();
            while !record.is_null() {
                // SAFETY: K2: what is in the list of the free is free.
                record = unsafe { (*record).content.next };
                free += 1;
            }
            assert_eq!(free + block.live.get(), RECORDS);
            if blocks > 0 {
                assert!(block.live.get() > 0, "an empty block is kept");
                assert!(
                    !all_full || free == 0,
                    "a block with room stands behind full ones"
                );
                all_full |= free == 0;
            }
            blocks += 1;
            in_use += block.live.get();
            before = next;
            next = block.after.get();
        }
        assert_eq!(records.last.get(), before);
        (blocks, in_use - usize::from(free_spare(records).is_some()))
    }

    /// The spare record, if it is not in use.
    fn free_spare(records: &Records) -> Option<*const MaybeUninit<Record>> {
        let spare = records.spare.get();
        // SAFETY: K2.
        (!spare.is_null() && unsafe { (*spare).weak.get() } == 0).then_some(spare.cast())
    }

    /// On a thread of its own, which has nothing but its main greenlet.
    fn on_a_thread(test: impl FnOnce(&Records) + Send + 'static) {
        let run = move || {
            let _main = getcurrent();
            test(&Hub::get().records);
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn blocks_stay_in_order_whatever_comes_and_goes() {
        on_a_thread(|records| {
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
                    check(records);
                }
            }
            drop(handles);
            assert!(weak.iter().all(|weak| weak.upgrade().is_none()));
            drop(weak);
            let (blocks, in_use) = check(records);
            assert_eq!(in_use, 1); // main
            assert!(blocks <= 3, "{blocks}"); // its own, that of the spare record, and an empty one
        });
    }

    #[test]
    fn one_after_the_other_they_use_the_spare_record_unless_somebody_has_it() {
        on_a_thread(|records| {
            let run = || {
                let greenlet = Greenlet::new(|(): ()| Ok(()));
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            drop(run());
            let spare = free_spare(records).unwrap();
            for _ in 0..3 {
                let one = run();
                assert_eq!(free_spare(records), None);
                assert!(ptr::eq(spare.cast(), one.node().record()));
                let two = run();
                assert_eq!(check(records).1, 3);
                drop((one, two));
                assert_eq!(check(records).1, 1);
                assert_eq!(free_spare(records), Some(spare));
            }
            let weak = run().downgrade(); // the record is kept, so another one is spare
            assert_eq!(free_spare(records), None);
            drop(run());
            assert_ne!(free_spare(records).unwrap(), spare);
            assert!(weak.upgrade().is_none());
            drop(weak);
            assert_eq!(check(records).1, 1);
        });
    }

    #[test]
    fn the_last_handle_of_a_parent_is_noticed_where_its_child_has_the_spare_record() {
        on_a_thread(|records| {
            let in_spare = Greenlet::new(|(): ()| Ok(()));
            let parent = Greenlet::new(|(): ()| {
                crate::getmain().switch::<()>(())?;
                crate::getmain().switch::<()>(())
            });
            parent.switch::<()>(()).unwrap();
            let weak = parent.downgrade();
            drop(in_spare);
            let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok(()));
            assert!(ptr::eq(records.spare.get(), child.node().record()));
            child.switch::<()>(()).unwrap(); // it ended into the parent, which has come back
            drop(parent);
            assert!(weak.upgrade().unwrap().is_active());
            drop(child);
            assert!(weak.upgrade().is_none(), "nobody has a handle of it");
        });
    }

    #[test]
    fn what_one_had_that_few_have_the_next_in_its_record_has_not() {
        on_a_thread(|records| {
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
                let place = one.node().record() as *const Record;
                assert_eq!(std::rc::Rc::strong_count(&dropped), 2);
                drop(one);
                assert_eq!(std::rc::Rc::strong_count(&dropped), 1);
                let next = Greenlet::new(|(): ()| Ok(()));
                assert!(ptr::eq(place, next.node().record()), "the record is used again");
                assert!(next.name().is_none() && next.locals().is_none());
                assert!(next.attached::<()>().is_none());
                assert_eq!(next.node().stack_size(), crate::stack::DEFAULT_SIZE);
                next.switch::<()>(()).unwrap();
                // Also where it gets these when it has ended.
                next.set_locals(crate::Locals::new());
                assert!(next.attach(std::rc::Rc::clone(&dropped)));
                drop(next);
                assert_eq!(std::rc::Rc::strong_count(&dropped), 1);
                assert_eq!(check(records).1, 1);
            }
        });
    }

    #[test]
    fn a_record_is_not_used_again_while_a_weak_handle_points_to_it() {
        on_a_thread(|records| {
            let gone = Greenlet::new(|(): ()| Ok(()));
            let weak = gone.downgrade();
            drop(gone);
            assert_eq!(check(records).1, 2);
            let others: Vec<Greenlet> = (0..2 * RECORDS).map(|_| Greenlet::new(|(): ()| Ok(()))).collect();
            assert!(weak.upgrade().is_none());
            assert_eq!(check(records).1, 2 + others.len());
            drop(weak);
            assert_eq!(check(records).1, 1 + others.len());
        });
    }

    #[test]
    fn a_function_stays_in_its_own_record() {
        on_a_thread(|records| {
            macro_rules! each {
                ($($size:literal)*) => {$({
                    let bytes = std::hint::black_box([0xA5_u8; $size]);
                    let greenlet = Greenlet::new(move |(): ()| Ok(bytes[0]));
                    assert_eq!(check(records).1, 2, "{} bytes", $size);
                    assert_eq!(greenlet.switch::<u8>(()).unwrap(), 0xA5);
                })*};
            }
            each!(1 8 24 31 32 33 40 41 48 100 1000);
            assert_eq!(check(records).1, 1);
        });
    }

    #[test]
    fn blocks_that_become_empty_are_released() {
        on_a_thread(|records| {
            let many: Vec<Greenlet> = (0..100 * RECORDS)
                .map(|_| Greenlet::new(|(): ()| Ok(())))
                .collect();
            assert_eq!(check(records), (101, 100 * RECORDS + 1));
            drop(many);
            let (blocks, in_use) = check(records);
            assert_eq!(in_use, 1);
            assert!(blocks <= 3, "{blocks}");
        });
    }
}
