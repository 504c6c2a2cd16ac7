//! The interpreter of programs: greenlets, generators, scopes and control flow.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::panicking;

use anyhow::{Error, Result};
use greenlet::{
    AwaitInProgress, Generator, GeneratorError, Greenlet, GreenletExit, StackError, State,
    SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding, Value, Yielder, check_switch_allowed,
    end_suspended, getcurrent, getmain, getparent, greenlet_local, no_switch, raise, run_to_end, scope,
};

use crate::bridge;
use crate::program::{Body, GATES, GenStep, OnError, Op, Program, SLOTS, Step, ThreadEnd, Thrown, Transfer};
use crate::world::{
    Boom, Fault, Lower, TRACES, Token, Tracked, World, drop_payload, fail, is_panic, world,
};

greenlet_local! {
    static VARIABLE: Option<Witness> = None;
}

/// The value of the borrowed variable of a scope, which its functions change by less than 1 << 20.
const BORROWED: u64 = 0x5eed_0000_0000;

/// What a body may use, besides the tables.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) what: &'static str,
    pub(crate) activation: Option<usize>,
    pub(crate) generator: Option<(&'a Yielder<Token, Token>, &'a Stepped)>,
    /// Yields an item of the stream.
    pub(crate) item: Option<&'a dyn Fn() -> Result<()>>,
    pub(crate) members: Option<Members<'a>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Members<'a> {
    greenlet: &'a dyn Fn(&Body) -> Greenlet,
    generator: &'a dyn Fn(&Body, u32),
}

impl Context<'_> {
    pub(crate) fn new(what: &'static str, activation: Option<usize>) -> Context<'static> {
        Context { what, activation, generator: None, item: None, members: None }
    }
}

/// Whether a body goes on.
#[derive(PartialEq, Eq)]
pub(crate) enum Flow {
    On,
    Return,
}

/// A generator, and what its function and its consumer tell each other.
#[derive(Clone)]
pub(crate) struct Gen {
    generator: Rc<Generator<Token, Token, Token>>,
    stepped: Rc<Stepped>,
}

#[derive(Default)]
pub(crate) struct Stepped {
    is_busy: Cell<bool>,
    /// The item that the function yielded last.
    item: Cell<u64>,
    /// The input of the last step.
    input: Cell<u64>,
}

/// Has a destructor that runs a body.
pub(crate) struct Witness {
    _tracked: Tracked,
    drop: Body,
}

impl Witness {
    pub(crate) fn new(what: &'static str, owner: Option<usize>, drop: &Body) -> Witness {
        Witness { _tracked: world().witness(what, owner), drop: drop.clone() }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run_callback("a destructor", &self.drop))) {
            world().may_lose.set(true);
            resume_unwind(payload);
        }
    }
}

/// Runs a body that is called by the library, which wants no result.
pub(crate) fn run_callback(what: &'static str, body: &Body) {
    // After the end of the thread's function there is nothing left to do.
    if !body.is_empty() && !world().is_closed() {
        let _ = run(body, &Context::new(what, None));
    }
}

pub(crate) fn run(body: &Body, context: &Context<'_>) -> Result<Flow> {
    let world = world();
    for Step { number, op } in body.iter() {
        if world.program.skips.contains(number) {
            continue;
        }
        world.check_current(context.what);
        if TRACES.load(std::sync::atomic::Ordering::Relaxed) {
            eprintln!("{:?}: {number} in {}", getcurrent(), context.what);
        }
        if !world.takes_step() {
            return Ok(Flow::Return);
        }
        if context.activation.is_some_and(|activation| world.has_ended(activation)) {
            fail(format_args!("{} runs after its end", context.what));
        }
        let flow = one(world, op, context)?;
        world.check_current(context.what);
        if flow == Flow::Return {
            return Ok(flow);
        }
    }
    Ok(Flow::On)
}

