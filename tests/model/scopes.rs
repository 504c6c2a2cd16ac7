//! The interpreter of programs: scopes.

use std::cell::Cell;

use anyhow::Result;
use greenlet::{Yielder, scope};

use crate::greenlets::activation;
use crate::program::Body;
use crate::run::{Context, Flow, Members, run};
use crate::world::{Token, World, fail};

/// The value of the borrowed variable of a scope, which its functions change by less than 1 << 20.
const BORROWED: u64 = 0x5eed_0000_0000;

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

pub(crate) fn in_scope(world: &'static World, body: &Body, context: &Context<'_>) -> Result<Flow> {
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
        let members = Members {
            greenlet: &greenlet,
            generator: &generator,
        };
        run(
            body,
            &Context {
                members: Some(members),
                ..*context
            },
        )
    });
    if let Some(left) = activations.borrow().iter().find(|&&one| !world.has_ended(one)) {
        fail(format_args!("the member {left} outlives its scope"));
    }
    result
}
