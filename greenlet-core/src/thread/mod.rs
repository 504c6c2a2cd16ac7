//! The hub: what the library keeps for each thread. Every `thread_local!` of the crate is in this file.
//!
//! ```text
//!   thread ──► Hub ── current ──► Node of the greenlet that runs
//!                  ── main ─────► Node of the main greenlet (two counts of it belong to the hub)
//!                  ── records ──► all nodes of the thread
//!                  ── slow ─────► why a switch has more to do than to switch, if it has
//! ```
//!
//! # Invariants
//!
//! - **T1** `current` is null before the hub is set up, and then points to a living node: to main,
//!   which the hub counts, or to an active greenlet, which counts itself (see `switch::begin`) until it has
//!   finished. Who arrives writes it, before anything looks at it (`receive::Arrival`, `entry::arrive`); until then it points
//!   to who left, which has a count as well (`switch::finish_into`, `switch::finish`). It is null again only when no node
//!   is left, so never while there is a handle.
//! - **T2** A hub never moves and is never dropped: it is in a thread-local without a destructor, so it
//!   can be used until the thread has gone, from other destructors too. What it owns is released by
//!   `ExitGuard`, a thread-local that has one.
//! - **T3** Nothing of the hub is borrowed while foreign code runs or a stack is switched.
//! - **T4** `ExitGuard` raises `EXITING` and marks all suspended greenlets as dead before arbitrary user
//!   code can run. From then on, no code of them runs. Their stacks and what these own stay in place.

pub(crate) mod overflow;
pub(crate) mod prefetch;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::backend::asan;
use crate::greenlet::Greenlet;
use crate::greenlet::all_threads::{self, Inbox};
use crate::node::Node;
use crate::node::record::{self, NodeRef, Records};
use crate::payload::exit::SpareExit;
use crate::stack::{self, SignalStack, Stack, StackCache};
use crate::switch::teardown;
use crate::switch::trace::Tracer;
use crate::switch::unraisable::{self, Unraisable};
use crate::thread::prefetch::Ahead;

/// Reasons for a switch to leave the fast path; bits of [`Hub::slow`].
pub(crate) mod slow {
    /// A tracer is installed.
    pub(crate) const TRACED: u32 = 1;
    /// Greenlets lost their last handle while they could not be ended.
    pub(crate) const OWED: u32 = 2;
    /// Inside a `no_switch` section.
    pub(crate) const FORBIDDEN: u32 = 4;
    /// The thread has ended, or the process is ending. Only destructors of thread-locals still run, and
    /// no greenlet is resumed (T4).
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
/// They are kept as a bar that a resume point has to pass: it is 1, which only a null one is below, and with any flag
/// raised it is higher than all addresses. So one comparison says whether a switch can take the fast path.
///
/// The thread's own; others only raise a flag in it (A2 in `errand.rs`).
pub(crate) struct Flags(AtomicUsize);

impl Flags {
    /// The flags are in the highest byte, which in an address of a program is 0.
    const SHIFT: u32 = usize::BITS - 8;
    const NONE: usize = 1;

    const fn new() -> Flags {
        Flags(AtomicUsize::new(Flags::NONE))
    }

    /// All of them; 0 means that a switch has nothing to do but to switch.
    #[inline]
    pub(crate) fn get(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) >> Flags::SHIFT) as u32
    }

    #[inline(always)] // one comparison
    fn are_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Flags::NONE
    }

    /// Says whether no flag is raised, and the resume point is one.
    #[inline(always)] // part of the fast path: one comparison
    pub(crate) fn let_pass(&self, to: *mut u8) -> bool {
        let bar = self.0.load(Ordering::Relaxed);
        if cfg!(all(
            target_pointer_width = "64",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )) {
            // There, programs have addresses of 56 bits at most.
            to.addr() >= bar
        } else {
            bar == Flags::NONE && !to.is_null()
        }
    }

    /// Raises a flag, from any thread.
    pub(crate) fn raise(&self, flag: u32) {
        // Not a load and a store: another thread may raise one between them, and it would be lost.
        self.0
            .fetch_or((flag as usize) << Flags::SHIFT, Ordering::Relaxed);
    }

    fn lower(&self, flag: u32) {
        self.0
            .fetch_and(!((flag as usize) << Flags::SHIFT), Ordering::Relaxed);
    }
}

