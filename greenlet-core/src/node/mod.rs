//! The record of a greenlet, and the links from child to parent.
//!
//! ```text
//!              main                    every link is a handle: children keep their ancestors
//!             ▲    ▲                   the lineage of `c` is b, main
//!            a      b                  no greenlet is in its own lineage
//!                   ▲                  every lineage ends in the thread's main greenlet
//!                   c
//! ```

pub(crate) mod closure;
pub(crate) mod parent;
pub(crate) mod record;
pub(crate) mod status;

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::panic::Location;
use std::rc::Rc;

use crate::backend::Seat;
use crate::greenlet::Greenlet;
use crate::greenlet::await_lock;
use crate::greenlet::local::Locals;
use crate::node::closure::{Calling, Calls};
use crate::node::parent::Link;
use crate::node::record::NodeRef;
use crate::node::status::Standing;
use crate::stack::{self, Stack};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;
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
    pub(crate) standing: Standing,
    /// From start to finish. `None` for main, which runs on the thread's own stack.
    pub(crate) stack: Cell<Option<Stack>>,
    /// While the gate is closed: what `seat.sp` was.
    pub(crate) held: Cell<*mut u8>,
    more: More,
    pub(crate) id: u64,
    pub(crate) made_at: &'static Location<'static>,
    /// What there is to know of the function. It means nothing once the greenlet is not pending any more (Y1).
    pub(crate) calls: Calling,
}

/// What few greenlets have. Whoever puts something there notes it in `Node::standing`, so that most records are done
/// with without a look at each of these.
#[repr(C)] // two words of nothing are written by one store
struct More {
    name: OnceCell<Name>,
    /// `None` until something is set, as in all greenlets that use no local variables.
    locals: Cell<Option<Locals>>,
    attachment: OnceCell<Rc<dyn Any>>,
    stack_size: Cell<usize>,
}

/// A name. In a box of its own, so that it takes one word of a record.
struct Name(Box<Box<str>>);

impl Node {
    /// Makes the node of a main greenlet.
    pub(crate) fn make_main(hub: &Hub) -> NodeRef {
        let main = hub
            .records
            .hold(|| Node::new(hub, None, Standing::main(), Location::caller(), None));
        main.set_name("main".into());
        main.announce(hub);
        main
    }

    /// Makes the node of a pending greenlet.
    ///
    /// It looks for the hub itself: whoever calls would keep that on a stack, and what follows would wait for where that goes on.
    #[inline(never)] // what is made of it depends on nobody's types
    pub(crate) fn make_pending(
        parent: Greenlet,
        made_at: &'static Location<'static>,
        calls: &'static Calls,
    ) -> NodeRef {
        let hub = Hub::get();
        if hub.keeps_ages() {
            return Node::make_another(hub, parent, made_at, calls);
        }
        let make = |parent| Node::new(hub, Some(parent), Standing::pending(), made_at, Some(calls));
        match hub.records.hold_in_spare(parent, make) {
            Ok(node) => node,
            Err(parent) => Node::make_another(hub, parent, made_at, calls),
        }
    }

    /// [`Node::make_pending`], where there is no spare record, or more to do.
    #[cold]
    #[inline(never)]
    fn make_another(
        hub: &Hub,
        parent: Greenlet,
        made_at: &'static Location<'static>,
        calls: &'static Calls,
    ) -> NodeRef {
        let make = || Node::new(hub, Some(parent), Standing::pending(), made_at, Some(calls));
        let node = hub.records.hold(make);
        node.announce(hub);
        node
    }

    fn announce(&self, hub: &Hub) {
        if hub.keeps_ages() {
            hub.note_birth(self);
            self.standing.note_more();
        }
    }

    #[inline(always)] // it is written in its place
    fn new(
        hub: &Hub,
        parent: Option<Greenlet>,
        standing: Standing,
        made_at: &'static Location<'static>,
        calls: Option<&'static Calls>,
    ) -> Node {
        Node {
            seat: Seat::new(),
            parent: Link::new(parent),
            standing,
            stack: Cell::new(None),
            held: Cell::new(std::ptr::null_mut()),
            id: hub.next_greenlet_id(),
            made_at,
            calls: Cell::new(calls),
            more: More {
                stack_size: Cell::new(stack::DEFAULT_SIZE),
                name: OnceCell::new(),
                locals: Cell::new(None),
                attachment: OnceCell::new(),
            },
        }
    }

