//! The interpreter of programs: spawned functions, awaits, streams, wakers and hooks.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Cx, Poll, Wake, Waker};
use std::thread::panicking;

use anyhow::Result;
use futures_core::Stream;
use greenlet::{
    Greenlet, Items, ParentError, SpanHooks, Spawn, SpawnBuilder, SpawnHooks, SpawnResult, SpawnStream,
    SwitchForbidden, ThreadExiting, Unwinding, Value, WeakGreenlet, await_, block_on_greenlet, getcurrent,
    iter_stream, try_await_,
};

use crate::program::{Await, Awaited, Body, GATES, Op, Options, SLOTS};
use crate::run::{Context, Flow, Witness, drop_disturbing, end, finish, recover, run, run_callback};
use crate::world::{Boom, Lower, Token, World, drop_payload, fail, is_panic, world};

/// What a spawned function returns.
type Output = Result<Token>;

/// A future of the table, with its waker.
pub(crate) struct Task {
    future: Running,
    woken: Arc<Woken>,
    root: WeakGreenlet,
    is_polled: bool,
}

enum Running {
    Spawn(Spawn<Output>),
    Result(SpawnResult<Output>),
    Stream(SpawnStream<Token>),
}

/// The waker of a task.
struct Woken {
    is_woken: AtomicBool,
    body: Body,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        run_callback("a waker", &self.body);
    }
}

