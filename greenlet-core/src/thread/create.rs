//! Creates the nodes of greenlets: gives each an id, and a record if ages or stacks are tracked.

#![forbid(unsafe_code)]

use std::panic::Location;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::node::status::Status;
use crate::stack;
use crate::thread::ThreadState;

/// What all threads record about the greenlets that they create: bits of [`track`]. Nothing by
/// default: reading the clock and storing the time takes nearly as long as creating a greenlet.
static TRACKED: AtomicU8 = AtomicU8::new(0);

/// The bits of [`TRACKED`].
pub(crate) mod track {
    /// The time of the creation.
    pub(crate) const AGES: u8 = 1;
    /// How much of its stack the greenlet has used, when it ends.
    pub(crate) const HIGH_WATER: u8 = 1 << 1;
}

/// Starts or stops recording what a bit of [`track`] names.
pub(crate) fn set_tracked(what: u8, tracked: bool) {
    match tracked {
        true => TRACKED.fetch_or(what, Ordering::Relaxed),
        false => TRACKED.fetch_and(!what, Ordering::Relaxed),
    };
}

/// What is recorded about a greenlet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Record {
    pub(crate) created: Option<Instant>,
    /// [`stack::high_water`], of a dead greenlet.
    pub(crate) high_water: Option<usize>,
}

impl ThreadState {
    /// Creates the node of the main greenlet.
    pub(super) fn create_main(&self) -> InnerRc {
        let main = create_in(self.pool.take_free(), None, Status::main(), Location::caller());
        main.set_name("main".into());
        main
    }

    /// Records how much of its stack the running greenlet has used, which ends.
    #[cold]
    #[inline(never)]
    pub(crate) fn record_high_water(&self, node: &Inner) {
        let used = node.with_stack(stack::high_water);
        if let Some(record) = self.records.borrow_mut().get_mut(&node.id()) {
            record.high_water = used;
        }
    }

    /// Returns what is recorded about the greenlet with this id.
    pub(crate) fn record_of(&self, id: u64) -> Record {
        self.records.borrow().get(&id).copied().unwrap_or_default()
    }
}

/// Creates the node of a pending greenlet on the calling thread. It has no closure yet.
// All its calls are tail calls, so it has no frame: 9 of 207 instructions of create, run, end.
#[inline(never)] // the same for all types
pub(crate) fn create_pending(parent: Greenlet, created_at: &'static Location<'static>) -> InnerRc {
    match ThreadState::current().pool.free_recycled() {
        Some(slot) => create_in(slot, Some(parent), Status::pending(), created_at),
        None => create_pending_slow(parent, created_at),
    }
}

#[cold]
#[inline(never)]
fn create_pending_slow(parent: Greenlet, created_at: &'static Location<'static>) -> InnerRc {
    let slot = ThreadState::current().pool.take_free();
    create_in(slot, Some(parent), Status::pending(), created_at)
}

#[inline]
fn create_in(
    slot: &Inner,
    parent: Option<Greenlet>,
    status: Status,
    created_at: &'static Location<'static>,
) -> InnerRc {
    let id = ThreadState::current().next_greenlet_id();
    let node = InnerRc::new_in(slot, parent, status, id, created_at);
    let tracked = TRACKED.load(Ordering::Relaxed);
    if tracked != 0 {
        return record_creation(node, tracked);
    }
    node
}

#[cold]
#[inline(never)]
fn record_creation(node: InnerRc, tracked: u8) -> InnerRc {
    let record = Record {
        created: (tracked & track::AGES != 0).then(Instant::now),
        high_water: None,
    };
    let records = &ThreadState::current().records;
    records.borrow_mut().insert(node.id(), record);
    node.status.set_has_extras();
    if tracked & track::HIGH_WATER != 0 {
        node.status.set_measured();
    }
    node
}
