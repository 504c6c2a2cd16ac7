//! The interpreter of programs: greenlets, generators, scopes and control flow.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::panicking;

use anyhow::Result;
use greenlet::{
    Greenlet, GreenletExit, Tracer, Yielder, end_suspended, getcurrent, getmain, getparent, greenlet_local,
    no_switch, raise, settrace,
};

use crate::bridge;
use crate::generators::{Stepped, new_generator, step, yield_};
use crate::greenlets::{destination, end, new_greenlet, send, send_on, transfer};
use crate::program::{Body, OnError, Op, Step, Thrown, Transfer};
use crate::scopes::in_scope;
use crate::thread::run_thread;
use crate::world::{Boom, Fault, Lower, TRACES, Token, Tracked, World, drop_payload, fail, is_panic, world};

greenlet_local! {
    pub(crate) static VARIABLE: Option<Witness> = None;
}

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
    pub(crate) greenlet: &'a dyn Fn(&Body) -> Greenlet,
    pub(crate) generator: &'a dyn Fn(&Body, u32),
}

impl Context<'_> {
    pub(crate) fn new(what: &'static str, activation: Option<usize>) -> Context<'static> {
        Context {
            what,
            activation,
            generator: None,
            item: None,
            members: None,
        }
    }
}

/// Whether a body goes on.
#[derive(PartialEq, Eq)]
pub(crate) enum Flow {
    On,
    Return,
}

/// Has a destructor that runs a body.
pub(crate) struct Witness {
    _tracked: Tracked,
    drop: Body,
}

impl Witness {
    pub(crate) fn new(what: &'static str, owner: Option<usize>, drop: &Body) -> Witness {
        Witness {
            _tracked: world().witness(what, owner),
            drop: drop.clone(),
        }
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
        let world = world();
        world.callbacks.set(world.callbacks.get() + 1);
        let _callback = Lower(&world.callbacks);
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
        if context
            .activation
            .is_some_and(|activation| world.has_ended(activation))
        {
            fail(format_args!("{} runs after its end", context.what));
        }
        let flow = one(world, *number, op, context)?;
        world.check_current(context.what);
        if flow == Flow::Return {
            return Ok(flow);
        }
    }
    Ok(Flow::On)
}

fn one(world: &'static World, number: u32, op: &Op, context: &Context<'_>) -> Result<Flow> {
    match op {
        Op::New {
            slot,
            parent,
            body,
            drop,
        } => {
            let parent = parent.and_then(|parent| world.greenlets.get(parent));
            put(world, *slot, new_greenlet(body.clone(), drop, parent));
            // Most are started at once.
            if let Some(greenlet) = world.greenlets.get(*slot).filter(|_| number % 3 != 0) {
                let _ = transfer(world, greenlet, Transfer::Value);
            }
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
                recover(
                    send(world, to, false, |token| {
                        getparent().expect("checked").switch(token)
                    }),
                    *on_error,
                )?;
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
                Err(payload) => {
                    world.note_exit();
                    world.may_defer.set(true);
                    drop_payload(payload);
                }
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
            world.check_deferred();
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
            let before = world
                .generators
                .put(*slot, Some(new_generator(body.clone(), drop)));
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
        Op::Trace { body, fails } => {
            disturb(world);
            world.has_tracers.set(true);
            world.may_defer.set(true); // a tracer may end a greenlet during a switch
            let (body, fails, witness) = (body.clone(), *fails, world.witness("tracer", None));
            let tracer = Tracer::new(move |_| {
                let _alive = &witness;
                std::mem::drop(settrace(None));
                run(&body, &Context::new("a tracer", None)).map_err(send_on)?;
                if fails {
                    Err(Fault(crate::world::world().token(None)).into())
                } else {
                    Ok(())
                }
            });
            std::mem::drop(settrace(Some(tracer)));
        }
        other => return bridge::one(world, number, other, context),
    }
    Ok(Flow::On)
}

pub(crate) fn disturb(world: &World) {
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
    if result.as_ref().is_err_and(|error| error.is::<GreenletExit>()) {
        world().note_exit();
    }
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
            world.may_defer.set(true);
            drop_payload(payload);
            Ok(Flow::On)
        }
        Err(payload) => resume_unwind(payload),
    }
}
