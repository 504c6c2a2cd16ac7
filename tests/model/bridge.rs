//! The interpreter of programs: spawned functions, awaits, streams, wakers and hooks.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread::panicking;

use anyhow::Result;
use greenlet::{
    Greenlet, Items, SpanHooks, SpawnBuilder, SpawnHooks, Value, WeakGreenlet, block_on_greenlet, getcurrent,
};

use crate::awaits::await_one;
use crate::greenlets::{end, finish};
use crate::program::{Body, GATES, OnError, Op, Options};
use crate::run::{Context, Flow, Witness, drop_disturbing, recover, run, run_callback};
use crate::tasks::{Running, cancel, poll, put, root_of};
use crate::world::{Boom, Lower, Token, World, drop_payload, fail, is_panic, world};

/// What a spawned function returns.
pub(crate) type Output = Result<Token>;

pub(crate) fn one(world: &'static World, number: u32, op: &Op, context: &Context<'_>) -> Result<Flow> {
    match op {
        Op::Spawn { slot, body, options } => {
            let (builder, hooks) = builder(options);
            let spawn = builder.spawn(function(body, hooks));
            world.register(spawn.greenlet());
            put(
                world,
                *slot,
                spawn.greenlet().downgrade(),
                Running::Spawn(spawn),
                options,
            );
            // Most are started at once.
            if number % 3 != 0 {
                poll(world, *slot);
            }
        }
        Op::Stream { slot, body, options } => {
            let (builder, hooks) = builder(options);
            let root = Rc::new(RefCell::new(None));
            let stream = builder.stream(stream_function(body, hooks, &root));
            // The greenlet of a stream is known when it has started.
            let weak = new_weak(&root);
            put(world, *slot, weak, Running::Stream(stream), options);
            if number % 3 != 0 {
                poll(world, *slot);
            }
        }
        Op::Poll(slot) => {
            poll(world, *slot);
        }
        Op::DropTask(slot) => drop_disturbing(world, world.tasks.take(*slot)),
        Op::Cancel(slot) => cancel(world, *slot),
        Op::ForgetTask(slot) => {
            world.may_leave.set(true);
            std::mem::forget(world.tasks.take(*slot));
        }
        Op::EndRoot(slot) => {
            if let Some(root) = root_of(world, *slot) {
                end(world, &root);
            }
        }
        Op::SwitchToRoot(slot) => {
            if let Some(root) = root_of(world, *slot) {
                let token = world.token(None);
                let result = root.switch::<Value>(token).map(drop);
                recover(result, OnError::Ignore)?;
            }
        }
        Op::Await(wait) => recover(await_one(world, wait), wait.on_error)?,
        Op::Open(gate) => open(*gate),
        Op::Item(on_error) => {
            if let Some(item) = context.item {
                recover(item(), *on_error)?;
            }
        }
        // Refused, and then it panics.
        Op::BlockOn(_) if panicking() => {}
        Op::BlockOn(body) => {
            world.is_disturbed.set(true);
            world.blocking.set(world.blocking.get() + 1);
            let _blocking = Lower(&world.blocking);
            let _blocked = Blocked::enter();
            (0..GATES).for_each(open);
            let output = block_on_greenlet(function(body, None));
            return output.map(|_| Flow::On);
        }
        Op::Span(body) => {
            let _span = tracing::info_span!("inner").entered();
            return run(body, context);
        }
        other => unreachable!("{other:?}"),
    }
    Ok(Flow::On)
}

/// Marks the running greenlet as one in `block_on_greenlet`, until it is dropped.
struct Blocked(u64);

impl Blocked {
    fn enter() -> Blocked {
        let id = getcurrent().id();
        world().blocked.borrow_mut().push(id);
        Blocked(id)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let mut all = world().blocked.borrow_mut();
        let at = all.iter().position(|id| *id == self.0).expect("it was entered");
        all.remove(at);
    }
}

pub(crate) fn open(gate: usize) {
    let world = world();
    world.opening.set(world.opening.get() + 1);
    let _opening = Lower(&world.opening);
    let wakers = {
        let gate = &mut world.gates.borrow_mut()[gate];
        gate.is_open = true;
        std::mem::take(&mut gate.wakers)
    };
    // A waker that panics does not keep the others from being called. The end of this greenlet does.
    let mut panic = None;
    for waker in wakers {
        match catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            Ok(()) => {}
            Err(payload) if is_panic(&payload) => {
                if let Some(other) = panic.replace(payload) {
                    drop_payload(other);
                }
            }
            Err(end) => {
                world.is_disturbed.set(true);
                resume_unwind(end);
            }
        }
    }
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

