//! The hub: what the library keeps for each thread. Every `thread_local!` of the crate is in this file.
//!
//! ```text
//!   thread ──► Hub ── current ──► Node of the greenlet that runs
//!                  ── main ─────► Node of the main greenlet (two counts of it belong to the hub)
//!                  ── nodes ────► all nodes of the thread (weakly)
//!                  ── slow ─────► 0, or why a switch has more to do than to switch
//! ```
//!
//! # Invariants
//!
//! - **T1** `current` is null before the hub is set up, and then points to a living node: to main,
//!   which the hub counts, or to an active greenlet, which counts itself (`Node::itself`) until it has
//!   finished and something else is current. It is null again only when no node is left, so never
//!   while there is a handle.
//! - **T2** A hub never moves and is never dropped: it is in a thread-local without a destructor, so it
//!   can be used until the thread has gone, from other destructors too. What it owns is released by
//!   `ExitGuard`, a thread-local that has one.
//! - **T3** Nothing of the hub is borrowed while foreign code runs or a stack is switched.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::ahead::{self, Ahead};
use crate::asan;
use crate::end;
use crate::errand::{self, Inbox};
use crate::greenlet::Greenlet;
use crate::overflow;
use crate::stack::{SignalStack, Stack, StackCache};
use crate::trace::Tracer;
use crate::tree::{Node, NodeParts};

/// Reasons for a switch to leave the fast path; bits of [`Hub::slow`].
pub(crate) mod slow {
    /// A tracer is installed.
    pub(crate) const TRACED: u32 = 1;
    /// Greenlets lost their last handle while they could not be ended.
    pub(crate) const OWED: u32 = 2;
    /// Inside a `no_switch` section.
    pub(crate) const FORBIDDEN: u32 = 4;
    /// The thread is ending, or has ended.
    pub(crate) const EXITING: u32 = 8;
    /// Some closed gate may be in a target's lineage.
    pub(crate) const GATES: u32 = 16;
    /// There is something in the inbox (see `errand.rs`).
    pub(crate) const ERRAND: u32 = 32;
    /// The current greenlet has lost its last handle, or had: it is to be counted when it switches away
    /// (rule DE-15). Raised where a handle is dropped, lowered at each departure: so that switches
    /// need not look at the count.
    pub(crate) const UNHELD: u32 = 64;
    /// Many greenlets take turns (see `ahead.rs`). Alone it is no reason to leave the fast path, but to take the
    /// longer one of two.
    pub(crate) const CROWDED: u32 = 128;
}

/// The reasons that there are for a thread: bits of [`slow`].
///
/// The thread's own; others only raise a flag in it (A2 in `errand.rs`).
pub(crate) struct Flags(AtomicU32);

impl Flags {
    const fn new() -> Flags {
        Flags(AtomicU32::new(0))
    }

    /// All of them; 0 means that a switch has nothing to do but to switch.
    #[inline(always)] // part of the fast path: a plain load
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises a flag, from any thread.
    pub(crate) fn raise(&self, flag: u32) {
        // Not a load and a store: another thread may raise one between them, and it would be lost.
        self.0.fetch_or(flag, Ordering::Relaxed);
    }

    fn lower(&self, flag: u32) {
        self.0.fetch_and(!flag, Ordering::Relaxed);
    }
}

/// What the library keeps for one thread.
pub(crate) struct Hub {
    /// T1.
    current: Cell<*const Node>,
    /// Bits of [`slow`]; 0 means that a switch has nothing to do but to switch.
    pub(crate) slow: Flags,
    /// Null before the hub is set up, and after the main greenlet has gone at the end of the thread.
    main: Cell<*const Node>,
    next_id: Cell<u64>,
    thread_id: Cell<u64>,
    /// Every node of the thread that exists, in no order.
    nodes: RefCell<Vec<Weak<Node>>>,
    /// What is to be done as soon as switching is possible again.
    owed: RefCell<VecDeque<Debt>>,
    /// The stack of the greenlet that finished last: it was still running on it when it gave it back.
    retired: Cell<Option<Stack>>,
    pub(crate) stacks: RefCell<StackCache>,
    pub(crate) fibers: asan::Fibers,
    pub(crate) signal_stack: SignalStack,
    pub(crate) tracer: RefCell<Option<Tracer>>,
    /// Where the outermost `no_switch` section began.
    pub(crate) forbidden_since: Cell<Option<&'static Location<'static>>>,
    /// How many closed gates are counted (see `gate.rs`).
    pub(crate) closed_gates: Cell<usize>,
    /// How many more switches the greenlet that is being ended with its thread may try in vain.
    pub(crate) patience: Cell<u32>,
    pub(crate) ahead: Ahead,
    /// What other threads ask of this one. From the set-up until the thread ends.
    pub(crate) inbox: RefCell<Option<Arc<Inbox>>>,
    /// When each greenlet was made, by its id: of those that were made while ages are kept.
    births: RefCell<BTreeMap<u64, Instant>>,
}

