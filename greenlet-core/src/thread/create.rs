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
        let main = self.create(None, Status::main(), Location::caller());
        main.set_name("main".into());
        main
    }

    #[inline(always)] // a call costs 16 of 254 instructions of create, run, end (release)
    fn create(
        &self,
        parent: Option<Greenlet>,
        status: Status,
        created_at: &'static Location<'static>,
    ) -> InnerRc {
        let node = self
            .pool
            .alloc(parent, status, self.next_greenlet_id(), created_at);
        if TRACK_AGES.load(Ordering::Relaxed) {
            self.record_creation(&node);
        }
        node
    }

    #[cold]
    fn record_creation(&self, node: &Inner) {
        self.creation_times.borrow_mut().insert(node.id(), Instant::now());
        node.status.set_has_extras();
    }
}

/// Creates the node of a pending greenlet on the calling thread. It has no closure yet.
#[inline(never)] // the same for all types
pub(crate) fn create_pending(parent: Greenlet, created_at: &'static Location<'static>) -> InnerRc {
    ThreadState::current().create(Some(parent), Status::pending(), created_at)
}
