//! Creates the nodes of greenlets: gives each an id, and records the time if ages are tracked.

#![forbid(unsafe_code)]

use std::panic::Location;

use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::node::status::Status;
use crate::thread::ThreadState;

impl ThreadState {
    /// Creates the node of the main greenlet.
    pub(super) fn create_main(&self) -> InnerRc {
        let main = self.create(None, Status::main(), Location::caller());
        main.set_name("main".into());
        main
    }

    #[inline]
    fn create(
        &self,
        parent: Option<Greenlet>,
        status: Status,
        created_at: &'static Location<'static>,
    ) -> InnerRc {
        let node = self
            .pool
            .alloc(parent, status, self.next_greenlet_id(), created_at);
        if self.tracks_ages() {
            self.record_creation(&node);
            node.status.set_has_extras();
        }
        node
    }
}

/// Creates the node of a pending greenlet on the calling thread. It has no closure yet.
#[inline(never)] // the same for all types
pub(crate) fn create_pending(parent: Greenlet, created_at: &'static Location<'static>) -> InnerRc {
    ThreadState::current().create(Some(parent), Status::pending(), created_at)
}