/// Whether the hubs note when greenlets are made.
pub(crate) static KEEP_AGES: AtomicBool = AtomicBool::new(false);

/// The end of a greenlet that had to wait because a panic was unwinding, or because of a `no_switch` section.
pub(crate) enum Debt {
    /// Its last handle was dropped.
    LetGo(Greenlet),
    /// Its owner ended it.
    End(Greenlet),
}

thread_local! {
    /// T2: `ManuallyDrop`, so that it has no destructor.
    static HUB: ManuallyDrop<Hub> = const { ManuallyDrop::new(Hub::new()) };

    /// Ends what is still suspended when the thread ends.
    static EXIT_GUARD: ExitGuard = const { ExitGuard };
}

/// An id of the calling thread that no other thread ever has.
pub(crate) fn id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let hub = Hub::get();
    if hub.thread_id.get() == 0 {
        hub.thread_id.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    hub.thread_id.get()
}

impl Hub {
    const fn new() -> Hub {
        Hub {
            current: Cell::new(ptr::null()),
            slow: Flags::new(),
            main: Cell::new(ptr::null()),
            next_id: Cell::new(0),
            thread_id: Cell::new(0),
            nodes: RefCell::new(Vec::new()),
            owed: RefCell::new(VecDeque::new()),
            retired: Cell::new(None),
            stacks: RefCell::new(StackCache::new()),
            fibers: asan::Fibers::new(),
            signal_stack: SignalStack::none(),
            tracer: RefCell::new(None),
            forbidden_since: Cell::new(None),
            closed_gates: Cell::new(0),
            patience: Cell::new(0),
            ahead: Ahead::new(),
            inbox: RefCell::new(None),
            births: RefCell::new(BTreeMap::new()),
        }
    }

