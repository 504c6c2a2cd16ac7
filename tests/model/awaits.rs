//! The interpreter of programs: awaits, and the futures that are awaited.

use std::cell::Cell;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Cx, Poll};
use std::thread::panicking;

use anyhow::Result;
use futures_core::Stream;
use greenlet::{SpawnBuilder, await_, getcurrent, iter_stream, try_await_};

use crate::bridge::{builder, function, stream_function};
use crate::program::{Await, Awaited, Body};
use crate::run::{Witness, run_callback};
use crate::tasks::Running;
use crate::world::{Boom, Token, World, fail, world};

/// Checks that a future is not dropped while it is polled, and that its greenlet does not run meanwhile.
struct Watch {
    waiter: u64,
    is_polled: Rc<Cell<bool>>,
}

impl Watch {
    fn new() -> Watch {
        Watch {
            waiter: getcurrent().id(),
            is_polled: Rc::default(),
        }
    }

    fn poll(&self) -> Polling {
        if self.is_polled.replace(true) {
            fail("a future is polled while it is polled");
        }
        let held = (getcurrent().id() != self.waiter).then_some(self.waiter);
        if let Some(held) = held {
            world().hold(held);
        }
        Polling {
            is_polled: Rc::clone(&self.is_polled),
            held,
        }
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
    if unwinds && !panicking() {
        Ok(await_(future))
    } else {
        try_await_(future)
    }
}

fn watched<F>(inner: F) -> Watched<F> {
    Watched {
        watch: Watch::new(),
        inner,
    }
}

pub(crate) fn await_one(world: &'static World, wait: &Await) -> Result<()> {
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
        fail(format_args!(
            "an await of greenlet {me} returns in {:?}",
            getcurrent()
        ));
    }
    result
}