/// What the library keeps for one thread.
pub(crate) struct Hub {
    /// T1.
    current: Cell<*const Node>,
    /// Bits of [`slow`].
    pub(crate) slow: Flags,
    /// Null before the hub is set up, and after the main greenlet has gone at the end of the thread.
    main: Cell<*const Node>,
    next_id: Cell<u64>,
    thread_id: Cell<u64>,
    /// Every node of the thread that exists.
    pub(crate) records: Records,
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
    /// An address in the frame of the innermost section. A generator's body in which the section is may not yield.
    pub(crate) forbidden_in: Cell<*const u8>,
    /// How many closed gates are counted (see `gate.rs`).
    pub(crate) closed_gates: Cell<usize>,
    /// How many waits were refused during the innermost end (see `end.rs`).
    pub(crate) refusals: Cell<u32>,
    pub(crate) ahead: Ahead,
    pub(crate) spare_exit: SpareExit,
    /// What other threads ask of this one. From the set-up until the thread ends.
    pub(crate) inbox: RefCell<Option<Arc<Inbox>>>,
    /// When each greenlet was made, by its id: of those that were made while ages are kept.
    births: RefCell<BTreeMap<u64, Instant>>,
    has_births: Cell<bool>,
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

    /// Releases what the hub owns when the thread ends.
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
            records: Records::new(),
            owed: RefCell::new(VecDeque::new()),
            retired: Cell::new(None),
            stacks: RefCell::new(StackCache::new()),
            fibers: asan::Fibers::new(),
            signal_stack: SignalStack::none(),
            tracer: RefCell::new(None),
            forbidden_since: Cell::new(None),
            forbidden_in: Cell::new(ptr::null()),
            closed_gates: Cell::new(0),
            refusals: Cell::new(0),
            ahead: Ahead::new(),
            spare_exit: SpareExit::none(),
            inbox: RefCell::new(None),
            births: RefCell::new(BTreeMap::new()),
            has_births: Cell::new(false),
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
    fn set_up(&self) -> NodeRef {
        let is_alive = !self.has_flag(slow::EXITING) && EXIT_GUARD.try_with(|_| ()).is_ok();
        let main = Node::make_main(self);
        self.main.set(main.as_ptr());
        self.current.set(main.as_ptr());
        if is_alive {
            // Twice, so that the count of main never looks like that of a greenlet without handles.
            main.clone().into_counted();
            main.clone().into_counted();
            all_threads::enter(self);
        } else {
            self.raise_flag(slow::EXITING);
            main.finish();
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

    /// Makes the current greenlet the current one: for the compiler, at the end of a cold path that meets the fast one again.
    /// What the fast one has just written there it can keep in a register only if the other one has written something as well.
    #[inline(always)] // at the end of cold paths
    pub(crate) fn repeat_current(&self) {
        self.current.set(black_box(self.current.get()));
    }

    /// A counted reference to the running greenlet's node.
    #[inline]
    pub(crate) fn current_node(&self) -> NodeRef {
        if self.current.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1.
        unsafe { NodeRef::counting(self.current.get()) }
    }

    /// A counted reference to the main greenlet's node.
    #[inline]
    pub(crate) fn main_node(&self) -> NodeRef {
        if self.main.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1: `main` is null again before the node is gone (`strike_off`).
        unsafe { NodeRef::counting(self.main.get()) }
    }

    /// Says whether `node` is the running greenlet.
    #[inline]
    pub(crate) fn is_current(&self, node: &Node) -> bool {
        ptr::eq(self.current.get(), node)
    }

    /// Says whether the times at which greenlets are made are noted.
    #[inline]
    pub(crate) fn keeps_ages(&self) -> bool {
        KEEP_AGES.load(Ordering::Relaxed)
    }

    /// Says whether the rules have nothing to say about a switch.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.slow.get() & !slow::CROWDED == 0
    }

    /// Says whether there is any flag.
    #[inline]
    pub(crate) fn has_any_flag(&self) -> bool {
        !self.slow.are_none()
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

    /// Notes when a greenlet is made.
    #[cold]
    pub(crate) fn note_birth(&self, node: &Node) {
        self.births.borrow_mut().insert(node.id, Instant::now());
        self.has_births.set(true);
    }

    #[cold]
    fn forget_birth(&self, node: &Node) {
        let mut births = self.births.borrow_mut();
        births.remove(&node.id);
        self.has_births.set(!births.is_empty());
    }

    /// When the greenlet was made, if that was noted.
    pub(crate) fn birth(&self, node: &Node) -> Option<Instant> {
        self.births.borrow().get(&node.id).copied()
    }

    /// A node is being dropped: forgets it.
    #[inline]
    pub(crate) fn strike_off(&self, node: &Node) {
        if node.standing.is_main() {
            self.main.set(ptr::null());
            self.current.set(ptr::null());
        }
        if self.has_flag(slow::CROWDED) {
            self.ahead.forget(node);
        }
        if self.has_births.get() {
            self.forget_birth(node);
        }
    }

    /// All greenlets that the thread has now, in the order in which they were made. A handle of each is made when its turn
    /// comes, not before, so that dropping the last handle of one meanwhile still ends it.
    pub(crate) fn all_greenlets(&self) -> impl Iterator<Item = Greenlet> + use<> {
        let mut nodes = self.records.all();
        nodes.sort_by_key(|(id, _)| *id);
        nodes
            .into_iter()
            .filter_map(|(_, node)| node.upgrade().map(Greenlet::from_node))
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
            give_stack_back(previous);
        }
    }

    /// Takes back a stack that nothing runs on, at any time: the thread may have ended.
    #[inline]
    pub(crate) fn take_back(&self, stack: Stack) {
        if self.has_flag(slow::EXITING) {
            self.take_back_late(stack);
        } else {
            self.retire(Some(stack));
        }
    }

    #[cold]
    #[inline(never)]
    fn take_back_late(&self, stack: Stack) {
        let mut stacks = self.stacks.borrow_mut();
        stacks.give(stack);
        stacks.release();
    }

    /// Gives out a stack of the default size, if the one that was retired last has it.
    #[inline(always)] // a few instructions
    pub(crate) fn default_stack_at_hand(&self) -> Option<Stack> {
        // SAFETY: T3: looked at, and let go of at once.
        let has_one = unsafe { &*self.retired.as_ptr() }
            .as_ref()
            .is_some_and(|stack| stack.has_size(stack::DEFAULT_SIZE));
        if has_one { self.retired.take() } else { None }
    }

    /// Gives out a stack that is at hand. The one that was retired last is preferred: it is warm.
    #[inline(always)] // the call would be more than what it mostly does
    pub(crate) fn stack_at_hand(&self, size: usize) -> Option<Stack> {
        match self.retired.take() {
            Some(stack) if stack.has_size(size) => Some(stack),
            other => self.stack_from_cache(other, size),
        }
    }

    #[inline(never)]
    fn stack_from_cache(&self, retired: Option<Stack>, size: usize) -> Option<Stack> {
        if let Some(stack) = retired {
            self.give_stack(stack);
        }
        self.stacks.borrow_mut().take(size)
    }

    /// Gives out a stack.
    pub(crate) fn take_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        match self.stack_at_hand(size) {
            Some(stack) => Ok(stack),
            None => self.fetch_stack(size),
        }
    }

