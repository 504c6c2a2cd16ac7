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
use std::cell::{Cell, OnceCell, RefCell};
use std::panic::Location;
use std::rc::Rc;

use crate::ahead::Soon;
use crate::backend;
use crate::entry::Body;
use crate::greenlet::Greenlet;
use crate::local::Locals;
use crate::stack::Stack;
use crate::state::{Lifecycle, State};
use crate::thread::Hub;

/// The record of one greenlet. What a switch reads and writes stands first, so that together with the
/// counters in front of it (`Rc`) it is one cache line or two.
#[repr(C)]
pub(crate) struct Node {
    /// Where to go on. Null unless the greenlet is suspended and anybody may switch to it: so this one
    /// look says whether a switch can take the fast path. Written by `switch.rs` alone.
    pub(crate) resume: Cell<*mut u8>,
    /// Where the greenlet switched away the last time. `None` before that.
    pub(crate) parked_at: Cell<Option<&'static Location<'static>>>,
    /// Whose memory to fetch when the greenlet is switched to.
    pub(crate) soon: Cell<Soon>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) gate: Cell<Gate>,
    /// Whether nothing may resume the greenlet, not even to end it: see `Greenlet::keep_suspended`.
    pub(crate) kept: Cell<Kept>,
    /// The greenlet did not end even by force: it is left alone, and its stack is leaked.
    pub(crate) abandoned: Cell<bool>,
    pub(crate) is_main: bool,
    /// `None` for main alone (and for what is being destroyed).
    pub(crate) parent: RefCell<Option<Greenlet>>,
    /// A handle of the node in itself, from start to finish: an active greenlet needs no other handle
    /// to exist.
    pub(crate) itself: Cell<Option<Rc<Node>>>,
    /// From start to finish. `None` for main, which runs on the thread's own stack.
    pub(crate) stack: Cell<Option<Stack>>,
    /// Until the start.
    pub(crate) body: RefCell<Option<Box<dyn Body>>>,
    /// While the gate is closed: what `resume` was.
    pub(crate) held: Cell<*mut u8>,
    /// Where the node stands in the hub's list of all nodes of the thread.
    pub(crate) index: Cell<usize>,
    pub(crate) stack_size: usize,
    pub(crate) id: u64,
    pub(crate) name: Option<Box<str>>,
    pub(crate) made_at: &'static Location<'static>,
    /// `None` until something is set, as in all greenlets that use no local variables.
    pub(crate) locals: Cell<Option<Locals>>,
    pub(crate) attachment: OnceCell<Rc<dyn Any>>,
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

/// What a node is made from.
pub(crate) struct NodeParts {
    pub(crate) parent: Option<Greenlet>,
    pub(crate) body: Option<Box<dyn Body>>,
    pub(crate) stack_size: usize,
    pub(crate) name: Option<Box<str>>,
    pub(crate) locals: Option<Locals>,
    pub(crate) made_at: &'static Location<'static>,
}

impl Node {
    /// Makes a node and enters it into the list of its thread. Without a body it is the main greenlet.
    #[inline]
    pub(crate) fn new(hub: &Hub, parts: NodeParts) -> Rc<Node> {
        let is_main = parts.body.is_none();
        let node = Rc::new(Node {
            resume: Cell::new(std::ptr::null_mut()),
            parked_at: Cell::new(None),
            soon: Cell::new(Soon::NOBODY),
            lifecycle: Lifecycle::new(if is_main { State::Active } else { State::Pending }),
            gate: Cell::new(Gate::Open),
            kept: Cell::new(Kept::No),
            abandoned: Cell::new(false),
            is_main,
            parent: RefCell::new(parts.parent),
            itself: Cell::new(None),
            stack: Cell::new(None),
            body: RefCell::new(parts.body),
            held: Cell::new(std::ptr::null_mut()),
            index: Cell::new(0),
            stack_size: parts.stack_size,
            id: hub.next_greenlet_id(),
            name: parts.name,
            locals: Cell::new(parts.locals),
            made_at: parts.made_at,
            attachment: OnceCell::new(),
        });
        hub.enroll(&node);
        node
    }

    /// What to call the greenlet in a message.
    pub(crate) fn label(&self) -> String {
        match &self.name {
            _ if self.is_main => "the main greenlet".into(),
            Some(name) => format!("greenlet '{name}'"),
            None => format!("greenlet {} made at {}", self.id, self.made_at),
        }
    }

    /// What `resume` is, read in a way that the processor can foresee.
    #[inline(always)] // part of the fast path
    pub(crate) fn resume_ahead(&self) -> *mut u8 {
        backend::off_frame_pointer(&self.resume).get()
    }

    /// Where the greenlet goes on, its gate closed or not. Null if it is not suspended.
    pub(crate) fn resume_point(&self) -> *mut u8 {
        match self.resume.get() {
            resume if resume.is_null() => self.held.get(),
            resume => resume,
        }
    }

    /// Says whether `node` is this node or one of its ancestors.
    pub(crate) fn has_in_lineage(self: &Rc<Node>, node: &Rc<Node>) -> bool {
        lineage(self).any(|ancestor| Rc::ptr_eq(&ancestor, node))
    }

    /// Says whether this node or an ancestor has a closed gate, or is kept suspended, and returns the
    /// first that does.
    pub(crate) fn closed_gate(self: &Rc<Node>) -> Option<Rc<Node>> {
        lineage(self).find(|node| node.gate.get() != Gate::Open || node.kept.get() != Kept::No)
    }

    /// Says whether there is no such node.
    pub(crate) fn has_open_gates(self: &Rc<Node>) -> bool {
        let is_open = |node: &Node| node.gate.get() == Gate::Open && node.kept.get() == Kept::No;
        let parent = self.parent.borrow();
        match parent.as_ref().map(Greenlet::node) {
            // Most greenlets: the lineage ends here.
            Some(parent) if parent.is_main => is_open(self) && is_open(parent),
            _ => self.closed_gate().is_none(),
        }
    }

    /// The first greenlet from this one upwards that is not dead. `None` where even main is, when the
    /// thread has ended.
    pub(crate) fn nearest_living(self: &Rc<Node>) -> Option<Rc<Node>> {
        lineage(self).find(|node| !node.lifecycle.is_dead())
    }

    /// A handle of the parent.
    pub(crate) fn parent_greenlet(&self) -> Option<Greenlet> {
        self.parent.borrow().clone()
    }

    pub(crate) fn parent_node(&self) -> Option<Rc<Node>> {
        self.parent
            .borrow()
            .as_ref()
            .map(|parent| Rc::clone(parent.node()))
    }
}

/// A node, its parent, and so on up to main.
pub(crate) fn lineage(node: &Rc<Node>) -> impl Iterator<Item = Rc<Node>> {
    std::iter::successors(Some(Rc::clone(node)), |node| node.parent_node())
}

impl Drop for Node {
    fn drop(&mut self) {
        // First, so that nothing finds a half-dropped node in the list.
        Hub::get().strike_off(self);
        // CAUTION: runs foreign code (what the function of a pending greenlet captured).
        drop(self.body.take());
        // CAUTION: runs foreign code (the values of its local variables).
        drop(self.locals.take());
        // A long chain of parents that have no other handle is released in a loop: recursion would need
        // a stack as deep as the chain is long.
        let mut next = self.parent.take();
        while let Some(parent) = next {
            // CAUTION: runs foreign code: it may end the parent (rules PA-12, DE-23).
            parent.end_if_last_handle();
            let last = Rc::strong_count(parent.node()) == 1;
            next = if last { parent.node().parent.take() } else { None };
            drop(parent);
        }
    }
}
