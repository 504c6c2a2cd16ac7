//! The state of one thread: its current and main greenlet, its memory, and why its switches may be
//! slow.
//!
//! ```text
//!   ThreadState ── current ──► Inner of the greenlet that runs
//!               ── main ─────► Inner of the main greenlet
//!               ── pool ─────► the Inners of all greenlets of the thread
//!               ── flags ────► reasons for a switch to take the cold path
//! ```
//!
//! # Invariants
//!
//! - **[current-alive]** `current` is null before the first use of a greenlet. After that it points
//!   to a node that is alive: main, or an active greenlet, whose node is in use until it finishes
//!   [active-kept]. The resumed side of a switch stores it, and until then it points to the greenlet
//!   that switched away, which is alive as well. It becomes null again only with the last node of
//!   the thread.
//! - **[main-alive]** `main` is null or points to a node that is alive. The node's destructor
//!   clears it. The thread state owns a reference to main until the thread ends; a main greenlet
//!   that is created after that belongs to its handles.
//! - **[state-stays]** A thread state never moves and has no destructor, so it can be used until
//!   the thread is gone, from destructors of other thread-locals too. `switch/thread_exit.rs`
//!   releases what it owns.
//! - **[not-borrowed]** No field is borrowed while arbitrary user code runs, or over a stack
//!   switch.

pub(crate) mod create;
pub(crate) mod exit_guard;
mod flags;
pub(crate) mod id;
pub(crate) mod inbox;
pub(crate) mod overflow;
pub(crate) mod prefetch;
mod release;
mod stacks;
pub(crate) mod tracer;
pub(crate) mod unwinding;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) use flags::{SwitchFlags, flag};
pub use id::ThreadId;

use crate::backend::{self, SavedContext, asan};
use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::pool::NodePool;
use crate::node::rc::InnerRc;
use crate::node::status::AwaitLock;
use crate::payload::exit::ExitCache;
use crate::payload::why::Why;
use crate::stack::{self, SignalStack, Stack, StackCache};
use crate::thread::create::Record;
use crate::thread::inbox::Inbox;
use crate::thread::prefetch::Prefetcher;
use crate::thread::tracer::Tracer;

/// Why a greenlet is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its last handle was dropped.
    HandleDropped,
    /// Its owner called `Greenlet::end`.
    Ended,
}

/// The end of a greenlet that has to wait: see `switch/deferred.rs`.
pub(crate) struct Deferred {
    pub(crate) greenlet: Greenlet,
    pub(crate) cause: Cause,
    /// What ends it, if its owner has code around the end.
    pub(crate) by: Option<Box<dyn FnOnce()>>,
}

/// The state of one thread.
pub(crate) struct ThreadState {
    /// [current-alive]. Read by tools/greenlet-gdb.py.
    current: Cell<*const Inner>,
    /// Read by tools/greenlet-gdb.py, which finds the thread state by its offset.
    pub(crate) flags: SwitchFlags,
    /// [main-alive]
    main: Cell<*const Inner>,
    next_greenlet_id: Cell<u64>,
    /// The memory of all nodes of the thread. Read by tools/greenlet-gdb.py.
    pub(crate) pool: NodePool,
    /// The ends that wait. Empty exactly if `DEFERRED` is clear.
    pub(crate) deferred: RefCell<VecDeque<Deferred>>,
    /// The stack of the greenlet that finished last.
    last_stack: Cell<Option<Stack>>,
    pub(crate) stacks: RefCell<StackCache>,
    pub(crate) fibers: asan::Fibers,
    pub(crate) signal_stack: SignalStack,
    pub(crate) tracer: RefCell<Option<Tracer>>,
    /// Where the outermost `no_switch` section began. `Some` while `NO_SWITCH` is set.
    pub(crate) no_switch_since: Cell<Option<&'static Location<'static>>>,
    /// An address in the frame of the innermost `no_switch` section. A generator whose body has
    /// that frame must not yield.
    pub(crate) no_switch_frame: Cell<*const u8>,
    /// All bits while `NO_SWITCH` is set, otherwise none: see `Yielder::yield_`.
    pub(crate) no_switch_mask: Cell<usize>,
    /// How many locked greenlets are counted: those that others refer to (see `await_lock.rs`).
    await_locks: Cell<usize>,
    /// How many waits were refused during the innermost end (see `switch/teardown.rs`).
    pub(crate) refusals: Cell<u32>,
    /// Why the thread unwinds without a panic, if it does.
    pub(crate) unwinding: Cell<Option<Why>>,
    /// How often a parent has changed, so that an end knows if its clean-up has changed any.
    parent_changes: Cell<u64>,
    pub(crate) prefetcher: Prefetcher,
    pub(crate) exit_cache: ExitCache,
    /// `Some` while the thread is in the registry.
    inbox: RefCell<Option<Arc<Inbox>>>,
    /// By the greenlet's id. Only of greenlets that were created while ages or stacks were tracked.
    pub(crate) records: RefCell<BTreeMap<u64, Record>>,
    /// By the greenlet's id: its attachments except the first.
    pub(crate) later_attachments: RefCell<BTreeMap<u64, Vec<Rc<dyn Any>>>>,
}