pub(crate) fn one(world: &'static World, op: &Op, context: &Context<'_>) -> Result<Flow> {
    match op {
        Op::Spawn { slot, body, options } => {
            let (builder, hooks) = builder(options);
            let spawn = builder.spawn(function(body, hooks));
            world.register(spawn.greenlet());
            put(world, *slot, spawn.greenlet().downgrade(), Running::Spawn(spawn), options);
        }
        Op::Stream { slot, body, options } => {
            let (builder, hooks) = builder(options);
            let root = Rc::new(RefCell::new(None));
            let stream = builder.stream(stream_function(body, hooks, &root));
            // The greenlet of a stream is known when it has started.
            let weak = new_weak(&root);
            put(world, *slot, weak, Running::Stream(stream), options);
        }
        Op::Poll(slot) => {
            poll(world, *slot);
        }
        Op::DropTask(slot) => drop_disturbing(world, world.tasks.take(*slot)),
        Op::Cancel(slot) => {
            if let Some(task) = world.tasks.take(*slot) {
                let Task { future, woken, root, .. } = task;
                let future = match future {
                    Running::Spawn(spawn) => Running::Result(spawn.cancel()),
                    other => other,
                };
                let task = Task { future, woken, root, is_polled: false };
                drop_disturbing(world, world.tasks.put(*slot, Some(task)));
            }
        }
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
                drop(root.switch::<Value>(token));
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

fn put(world: &World, slot: usize, root: WeakGreenlet, future: Running, options: &Options) {
    let woken = Arc::new(Woken { is_woken: AtomicBool::new(true), body: options.waker.clone() });
    let task = Task { future, woken, root, is_polled: false };
    drop_disturbing(world, world.tasks.put(slot, Some(task)));
}

fn root_of(world: &World, slot: usize) -> Option<Greenlet> {
    let task = world.tasks.take(slot)?;
    let root = task.root.upgrade();
    let other = world.tasks.put(slot, Some(task));
    drop(other);
    root
}

pub(crate) fn open(gate: usize) {
    let wakers = {
        let gate = &mut world().gates.borrow_mut()[gate];
        gate.is_open = true;
        std::mem::take(&mut gate.wakers)
    };
    wakers.into_iter().for_each(Waker::wake);
}

// ---- the functions ----------------------------------------------------------------------------------

fn builder(options: &Options) -> (SpawnBuilder, Option<Rc<Hooked>>) {
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
fn function(body: &Body, hooks: Option<Rc<Hooked>>) -> impl FnOnce() -> Output + 'static {
    let capture = Witness::new("capture", None, &Body::default());
    let body = body.clone();
    move || {
        let active = world().activate("spawn");
        world().check_current("a spawn");
        if hooks.as_ref().is_some_and(|hooks| !hooks.is_resumed.get()) {
            fail("a function starts outside of its hooks");
        }
        let result = finish(run(&body, &Context::new("a spawn", Some(active.0))));
        drop(capture);
        result
    }
}

type Root = Rc<RefCell<Option<WeakGreenlet>>>;

/// The function of a stream.
fn stream_function(
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
        if hooks.as_ref().is_some_and(|hooks| !hooks.is_resumed.get()) {
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
        let context = Context { item: Some(&item), ..Context::new("a stream", Some(active.0)) };
        drop(run(&body, &context));
    }
}

/// The greenlet of a stream cannot be asked for, so its handle leads nowhere.
fn new_weak(_: &Root) -> WeakGreenlet {
    Greenlet::new(|(): ()| Ok(())).downgrade()
}

// ---- hooks ------------------------------------------------------------------------------------------

#[derive(Default)]
struct Hooked {
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

// ---- futures ----------------------------------------------------------------------------------------

/// Checks that a future is not dropped while it is polled, and that its greenlet does not run meanwhile.
struct Watch {
    waiter: u64,
    is_polled: Rc<Cell<bool>>,
}

impl Watch {
    fn new() -> Watch {
        Watch { waiter: getcurrent().id(), is_polled: Rc::default() }
    }

    fn poll(&self) -> Polling {
        if self.is_polled.replace(true) {
            fail("a future is polled while it is polled");
        }
        let held = (getcurrent().id() != self.waiter).then_some(self.waiter);
        if let Some(held) = held {
            world().hold(held);
        }
        Polling { is_polled: Rc::clone(&self.is_polled), held }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_polled.get() {
            fail("a future is dropped while it is polled");
        }
    }
}

struct Polling {
    is_polled: Rc<Cell<bool>>,
    held: Option<u64>,
}

impl Drop for Polling {
    fn drop(&mut self) {
        self.is_polled.set(false);
        if let Some(held) = self.held {
            world().release(held);
        }
    }
}

/// A future that a step awaits.
struct Waited {
    watch: Watch,
    _witness: Witness,
    polls: u32,
    /// The gate that it waits for. Without one, `is_late` says whether it is ready at once.
    gate: Option<usize>,
    is_late: bool,
    body: Body,
    panics_at: Option<u32>,
    output: Option<Token>,
}

impl Waited {
    fn new(world: &World, wait: &Await) -> (Waited, u64) {
        let output = world.token(None);
        let id = output.id();
        let (gate, is_late) = match wait.awaited {
            Awaited::Gate(gate) => (Some(gate), false),
            Awaited::Later => (None, true),
            _ => (None, false),
        };
        let waited = Waited {
            watch: Watch::new(),
            _witness: Witness::new("future", None, &wait.drop),
            polls: 0,
            gate,
            is_late,
            body: wait.poll.clone(),
            panics_at: wait.panics_at,
            output: Some(output),
        };
        (waited, id)
    }
}

impl Future for Waited {
    type Output = Token;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<Token> {
        let _polling = self.watch.poll();
        let world = world();
        world.check_current("a future");
        self.polls += 1;
        if self.polls == 1 {
            run_callback("a future", &self.body);
        }
        if self.panics_at == Some(self.polls) && !panicking() {
            world.is_disturbed.set(true);
            resume_unwind(Boom::new(false));
        }
        if let Some(gate) = self.gate {
            let is_open = world.blocking.get() > 0 || world.gates.borrow()[gate].is_open;
            if !is_open {
                // CAUTION: drops the waker after the borrow.
                let waker = cx.waker().clone();
                world.gates.borrow_mut()[gate].wakers.push(waker);
                return Poll::Pending;
            }
        } else if std::mem::take(&mut self.is_late) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(output) = self.output.take() else {
            fail("a future is polled after it was ready");
        };
        Poll::Ready(output)
    }
}

/// Watches the polls of another future or stream.
struct Watched<F> {
    watch: Watch,
    inner: F,
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<F::Output> {
        let _polling = self.watch.poll();
        Pin::new(&mut self.inner).poll(cx)
    }
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<Option<S::Item>> {
        let _polling = self.watch.poll();
        Pin::new(&mut self.inner).poll_next(cx)
    }
}

fn wait_for<F: Future>(future: F, unwinds: bool) -> Result<F::Output> {
    // `await_` would abort the process.
    if unwinds && !panicking() { Ok(await_(future)) } else { try_await_(future) }
}

fn watched<F>(inner: F) -> Watched<F> {
    Watched { watch: Watch::new(), inner }
}

fn await_one(world: &'static World, wait: &Await) -> Result<()> {
    let me = getcurrent().id();
    let result = match &wait.awaited {
        Awaited::Spawn(body, options) => {
            let (builder, hooks) = builder(options);
            let spawn = builder.spawn(function(body, hooks));
            world.register(spawn.greenlet());
            wait_for(watched(spawn), wait.unwinds).and_then(|output| output.map(drop))
        }
        Awaited::Task(slot) => match world.tasks.take(*slot).map(|task| task.future) {
            Some(Running::Spawn(spawn)) => {
                wait_for(watched(spawn), wait.unwinds).and_then(|output| output.map(drop))
            }
            Some(Running::Result(result)) => {
                wait_for(watched(result), wait.unwinds).and_then(|output| output?.map(drop))
            }
            Some(Running::Stream(stream)) => {
                if !panicking() {
                    iter_stream(watched(stream)).for_each(drop);
                }
                Ok(())
            }
            None => Ok(()),
        },
        Awaited::Stream(body, items) => {
            if !panicking() {
                let root = Rc::default();
                let stream = SpawnBuilder::new().stream(stream_function(body, None, &root));
                iter_stream(watched(stream)).take(*items as usize).for_each(drop);
            }
            Ok(())
        }
        _ => {
            let (future, id) = Waited::new(world, wait);
            wait_for(future, wait.unwinds).map(|token| {
                if token.id() != id {
                    fail("an await returns the output of another future");
                }
                world.arrive(id, me);
            })
        }
    };
    if getcurrent().id() != me {
        fail(format_args!("an await of greenlet {me} returns in {:?}", getcurrent()));
    }
    result
}

// ---- tasks ------------------------------------------------------------------------------------------

#[derive(PartialEq, Eq)]
enum Progress {
    Pending,
    Item,
    Over,
}

/// Polls a task of the table. Returns `true` if it has made progress.
fn poll(world: &'static World, slot: usize) -> bool {
    let Some(mut task) = world.tasks.take(slot) else {
        return false;
    };
    if panicking() && !matches!(task.future, Running::Result(_)) {
        drop(world.tasks.put(slot, Some(task))); // the poll would panic, which aborts
        return false;
    }
    let span = tracing::Span::current().id();
    let was_woken = task.woken.is_woken.swap(false, Ordering::SeqCst);
    let was_polled = std::mem::replace(&mut task.is_polled, true);
    let waker = Waker::from(Arc::clone(&task.woken));
    let polled = catch_unwind(AssertUnwindSafe(|| task.poll(&mut Cx::from_waker(&waker))));
    if tracing::Span::current().id() != span {
        fail("a poll leaves another span");
    }
    let progress = match polled {
        Ok(progress) => progress,
        Err(payload) => {
            world.is_disturbed.set(true);
            finish_task(world, task);
            if is_panic(&payload) {
                drop_payload(payload);
                return true;
            }
            resume_unwind(payload);
        }
    };
    if progress != Progress::Pending && was_polled && !was_woken && !world.is_disturbed.get() {
        fail("a task was ready, and its waker was not called");
    }
    match progress {
        Progress::Over => finish_task(world, task),
        Progress::Pending => drop_disturbing(world, world.tasks.put(slot, Some(task))),
        Progress::Item => {
            task.woken.is_woken.store(true, Ordering::SeqCst);
            drop_disturbing(world, world.tasks.put(slot, Some(task)));
        }
    }
    progress != Progress::Pending
}

/// Drops a task, and checks that its function has ended.
fn finish_task(world: &World, task: Task) {
    let root = task.root.clone();
    drop(task);
    if let Some(root) = root.upgrade().filter(|root| !root.is_dead() && !world.may_live(root)) {
        fail(format_args!("{root:?} is alive, and its spawn is over"));
    }
}

impl Task {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Progress {
        let output = match &mut self.future {
            Running::Spawn(spawn) => Pin::new(spawn).poll(cx).map(Ok),
            Running::Result(result) => Pin::new(result).poll(cx),
            Running::Stream(stream) => {
                return match Pin::new(stream).poll_next(cx) {
                    Poll::Pending => Progress::Pending,
                    Poll::Ready(Some(_)) => Progress::Item,
                    Poll::Ready(None) => Progress::Over,
                };
            }
        };
        match output {
            Poll::Pending => Progress::Pending,
            Poll::Ready(Err(error))
                if error.is::<Unwinding>() || error.is::<SwitchForbidden>() || error.is::<ThreadExiting>() =>
            {
                world().is_disturbed.set(true);
                Progress::Pending // it can be polled again
            }
            Poll::Ready(output) => {
                let was_ended = self.root.upgrade().is_none_or(|root| root.is_dead());
                let is_refused = matches!(&output, Err(error) if error.is::<ParentError>());
                if !was_ended && !is_refused {
                    fail("a spawn is ready, and its function has not ended");
                }
                Progress::Over
            }
        }
    }
}

/// Opens all gates, and polls all tasks to their ends.
pub(crate) fn drain() {
    let world = world();
    world.refuel();
    (0..GATES).for_each(open);
    for _ in 0..50 {
        let mut has_polled = false;
        for slot in 0..SLOTS {
            let is_woken = world.tasks.take(slot).is_some_and(|task| {
                let is_woken = task.woken.is_woken.load(Ordering::SeqCst);
                drop_disturbing(world, world.tasks.put(slot, Some(task)));
                is_woken
            });
            if is_woken {
                poll(world, slot);
                has_polled = true;
            }
        }
        if !has_polled {
            break;
        }
    }
    // Nothing is left to wait for, so what is not ready now was not woken.
    for slot in 0..SLOTS {
        if poll(world, slot) && !world.is_disturbed.get() {
            fail("a task makes progress, and its waker was not called");
        }
    }
}
