//! The hub: what the library keeps for each thread. Every `thread_local!` of the crate is in this file.
//!
//! ```text
//!   thread ──► ThreadState ── current ──► Inner of the greenlet that runs
//!                  ── main ─────► Inner of the main greenlet (two counts of it belong to the hub)
//!                  ── records ──► all nodes of the thread
//!                  ── slow ─────► why a switch has more to do than to switch, if it has
//! ```
//!
//! # Invariants
//!
//! - **T1** `current` is null before the hub is set up, and then points to a living node: to main,
//!   which the hub counts, or to an active greenlet, which counts itself (see `switch::begin`) until it has
//!   finished. Who arrives writes it, before anything looks at it (`receive::Resumed`, `entry::arrive`); until then it points
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
use crate::node::Inner;
use crate::node::record::{self, InnerRc, NodePool};
use crate::payload::exit::ExitCache;
use crate::stack::{self, SignalStack, Stack, StackCache};
use crate::switch::teardown;
use crate::switch::trace::Tracer;
use crate::switch::unraisable::{self, Unraisable};
use crate::thread::prefetch::Prefetcher;

/// Reasons for a switch to leave the fast path; bits of [`ThreadState::slow`].
pub(crate) mod flag {
    /// A tracer is installed.
    pub(crate) const TRACED: u32 = 1;
    /// Greenlets lost their last handle while they could not be ended.
    pub(crate) const DEFERRED: u32 = 2;
    /// Inside a `no_switch` section.
    pub(crate) const NO_SWITCH: u32 = 4;
    /// The thread has ended, or the process is ending. Only destructors of thread-locals still run, and
    /// no greenlet is resumed (T4).
    pub(crate) const EXITING: u32 = 8;
    /// Some closed gate may be in a target's lineage.
    pub(crate) const AWAIT_LOCKS: u32 = 16;
    /// There is something in the inbox (see `errand.rs`).
    pub(crate) const REMOTE_CALL: u32 = 32;
    /// The current greenlet has lost its last handle, or had: it is to be counted when it switches away
    /// (rule DE-15). Raised where a handle is dropped, lowered at each departure: so that switches
    /// need not look at the count.
    pub(crate) const NO_HANDLES: u32 = 64;
    /// Many greenlets take turns (see `prefetcher.rs`). Alone it is no reason to leave the fast path, but to take the
    /// longer one of two.
    pub(crate) const PREFETCH: u32 = 128;
}

/// The reasons that there are for a thread: bits of `flag`.
///
/// They are kept as a bar that a resume point has to pass: it is 1, which only a null one is below, and with any flag
/// raised it is higher than all addresses. So one comparison says whether a switch can take the fast path.
///
/// The thread's own; others only raise a flag in it (A2 in `errand.rs`).
pub(crate) struct SwitchFlags(AtomicUsize);

impl SwitchFlags {
    /// The flags are in the highest byte, which in an address of a program is 0.
    const SHIFT: u32 = usize::BITS - 8;
    const NONE: usize = 1;

    const fn new() -> SwitchFlags {
        SwitchFlags(AtomicUsize::new(SwitchFlags::NONE))
    }

    /// All of them; 0 means that a switch has nothing to do but to switch.
    #[inline]
    pub(crate) fn get(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) >> SwitchFlags::SHIFT) as u32
    }

    #[inline(always)] // one comparison
    fn are_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == SwitchFlags::NONE
    }

    /// Says whether no flag is raised, and the resume point is one.
    #[inline(always)] // part of the fast path: one comparison
    pub(crate) fn allows(&self, to: *mut u8) -> bool {
        let bar = self.0.load(Ordering::Relaxed);
        if cfg!(all(
            target_pointer_width = "64",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )) {
            // There, programs have addresses of 56 bits at most.
            to.addr() >= bar
        } else {
            bar == SwitchFlags::NONE && !to.is_null()
        }
    }

    /// Raises a flag, from any thread.
    pub(crate) fn raise(&self, flag: u32) {
        // Not a load and a store: another thread may raise one between them, and it would be lost.
        self.0
            .fetch_or((flag as usize) << SwitchFlags::SHIFT, Ordering::Relaxed);
    }

    fn lower(&self, flag: u32) {
        self.0
            .fetch_and(!((flag as usize) << SwitchFlags::SHIFT), Ordering::Relaxed);
    }
}