    #[inline]
    fn give_stack(&self, stack: Stack) {
        let mut stacks = self.stacks.borrow_mut();
        if stacks.give(stack) {
            prefetch::adapt(self, stacks.in_use());
        }
    }

    /// Gives out a stack from the pool. Every thread comes here for its first one.
    #[cold]
    #[inline(never)]
    fn fetch_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        if self.current.get().is_null() {
            drop(self.current_node()); // the thread's end is to be noticed
        }
        overflow::watch(self);
        let mut stacks = self.stacks.borrow_mut();
        prefetch::adapt(self, stacks.in_use());
        stacks.fetch(size)
    }

    /// [`Hub::retire`], where no stack is retired.
    #[inline(always)] // one store
    pub(crate) fn retire_first(&self, stack: Option<Stack>) {
        let before = self.retired.replace(stack);
        debug_assert!(before.is_none());
    }

    /// Says whether a stack is retired, so that another one could not be without giving this one back.
    #[inline(always)] // one comparison
    pub(crate) fn has_retired_stack(&self) -> bool {
        // SAFETY: T3: looked at, and let go of at once.
        unsafe { &*self.retired.as_ptr() }.is_some()
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
}

/// Gives a stack back to the running thread. It looks the hub up itself: who calls it would keep the address of the hub for it,
/// over all the switches of a greenlet.
#[inline(never)]
fn give_stack_back(stack: Stack) {
    Hub::get().give_stack(stack);
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

/// Returns `true` on the thread that the process started with.
fn is_first_of_process() -> bool {
    match all_threads::os_id() {
        Some(id) => id == u64::from(std::process::id()),
        // The standard library calls it so.
        None => std::thread::current().name() == Some("main"),
    }
}

struct ExitGuard;

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let hub = Hub::get();
        // Otherwise `std::process::exit` was called in a greenlet, or in a destructor during a panic.
        let is_thread_end = hub.current.get() == hub.main.get() && !std::thread::panicking();
        if is_thread_end {
            // These were ended while a panic unwound, which only delayed their ends.
            // CAUTION: runs arbitrary user code.
            hub.settle_debts();
        }
        hub.raise_flag(slow::EXITING);
        let left: Vec<Greenlet> = teardown::suspended(hub).collect();
        let report = Unraisable::of_left(&left); // its text is of the time before they are dead
        left.iter().for_each(|greenlet| greenlet.node().leave(hub));
        all_threads::leave(hub);
        if !is_thread_end {
            std::mem::forget((left, report)); // to drop handles may run user code
            return;
        }
        // CAUTION: runs arbitrary user code: the hook, and destructors of what pending parents captured.
        if let Some(report) = report.filter(|_| !is_first_of_process()) {
            unraisable::call(&report);
        }
        left.into_iter().for_each(record::release_left);
        hub.retire(None);
        hub.fibers.bury();
        hub.spare_exit.forget();
        let tracer = hub.tracer.borrow_mut().take();
        drop(tracer);
        hub.stacks.borrow_mut().release();
        hub.signal_stack.withdraw();
        let main = hub.main.get();
        // SAFETY: these are the two counts that `set_up` gave away.
        let (first, second) = unsafe { (NodeRef::from_counted(main), NodeRef::from_counted(main)) };
        // CAUTION: runs foreign code: destructors of main's local variables.
        drop(first.replace_locals(None));
        first.finish();
        drop(first);
        drop(second);
        let births = hub.births.take();
        drop(births); // the map may have memory when it is empty
        hub.records.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_resume_point_passes_and_only_if_no_flag_is_raised() {
        let flags = Flags::new();
        let addresses = [1, 0x1000, 0x7fff_ffff, usize::MAX >> 9];
        let pass = |flags: &Flags| {
            assert!(!flags.let_pass(ptr::null_mut()));
            let passes = addresses.map(|address| flags.let_pass(ptr::without_provenance_mut(address)));
            assert!(passes.iter().all(|passed| *passed == passes[0]));
            passes[0]
        };
        assert!(pass(&flags));
        for bit in 0..8 {
            flags.raise(1 << bit);
            assert_eq!(flags.get(), 1 << bit);
            assert!(!pass(&flags));
            flags.raise(slow::TRACED);
            flags.lower(1 << bit);
            assert_eq!(pass(&flags), bit == 0); // `TRACED` is the lowest
            flags.lower(slow::TRACED);
            assert!(pass(&flags));
            assert_eq!(flags.get(), 0);
        }
    }
}
