//! The record of a greenlet, and the links from child to parent.
//!
//! ```text
//!              main                    every link is a handle: children keep their ancestors
//!             ▲    ▲                   the lineage of `c` is b, main
//!            a      b                  no greenlet is in its own lineage
//!                   ▲                  every lineage ends in the thread's main greenlet
//!                   c
//! ```

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::panic::Location;
use std::rc::Rc;

use crate::ahead::Soon;
use crate::backend::{self, Seat};
use crate::body::Calling;
use crate::end::COUNT_OF_LAST_HANDLE;
use crate::greenlet::Greenlet;
use crate::link::Link;
use crate::local::Locals;
use crate::record::NodeRef;
use crate::stack::{self, Stack};
use crate::state::{Lifecycle, State};
use crate::thread::Hub;

/// What there is to know of one greenlet. What a switch reads and writes stands first: together with what the
/// record has in front of it, that is one line of the cache.
#[repr(C)]
pub(crate) struct Node {
    /// Where to go on, if the greenlet does not run. Null unless it is suspended and anybody may switch to it: so this one
    /// look says whether a switch can take the fast path. While the greenlet runs, it means nothing (S1).
    /// It also has where the greenlet switched away the last time.
    pub(crate) seat: Seat,
    /// `None` for main alone (and for what is being destroyed).
    pub(crate) parent: Link,
    /// Whose memory to fetch when the greenlet is switched to.
    pub(crate) soon: Cell<Soon>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) gate: Cell<Gate>,
    /// Whether nothing may resume the greenlet, not even to end it: see `Greenlet::keep_suspended`.
    pub(crate) kept: Cell<Kept>,
    /// The greenlet did not end even by force: it is left alone, and its stack is leaked.
    pub(crate) abandoned: Cell<bool>,
    pub(crate) is_main: bool,
    /// From start to finish. `None` for main, which runs on the thread's own stack.
    pub(crate) stack: Cell<Option<Stack>>,
    /// While the gate is closed: what `seat.sp` was.
    pub(crate) held: Cell<*mut u8>,
    pub(crate) stack_size: Cell<usize>,
    pub(crate) id: u64,
    pub(crate) name: OnceCell<Name>,
    pub(crate) made_at: &'static Location<'static>,
    /// `None` until something is set, as in all greenlets that use no local variables.
    pub(crate) locals: Cell<Option<Locals>>,
    pub(crate) attachment: OnceCell<Rc<dyn Any>>,
    /// The function, until the start.
    pub(crate) calls: Calling,
}

/// Whether a greenlet and what is below it can be switched to: see `gate.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Closed, and at that time nothing but its owner referred to the greenlet.
    Closed,
    /// Closed, and counted in the hub, so that every switch of the thread looks for it.
    ClosedAndCounted,
}

/// Whether a greenlet is kept suspended for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    No,
    Yes,
    /// It is, and it is to be ended as soon as it is not.
    YesThenEnd,
}

/// A name. In a box of its own, so that it takes one word of a record: few have one.
pub(crate) struct Name(Box<Box<str>>);

