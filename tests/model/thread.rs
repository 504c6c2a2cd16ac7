//! Runs a program as the function of a thread, and checks what it leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use greenlet::{Value, check_switch_allowed, end_suspended, getcurrent, getmain, run_to_end, settrace};

use crate::bridge;
use crate::program::{Body, GATES, Program, SLOTS, ThreadEnd};
use crate::run::{Context, VARIABLE, run};
use crate::tasks;
use crate::world::{World, drop_payload, fail};

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
            safely(tasks::drain);
            run_deferred();
            world.check_deferred();
        }
        // Hooks that panic can unwind out of it.
        ThreadEnd::RunToEnd => safely(|| run_to_end(top)),
        ThreadEnd::Plain => {
            top();
            world.refuel();
            run_deferred();
            return world.close();
        }
    }
    world.refuel();
    for slot in 0..SLOTS {
        safely(|| drop(world.tasks.take(slot)));
        safely(|| drop(world.generators.take(slot)));
        safely(|| drop(world.greenlets.take(slot)));
    }
    for _ in 0..20 {
        safely(|| end_suspended().expect("main may switch"));
        // Destructors and clean-up may have filled the tables again.
        for slot in 0..SLOTS {
            safely(|| drop(world.tasks.take(slot)));
            safely(|| drop(world.generators.take(slot)));
            safely(|| drop(world.greenlets.take(slot)));
        }
        safely(|| drop(settrace(None)));
        safely(|| drop(VARIABLE.unset()));
        (0..GATES).for_each(|gate| safely(|| bridge::open(gate)));
    }
    if check_switch_allowed().is_err() {
        fail("main may not switch at its end");
    }
    world.check_end();
}

/// Runs the ends that wait until a panic is over. A hook that panics stops the others, and defers more.
fn run_deferred() {
    for _ in 0..10 {
        safely(|| drop(getmain().switch::<Value>(())));
    }
}

fn safely(action: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(action)) {
        drop_payload(payload);
    }
}
