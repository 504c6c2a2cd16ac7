//! The interpreter of programs: spawns and streams that a program polls itself.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Cx, Poll, Wake, Waker};
use std::thread::panicking;

use futures_core::Stream;
use greenlet::{
    Greenlet, ParentError, Spawn, SpawnResult, SpawnStream, SwitchForbidden, ThreadExiting, Unwinding,
    WeakGreenlet,
};

use crate::bridge::{Output, open};
use crate::program::{Body, GATES, Options, SLOTS};
use crate::run::{drop_disturbing, run_callback};
use crate::world::{Token, World, drop_payload, fail, is_panic, world};

/// A future of the table, with its waker.
pub(crate) struct Task {
    pub(crate) future: Running,
    woken: Arc<Woken>,
    root: WeakGreenlet,
    is_polled: bool,
}

pub(crate) enum Running {
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

pub(crate) fn put(world: &World, slot: usize, root: WeakGreenlet, future: Running, options: &Options) {
    let woken = Arc::new(Woken {
        is_woken: AtomicBool::new(true),
        body: options.waker.clone(),
    });
    let task = Task {
        future,
        woken,
        root,
        is_polled: false,
    };
    drop_disturbing(world, world.tasks.put(slot, Some(task)));
}

pub(crate) fn root_of(world: &World, slot: usize) -> Option<Greenlet> {
    let task = world.tasks.take(slot)?;
    let root = task.root.upgrade();
    let other = world.tasks.put(slot, Some(task));
    drop(other);
    root
}

/// Cancels a spawn of the table.
pub(crate) fn cancel(world: &World, slot: usize) {
    let Some(Task {
        future, woken, root, ..
    }) = world.tasks.take(slot)
    else {
        return;
    };
    let future = match future {
        Running::Spawn(spawn) => Running::Result(spawn.cancel()),
        other => other,
    };
    let task = Task {
        future,
        woken,
        root,
        is_polled: false,
    };
    drop_disturbing(world, world.tasks.put(slot, Some(task)));
}

#[derive(PartialEq, Eq)]
enum Progress {
    Pending,
    Item,
    Over,
}

/// Polls a task of the table. Returns `true` if it has made progress.
pub(crate) fn poll(world: &'static World, slot: usize) -> bool {
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
    // The end of this greenlet runs in the span of whoever ends it.
    let is_ended = polled.as_ref().is_err_and(|payload| !is_panic(payload));
    let may_differ = is_ended || world.has_tracers.get() || world.has_left_an_end.get();
    if tracing::Span::current().id() != span && !may_differ {
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
    let must_be_woken = was_polled && world.opening.get() == 0 && !world.is_disturbed.get();
    if progress != Progress::Pending && must_be_woken && !was_woken {
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
    if let Some(root) = root
        .upgrade()
        .filter(|root| !root.is_dead() && !world.may_live(root))
    {
        fail(format_args!("{root:?} is alive, and its spawn is over"));
    }
}

impl Task {
    fn is_alive(&self) -> bool {
        self.root.upgrade().is_some_and(|root| !root.is_dead())
    }

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
                if self.is_alive()
                    && (error.is::<Unwinding>()
                        || error.is::<SwitchForbidden>()
                        || error.is::<ThreadExiting>()) =>
            {
                world().is_disturbed.set(true);
                Progress::Pending // it can be polled again
            }
            Poll::Ready(output) => {
                let was_ended = !self.is_alive();
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
    // Some tasks wake themselves again and again.
    let mut has_polled = true;
    for _ in 0..50 {
        has_polled = false;
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
        if poll(world, slot) && !has_polled && !world.is_disturbed.get() {
            fail("a task makes progress, and its waker was not called");
        }
    }
}
