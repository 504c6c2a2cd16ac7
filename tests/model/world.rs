//! The state of a program on one thread, and the invariants that are checked while it runs.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::thread::panicking;

use greenlet::{Greenlet, Unraisable, WeakGreenlet, getcurrent, greenlets, stacks_in_use};

use crate::generators::Gen;
use crate::program::{GATES, Program, SLOTS};
use crate::tasks::Task;

/// Set to print each step.
pub(crate) static TRACES: AtomicBool = AtomicBool::new(false);
/// The stacks that the programs of this process have left for good.
pub(crate) static LEFT: AtomicUsize = AtomicUsize::new(0);

/// How many steps a thread of a program may take. After that, every body returns.
const FUEL: u32 = 400;

thread_local! {
    /// Leaked, so that late destructors of the thread can use it. A process runs few programs.
    static WORLD: Cell<Option<&'static World>> = const { Cell::new(None) };
}

pub(crate) fn world() -> &'static World {
    WORLD.get().expect("a program runs on this thread")
}

/// Ends the process, because an invariant does not hold.
pub(crate) fn fail(what: impl fmt::Display) -> ! {
    let seed = WORLD.get().map_or(0, |world| world.program.seed);
    eprintln!("FAILED seed {seed}: {what}");
    std::process::abort()
}

/// A thing whose destructor must run once.
struct Item {
    what: &'static str,
    /// The activation on whose stack it is, if it is not moved.
    owner: Option<usize>,
    /// The greenlet that it is sent to.
    to: Option<u64>,
    has_arrived: bool,
}

/// One run of a body of a greenlet, spawn or generator.
struct Activation {
    what: &'static str,
    has_ended: bool,
}

#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) is_open: bool,
    pub(crate) wakers: Vec<Waker>,
}

pub(crate) struct World {
    pub(crate) program: Arc<Program>,
    pub(crate) greenlets: Table<Greenlet>,
    pub(crate) generators: Table<Gen>,
    pub(crate) tasks: Table<Task>,
    pub(crate) gates: RefCell<[Gate; GATES]>,
    items: RefCell<HashMap<u64, Item>>,
    next: Cell<u64>,
    activations: RefCell<Vec<Activation>>,
    /// All greenlets of the program.
    known: RefCell<HashMap<u64, WeakGreenlet>>,
    /// The greenlets whose future their driver polls.
    held: RefCell<HashSet<u64>>,
    /// The greenlets in a call of `block_on_greenlet`, which may await a spawn.
    pub(crate) blocked: RefCell<Vec<u64>>,
    /// How often each greenlet was seen to run.
    runs: RefCell<HashMap<u64, u64>>,
    /// The greenlets whose end was deferred, with their runs at that time.
    deferred: RefCell<Vec<(WeakGreenlet, u64)>>,
    /// The greenlets that were ended before they started.
    ended_pending: RefCell<HashSet<u64>>,
    /// The greenlets that have received an exit, or may have caught an unwinding. They may be in an end.
    exited: RefCell<HashSet<u64>>,
    /// How many callbacks of the library run, some of which may be part of an end.
    pub(crate) callbacks: Cell<u32>,
    /// The greenlets that have refused to end.
    refused: RefCell<HashSet<u64>>,
    /// The number of generators that have not ended.
    with_stacks: Cell<u32>,
    fuel: Cell<u32>,
    pub(crate) steps: Cell<u64>,
    /// How many sections of `no_switch` the thread is in.
    pub(crate) sections: Cell<u32>,
    /// How many calls of `block_on_greenlet` have not returned. Gates are open then.
    pub(crate) blocking: Cell<u32>,
    /// How many gates are being opened. Some of their wakers have not been called.
    pub(crate) opening: Cell<u32>,
    /// Set when a tracer may run other code in the middle of a function.
    pub(crate) has_tracers: Cell<bool>,
    /// Set when a clean-up may have switched away, out of hooks that are around its end.
    pub(crate) has_left_an_end: Cell<bool>,
    /// Set when something may have been left for good: a leak, or a body that refuses to end.
    pub(crate) may_leave: Cell<bool>,
    /// Set when a destructor has unwound. The compiler loses the value that its function returns then.
    pub(crate) may_lose: Cell<bool>,
    /// Set when a wait may have ended in another way than by its future.
    pub(crate) is_disturbed: Cell<bool>,
    /// Set when an end may have been deferred.
    pub(crate) may_defer: Cell<bool>,
    /// The number of greenlets in the report of those that are left suspended.
    expected_left: Cell<Option<usize>>,
    is_closed: Cell<bool>,
}