// ---- the functions ----------------------------------------------------------------------------------

pub(crate) fn builder(options: &Options) -> (SpawnBuilder, Option<Rc<Hooked>>) {
    let mut builder = SpawnBuilder::new()
        .poll_in_place(options.in_place)
        .require_await(options.require_await);
    let hooked = options.has_hooks.then(Rc::<Hooked>::default);
    if let Some(hooked) = &hooked {
        builder = builder.hooks(Counted {
            shared: Rc::clone(hooked),
            panics_at: options.hook_panics_at,
            body: options.hook.clone(),
        });
    }
    if options.has_spans {
        builder = builder.hooks(SpanHooks::new(tracing::info_span!("outer")));
    }
    (builder, hooked.filter(|_| options.hook_panics_at.is_none()))
}

/// The function of a spawn.
pub(crate) fn function(body: &Body, hooks: Option<Rc<Hooked>>) -> impl FnOnce() -> Output + 'static {
    let capture = Witness::new("capture", None, &Body::default());
    let body = body.clone();
    move || {
        let active = world().activate("spawn");
        world().check_current("a spawn");
        world().register(&getcurrent());
        if !world().is_disturbed.get() && hooks.as_ref().is_some_and(|hooks| !hooks.is_resumed.get()) {
            fail("a function starts outside of its hooks");
        }
        let result = finish(run(&body, &Context::new("a spawn", Some(active.0))));
        drop(capture);
        result
    }
}

pub(crate) type Root = Rc<RefCell<Option<WeakGreenlet>>>;

/// The function of a stream.
pub(crate) fn stream_function(
    body: &Body,
    hooks: Option<Rc<Hooked>>,
    root: &Root,
) -> impl FnOnce(&mut Items<Token>) + 'static {
    let capture = Witness::new("capture", None, &Body::default());
    let (body, root) = (body.clone(), Rc::clone(root));
    move |items| {
        let active = world().activate("stream");
        let _capture = capture;
        world().check_current("a stream");
        if !world().is_disturbed.get() && hooks.as_ref().is_some_and(|hooks| !hooks.is_resumed.get()) {
            fail("a function starts outside of its hooks");
        }
        world().register(&getcurrent());
        root.replace(Some(getcurrent().downgrade()));
        let items = Cell::new(Some(items));
        let item = || {
            let Some(taken) = items.take() else { return Ok(()) };
            let yielded = taken.try_yield(world().token(None));
            items.set(Some(taken));
            yielded
        };
        let context = Context {
            item: Some(&item),
            ..Context::new("a stream", Some(active.0))
        };
        drop(run(&body, &context));
    }
}

/// The greenlet of a stream cannot be asked for, so its handle leads nowhere.
fn new_weak(_: &Root) -> WeakGreenlet {
    Greenlet::new(|(): ()| Ok(())).downgrade()
}

// ---- hooks ------------------------------------------------------------------------------------------

#[derive(Default)]
pub(crate) struct Hooked {
    is_resumed: Cell<bool>,
    calls: Cell<u32>,
    has_panicked: Cell<bool>,
}

/// Hooks that must be resumed and suspended in turns.
struct Counted {
    shared: Rc<Hooked>,
    panics_at: Option<u32>,
    body: Body,
}

impl Counted {
    fn call(&self, is_resume: bool) {
        let hooked = &self.shared;
        hooked.calls.set(hooked.calls.get() + 1);
        if hooked.is_resumed.replace(is_resume) == is_resume && !hooked.has_panicked.get() {
            fail(format_args!("hooks are resumed ({is_resume}) for a second time"));
        }
        if hooked.calls.get() == 1 {
            let has_panicked = hooked.has_panicked.replace(true);
            run_callback("a hook", &self.body);
            hooked.has_panicked.set(has_panicked);
        }
        if self.panics_at == Some(hooked.calls.get()) && !panicking() {
            hooked.has_panicked.set(true);
            world().is_disturbed.set(true);
            resume_unwind(Boom::new(false));
        }
    }
}

impl SpawnHooks for Counted {
    fn resume(&mut self, _: &Greenlet) {
        self.call(true);
    }

    fn suspend(&mut self, _: &Greenlet) {
        self.call(false);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.shared.is_resumed.get() && !self.shared.has_panicked.get() {
            fail("hooks are dropped while they are resumed");
        }
    }
}