fn one(world: &'static World, op: &Op, context: &Context<'_>) -> Result<Flow> {
    match op {
        Op::New { slot, parent, body, drop } => {
            let parent = parent.and_then(|parent| world.greenlets.get(parent));
            put(world, *slot, new_greenlet(body.clone(), drop, parent));
        }
        Op::Switch { slot, how, on_error } => {
            let target = match how {
                Transfer::Owned => {
                    world.is_disturbed.set(true);
                    world.greenlets.take(*slot)
                }
                _ => world.greenlets.get(*slot),
            };
            if let Some(target) = target {
                recover(transfer(world, target, *how), *on_error)?;
            }
        }
        Op::Up(on_error) => {
            if getparent().is_some() {
                let to = destination(&getparent().expect("checked"));
                recover(send(world, to, false, |token| getparent().expect("checked").switch(token)), *on_error)?;
            }
        }
        Op::ToMain(on_error) => recover(transfer(world, getmain(), Transfer::Value), *on_error)?,
        Op::End(slot) => {
            if let Some(greenlet) = world.greenlets.get(*slot) {
                end(world, &greenlet);
            }
        }
        Op::Drop(slot) => {
            disturb(world);
            drop(world.greenlets.take(*slot));
        }
        Op::Forget(slot) => {
            world.may_leave.set(true);
            std::mem::forget(world.greenlets.take(*slot));
        }
        Op::CloneTo { from, to } => {
            if let Some(greenlet) = world.greenlets.get(*from) {
                put(world, *to, greenlet);
            }
        }
        Op::SetParent { slot, parent } => {
            disturb(world);
            if let (Some(child), Some(parent)) = (world.greenlets.get(*slot), world.greenlets.get(*parent)) {
                let before = child.parent();
                match child.set_parent(&parent) {
                    Ok(()) => {}
                    Err(_) if child.parent() == before => {}
                    Err(error) => fail(format_args!("the parent was changed, and {error}")),
                }
            }
        }
        Op::Hold { slot, body } => {
            let held = world.greenlets.get(*slot);
            let result = run(body, context);
            drop(held); // here: the compiler loses a returned value if a local's destructor unwinds
            return result;
        }
        Op::EndSuspended => {
            disturb(world);
            let _ = end_suspended();
        }
        Op::Local { body, drop } => {
            let local = Witness::new("local", context.activation, drop);
            let result = run(body, context);
            std::mem::drop(local); // as above
            return result;
        }
        Op::Catch(body) => return catch(world, body, context),
        Op::Swallow(body) => {
            world.may_leave.set(true);
            disturb(world);
            match catch_unwind(AssertUnwindSafe(|| run(body, context))) {
                Ok(flow) => return flow,
                Err(payload) => drop_payload(payload),
            }
        }
        Op::NoSwitch(body) => {
            world.may_defer.set(true);
            let mut result = None;
            no_switch(|| {
                world.sections.set(world.sections.get() + 1);
                let _section = Lower(&world.sections);
                result = Some(run(body, context));
            });
            return result.expect("the section has run");
        }
        Op::Repeat(times, body) => {
            for _ in 0..*times {
                if run(body, context)? == Flow::Return {
                    return Ok(Flow::Return);
                }
            }
        }
        Op::Panic(_) if panicking() => {} // a second panic would abort
        Op::Panic(thrown) => {
            disturb(world);
            world.may_defer.set(true);
            match thrown {
                Thrown::Plain => resume_unwind(Boom::new(false)),
                Thrown::Bomb => resume_unwind(Boom::new(true)),
                Thrown::Raised => raise(Fault(world.token(None))),
            }
        }
        Op::Fail => return Err(Fault(world.token(None)).into()),
        Op::Exit => return Err(GreenletExit::new().into()),
        Op::Return => return Ok(Flow::Return),
        Op::Variable => VARIABLE.set(Some(Witness::new("greenlet-local", None, &Body::default()))),
        Op::NewGenerator { slot, body, drop } => {
            let before = world.generators.put(*slot, Some(new_generator(body.clone(), drop)));
            drop_disturbing(world, before);
        }
        Op::Generator { slot, how } => {
            if let Some(generator) = world.generators.get(*slot) {
                let result = step(world, &generator, *how);
                drop(generator);
                result?;
            }
        }
        Op::DropGenerator(slot) => drop_disturbing(world, world.generators.take(*slot)),
        Op::ForgetGenerator(slot) => {
            world.may_leave.set(true);
            std::mem::forget(world.generators.take(*slot));
        }
        Op::Yield(on_error) => recover(yield_(world, context), *on_error)?,
        Op::Scope(body) => return in_scope(world, body, context),
        Op::Member { slot, body } => {
            if let Some(members) = context.members {
                put(world, *slot, (members.greenlet)(body));
            }
        }
        Op::MemberGenerator { body, steps } => {
            if let Some(members) = context.members {
                (members.generator)(body, *steps);
            }
        }
        Op::Thread { body, end } => {
            let program = Arc::clone(&world.program);
            let (body, end) = (body.clone(), *end);
            let thread = std::thread::spawn(move || run_thread(&program, &body, end));
            if thread.join().is_err() {
                fail("a thread has panicked");
            }
        }
        other => return bridge::one(world, other, context),
    }
    Ok(Flow::On)
}