/// The greenlet and its ancestors.
fn lineage(greenlet: Greenlet) -> impl Iterator<Item = Greenlet> {
    std::iter::successors(Some(greenlet), Greenlet::parent)
}

/// A table of handles. Nothing is borrowed when one is dropped.
pub(crate) struct Table<T>(RefCell<[Option<T>; SLOTS]>);

impl<T> Table<T> {
    fn new() -> Table<T> {
        Table(RefCell::new(std::array::from_fn(|_| None)))
    }

    pub(crate) fn take(&self, slot: usize) -> Option<T> {
        self.0.borrow_mut()[slot].take()
    }

    #[must_use = "it is dropped by the caller"]
    pub(crate) fn put(&self, slot: usize, value: Option<T>) -> Option<T> {
        std::mem::replace(&mut self.0.borrow_mut()[slot], value)
    }
}

impl<T: Clone> Table<T> {
    pub(crate) fn get(&self, slot: usize) -> Option<T> {
        self.0.borrow()[slot].clone()
    }
}

impl World {
    /// Starts a program on this thread.
    pub(crate) fn start(program: &Arc<Program>) -> &'static World {
        let world = Box::leak(Box::new(World {
            program: Arc::clone(program),
            greenlets: Table::new(),
            generators: Table::new(),
            tasks: Table::new(),
            gates: RefCell::default(),
            items: RefCell::default(),
            next: Cell::new(1),
            activations: RefCell::default(),
            known: RefCell::default(),
            held: RefCell::default(),
            blocked: RefCell::default(),
            runs: RefCell::default(),
            deferred: RefCell::default(),
            ended_pending: RefCell::default(),
            exited: RefCell::default(),
            callbacks: Cell::new(0),
            refused: RefCell::default(),
            with_stacks: Cell::new(0),
            fuel: Cell::new(FUEL),
            steps: Cell::new(0),
            sections: Cell::new(0),
            blocking: Cell::new(0),
            opening: Cell::new(0),
            has_tracers: Cell::new(false),
            has_left_an_end: Cell::new(false),
            may_leave: Cell::new(false),
            may_lose: Cell::new(false),
            is_disturbed: Cell::new(false),
            may_defer: Cell::new(false),
            expected_left: Cell::new(None),
            is_closed: Cell::new(false),
        }));
        WORLD.set(Some(world));
        world
    }

    /// Returns `false` if the program has run for long enough.
    pub(crate) fn takes_step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        let left = self.fuel.get();
        self.fuel.set(left.saturating_sub(1));
        left > 0
    }

    pub(crate) fn refuel(&self) {
        self.fuel.set(self.fuel.get().max(FUEL / 4));
    }

    /// Checks that the running greenlet is one that may run.
    pub(crate) fn check_current(&self, what: &str) {
        if self.is_closed.get() {
            fail(format_args!("{what} runs after the end of its thread's function"));
        }
        let current = getcurrent();
        *self.runs.borrow_mut().entry(current.id()).or_default() += 1;
        if !current.is_active() {
            fail(format_args!("{what} runs in {current:?}"));
        }
        if self.is_held(current.id()) {
            fail(format_args!(
                "{what} runs in {current:?}, while its future is polled"
            ));
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Returns `true` if a switch must be refused.
    pub(crate) fn is_forbidden(&self) -> bool {
        panicking() || self.sections.get() > 0
    }

    // ---- greenlets ----

    pub(crate) fn register(&self, greenlet: &Greenlet) {
        self.known
            .borrow_mut()
            .insert(greenlet.id(), greenlet.downgrade());
    }

    fn is_known_dead(&self, id: u64) -> bool {
        let weak = self.known.borrow().get(&id).cloned();
        weak.is_some_and(|weak| weak.upgrade().is_none_or(|greenlet| greenlet.is_dead()))
    }

    fn runs(&self, id: u64) -> u64 {
        self.runs.borrow().get(&id).copied().unwrap_or_default()
    }

    /// Notes that the end of a greenlet has to wait.
    pub(crate) fn expect_end(&self, greenlet: &Greenlet) {
        let runs = self.runs(greenlet.id());
        self.deferred.borrow_mut().push((greenlet.downgrade(), runs));
    }

    /// Notes that the running greenlet may be in an end.
    pub(crate) fn note_exit(&self) {
        self.exited.borrow_mut().insert(getcurrent().id());
    }

    /// Returns `true` if the running code may be part of an end. Deferred ends wait for that.
    pub(crate) fn may_be_in_an_end(&self) -> bool {
        let has_exited = |one: &Greenlet| self.exited.borrow().contains(&one.id());
        self.callbacks.get() > 0 || lineage(getcurrent()).any(|one| has_exited(&one))
    }

    /// Checks that each deferred end has been done, or has begun at least.
    pub(crate) fn check_deferred(&self) {
        if self.is_forbidden() || self.may_be_in_an_end() {
            return;
        }
        for (weak, runs) in self.deferred.take() {
            let Some(greenlet) = weak.upgrade() else { continue };
            if greenlet.is_active() && self.runs(greenlet.id()) == runs && !self.may_live(&greenlet) {
                fail(format_args!("the deferred end of {greenlet:?} has not come"));
            }
        }
    }

    pub(crate) fn set_startable(&self, id: u64, may_start: bool) {
        let mut ended = self.ended_pending.borrow_mut();
        if may_start {
            ended.remove(&id)
        } else {
            ended.insert(id)
        };
    }

    pub(crate) fn check_startable(&self, id: u64) {
        if self.ended_pending.borrow().contains(&id) {
            fail(format_args!("greenlet {id} starts after its end"));
        }
    }

    pub(crate) fn hold(&self, id: u64) {
        if !self.held.borrow_mut().insert(id) {
            fail("a future is polled while it is polled");
        }
    }

    pub(crate) fn release(&self, id: u64) {
        self.held.borrow_mut().remove(&id);
    }

    pub(crate) fn is_held(&self, id: u64) -> bool {
        self.held.borrow().contains(&id)
    }

    /// Returns `true` if the greenlet need not be dead after it was ended.
    pub(crate) fn may_live(&self, greenlet: &Greenlet) -> bool {
        let id = greenlet.id();
        let is_blocked = || self.blocked.borrow().contains(&id);
        self.is_forbidden()
            || self.refused.borrow().contains(&id)
            || self.is_held(id)
            || is_blocked()
            || lineage(getcurrent()).any(|one| one == *greenlet)
    }

    // ---- things with destructors ----

    fn add(&self, what: &'static str, owner: Option<usize>, to: Option<u64>) -> Tracked {
        let id = self.next.get();
        self.next.set(id + 1);
        let item = Item {
            what,
            owner,
            to,
            has_arrived: false,
        };
        self.items.borrow_mut().insert(id, item);
        Tracked(id)
    }

    pub(crate) fn witness(&self, what: &'static str, owner: Option<usize>) -> Tracked {
        self.add(what, owner, None)
    }

    pub(crate) fn token(&self, to: Option<u64>) -> Token {
        Token(self.add("value", None, to))
    }

    /// Checks that a value has arrived where it was sent, for the first time.
    pub(crate) fn arrive(&self, id: u64, at: u64) {
        let to = {
            let mut items = self.items.borrow_mut();
            let Some(item) = items.get_mut(&id) else {
                drop(items);
                fail(format_args!("the value {id} arrives after its drop"));
            };
            if std::mem::replace(&mut item.has_arrived, true) {
                drop(items);
                fail(format_args!("the value {id} arrives for a second time"));
            }
            item.to
        };
        // What is sent to a dead greenlet goes to an ancestor. It may die during the switch.
        if let Some(to) = to.filter(|to| *to != at && !self.is_known_dead(*to)) {
            fail(format_args!(
                "the value {id} was sent to greenlet {to}, and arrives in {at}"
            ));
        }
    }

    /// Forgets where a value was sent, because it is sent on.
    pub(crate) fn send_on(&self, id: u64) {
        if let Some(item) = self.items.borrow_mut().get_mut(&id) {
            item.to = None;
            item.has_arrived = false;
        }
    }

    // ---- activations ----

    pub(crate) fn activate(&self, what: &'static str) -> Active {
        let mut all = self.activations.borrow_mut();
        all.push(Activation {
            what,
            has_ended: false,
        });
        Active(all.len() - 1)
    }

    pub(crate) fn has_ended(&self, activation: usize) -> bool {
        self.activations.borrow()[activation].has_ended
    }

    /// Counts a generator, which has a stack from its creation to its end.
    pub(crate) fn count_generator(&self) -> Lower<'_> {
        self.with_stacks.set(self.with_stacks.get() + 1);
        Lower(&self.with_stacks)
    }

    // ---- reports ----

    /// Receives a report of the library. Does not panic.
    pub(crate) fn report(&self, report: &Unraisable) {
        if report.is_refusal() {
            // The clean-up of a program may do this.
            if report.to_string().contains("left suspended in its clean-up") {
                self.may_leave.set(true);
            }
            if !self.may_leave.get() {
                fail(format_args!(
                    "refused to end, although nothing catches the unwinding: {report}"
                ));
            }
            if report.generator().is_none() {
                self.refused.borrow_mut().insert(report.greenlet().id());
            }
        }
        if report.left_suspended() > 0 && self.expected_left.get() != Some(report.left_suspended()) {
            fail(format_args!("{report}; expected {:?}", self.expected_left.get()));
        }
        if let Some(payload) = report.take_panic() {
            drop_payload(payload);
        }
    }

    // ---- the end ----

    /// The greenlets that have not ended, except main.
    fn suspended(&self) -> Vec<Greenlet> {
        let mut all = greenlets();
        all.retain(|greenlet| greenlet.is_active() && !greenlet.is_main());
        all
    }

    /// Checks that nothing is left, except what was leaked on purpose or has refused to end.
    pub(crate) fn check_end(&self) {
        let suspended = self.suspended();
        let refused = self.refused.borrow();
        if let Some(left) = suspended.iter().find(|left| !refused.contains(&left.id())) {
            fail(format_args!("{left:?} is left after `end_suspended`"));
        }
        self.check_stacks(suspended.len());
        if !self.may_leave.get() {
            if let Some(left) = greenlets().iter().find(|left| !left.is_main()) {
                fail(format_args!("the node of {left:?} is left"));
            }
            if !self.held.borrow().is_empty() {
                fail("a greenlet is held for ever");
            }
        }
        let activations = self.activations.borrow();
        for item in self.items.borrow().values() {
            if item.what == "value" && self.may_lose.get() {
                continue;
            }
            let owner = item.owner.map(|owner| &activations[owner]);
            if !self.may_leave.get() || owner.is_some_and(|owner| owner.has_ended) {
                let of = owner.map_or("", |owner| owner.what);
                fail(format_args!("the destructor of a {} {of} has not run", item.what));
            }
        }
        LEFT.fetch_add(stacks_in_use(), Ordering::SeqCst);
    }

    fn check_stacks(&self, suspended: usize) {
        let expected = suspended + self.with_stacks.get() as usize;
        if stacks_in_use() != expected {
            fail(format_args!(
                "{} stacks are in use, and {expected} are needed",
                stacks_in_use()
            ));
        }
    }

    /// Declares the thread's function as over. From now on nothing may run.
    pub(crate) fn close(&self) {
        let suspended = self.suspended();
        self.check_stacks(suspended.len());
        let refused = self.refused.borrow();
        let unreported = suspended
            .iter()
            .filter(|left| !refused.contains(&left.id()))
            .count();
        self.expected_left.set(Some(unreported));
        LEFT.fetch_add(stacks_in_use(), Ordering::SeqCst);
        self.is_closed.set(true);
    }
}