    /// The hub of the calling thread.
    #[inline(always)] // one add to the thread pointer
    pub(crate) fn get() -> &'static Hub {
        HUB.with(|hub| {
            let hub: *const Hub = &raw const **hub;
            // SAFETY: T2; `Hub` is not `Sync`, so the reference does not leave the thread.
            unsafe { &*hub }
        })
    }

    /// Makes the main greenlet, which is current then.
    ///
    /// When the thread has ended, in a destructor that runs late, the new main is dead from the start and
    /// belongs to its handles alone: it goes with the last of them.
    #[cold]
    #[inline(never)]
    fn set_up(&self) -> Rc<Node> {
        let is_alive = !self.has_flag(slow::EXITING) && EXIT_GUARD.try_with(|_| ()).is_ok();
        let main = Node::new(
            self,
            NodeParts {
                parent: None,
                body: None,
                stack_size: 0,
                name: Some("main".into()),
                locals: None,
                made_at: Location::caller(),
            },
        );
        self.main.set(Rc::as_ptr(&main));
        self.current.set(Rc::as_ptr(&main));
        if is_alive {
            // Twice, so that the count of main never looks like that of a greenlet without handles.
            std::mem::forget(Rc::clone(&main));
            std::mem::forget(Rc::clone(&main));
            errand::enter(self);
        } else {
            self.raise_flag(slow::EXITING);
            main.lifecycle.finish();
        }
        main
    }

    /// The node of the running greenlet.
    #[inline(always)]
    pub(crate) fn current(&self) -> *const Node {
        self.current.get()
    }

    #[inline(always)]
    pub(crate) fn set_current(&self, node: *const Node) {
        self.current.set(node);
    }

    /// A counted reference to the running greenlet's node.
    #[inline]
    pub(crate) fn current_node(&self) -> Rc<Node> {
        if self.current.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1; all nodes are made in an `Rc`.
        unsafe {
            Rc::increment_strong_count(self.current.get());
            Rc::from_raw(self.current.get())
        }
    }

    /// A counted reference to the main greenlet's node.
    #[inline]
    pub(crate) fn main_node(&self) -> Rc<Node> {
        if self.main.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1: `main` is null again before the node is gone (`strike_off`); all nodes are made in
        // an `Rc`.
        unsafe {
            Rc::increment_strong_count(self.main.get());
            Rc::from_raw(self.main.get())
        }
    }

    /// Says whether `node` is the running greenlet.
    #[inline]
    pub(crate) fn is_current(&self, node: &Node) -> bool {
        ptr::eq(self.current.get(), node)
    }

    /// Says whether a switch has nothing to do but to switch.
    #[inline(always)] // part of the fast path: a plain load
    pub(crate) fn is_plain(&self) -> bool {
        self.slow.get() == 0
    }

    /// Says whether the rules have nothing to say about a switch.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.slow.get() & !slow::CROWDED == 0
    }

    pub(crate) fn raise_flag(&self, flag: u32) {
        self.slow.raise(flag);
    }

    pub(crate) fn lower_flag(&self, flag: u32) {
        self.slow.lower(flag);
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.slow.get() & flag != 0
    }

    pub(crate) fn next_greenlet_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Enters a new node into the list.
    #[inline]
    pub(crate) fn enroll(&self, node: &Rc<Node>) {
        let mut nodes = self.nodes.borrow_mut();
        node.index.set(nodes.len());
        nodes.push(Rc::downgrade(node));
        if KEEP_AGES.load(Ordering::Relaxed) {
            self.note_birth(node);
        }
    }

    #[cold]
    fn note_birth(&self, node: &Node) {
        self.births.borrow_mut().insert(node.id, Instant::now());
    }

    /// When the greenlet was made, if that was noted.
    pub(crate) fn birth(&self, node: &Node) -> Option<Instant> {
        self.births.borrow().get(&node.id).copied()
    }

    /// Takes a node that is being dropped off the list.
    #[inline]
    pub(crate) fn strike_off(&self, node: &Node) {
        if node.is_main {
            self.main.set(ptr::null());
            self.current.set(ptr::null());
        }
        if self.has_flag(slow::CROWDED) {
            self.ahead.forget(node);
        }
        let mut nodes = self.nodes.borrow_mut();
        let index = node.index.get();
        let gone = nodes.swap_remove(index);
        if let Some(moved) = nodes.get(index).and_then(Weak::upgrade) {
            moved.index.set(index);
        }
        if nodes.is_empty() {
            nodes.shrink_to_fit(); // the hub has no destructor that would free it
        }
        drop(nodes);
        drop(gone);
        let mut births = self.births.borrow_mut();
        if !births.is_empty() {
            births.remove(&node.id);
        }
    }

    /// All greenlets that the thread has now. A handle of each is made when its turn comes, not before, so that
    /// dropping the last handle of one meanwhile still ends it.
    pub(crate) fn all_greenlets(&self) -> impl Iterator<Item = Greenlet> + use<> {
        let nodes = self.nodes.borrow().clone();
        nodes
            .into_iter()
            .filter_map(|node| node.upgrade().map(Greenlet::from_node))
    }

    /// Notes what is to be done when switching is possible again.
    pub(crate) fn owe(&self, debt: Debt) {
        self.owed.borrow_mut().push_back(debt);
        self.raise_flag(slow::OWED);
    }

    /// Says whether a greenlet can be ended here and now.
    pub(crate) fn can_end_greenlets(&self) -> bool {
        !std::thread::panicking() && !self.has_flag(slow::FORBIDDEN)
    }

    /// Counts a switch that was refused because the thread ends. Says whether the greenlet that tried it
    /// must be taken for one that never ends by itself: it looks at no error and would try for ever.
    pub(crate) fn is_out_of_patience(&self) -> bool {
        let left = self.patience.get();
        self.patience.set(left.saturating_sub(1));
        left == 0 && cfg!(panic = "unwind") && self.current.get() != self.main.get()
    }

    /// Does what is owed, if that is possible now.
    pub(crate) fn settle_debts(&self) {
        if !self.has_flag(slow::OWED) || !self.can_end_greenlets() {
            return;
        }
        loop {
            let mut owed = self.owed.borrow_mut();
            let Some(debt) = owed.pop_front() else { break };
            if owed.is_empty() {
                *owed = VecDeque::new(); // the hub has no destructor that would free it
                self.lower_flag(slow::OWED);
            }
            drop(owed);
            // CAUTION: runs foreign code.
            match debt {
                // Ends the greenlet, if this still is its last handle.
                Debt::LetGo(greenlet) => drop(greenlet),
                Debt::End(greenlet) => greenlet.end(),
            }
        }
    }

    /// Takes back the stack of a finishing greenlet, which still runs on it.
    #[inline]
    pub(crate) fn retire(&self, stack: Option<Stack>) {
        if let Some(previous) = self.retired.replace(stack) {
            self.give_stack(previous);
        }
    }

    /// Gives out a stack. The one that was retired last is preferred: it is warm.
    #[inline]
    pub(crate) fn take_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        if let Some(stack) = self.retired.take() {
            if stack.size() == size {
                return Ok(stack);
            }
            self.give_stack(stack);
        }
        let at_hand = self.stacks.borrow_mut().take(size);
        match at_hand {
            Some(stack) => Ok(stack),
            None => self.fetch_stack(size),
        }
    }

    #[inline]
    fn give_stack(&self, stack: Stack) {
        let mut stacks = self.stacks.borrow_mut();
        if stacks.give(stack) {
            ahead::adapt(self, stacks.in_use());
        }
    }

    /// Gives out a stack from the pool. Every thread comes here for its first one.
    #[cold]
    #[inline(never)]
    fn fetch_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        overflow::watch(self);
        let mut stacks = self.stacks.borrow_mut();
        ahead::adapt(self, stacks.in_use());
        stacks.fetch(size)
    }

    /// The base of the stack that was retired last; null if there is none. Only to compare with.
    pub(crate) fn retired_base(&self) -> *mut u8 {
        // SAFETY: read on the thread that writes it, and let go of at once.
        let retired = unsafe { &*self.retired.as_ptr() };
        retired
            .as_ref()
            .map_or(ptr::null_mut(), |stack| stack.base().as_ptr())
    }

    /// How many stacks the greenlets of the thread have.
    pub(crate) fn stacks_in_use(&self) -> usize {
        self.stacks.borrow().in_use() - self.idle_but_counted()
    }

    /// How many stacks are counted as in use that are not: the one that was retired last.
    pub(crate) fn idle_but_counted(&self) -> usize {
        usize::from(!self.retired_base().is_null())
    }

    /// All nodes of the thread, for a signal handler. `None` while the list is being changed.
    pub(crate) fn nodes_unless_borrowed(&self) -> Option<Ref<'_, Vec<Weak<Node>>>> {
        self.nodes.try_borrow().ok()
    }
}