/// What the library keeps for one thread.
pub(crate) struct ThreadState {
    /// T1.
    current: Cell<*const Inner>,
    /// Bits of `flag`.
    pub(crate) flags: SwitchFlags,
    /// Null before the hub is set up, and after the main greenlet has gone at the end of the thread.
    main: Cell<*const Inner>,
    next_id: Cell<u64>,
    thread_id: Cell<u64>,
    /// Every node of the thread that exists.
    pub(crate) pool: NodePool,
    /// What is to be done as soon as switching is possible again.
    deferred: RefCell<VecDeque<Deferred>>,
    /// The stack of the greenlet that finished last: it was still running on it when it gave it back.
    last_stack: Cell<Option<Stack>>,
    pub(crate) stacks: RefCell<StackCache>,
    pub(crate) fibers: asan::Fibers,
    pub(crate) signal_stack: SignalStack,
    pub(crate) tracer: RefCell<Option<Tracer>>,
    /// Where the outermost `no_switch` section began.
    pub(crate) no_switch_since: Cell<Option<&'static Location<'static>>>,
    /// An address in the frame of the innermost section. A generator's body in which the section is may not yield.
    pub(crate) forbidden_in: Cell<*const u8>,
    /// How many closed gates are counted (see `gate.rs`).
    pub(crate) await_locks: Cell<usize>,
    /// How many waits were refused during the innermost end (see `end.rs`).
    pub(crate) refusals: Cell<u32>,
    pub(crate) prefetcher: Prefetcher,
    pub(crate) exit_cache: ExitCache,
    /// What other threads ask of this one. From the set-up until the thread ends.
    pub(crate) inbox: RefCell<Option<Arc<Inbox>>>,
    /// When each greenlet was made, by its id: of those that were made while ages are kept.
    creation_times: RefCell<BTreeMap<u64, Instant>>,
    has_creation_times: Cell<bool>,
}

/// Whether the hubs note when greenlets are made.
pub(crate) static KEEP_AGES: AtomicBool = AtomicBool::new(false);

/// The end of a greenlet that had to wait because a panic was unwinding, or because of a `no_switch` section.
pub(crate) enum Deferred {
    /// Its last handle was dropped.
    HandleDropped(Greenlet),
    /// Its owner ended it.
    End(Greenlet),
}

thread_local! {
    /// T2: `ManuallyDrop`, so that it has no destructor.
    static THREAD_STATE: ManuallyDrop<ThreadState> = const { ManuallyDrop::new(ThreadState::new()) };

    /// Releases what the hub owns when the thread ends.
    static EXIT_GUARD: ExitGuard = const { ExitGuard };
}

/// An id of the calling thread that no other thread ever has.
pub(crate) fn id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let thread = ThreadState::current();
    if thread.thread_id.get() == 0 {
        thread.thread_id.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    thread.thread_id.get()
}

impl ThreadState {
    const fn new() -> ThreadState {
        ThreadState {
            current: Cell::new(ptr::null()),
            flags: SwitchFlags::new(),
            main: Cell::new(ptr::null()),
            next_id: Cell::new(0),
            thread_id: Cell::new(0),
            pool: NodePool::new(),
            deferred: RefCell::new(VecDeque::new()),
            last_stack: Cell::new(None),
            stacks: RefCell::new(StackCache::new()),
            fibers: asan::Fibers::new(),
            signal_stack: SignalStack::none(),
            tracer: RefCell::new(None),
            no_switch_since: Cell::new(None),
            forbidden_in: Cell::new(ptr::null()),
            await_locks: Cell::new(0),
            refusals: Cell::new(0),
            prefetcher: Prefetcher::new(),
            exit_cache: ExitCache::none(),
            inbox: RefCell::new(None),
            creation_times: RefCell::new(BTreeMap::new()),
            has_creation_times: Cell::new(false),
        }
    }