/// Lowers a counter when it is dropped.
pub(crate) struct Lower<'a>(pub(crate) &'a Cell<u32>);

impl Drop for Lower<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Marks a body as running, until it is dropped.
pub(crate) struct Active(pub(crate) usize);

impl Drop for Active {
    fn drop(&mut self) {
        let is_again = {
            let mut all = world().activations.borrow_mut();
            std::mem::replace(&mut all[self.0].has_ended, true)
        };
        if is_again {
            fail("a body ends for a second time");
        }
    }
}

/// Something whose destructor must run once.
#[derive(Debug)]
pub(crate) struct Tracked(pub(crate) u64);

impl Drop for Tracked {
    fn drop(&mut self) {
        if world().items.borrow_mut().remove(&self.0).is_none() {
            fail(format_args!("the item {} is dropped twice", self.0));
        }
    }
}

/// A value that greenlets send each other.
#[derive(Debug)]
pub(crate) struct Token(pub(crate) Tracked);

impl Token {
    pub(crate) fn id(&self) -> u64 {
        self.0.0
    }
}

/// An error that is thrown.
#[derive(Debug)]
pub(crate) struct Fault(pub(crate) Token);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault {}", self.0.id())
    }
}

impl std::error::Error for Fault {}

/// The payload of a panic.
pub(crate) struct Boom {
    _witness: Tracked,
    pub(crate) is_bomb: bool,
}