/// How many handles and other references count the node.
///
/// # Safety
///
/// - `node` points to a living node.
pub(crate) unsafe fn count_of(node: *const Node) -> usize {
    // SAFETY: the contract; `ManuallyDrop` leaves the count as it is.
    let node = ManuallyDrop::new(unsafe { Rc::from_raw(node) });
    Rc::strong_count(&node)
}

/// Runs `look` with the node of the running greenlet, which is not counted for it.
#[inline]
pub(crate) fn with_current_node<R>(look: impl FnOnce(&Node) -> R) -> R {
    let hub = Hub::get();
    if hub.current().is_null() || hub.has_flag(slow::EXITING) {
        // Then main belongs to its handles alone (`Hub::set_up`).
        return look(&hub.current_node());
    }
    // SAFETY: T1: main is counted by the hub until the thread ends, and any other greenlet counts itself
    // until it has finished, which it cannot before `look`, which runs on its stack, has returned.
    look(unsafe { &*hub.current() })
}

/// The handle of the running greenlet, for [`crate::getcurrent`].
#[inline]
pub(crate) fn current_greenlet() -> Greenlet {
    Greenlet::from_node(Hub::get().current_node())
}

struct ExitGuard;

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let hub = Hub::get();
        errand::leave(hub);
        if hub.current.get() != hub.main.get() || std::thread::panicking() {
            // The process is being ended from within a greenlet, or from a destructor that runs during
            // a panic (`std::process::exit`): as everywhere in Rust, no destructors of suspended code
            // run then.
            return;
        }
        hub.raise_flag(slow::EXITING);
        end::end_all(hub);
        hub.retire(None);
        hub.fibers.bury();
        let tracer = hub.tracer.borrow_mut().take();
        drop(tracer);
        hub.stacks.borrow_mut().release();
        hub.signal_stack.withdraw();
        let main = hub.main.get();
        // SAFETY: these are the two counts that `set_up` forgot.
        let (first, second) = unsafe { (Rc::from_raw(main), Rc::from_raw(main)) };
        // CAUTION: runs foreign code: destructors of main's local variables.
        drop(first.locals.take());
        first.lifecycle.finish();
        drop(first);
        drop(second);
        let births = hub.births.take();
        drop(births); // the map may have memory when it is empty
    }
}