fn disturb(world: &World) {
    world.is_disturbed.set(true);
}

pub(crate) fn drop_disturbing<T>(world: &World, value: Option<T>) {
    if value.is_some() {
        disturb(world);
        if panicking() {
            world.may_defer.set(true);
        }
    }
    drop(value);
}

fn put(world: &World, slot: usize, greenlet: Greenlet) {
    drop_disturbing(world, world.greenlets.put(slot, Some(greenlet)));
}

/// Ignores an error, or not.
pub(crate) fn recover(result: Result<()>, on_error: OnError) -> Result<()> {
    match on_error {
        OnError::Propagate => result,
        OnError::Ignore => Ok(()),
    }
}

fn catch(world: &World, body: &Body, context: &Context<'_>) -> Result<Flow> {
    match catch_unwind(AssertUnwindSafe(|| run(body, context))) {
        Ok(flow) => flow,
        Err(payload) if is_panic(&payload) => {
            disturb(world);
            drop_payload(payload);
            Ok(Flow::On)
        }
        Err(payload) => resume_unwind(payload),
    }
}

// ---- greenlets --------------------------------------------------------------------------------------

fn new_greenlet(body: Body, drop: &Body, parent: Option<Greenlet>) -> Greenlet {
    let capture = Witness::new("capture", None, drop);
    let builder = Greenlet::builder();
    let builder = match &parent {
        Some(parent) => builder.parent(parent),
        None => builder,
    };
    let greenlet = builder.build(move |first: Token| {
        let active = world().activate("greenlet");
        let result = activation(&active, first, &body);
        std::mem::drop(capture);
        result
    });
    world().register(&greenlet);
    greenlet
}

/// Runs the function of a greenlet.
fn activation(active: &crate::world::Active, first: Token, body: &Body) -> Result<Token> {
    world().check_current("a greenlet");
    world().check_startable(getcurrent().id());
    world().arrive(first.id(), getcurrent().id());
    drop(first);
    finish(run(body, &Context::new("a greenlet", Some(active.0))))
}

/// The outcome of a function.
pub(crate) fn finish(result: Result<Flow>) -> Result<Token> {
    match result {
        Ok(_) => Ok(world().token(None)),
        Err(error) => Err(send_on(error)),
    }
}

/// An error that is not caught goes to the parent.
fn send_on(error: Error) -> Error {
    if let Some(fault) = error.downcast_ref::<Fault>() {
        world().send_on(fault.0.id());
    }
    error
}

/// The greenlet that a value for `target` reaches.
fn destination(target: &Greenlet) -> Option<Greenlet> {
    let mut at = Some(target.clone());
    while let Some(greenlet) = &at {
        if !greenlet.is_dead() {
            break;
        }
        at = greenlet.parent();
    }
    at
}

