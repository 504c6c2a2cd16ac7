//! The interpreter of programs: greenlets, switches between them, and their ends.

use anyhow::{Error, Result};
use greenlet::{
    AwaitInProgress, Greenlet, GreenletExit, StackError, State, SwitchForbidden, ThreadExiting, TypeMismatch,
    Unwinding, Value, getcurrent,
};

use crate::program::{Body, Transfer};
use crate::run::{Context, Flow, Witness, disturb, run};
use crate::world::{Active, Fault, Token, World, fail, world};

pub(crate) fn new_greenlet(body: Body, drop: &Body, parent: Option<Greenlet>) -> Greenlet {
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
pub(crate) fn activation(active: &Active, first: Token, body: &Body) -> Result<Token> {
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
pub(crate) fn send_on(error: Error) -> Error {
    if let Some(fault) = error.downcast_ref::<Fault>() {
        world().send_on(fault.0.id());
    }
    error
}

/// The greenlet that a value for `target` reaches.
pub(crate) fn destination(target: &Greenlet) -> Option<Greenlet> {
    let mut at = Some(target.clone());
    while let Some(greenlet) = &at {
        if !greenlet.is_dead() {
            break;
        }
        at = greenlet.parent();
    }
    at
}

pub(crate) fn transfer(world: &'static World, target: Greenlet, how: Transfer) -> Result<()> {
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
            note_switch(world);
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

/// Notes that the running code switches.
fn note_switch(world: &World) {
    if world.may_be_in_an_end() {
        world.has_left_an_end.set(true);
    }
}

/// Sends a value, and checks what comes back.
pub(crate) fn send(
    world: &'static World,
    to: Option<Greenlet>,
    is_owned: bool,
    send: impl FnOnce(Token) -> Result<Value>,
) -> Result<()> {
    let must_refuse = world.is_forbidden();
    note_switch(world);
    let is_awaiting = to.as_ref().is_some_and(Greenlet::is_awaiting) && !world.may_defer.get();
    let (me, to) = (getcurrent().id(), to.map(|to| to.id()));
    let token = world.token(to);
    let id = token.id();
    let steps = world.steps.get();
    let result = send(token);
    let is_refused = matches!(&result, Err(error) if refused_item(error) == Some(id));
    if must_refuse && !is_refused {
        fail(format_args!(
            "a switch in a panic or a `no_switch` section: {:?}",
            result.err()
        ));
    }
    if must_refuse && !is_owned && world.steps.get() != steps {
        fail("other code has run in a refused switch");
    }
    if is_awaiting && !is_refused {
        fail(format_args!(
            "a switch to a greenlet that awaits: {:?}",
            result.err()
        ));
    }
    receive(world, me, result)
}

/// Checks what a switch returns.
fn receive(world: &World, me: u64, result: Result<Value>) -> Result<()> {
    if getcurrent().id() != me {
        fail(format_args!(
            "a switch of greenlet {me} returns in {:?}",
            getcurrent()
        ));
    }
    match result {
        Ok(value) => {
            if let Ok(token) = value.downcast::<Token>() {
                world.arrive(token.id(), me);
            }
            Ok(())
        }
        Err(error) => {
            if error.is::<GreenletExit>() {
                world.note_exit();
            }
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
    if world.is_forbidden() && !is_kept && greenlet.is_active() {
        world.expect_end(greenlet);
    }
    if greenlet.state() == State::Pending {
        world.set_startable(greenlet.id(), false);
    }
    greenlet.end();
    if !is_kept && !greenlet.is_dead() && !world.may_live(greenlet) {
        fail(format_args!("{greenlet:?} is alive after `end`"));
    }
}