    /// The size of the stack that it has, or will have, in bytes.
    #[inline]
    pub(crate) fn stack_size(&self) -> usize {
        self.more.stack_size.get()
    }

    pub(crate) fn set_stack_size(&self, bytes: usize) {
        self.standing.note_more();
        self.more.stack_size.set(bytes);
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.more.name.get().map(|name| &*name.0 as &str)
    }

    /// Gives it a name, once.
    pub(crate) fn set_name(&self, name: Box<str>) {
        self.standing.note_more();
        self.more.name.get_or_init(|| Name(Box::new(name)));
    }

    /// Where its local variables are, if there are any.
    pub(crate) fn locals(&self) -> Option<Locals> {
        let locals = self.more.locals.take();
        self.more.locals.set(locals.clone());
        locals
    }

    /// Puts other local variables there, and returns those that were.
    pub(crate) fn replace_locals(&self, locals: Option<Locals>) -> Option<Locals> {
        self.standing.note_more();
        self.more.locals.replace(locals)
    }

    pub(crate) fn attachment(&self) -> Option<&Rc<dyn Any>> {
        self.more.attachment.get()
    }

    /// Attaches something, once; says whether there was room.
    pub(crate) fn attach(&self, thing: Rc<dyn Any>) -> bool {
        self.standing.note_more();
        self.more.attachment.set(thing).is_ok()
    }

    /// The node that a seat belongs to: it stands first.
    #[inline(always)] // nothing
    pub(crate) fn of_seat(seat: *const Seat) -> *const Node {
        const { assert!(std::mem::offset_of!(Node, seat) == 0) };
        seat.cast()
    }

    /// What to call the greenlet in a message.
    pub(crate) fn label(&self) -> String {
        match self.name() {
            _ if self.standing.is_main() => "the main greenlet".into(),
            Some(name) => format!("greenlet '{name}'"),
            None => format!("greenlet {} made at {}", self.id, self.made_at),
        }
    }

    /// The greenlet has finished.
    #[inline]
    pub(crate) fn finish(&self) {
        self.standing.finish();
        self.seat.sp.set(std::ptr::null_mut()); // S1
    }

    /// Marks a suspended greenlet as dead because the thread or the process ends (T4).
    pub(crate) fn leave(&self, hub: &Hub) {
        await_lock::forget(hub, self);
        // Values on the stack may refer to what these own. One count of each is never released.
        std::mem::forget(self.locals());
        std::mem::forget(self.attachment().cloned());
        self.stack.take(); // has no destructor: the memory stays
        hub.stacks.borrow().leak();
        self.held.set(std::ptr::null_mut());
        self.finish();
    }

    /// Lets go of all that an ordinary greenlet has that has ended, and runs no foreign code for it; says whether it did: then
    /// this is the end of the node, which is not dropped. The thread has no flag.
    #[inline(always)] // the call would be as long
    pub(crate) fn is_let_go_of(&self) -> bool {
        if !self.standing.is_just_dead() {
            return false;
        }
        debug_assert!(self.stack.take().is_none());
        self.parent.is_uncounted()
    }

    /// Where the greenlet goes on, its gate closed or not. Null if it is not suspended; it does not run.
    pub(crate) fn resume_point(&self) -> *mut u8 {
        match self.seat.sp.get() {
            resume if resume.is_null() => self.held.get(),
            resume => resume,
        }
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
        lineage(self).find(|node| !node.standing.is_open())
    }

    /// Says whether there is no such node.
    #[inline]
    pub(crate) fn has_open_gates(&self) -> bool {
        if self.parent.is_open_main() {
            // Most greenlets: the lineage ends here.
            return self.standing.is_open();
        }
        self.closed_gate().is_none()
    }

    /// The first greenlet from this one upwards that is not dead. `None` where even main is, when the
    /// thread has ended.
    pub(crate) fn nearest_living(&self) -> Option<NodeRef> {
        lineage(self).find(|node| !node.standing.is_dead())
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
        drop(self.more.locals.take());
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