fn transfer(world: &'static World, target: Greenlet, how: Transfer) -> Result<()> {
    let to = destination(&target);
    match how {
        Transfer::Value => {
            let result = send(world, to, false, |token| target.switch(token));
            drop(target);
            result
        }
        Transfer::Owned => {
            // The drop of the handle may run destructors, also if the switch is refused.
            world.may_defer.set(true);
            send(world, to, true, |token| target.switch_owned(token))
        }
        Transfer::Throw => {
            disturb(world);
            // A pending one dies of it, and passes it on.
            let to = to.filter(Greenlet::is_active);
            let result = send(world, to, false, |token| target.throw(Fault(token)));
            drop(target);
            result
        }
        Transfer::Kill => {
            disturb(world);
            let pending = (target.state() == State::Pending).then(|| target.id());
            pending.inspect(|id| world.set_startable(*id, false));
            let result = target.kill();
            if let (Some(id), true) = (pending, target.state() == State::Pending) {
                world.set_startable(id, true); // refused
            }
            drop(target);
            receive(world, getcurrent().id(), result)
        }
    }
}

/// Sends a value, and checks what comes back.
fn send(
    world: &'static World,
    to: Option<Greenlet>,
    is_owned: bool,
    send: impl FnOnce(Token) -> Result<Value>,
) -> Result<()> {
    let must_refuse = world.is_forbidden();
    let is_awaiting = to.as_ref().is_some_and(Greenlet::is_awaiting) && !world.may_defer.get();
    let (me, to) = (getcurrent().id(), to.map(|to| to.id()));
    let token = world.token(to);
    let id = token.id();
    let steps = world.steps.get();
    let result = send(token);
    let is_refused = matches!(&result, Err(error) if refused_item(error) == Some(id));
    if must_refuse && !is_refused {
        fail(format_args!("a switch in a panic or a `no_switch` section: {:?}", result.err()));
    }
    if must_refuse && !is_owned && world.steps.get() != steps {
        fail("other code has run in a refused switch");
    }
    if is_awaiting && !is_refused {
        fail(format_args!("a switch to a greenlet that awaits: {:?}", result.err()));
    }
    receive(world, me, result)
}

/// Checks what a switch returns.
fn receive(world: &World, me: u64, result: Result<Value>) -> Result<()> {
    if getcurrent().id() != me {
        fail(format_args!("a switch of greenlet {me} returns in {:?}", getcurrent()));
    }
    match result {
        Ok(value) => {
            if let Ok(token) = value.downcast::<Token>() {
                world.arrive(token.id(), me);
            }
            Ok(())
        }
        Err(error) => {
            if let Some(fault) = error.downcast_ref::<Fault>() {
                world.arrive(fault.0.id(), me);
            }
            Err(error)
        }
    }
}

/// The item in the error of a refused switch.
pub(crate) fn refused_item(error: &Error) -> Option<u64> {
    let value = error.downcast_ref::<TypeMismatch>().and_then(TypeMismatch::value);
    let value = value.or_else(|| error.downcast_ref::<StackError>()?.value());
    let value = value.or_else(|| error.downcast_ref::<AwaitInProgress>()?.value());
    let value = value.or_else(|| error.downcast_ref::<Unwinding>()?.value());
    let value = value.or_else(|| error.downcast_ref::<SwitchForbidden>()?.value());
    let value = value.or_else(|| error.downcast_ref::<ThreadExiting>()?.value())?;
    if let Some(token) = value.downcast_ref::<Token>() {
        return Some(token.id());
    }
    let fault = value.downcast_ref::<Error>()?.downcast_ref::<Fault>()?;
    Some(fault.0.id())
}

pub(crate) fn end(world: &World, greenlet: &Greenlet) {
    disturb(world);
    if world.is_forbidden() {
        world.may_defer.set(true);
    }
    let is_kept = greenlet.is_main() || greenlet.is_current();
    if greenlet.state() == State::Pending {
        world.set_startable(greenlet.id(), false);
    }
    greenlet.end();
    if !is_kept && !greenlet.is_dead() && !world.may_live(greenlet) {
        fail(format_args!("{greenlet:?} is alive after `end`"));
    }
}