thread_local! {
    /// `ManuallyDrop` removes the destructor. [state-stays]
    static THREAD_STATE: ManuallyDrop<ThreadState> = const { ManuallyDrop::new(ThreadState::new()) };
}

impl ThreadState {
    const fn new() -> ThreadState {
        ThreadState {
            current: Cell::new(ptr::null()),
            flags: SwitchFlags::new(),
            main: Cell::new(ptr::null()),
            next_greenlet_id: Cell::new(0),
            pool: NodePool::new(),
            deferred: RefCell::new(VecDeque::new()),
            last_stack: Cell::new(None),
            stacks: RefCell::new(StackCache::new()),
            fibers: asan::Fibers::new(),
            signal_stack: SignalStack::none(),
            tracer: RefCell::new(None),
            no_switch_since: Cell::new(None),
            no_switch_frame: Cell::new(ptr::null()),
            no_switch_mask: Cell::new(0),
            await_locks: Cell::new(0),
            refusals: Cell::new(0),
            unwinding: Cell::new(None),
            parent_changes: Cell::new(0),
            prefetcher: Prefetcher::new(),
            exit_cache: ExitCache::none(),
            inbox: RefCell::new(None),
            records: RefCell::new(BTreeMap::new()),
            later_attachments: RefCell::new(BTreeMap::new()),
        }
    }

