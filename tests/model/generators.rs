//! The interpreter of programs: generators.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Generator, GeneratorError, GreenletExit, ThreadExiting, Unwinding, getcurrent};

use crate::greenlets::{finish, refused_item};
use crate::program::{Body, GenStep};
use crate::run::{Context, Witness, run};
use crate::world::{Fault, Token, World, fail, world};

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

pub(crate) fn new_generator(body: Body, drop: &Body) -> Gen {
    // The capture is dropped before the count is lowered.
    let mut captures = Some((Witness::new("capture", None, drop), world().count_generator()));
    let stepped = Rc::new(Stepped::default());
    let shared = Rc::clone(&stepped);
    let generator = Generator::with_input(move |yielder, first: Token| {
        let (capture, _counted) = captures.take().expect("the function runs once");
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
    Gen {
        generator: Rc::new(generator),
        stepped,
    }
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

pub(crate) fn step(world: &World, shared: &Gen, how: GenStep) -> Result<()> {
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
        GenStep::Throw => generator.throw(Fault(world.token(None))),
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
            let is_busy = error
                .downcast_ref::<GeneratorError>()
                .is_some_and(GeneratorError::is_busy);
            let is_refused = error.is::<Unwinding>() || error.is::<ThreadExiting>();
            if is_busy != was_busy && !is_refused {
                fail(format_args!(
                    "a generator is busy: {was_busy}, and the step fails: {error:#}"
                ));
            }
            if error.is::<GreenletExit>() {
                Err(error)
            } else {
                Ok(())
            }
        }
        None => {
            drop(generator.take_return());
            Ok(())
        }
    }
}

pub(crate) fn yield_(world: &World, context: &Context<'_>) -> Result<()> {
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