// ---- generators -------------------------------------------------------------------------------------

fn new_generator(body: Body, drop: &Body) -> Gen {
    let capture = Witness::new("capture", None, drop);
    let stepped = Rc::new(Stepped::default());
    let (shared, counted) = (Rc::clone(&stepped), world().count_generator());
    let generator = Generator::with_input(move |yielder, first: Token| {
        let _counted = counted;
        let active = world().activate("generator");
        shared.is_busy.set(true);
        let _idle = Idle(&shared);
        let capture = capture; // dropped before
        world().check_current("a generator");
        if first.id() != shared.input.get() {
            fail("a generator starts with another value");
        }
        drop_arrived(first);
        let context = Context {
            generator: Some((&yielder, &shared)),
            ..Context::new("a generator", Some(active.0))
        };
        let result = finish(run(&body, &context));
        std::mem::drop(capture);
        result
    });
    Gen { generator: Rc::new(generator), stepped }
}

struct Idle<'a>(&'a Stepped);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.is_busy.set(false);
    }
}

fn drop_arrived(token: Token) {
    world().arrive(token.id(), 0);
}

fn step(world: &World, shared: &Gen, how: GenStep) -> Result<()> {
    let Gen { generator, stepped } = shared;
    let was_busy = stepped.is_busy.get();
    let steps = world.steps.get();
    let me = getcurrent().id();
    let result = match how {
        GenStep::Next => {
            let token = world.token(None);
            if !was_busy {
                stepped.input.set(token.id());
            }
            generator.resume(token)
        }
        GenStep::Throw => generator.throw(Fault(world.token(None)).into()),
        GenStep::Close => generator.close().err().map(Err),
        GenStep::End => {
            if generator.end() == was_busy {
                fail(format_args!("the end of a generator, which is busy: {was_busy}"));
            }
            None
        }
    };
    if getcurrent().id() != me {
        fail("a step returns in another greenlet");
    }
    if was_busy && world.steps.get() != steps {
        fail("a step runs a generator that is busy");
    }
    match result {
        Some(Ok(item)) => {
            if was_busy || stepped.is_busy.get() || item.id() != stepped.item.get() {
                fail("a generator yields another item");
            }
            drop_arrived(item);
            Ok(())
        }
        Some(Err(error)) => {
            let is_busy = error.downcast_ref::<GeneratorError>().is_some_and(GeneratorError::is_busy);
            let is_refused = error.is::<Unwinding>() || error.is::<ThreadExiting>();
            if is_busy != was_busy && !is_refused {
                fail(format_args!("a generator is busy: {was_busy}, and the step fails: {error:#}"));
            }
            if error.is::<GreenletExit>() { Err(error) } else { Ok(()) }
        }
        None => {
            drop(generator.take_return());
            Ok(())
        }
    }
}

fn yield_(world: &World, context: &Context<'_>) -> Result<()> {
    let Some((yielder, stepped)) = context.generator else {
        return Ok(());
    };
    let token = world.token(None);
    let id = token.id();
    stepped.item.set(id);
    stepped.is_busy.set(false);
    let _busy = Busy(stepped);
    match yielder.yield_(token) {
        Ok(input) if input.id() != stepped.input.get() => fail("a yield returns another input"),
        Ok(input) => drop_arrived(input),
        Err(error) => {
            if let Some(found) = refused_item(&error).filter(|found| *found != id) {
                fail(format_args!("a yield of {id} is refused with the item {found}"));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Marks the generator as running when a yield returns or unwinds.
struct Busy<'a>(&'a Stepped);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.is_busy.set(true);
    }
}

// ---- scopes -----------------------------------------------------------------------------------------

/// Uses a variable of the stack of the scope.
struct Borrow<'a>(&'a Cell<u64>);