impl Name {
    pub(crate) fn new(name: Box<str>) -> Name {
        Name(Box::new(name))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Node {
    /// Makes a node: of the main greenlet where there is no parent, and else of a pending one.
    #[inline(never)] // what is made of it depends on nobody's types
    pub(crate) fn make(hub: &Hub, parent: Option<Greenlet>, made_at: &'static Location<'static>) -> NodeRef {
        let is_main = parent.is_none();
        let node = hub.records.hold(|| Node {
            seat: Seat::new(),
            parent: Link::new(parent),
            soon: Cell::new(Soon::NOBODY),
            lifecycle: Lifecycle::new(if is_main { State::Active } else { State::Pending }),
            gate: Cell::new(Gate::Open),
            kept: Cell::new(Kept::No),
            abandoned: Cell::new(false),
            is_main,
            stack: Cell::new(None),
            held: Cell::new(std::ptr::null_mut()),
            stack_size: Cell::new(stack::DEFAULT_SIZE),
            id: hub.next_greenlet_id(),
            name: OnceCell::new(),
            locals: Cell::new(None),
            made_at,
            attachment: OnceCell::new(),
            calls: Cell::new(None),
        });
        if hub.keeps_ages() {
            hub.note_birth(&node);
        }
        node
    }

    /// The node that a seat belongs to: it stands first.
    #[inline(always)] // nothing
    pub(crate) fn of_seat(seat: *const Seat) -> *const Node {
        const { assert!(std::mem::offset_of!(Node, seat) == 0) };
        seat.cast()
    }

    /// What to call the greenlet in a message.
    pub(crate) fn label(&self) -> String {
        match self.name.get() {
            _ if self.is_main => "the main greenlet".into(),
            Some(name) => format!("greenlet '{}'", name.as_str()),
            None => format!("greenlet {} made at {}", self.id, self.made_at),
        }
    }

    /// What `seat.sp` is, read in a way that the processor can foresee.
    #[inline(always)] // part of the fast path
    pub(crate) fn resume_ahead(&self) -> *mut u8 {
        backend::off_frame_pointer(&self.seat.sp).get()
    }

    /// The greenlet has finished.
    #[inline]
    pub(crate) fn finish(&self) {
        self.lifecycle.finish();
        self.seat.sp.set(std::ptr::null_mut()); // S1
    }

    /// Where the greenlet goes on, its gate closed or not. Null if it is not suspended; it does not run.
    pub(crate) fn resume_point(&self) -> *mut u8 {
        match self.seat.sp.get() {
            resume if resume.is_null() => self.held.get(),
            resume => resume,
        }
    }

    /// Says whether its own gate is open, and it is not kept suspended.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.gate.get() == Gate::Open && self.kept.get() == Kept::No
    }

    /// A handle of the parent.
    #[inline]
    pub(crate) fn parent_greenlet(&self) -> Option<Greenlet> {
        self.parent.node().map(Greenlet::from_node)
    }
}

impl NodeRef {
    /// Says whether `node` is this node or one of its ancestors.
    pub(crate) fn has_in_lineage(&self, node: &NodeRef) -> bool {
        lineage(self).any(|ancestor| ancestor.is(node))
    }

    /// Says whether this node or an ancestor has a closed gate, or is kept suspended, and returns the
    /// first that does.
    pub(crate) fn closed_gate(&self) -> Option<NodeRef> {
        lineage(self).find(|node| !node.is_open())
    }

    /// Says whether there is no such node.
    #[inline]
    pub(crate) fn has_open_gates(&self) -> bool {
        if self.parent.is_open_main() {
            // Most greenlets: the lineage ends here.
            return self.is_open();
        }
        self.closed_gate().is_none()
    }

    /// The first greenlet from this one upwards that is not dead. `None` where even main is, when the
    /// thread has ended.
    pub(crate) fn nearest_living(&self) -> Option<NodeRef> {
        lineage(self).find(|node| !node.lifecycle.is_dead())
    }
}

/// A node, its parent, and so on up to main.
pub(crate) fn lineage(node: &NodeRef) -> impl Iterator<Item = NodeRef> {
    std::iter::successors(Some(node.clone()), |node| node.parent.node())
}

impl Drop for Node {
    fn drop(&mut self) {
        Hub::get().strike_off(self);
        // CAUTION: runs foreign code (the values of its local variables).
        drop(self.locals.take());
        if let Some(parent) = self.parent.take() {
            // CAUTION: runs foreign code where it was the last handle.
            match parent.node().count() > COUNT_OF_LAST_HANDLE {
                true => drop(parent),
                false => release_with_ancestors(parent),
            }
        }
    }
}

/// Lets go of a handle. A long chain of parents that have no other handle is released in a loop: recursion would need
/// a stack as deep as the chain is long.
#[cold]
#[inline(never)]
fn release_with_ancestors(parent: Greenlet) {
    let mut next = Some(parent);
    while let Some(parent) = next {
        // CAUTION: runs foreign code: it may end the parent (rules PA-12, DE-23).
        parent.end_if_last_handle();
        let last = parent.node().count() == 1;
        next = if last { parent.node().parent.take() } else { None };
        drop(parent);
    }
}
