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

use crate::backend::SavedContext;
use crate::greenlet::Greenlet;
use crate::greenlet::await_lock;
use crate::greenlet::local::Locals;
use crate::node::closure::{ClosureCell, ClosureVTable};
use crate::node::parent::ParentCell;
use crate::node::record::InnerRc;
use crate::node::status::Status;
use crate::stack::{self, Stack};
use crate::switch::teardown::COUNT_OF_LAST_HANDLE;
use crate::thread::ThreadState;

/// What there is to know of one greenlet. What a switch reads and writes stands first: together with what the
/// record has in front of it, that is one line of the cache.
#[repr(C)]
pub(crate) struct Inner {
    /// Where to go on, if the greenlet does not run. Null unless it is suspended and anybody may switch to it: so this one
    /// look says whether a switch can take the fast path. While the greenlet runs, it means nothing (S1).
    /// It also has where the greenlet switched away the last time.
    pub(crate) context: SavedContext,
    /// `None` for main alone (and for what is being destroyed).
    pub(crate) parent: ParentCell,
    pub(crate) status: Status,
    /// From start to finish. `None` for main, which runs on the thread's own stack.
    pub(crate) stack: Cell<Option<Stack>>,
    /// While the gate is closed: what `context.sp` was.
    pub(crate) hidden_sp: Cell<*mut u8>,
    extras: Extras,
    pub(crate) id: u64,
    pub(crate) created_at: &'static Location<'static>,
    /// What there is to know of the function. It means nothing once the greenlet is not pending any more (Y1).
    pub(crate) vtable: ClosureCell,
}

/// What few greenlets have. Whoever puts something there notes it in `Inner::status`, so that most records are done
/// with without a look at each of these.
#[repr(C)] // two words of nothing are written by one store
struct Extras {
    name: OnceCell<Name>,
    /// `None` until something is set, as in all greenlets that use no local variables.
    locals: Cell<Option<Locals>>,
    attachment: OnceCell<Rc<dyn Any>>,
    stack_size: Cell<usize>,
}

/// A name. In a box of its own, so that it takes one word of a record.
struct Name(Box<Box<str>>);

impl Inner {
    /// Makes the node of a main greenlet.
    pub(crate) fn make_main(thread: &ThreadState) -> InnerRc {
        let main = thread
            .pool
            .alloc(|| Inner::new(thread, None, Status::main(), Location::caller(), None));
        main.set_name("main".into());
        main.record_creation_time(thread);
        main
    }

    /// Makes the node of a pending greenlet.
    ///
    /// It looks for the hub itself: whoever calls would keep that on a stack, and what follows would wait for where that goes on.
    #[inline(never)] // what is made of it depends on nobody's types
    pub(crate) fn make_pending(
        parent: Greenlet,
        created_at: &'static Location<'static>,
        vtable: &'static ClosureVTable,
    ) -> InnerRc {
        let thread = ThreadState::current();
        if thread.tracks_ages() {
            return Inner::make_pending_slow(thread, parent, created_at, vtable);
        }
        let make = |parent| Inner::new(thread, Some(parent), Status::pending(), created_at, Some(vtable));
        match thread.pool.alloc_recycled(parent, make) {
            Ok(node) => node,
            Err(parent) => Inner::make_pending_slow(thread, parent, created_at, vtable),
        }
    }

    /// [`Inner::make_pending`], where there is no spare record, or more to do.
    #[cold]
    #[inline(never)]
    fn make_pending_slow(
        thread: &ThreadState,
        parent: Greenlet,
        created_at: &'static Location<'static>,
        vtable: &'static ClosureVTable,
    ) -> InnerRc {
        let make = || Inner::new(thread, Some(parent), Status::pending(), created_at, Some(vtable));
        let node = thread.pool.alloc(make);
        node.record_creation_time(thread);
        node
    }

    fn record_creation_time(&self, thread: &ThreadState) {
        if thread.tracks_ages() {
            thread.record_creation(self);
            self.status.set_has_extras();
        }
    }