impl Drop for Borrow<'_> {
    fn drop(&mut self) {
        self.touch();
    }
}

impl Borrow<'_> {
    fn touch(&self) {
        if self.0.get() >> 20 != BORROWED >> 20 {
            fail("a borrowed variable is overwritten");
        }
        self.0.set(self.0.get() + 1);
    }
}

fn in_scope(world: &'static World, body: &Body, context: &Context<'_>) -> Result<Flow> {
    let borrowed = Cell::new(BORROWED);
    let activations = std::cell::RefCell::new(Vec::new());
    let result = scope(|s| {
        let greenlet = |body: &Body| {
            let (body, borrow) = (body.clone(), Borrow(&borrowed));
            let activations = &activations;
            let greenlet = s.greenlet(move |first: Token| {
                let active = world.activate("member");
                activations.borrow_mut().push(active.0);
                borrow.touch();
                let result = activation(&active, first, &body);
                borrow.touch();
                result
            });
            world.register(&greenlet);
            greenlet
        };
        let generator = |body: &Body, steps: u32| {
            let (body, borrow) = (body.clone(), Borrow(&borrowed));
            let (activations, counted) = (&activations, world.count_generator());
            let mut generator = s.generator(move |yielder: Yielder<u32>| {
                let _counted = counted;
                let active = world.activate("member");
                activations.borrow_mut().push(active.0);
                borrow.touch();
                for n in 0.. {
                    run(&body, &Context::new("a member", Some(active.0)))?;
                    borrow.touch();
                    yielder.yield_(n)?;
                }
                Ok(())
            });
            for n in 0..steps {
                match generator.next() {
                    Some(Ok(item)) if item == n => {}
                    Some(Ok(item)) => fail(format_args!("the item {n} of a member is {item}")),
                    Some(Err(_)) | None => break,
                }
            }
        };
        let members = Members { greenlet: &greenlet, generator: &generator };
        run(body, &Context { members: Some(members), ..*context })
    });
    if let Some(left) = activations.borrow().iter().find(|&&one| !world.has_ended(one)) {
        fail(format_args!("the member {left} outlives its scope"));
    }
    result
}

// ---- threads ----------------------------------------------------------------------------------------

/// Runs a body as the function of this thread, and checks what it leaves.
pub(crate) fn run_thread(program: &Arc<Program>, body: &Body, end: ThreadEnd) {
    let world = World::start(program);
    let top = || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            run(body, &Context::new("the main greenlet", None))
        }));
        // Whatever unwinds main is its own.
        match outcome {
            Ok(result) => drop(result),
            Err(payload) => drop_payload(payload),
        }
    };
    if !getcurrent().is_main() {
        fail("a thread does not start in its main greenlet");
    }
    match end {
        ThreadEnd::Orderly => {
            top();
            safely(bridge::drain);
        }
        ThreadEnd::RunToEnd => run_to_end(top),
        ThreadEnd::Plain => {
            top();
            world.refuel();
            // Runs what waits until a panic is over.
            safely(|| drop(getmain().switch::<Value>(())));
            return world.close();
        }
    }
    world.refuel();
    for slot in 0..SLOTS {
        safely(|| drop(world.tasks.take(slot)));
        safely(|| drop(world.generators.take(slot)));
        safely(|| drop(world.greenlets.take(slot)));
    }
    for _ in 0..3 {
        safely(|| end_suspended().expect("main may switch"));
        // Destructors and clean-up may have filled the tables again.
        for slot in 0..SLOTS {
            safely(|| drop(world.tasks.take(slot)));
            safely(|| drop(world.generators.take(slot)));
            safely(|| drop(world.greenlets.take(slot)));
        }
        safely(|| drop(VARIABLE.unset()));
        (0..GATES).for_each(|gate| safely(|| bridge::open(gate)));
    }
    if check_switch_allowed().is_err() {
        fail("main may not switch at its end");
    }
    world.check_end();
}

fn safely(action: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(action)) {
        drop_payload(payload);
    }
}
