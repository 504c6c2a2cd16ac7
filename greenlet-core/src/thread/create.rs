//! Creates the nodes of greenlets: gives each an id, and records the time if ages are tracked.

#![forbid(unsafe_code)]

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::node::status::Status;
use crate::thread::ThreadState;

/// Set if all threads record when they create greenlets. Off by default: reading the clock and
/// storing the time takes nearly as long as creating a greenlet.
pub(crate) static TRACK_AGES: AtomicBool = AtomicBool::new(false);

impl ThreadState {
    /// Creates the node of the main greenlet.
    pub(super) fn create_main(&self) -> InnerRc {
        let main = create_in(self.pool.take_free(), None, Status::main(), Location::caller());
        main.set_name("main".into());
        main
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
    if TRACK_AGES.load(Ordering::Relaxed) {
        return record_creation(node);
    }
    node
}

#[cold]
#[inline(never)]
fn record_creation(node: InnerRc) -> InnerRc {
    let times = &ThreadState::current().creation_times;
    times.borrow_mut().insert(node.id(), Instant::now());
    node.status.set_has_extras();
    node
}
