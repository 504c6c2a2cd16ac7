//! Gates: close a greenlet, and all below it, to switches from anywhere but their owner.
//!
//! For those who build a bridge to something else that decides when a greenlet goes on, as the driver
//! of `greenlet_spawn` does: while a future is awaited, whoever else switched into the waiting greenlet,
//! or into one that will end into it, would take the place of the wake-up.
//!
//! ```text
//!   main ── root [gate] ── child        closed: a switch to root, child or grandchild is refused
//!                            └── grandchild        with `Awaiting`, unless it comes from inside
//! ```
//!
//! Closing is two words written where nobody but the owner refers to the root, which is the common case.
//! Where something does (a handle, a child), the hub counts the gate, and every switch of the thread
//! looks for closed gates in its target's lineage until it opens.
//!
//! # Invariants
//!
//! - **G1** Nothing below a closed gate runs: the gate is closed by code outside, after control has left;
//!   nothing active is moved below one or out from below one (`Greenlet::set_parent`).
//! - **G2** The resume point of a greenlet that is closed, or kept suspended, is in `Node::held`, and
//!   `Node::seat.sp` is null: so the fast path never takes it.
//! - **G3** What is kept suspended counts as a closed gate for all below it, whoever opens gates
//!   meanwhile. No stage of an end is delivered to it: each looks, also the second, for the first may
//!   have led to who keeps it (`end::end`).

#![forbid(unsafe_code)]

use std::ptr;

use crate::greenlet::Greenlet;
use crate::node::Node;
use crate::node::status::{Gate, Kept};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;
use crate::thread::{Hub, slow};

impl Greenlet {
    /// Closes this greenlet and all below it: switching or throwing there is refused with
    /// [`Awaiting`](crate::Awaiting) until [`open_gate`](Greenlet::open_gate).
    ///
    /// For the owner of a greenlet that waits for something outside; see the module's documentation.
    /// Ending it, or dropping the last handle of one below, is still possible.
    ///
    /// # Panics
    ///
    /// Panics if the running greenlet is this one or below it, for then it would go on behind a closed
    /// gate.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Awaiting, Greenlet, getparent};
    ///
    /// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>(()));
    /// waiting.switch::<()>(())?;
    /// waiting.close_gate();
    /// assert!(waiting.switch::<u32>(1_u32).unwrap_err().is::<Awaiting>());
    /// waiting.open_gate();
    /// assert_eq!(waiting.switch::<u32>(2_u32)?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn close_gate(&self) {
        let hub = Hub::get();
        let node = self.node();
        if node.standing.gate() != Gate::Open || !node.standing.is_active() {
            return;
        }
        assert!(
            !node.seat.sp.get().is_null() && !hub.is_current(node),
            "the gate of a running greenlet cannot be closed"
        );
        node.held.set(node.seat.sp.replace(ptr::null_mut()));
        node.standing.set_gate(Gate::Closed);
        if node.count() > COUNT_OF_LAST_HANDLE {
            self.close_for_those_below(hub);
        }
    }

    #[cold]
    fn close_for_those_below(&self, hub: &Hub) {
        let node = self.node();
        if hub.current_node().has_in_lineage(node) {
            self.open_gate();
            panic!("the gate of a greenlet cannot be closed from below it");
        }
        count_gate(hub, node);
    }

    /// Runs `during`; meanwhile nothing resumes this greenlet or one below it, not even to end it. An end
    /// that comes meanwhile is done afterwards.
    ///
    /// For the owner of a suspended greenlet, who works on something that stands on the greenlet's stack.
    ///
    /// # Panics
    ///
    /// Panics if the greenlet is not suspended, and if it is kept suspended already.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Awaiting, Greenlet, getparent};
    ///
    /// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    /// waiting.switch::<()>(())?;
    /// waiting.keep_suspended(|| {
    ///     assert!(waiting.switch::<()>(()).unwrap_err().is::<Awaiting>());
    ///     waiting.end();
    ///     assert!(waiting.is_active());
    /// });
    /// assert!(waiting.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline]
    pub fn keep_suspended<T>(&self, during: impl FnOnce() -> T) -> T {
        let node = self.node();
        assert!(
            node.standing.kept() == Kept::No,
            "the greenlet is kept suspended already"
        );
        assert!(
            !Hub::get().is_current(node),
            "the running greenlet cannot be kept suspended"
        );
        // G2: hidden, whether or not a gate has hidden it before.
        if !node.seat.sp.get().is_null() {
            node.held.set(node.seat.sp.replace(ptr::null_mut()));
        }
        assert!(
            !node.held.get().is_null(),
            "only a suspended greenlet can be kept suspended"
        );
        node.standing.set_kept(Kept::Yes);
        let is_counted = node.count() > COUNT_OF_LAST_HANDLE;
        if is_counted {
            count_closed(Hub::get());
        }
        let _release = Release {
            greenlet: self,
            is_counted,
        };
        during()
    }

    /// Opens what [`close_gate`](Greenlet::close_gate) closed.
    #[inline]
    pub fn open_gate(&self) {
        if self.node().standing.gate() != Gate::Open {
            self.open_closed_gate();
        }
    }

    fn open_closed_gate(&self) {
        let node = self.node();
        let gate = node.standing.set_gate(Gate::Open);
        if node.standing.kept() == Kept::No {
            show(node);
        }
        if gate == Gate::ClosedAndCounted {
            uncount_closed(Hub::get());
        }
    }
}

/// The resume point can be seen again.
#[inline]
fn show(node: &Node) {
    if node.seat.sp.get().is_null() {
        node.seat.sp.set(node.held.replace(ptr::null_mut()));
    }
}

/// The end of a time in which a greenlet was kept suspended.
struct Release<'a> {
    greenlet: &'a Greenlet,
    is_counted: bool,
}

impl Drop for Release<'_> {
    #[inline]
    fn drop(&mut self) {
        let node = self.greenlet.node();
        let kept = node.standing.set_kept(Kept::No);
        if node.standing.gate() == Gate::Open {
            show(node);
        }
        if self.is_counted {
            uncount_closed(Hub::get());
        }
        if kept == Kept::YesThenEnd {
            // CAUTION: runs foreign code.
            self.greenlet.end();
        }
    }
}

/// Makes every switch of the thread look for this closed gate.
fn count_gate(hub: &Hub, node: &Node) {
    if node.standing.gate() == Gate::Closed {
        node.standing.set_gate(Gate::ClosedAndCounted);
        count_closed(hub);
    }
}

#[cold]
fn count_closed(hub: &Hub) {
    hub.closed_gates.set(hub.closed_gates.get() + 1);
    hub.raise_flag(slow::GATES);
}

#[cold]
fn uncount_closed(hub: &Hub) {
    hub.closed_gates.set(hub.closed_gates.get() - 1);
    if hub.closed_gates.get() == 0 {
        hub.lower_flag(slow::GATES);
    }
}

/// A greenlet with a closed gate was ended: the gate goes with it.
pub(crate) fn forget(hub: &Hub, node: &Node) {
    if node.standing.set_gate(Gate::Open) == Gate::ClosedAndCounted {
        uncount_closed(hub);
    }
}