    #[inline(always)] // it is written in its place
    fn new(
        thread: &ThreadState,
        parent: Option<Greenlet>,
        status: Status,
        created_at: &'static Location<'static>,
        vtable: Option<&'static ClosureVTable>,
    ) -> Inner {
        Inner {
            context: SavedContext::new(),
            parent: ParentCell::new(parent),
            status,
            stack: Cell::new(None),
            hidden_sp: Cell::new(std::ptr::null_mut()),
            id: thread.next_greenlet_id(),
            created_at,
            vtable: Cell::new(vtable),
            extras: Extras {
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
        self.extras.stack_size.get()
    }

    pub(crate) fn set_stack_size(&self, bytes: usize) {
        self.status.set_has_extras();
        self.extras.stack_size.set(bytes);
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.extras.name.get().map(|name| &*name.0 as &str)
    }

    /// Gives it a name, once.
    pub(crate) fn set_name(&self, name: Box<str>) {
        self.status.set_has_extras();
        self.extras.name.get_or_init(|| Name(Box::new(name)));
    }

    /// Where its local variables are, if there are any.
    pub(crate) fn locals(&self) -> Option<Locals> {
        let locals = self.extras.locals.take();
        self.extras.locals.set(locals.clone());
        locals
    }

    /// Puts other local variables there, and returns those that were.
    pub(crate) fn replace_locals(&self, locals: Option<Locals>) -> Option<Locals> {
        self.status.set_has_extras();
        self.extras.locals.replace(locals)
    }

    pub(crate) fn attachment(&self) -> Option<&Rc<dyn Any>> {
        self.extras.attachment.get()
    }

    /// Attaches something, once; says whether there was room.
    pub(crate) fn attach(&self, thing: Rc<dyn Any>) -> bool {
        self.status.set_has_extras();
        self.extras.attachment.set(thing).is_ok()
    }

    /// The node that a context belongs to: it stands first.
    #[inline(always)] // nothing
    pub(crate) fn of_context(context: *const SavedContext) -> *const Inner {
        const { assert!(std::mem::offset_of!(Inner, context) == 0) };
        context.cast()
    }

    /// What to call the greenlet in a message.
    pub(crate) fn label(&self) -> String {
        match self.name() {
            _ if self.status.is_main() => "the main greenlet".into(),
            Some(name) => format!("greenlet '{name}'"),
            None => format!("greenlet {} created at {}", self.id, self.created_at),
        }
    }

    /// The greenlet has finished.
    #[inline]
    pub(crate) fn finish(&self) {
        self.status.finish();
        self.context.sp.set(std::ptr::null_mut()); // S1
    }

    /// Marks a suspended greenlet as dead because the thread or the process ends (T4).
    pub(crate) fn leave(&self, thread: &ThreadState) {
        await_lock::forget(thread, self);
        // Values on the stack may refer to what these own. One count of each is never released.
        std::mem::forget(self.locals());
        std::mem::forget(self.attachment().cloned());
        self.stack.take(); // has no destructor: the memory stays
        thread.stacks.borrow().leak();
        self.hidden_sp.set(std::ptr::null_mut());
        self.finish();
    }

    /// Lets go of all that an ordinary greenlet has that has ended, and runs no foreign code for it; says whether it did: then
    /// this is the end of the node, which is not dropped. The thread has no flag.
    #[inline(always)] // the call would be as long
    pub(crate) fn try_release_fast(&self) -> bool {
        if !self.status.is_plain_dead() {
            return false;
        }
        debug_assert!(self.stack.take().is_none());
        self.parent.try_release_fast()
    }

    /// Where the greenlet goes on, its gate closed or not. Null if it is not suspended; it does not run.
    pub(crate) fn resume_point(&self) -> *mut u8 {
        match self.context.sp.get() {
            resume if resume.is_null() => self.hidden_sp.get(),
            resume => resume,
        }
    }

    /// A handle of the parent.
    #[inline]
    pub(crate) fn parent_greenlet(&self) -> Option<Greenlet> {
        self.parent.get().map(Greenlet::from_inner)
    }
}

impl InnerRc {
    /// Says whether `node` is this node or one of its ancestors.
    pub(crate) fn has_in_lineage(&self, node: &InnerRc) -> bool {
        lineage(self).any(|ancestor| ancestor.is(node))
    }

    /// Says whether this node or an ancestor has a closed gate, or is kept suspended, and returns the
    /// first that does.
    pub(crate) fn await_locked_ancestor(&self) -> Option<InnerRc> {
        lineage(self).find(|node| !node.status.is_unlocked())
    }

    /// Says whether there is no such node.
    #[inline]
    pub(crate) fn is_open_to_switches(&self) -> bool {
        if self.parent.is_unlocked_main() {
            // Most greenlets: the lineage ends here.
            return self.status.is_unlocked();
        }
        self.await_locked_ancestor().is_none()
    }

    /// The first greenlet from this one upwards that is not dead. `None` where even main is, when the
    /// thread has ended.
    pub(crate) fn nearest_living(&self) -> Option<InnerRc> {
        lineage(self).find(|node| !node.status.is_dead())
    }
}

/// A node, its parent, and so on up to main.
pub(crate) fn lineage(node: &InnerRc) -> impl Iterator<Item = InnerRc> {
    std::iter::successors(Some(node.clone()), |node| node.parent.get())
}

impl Drop for Inner {
    fn drop(&mut self) {
        ThreadState::current().forget_node(self);
        // CAUTION: runs foreign code (the values of its local variables).
        drop(self.extras.locals.take());
        if let Some(parent) = self.parent.take() {
            // CAUTION: runs foreign code where it was the last handle.
            match parent.inner().strong_count() > COUNT_OF_LAST_HANDLE {
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
        let last = parent.inner().strong_count() == 1;
        next = if last { parent.inner().parent.take() } else { None };
        drop(parent);
    }
}