    /// Returns the state of the calling thread.
    #[inline]
    pub(crate) fn current() -> &'static ThreadState {
        THREAD_STATE.with(|thread| {
            let thread: *const ThreadState = &raw const **thread;
            // SAFETY: the state stays valid until the thread is gone, and the reference cannot
            // leave the thread, because `ThreadState` is not `Sync`. [state-stays] (Only
            // `inbox.rs` gives another thread a pointer to a field.)
            unsafe { &*thread }
        })
    }

    /// Creates the main greenlet, which is then current.
    #[cold]
    #[inline(never)]
    fn set_up(&self) -> InnerRc {
        backend::mark_copy();
        let is_alive = !self.has_flag(flag::EXITING) && exit_guard::install();
        let main = self.create_main();
        self.main.set(main.as_ptr());
        self.current.set(main.as_ptr());
        if is_alive {
            main.clone().into_raw();
            inbox::register(self);
            stack::set_idle_but_counted(|| ThreadState::current().idle_but_counted());
        } else {
            // The destructor of a thread-local asked for a greenlet, and the thread runs nothing
            // else any more. This main belongs to its handles alone. [main-alive]
            self.raise_flag(flag::EXITING);
            main.finish();
        }
        main
    }

    /// Creates the main greenlet if there is none. This also installs the guard of the thread's
    /// end, which releases the fields.
    pub(crate) fn ensure_set_up(&self) {
        if self.current.get().is_null() {
            drop(self.set_up());
        }
    }

    /// The current greenlet's node, without a reference to it. Null before [`ThreadState::set_up`].
    #[inline]
    pub(crate) fn current_ptr(&self) -> *const Inner {
        self.current.get()
    }

    /// The current greenlet's id. `None` before [`ThreadState::set_up`].
    #[inline]
    pub(crate) fn current_id(&self) -> Option<u64> {
        // SAFETY: it points to a node that is alive [current-alive].
        unsafe { self.current.get().as_ref() }.map(Inner::id)
    }

    /// The main greenlet's node, without a reference to it. Null before [`ThreadState::set_up`].
    pub(crate) fn main_ptr(&self) -> *const Inner {
        self.main.get()
    }

    /// Makes the greenlet that `own` belongs to the current one. Only the code that a switch
    /// resumes calls this, with its own context.
    #[inline]
    pub(crate) fn set_current(&self, own: *const SavedContext) {
        self.current.set(Inner::of_context(own));
    }

    #[inline]
    pub(crate) fn current_inner(&self) -> InnerRc {
        self.inner_in(&self.current)
    }

    #[inline]
    pub(crate) fn main_inner(&self) -> InnerRc {
        self.inner_in(&self.main)
    }

    /// Returns a reference to the node that `self.current` or `self.main` points to.
    #[inline]
    fn inner_in(&self, field: &Cell<*const Inner>) -> InnerRc {
        if field.get().is_null() {
            return self.set_up();
        }
        // SAFETY: both fields point to nodes that are alive. [current-alive] [main-alive]
        unsafe { &*field.get() }.to_rc()
    }

    #[inline]
    pub(crate) fn is_current(&self, node: &Inner) -> bool {
        ptr::eq(self.current.get(), node)
    }

    /// Returns `true` if no flag forbids a switch, or requires something to be done before it.
    #[inline]
    pub(crate) fn allows_switch(&self) -> bool {
        self.flags.get() & !flag::PREFETCH == 0
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    pub(crate) fn raise_flag(&self, flag: u32) {
        self.flags.raise(flag);
    }

    pub(crate) fn lower_flag(&self, flag: u32) {
        self.flags.lower(flag);
    }

    /// Returns the id of the next greenlet. Ids count from 0, the id of the main greenlet.
    pub(crate) fn next_greenlet_id(&self) -> u64 {
        let id = self.next_greenlet_id.get();
        self.next_greenlet_id.set(id + 1);
        id
    }

    /// Counts a lock that switches must search for: see `greenlet/await_lock.rs`.
    #[cold]
    pub(crate) fn add_await_lock(&self) {
        self.await_locks.set(self.await_locks.get() + 1);
        self.raise_flag(flag::AWAIT_LOCKS);
    }

    #[cold]
    pub(crate) fn remove_await_lock(&self) {
        self.await_locks.set(self.await_locks.get() - 1);
        if self.await_locks.get() == 0 {
            self.lower_flag(flag::AWAIT_LOCKS);
        }
    }

    /// Releases a node that is being ended from its await lock, if it has one.
    #[inline]
    pub(crate) fn release_await_lock(&self, node: &Inner) {
        if node.status.set_await_lock(AwaitLock::Unlocked) == AwaitLock::LockedAndCounted {
            self.remove_await_lock();
        }
    }

    /// Counts a change of a parent. Returns how many there were.
    pub(crate) fn count_parent_change(&self) -> u64 {
        let changes = self.parent_changes.get() + 1;
        self.parent_changes.set(changes);
        changes
    }

    /// Iterates over all greenlets of the thread, in the order of their creation.
    ///
    /// The handle of each is made only when the iterator reaches it. So dropping the last other
    /// handle of a later greenlet still ends it.
    pub(crate) fn all_greenlets(&self) -> impl Iterator<Item = Greenlet> + use<> {
        let mut nodes = self.pool.all();
        nodes.sort_by_key(|(id, _)| *id);
        nodes
            .into_iter()
            .filter_map(|(_, node)| node.upgrade().map(Greenlet::from_inner))
    }
}

/// Calls `look` with the current greenlet's node, without a reference to it.
#[inline]
pub(crate) fn with_current_inner<R>(look: impl FnOnce(&Inner) -> R) -> R {
    let thread = ThreadState::current();
    // At the end of the thread, `look` might drop the last handle of a main greenlet that only its
    // handles own. [main-alive]
    let is_rare = thread.current_ptr().is_null() || thread.has_flag(flag::EXITING);
    let _kept = is_rare.then(|| thread.current_inner());
    // One call of `look`, so that it is inlined: a return after a switch is mispredicted.
    // SAFETY: the thread owns main until it ends, and the node of any other greenlet is in use until
    // it finishes [active-kept]. It cannot finish before `look`, which runs on its stack, has returned.
    look(unsafe { &*thread.current_ptr() })
}

#[inline]
pub(crate) fn current_greenlet() -> Greenlet {
    Greenlet::from_inner(ThreadState::current().current_inner())
}