impl Boom {
    pub(crate) fn new(is_bomb: bool) -> Box<Boom> {
        let _witness = world().witness("payload", None);
        Box::new(Boom { _witness, is_bomb })
    }
}

impl Drop for Boom {
    fn drop(&mut self) {
        if self.is_bomb && !panicking() {
            resume_unwind(Boom::new(false));
        }
    }
}

pub(crate) type Payload = Box<dyn std::any::Any + Send>;

/// Returns `true` for a panic of the program. The library's own unwinding must not be stopped.
pub(crate) fn is_panic(payload: &Payload) -> bool {
    payload.is::<Boom>() || payload.is::<String>() || payload.is::<&str>()
}

/// Drops a payload whose destructor may panic.
pub(crate) fn drop_payload(payload: Payload) {
    let mut next = Some(payload);
    while let Some(payload) = next {
        next = catch_unwind(AssertUnwindSafe(|| drop(payload))).err();
    }
}

/// What the known panics of the library say. Any other panic in its code is a failure.
const KNOWN: &[&str] = &[
    "cannot await",
    "a spawned function was ended before it returned",
    "returned without awaiting anything",
    "would block the executor",
];

/// Checks the place of each panic. The program's own panics call no hook.
pub(crate) fn watch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = message(info);
        if !KNOWN.iter().any(|known| text.contains(known)) {
            fail(format_args!("undocumented {info}"));
        }
    }));
    greenlet::set_unraisable_hook(|report| {
        if let Some(world) = WORLD.get() {
            world.report(report);
        }
    });
}

fn message<'a>(info: &'a std::panic::PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("?")
}