    /// The hub of the calling thread.
    #[inline(always)] // one add to the thread pointer
    pub(crate) fn current() -> &'static ThreadState {
        THREAD_STATE.with(|thread| {
            let thread: *const ThreadState = &raw const **thread;
            // SAFETY: T2; `ThreadState` is not `Sync`, so the reference does not leave the thread.
            unsafe { &*thread }
        })
    }

    /// Makes the main greenlet, which is current then.
    ///
    /// When the thread has ended, in a destructor that runs late, the new main is dead from the start and
    /// belongs to its handles alone: it goes with the last of them.
    #[cold]
    #[inline(never)]
    fn set_up(&self) -> InnerRc {
        let is_alive = !self.has_flag(flag::EXITING) && EXIT_GUARD.try_with(|_| ()).is_ok();
        let main = Inner::make_main(self);
        self.main.set(main.as_ptr());
        self.current.set(main.as_ptr());
        if is_alive {
            // Twice, so that the count of main never looks like that of a greenlet without handles.
            main.clone().into_raw();
            main.clone().into_raw();
            all_threads::enter(self);
        } else {
            self.raise_flag(flag::EXITING);
            main.finish();
        }
        main
    }

    /// The node of the running greenlet.
    #[inline(always)]
    pub(crate) fn current_ptr(&self) -> *const Inner {
        self.current.get()
    }

    #[inline(always)]
    pub(crate) fn set_current(&self, node: *const Inner) {
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
    pub(crate) fn current_inner(&self) -> InnerRc {
        if self.current.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1.
        unsafe { InnerRc::clone_from_raw(self.current.get()) }
    }

    /// A counted reference to the main greenlet's node.
    #[inline]
    pub(crate) fn main_inner(&self) -> InnerRc {
        if self.main.get().is_null() {
            return self.set_up();
        }
        // SAFETY: T1: `main` is null again before the node is gone (`forget_node`).
        unsafe { InnerRc::clone_from_raw(self.main.get()) }
    }

    /// Says whether `node` is the running greenlet.
    #[inline]
    pub(crate) fn is_current(&self, node: &Inner) -> bool {
        ptr::eq(self.current.get(), node)
    }

    /// Says whether the times at which greenlets are made are noted.
    #[inline]
    pub(crate) fn keeps_ages(&self) -> bool {
        KEEP_AGES.load(Ordering::Relaxed)
    }

    /// Says whether the rules have nothing to say about a switch.
    #[inline]
    pub(crate) fn allows_switch(&self) -> bool {
        self.flags.get() & !flag::PREFETCH == 0
    }

    /// Says whether there is any flag.
    #[inline]
    pub(crate) fn has_any_flag(&self) -> bool {
        !self.flags.are_none()
    }

    pub(crate) fn raise_flag(&self, flag: u32) {
        self.flags.raise(flag);
    }

    pub(crate) fn lower_flag(&self, flag: u32) {
        self.flags.lower(flag);
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    pub(crate) fn next_greenlet_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Notes when a greenlet is made.
    #[cold]
    pub(crate) fn record_creation(&self, node: &Inner) {
        self.creation_times.borrow_mut().insert(node.id, Instant::now());
        self.has_creation_times.set(true);
    }

    #[cold]
    fn forget_creation(&self, node: &Inner) {
        let mut creation_times = self.creation_times.borrow_mut();
        creation_times.remove(&node.id);
        self.has_creation_times.set(!creation_times.is_empty());
    }

    /// When the greenlet was made, if that was noted.
    pub(crate) fn creation_time(&self, node: &Inner) -> Option<Instant> {
        self.creation_times.borrow().get(&node.id).copied()
    }

    /// A node is being dropped: forgets it.
    #[inline]
    pub(crate) fn forget_node(&self, node: &Inner) {
        if node.status.is_main() {
            self.main.set(ptr::null());
            self.current.set(ptr::null());
        }
        if self.has_flag(flag::PREFETCH) {
            self.prefetcher.forget(node);
        }
        if self.has_creation_times.get() {
            self.forget_creation(node);
        }
    }

    /// All greenlets that the thread has now, in the order in which they were made. A handle of each is made when its turn
    /// comes, not before, so that dropping the last handle of one meanwhile still ends it.
    pub(crate) fn all_greenlets(&self) -> impl Iterator<Item = Greenlet> + use<> {
        let mut nodes = self.pool.all();
        nodes.sort_by_key(|(id, _)| *id);
        nodes
            .into_iter()
            .filter_map(|(_, node)| node.upgrade().map(Greenlet::from_inner))
    }

    /// Notes what is to be done when switching is possible again.
    pub(crate) fn defer(&self, next: Deferred) {
        self.deferred.borrow_mut().push_back(next);
        self.raise_flag(flag::DEFERRED);
    }

    /// Says whether a greenlet can be ended here and now.
    pub(crate) fn can_end_greenlets(&self) -> bool {
        !std::thread::panicking() && !self.has_flag(flag::NO_SWITCH)
    }

    /// Does what is deferred, if that is possible now.
    pub(crate) fn run_deferred(&self) {
        if !self.has_flag(flag::DEFERRED) || !self.can_end_greenlets() {
            return;
        }
        loop {
            let mut deferred = self.deferred.borrow_mut();
            let Some(next) = deferred.pop_front() else { break };
            if deferred.is_empty() {
                *deferred = VecDeque::new(); // the hub has no destructor that would free it
                self.lower_flag(flag::DEFERRED);
            }
            drop(deferred);
            // CAUTION: runs foreign code.
            match next {
                // Ends the greenlet, if this still is its last handle.
                Deferred::HandleDropped(greenlet) => drop(greenlet),
                Deferred::End(greenlet) => greenlet.end(),
            }
        }
    }

    /// Takes back the stack of a finishing greenlet, which still runs on it.
    #[inline]
    pub(crate) fn keep_last_stack(&self, stack: Option<Stack>) {
        if let Some(previous) = self.last_stack.replace(stack) {
            give_stack_back(previous);
        }
    }

    /// Takes back a stack that nothing runs on, at any time: the thread may have ended.
    #[inline]
    pub(crate) fn take_back(&self, stack: Stack) {
        if self.has_flag(flag::EXITING) {
            self.take_back_late(stack);
        } else {
            self.keep_last_stack(Some(stack));
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
    pub(crate) fn take_last_stack(&self) -> Option<Stack> {
        // SAFETY: T3: looked at, and let go of at once.
        let has_one = unsafe { &*self.last_stack.as_ptr() }
            .as_ref()
            .is_some_and(|stack| stack.has_size(stack::DEFAULT_SIZE));
        if has_one { self.last_stack.take() } else { None }
    }

    /// Gives out a stack that is at hand. The one that was retired last is preferred: it is warm.
    #[inline(always)] // the call would be more than what it mostly does
    pub(crate) fn take_cached_stack(&self, size: usize) -> Option<Stack> {
        match self.last_stack.take() {
            Some(stack) if stack.has_size(size) => Some(stack),
            other => self.take_stack_slow(other, size),
        }
    }

    #[inline(never)]
    fn take_stack_slow(&self, last_stack: Option<Stack>, size: usize) -> Option<Stack> {
        if let Some(stack) = last_stack {
            self.give_stack(stack);
        }
        self.stacks.borrow_mut().take(size)
    }

    /// Gives out a stack.
    pub(crate) fn take_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        match self.take_cached_stack(size) {
            Some(stack) => Ok(stack),
            None => self.take_pooled_stack(size),
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
    fn take_pooled_stack(&self, size: usize) -> Result<Stack, crate::StackError> {
        if self.current.get().is_null() {
            drop(self.current_inner()); // the thread's end is to be noticed
        }
        overflow::watch(self);
        let mut stacks = self.stacks.borrow_mut();
        prefetch::adapt(self, stacks.in_use());
        stacks.fetch(size)
    }

    /// [`ThreadState::keep_last_stack`], where no stack is last_stack.
    #[inline(always)] // one store
    pub(crate) fn keep_only_stack(&self, stack: Option<Stack>) {
        let before = self.last_stack.replace(stack);
        debug_assert!(before.is_none());
    }

    /// Says whether a stack is last_stack, so that another one could not be without giving this one back.
    #[inline(always)] // one comparison
    pub(crate) fn has_last_stack(&self) -> bool {
        // SAFETY: T3: looked at, and let go of at once.
        unsafe { &*self.last_stack.as_ptr() }.is_some()
    }

    /// The base of the stack that was retired last; null if there is none. Only to compare with.
    pub(crate) fn last_stack_base(&self) -> *mut u8 {
        // SAFETY: read on the thread that writes it, and let go of at once.
        let last_stack = unsafe { &*self.last_stack.as_ptr() };
        last_stack
            .as_ref()
            .map_or(ptr::null_mut(), |stack| stack.base().as_ptr())
    }

    /// How many stacks the greenlets of the thread have.
    pub(crate) fn stacks_in_use(&self) -> usize {
        self.stacks.borrow().in_use() - self.idle_but_counted()
    }

    /// How many stacks are counted as in use that are not: the one that was retired last.
    pub(crate) fn idle_but_counted(&self) -> usize {
        usize::from(!self.last_stack_base().is_null())
    }
}

/// Gives a stack back to the running thread. It looks the hub up itself: who calls it would keep the address of the hub for it,
/// over all the switches of a greenlet.
#[inline(never)]
fn give_stack_back(stack: Stack) {
    ThreadState::current().give_stack(stack);
}

/// Runs `look` with the node of the running greenlet, which is not counted for it.
#[inline]
pub(crate) fn with_current_inner<R>(look: impl FnOnce(&Inner) -> R) -> R {
    let thread = ThreadState::current();
    if thread.current_ptr().is_null() || thread.has_flag(flag::EXITING) {
        // Then main belongs to its handles alone (`ThreadState::set_up`).
        return look(&thread.current_inner());
    }
    // SAFETY: T1: main is counted by the hub until the thread ends, and any other greenlet counts itself
    // until it has finished, which it cannot before `look`, which runs on its stack, has returned.
    look(unsafe { &*thread.current_ptr() })
}

/// The handle of the running greenlet, for [`crate::getcurrent`].
#[inline]
pub(crate) fn current_greenlet() -> Greenlet {
    Greenlet::from_inner(ThreadState::current().current_inner())
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
        let thread = ThreadState::current();
        // Otherwise `std::process::exit` was called in a greenlet, or in a destructor during a panic.
        let is_thread_end = thread.current.get() == thread.main.get() && !std::thread::panicking();
        if is_thread_end {
            // These were ended while a panic unwound, which only delayed their ends.
            // CAUTION: runs arbitrary user code.
            thread.run_deferred();
        }
        thread.raise_flag(flag::EXITING);
        let left: Vec<Greenlet> = teardown::suspended(thread).collect();
        let report = Unraisable::of_left(&left); // its text is of the time before they are dead
        left.iter().for_each(|greenlet| greenlet.inner().leave(thread));
        all_threads::leave(thread);
        if !is_thread_end {
            std::mem::forget((left, report)); // to drop handles may run user code
            return;
        }
        // CAUTION: runs arbitrary user code: the hook, and destructors of what pending parents captured.
        if let Some(report) = report.filter(|_| !is_first_of_process()) {
            unraisable::call(&report);
        }
        left.into_iter().for_each(record::release_left);
        thread.keep_last_stack(None);
        thread.fibers.bury();
        thread.exit_cache.forget();
        let tracer = thread.tracer.borrow_mut().take();
        drop(tracer);
        thread.stacks.borrow_mut().release();
        thread.signal_stack.withdraw();
        let main = thread.main.get();
        // SAFETY: these are the two counts that `set_up` gave away.
        let (first, second) = unsafe { (InnerRc::from_raw(main), InnerRc::from_raw(main)) };
        // CAUTION: runs foreign code: destructors of main's local variables.
        drop(first.replace_locals(None));
        first.finish();
        drop(first);
        drop(second);
        let creation_times = thread.creation_times.take();
        drop(creation_times); // the map may have memory when it is empty
        thread.pool.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_resume_point_passes_and_only_if_no_flag_is_raised() {
        let flags = SwitchFlags::new();
        let addresses = [1, 0x1000, 0x7fff_ffff, usize::MAX >> 9];
        let pass = |flags: &SwitchFlags| {
            assert!(!flags.allows(ptr::null_mut()));
            let passes = addresses.map(|address| flags.allows(ptr::without_provenance_mut(address)));
            assert!(passes.iter().all(|passed| *passed == passes[0]));
            passes[0]
        };
        assert!(pass(&flags));
        for bit in 0..8 {
            flags.raise(1 << bit);
            assert_eq!(flags.get(), 1 << bit);
            assert!(!pass(&flags));
            flags.raise(flag::TRACED);
            flags.lower(1 << bit);
            assert_eq!(pass(&flags), bit == 0); // `TRACED` is the lowest
            flags.lower(flag::TRACED);
            assert!(pass(&flags));
            assert_eq!(flags.get(), 0);
        }
    }
}
