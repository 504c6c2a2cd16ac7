//! Mistakes of code that awaits. Each function has the mistake, or its correction if `is_correct`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Result, ensure};
use greenlet::bridge::testing::Executor;
use greenlet::testing::explore::Choices;
use greenlet::{await_, try_await_};

/// A connection pool of one checks that there is room, connects, and only then counts the connection.
/// A driver of Neo4j opened too many connections this way:
/// <https://github.com/neo4j/neo4j-javascript-driver/pull/1216>.
pub(crate) fn check_then_act(choices: &Choices, is_correct: bool) -> Result<()> {
    let executor = Executor::new(choices);
    let open = Rc::new(Cell::new(0));
    for (name, arrives) in [("ann", 0), ("bob", 2)] {
        let (inside, open) = (executor.clone(), open.clone());
        executor.spawn_function(name, move || {
            await_(inside.sleep(Duration::from_millis(arrives)));
            if open.get() < 1 {
                if is_correct {
                    open.set(open.get() + 1);
                }
                await_(inside.sleep(Duration::from_millis(1))); // connects
                if !is_correct {
                    open.set(open.get() + 1);
                }
            }
            Ok(())
        });
    }
    executor.run()?;
    ensure!(open.get() == 1, "{} connections in a pool of one", open.get());
    Ok(())
}

/// A worker takes a job, and is cancelled while it awaits before it has done the job.
pub(crate) fn cancel_between_two_awaits(choices: &Choices, is_correct: bool) -> Result<()> {
    let executor = Executor::new(choices);
    let (jobs, done) = (
        Rc::new(RefCell::new(vec![1, 2])),
        Rc::new(RefCell::new(Vec::new())),
    );
    let (queue, results, inside) = (jobs.clone(), done.clone(), executor.clone());
    let worker = executor.spawn_function("worker", move || {
        loop {
            try_await_(inside.sleep(Duration::from_millis(1)))?; // a permit
            let Some(job) = queue.borrow_mut().pop() else {
                return Ok(());
            };
            let worked = try_await_(inside.sleep(Duration::from_millis(1)));
            if worked.is_err() && is_correct {
                queue.borrow_mut().push(job);
            }
            worked?;
            results.borrow_mut().push(job);
        }
    });
    let _ = worker.may_end();
    executor.run()?;
    let known = jobs.borrow().len() + done.borrow().len();
    ensure!(known == 2, "a job was lost");
    Ok(())
}

/// A getter that waits for an item.
#[derive(Default)]
struct Getter {
    /// `Some(None)` wakes it without an item.
    given: Cell<Option<Option<i32>>>,
    waker: Cell<Option<Waker>>,
    is_gone: Cell<bool>,
}

struct Gone(Rc<Getter>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.is_gone.set(true);
    }
}

/// A queue gives an item to a getter. If the getter is dropped before it runs, the item is gone.
/// Tornado's queue does this, <https://github.com/tornadoweb/tornado/issues/2826>, and asyncio's
/// did: <https://github.com/python/asyncio/issues/201>.
pub(crate) fn item_for_a_dropped_getter(choices: &Choices, is_correct: bool) -> Result<()> {
    let executor = Executor::new(choices);
    let items = Rc::new(RefCell::new(VecDeque::new()));
    let (received, getter) = (Rc::new(Cell::new(0)), Rc::new(Getter::default()));
    let (queue, count, gone) = (items.clone(), received.clone(), Gone(getter.clone()));
    let task = executor.spawn("getter", async move {
        let given = poll_fn(|cx| match gone.0.given.take() {
            Some(given) => Poll::Ready(given),
            None => {
                gone.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        });
        // Without an item, it is in the queue.
        let item = given.await.or_else(|| queue.borrow_mut().pop_front());
        count.set(count.get() + usize::from(item.is_some()));
        Ok(())
    });
    let _ = task.may_end();
    let queue = items.clone();
    executor.spawn("putter", async move {
        let hands_over = !is_correct && !getter.is_gone.get();
        if !hands_over {
            queue.borrow_mut().push_back(7);
        }
        getter.given.set(Some(hands_over.then_some(7)));
        getter.waker.take().into_iter().for_each(Waker::wake);
        Ok(())
    });
    executor.run()?;
    ensure!(items.borrow().len() + received.get() == 1, "the item was lost");
    Ok(())
}

/// A semaphore whose `release` wakes the first waiter.
#[derive(Default)]
struct Semaphore {
    permits: Cell<u32>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    waker: Waker,
    is_woken: Cell<bool>,
}

impl Semaphore {
    fn release(&self) {
        self.permits.set(self.permits.get() + 1);
        self.wake_first();
    }

    fn wake_first(&self) {
        let first = self.waiters.borrow_mut().pop_front();
        if let Some(first) = first {
            first.is_woken.set(true);
            first.waker.wake_by_ref();
        }
    }
}

struct Acquire {
    semaphore: Rc<Semaphore>,
    waiter: Option<Rc<Waiter>>,
    is_correct: bool,
}

impl Future for Acquire {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiter.as_ref().is_some_and(|waiter| !waiter.is_woken.get()) {
            return Poll::Pending;
        }
        self.waiter = None;
        if let Some(rest) = self.semaphore.permits.get().checked_sub(1) {
            self.semaphore.permits.set(rest);
            return Poll::Ready(());
        }
        let waiter = Rc::new(Waiter {
            waker: cx.waker().clone(),
            is_woken: Cell::new(false),
        });
        self.semaphore.waiters.borrow_mut().push_back(waiter.clone());
        self.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        self.semaphore
            .waiters
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, &waiter));
        if self.is_correct && waiter.is_woken.get() {
            self.semaphore.wake_first(); // it will not use its wake-up
        }
    }
}

/// A waiter is woken, and dropped before it runs. No other waiter is woken for it. asyncio's semaphore did
/// this: <https://github.com/python/asyncio/issues/270>. So did tokio's `Notify`, in one case:
/// <https://github.com/tokio-rs/tokio/pull/3652>.
pub(crate) fn missed_notify(choices: &Choices, is_correct: bool) -> Result<()> {
    let executor = Executor::new(choices);
    let semaphore = Rc::new(Semaphore::default());
    for (name, may_end) in [("ann", true), ("bob", false)] {
        let semaphore = semaphore.clone();
        let task = executor.spawn_function(name, move || {
            await_(Acquire {
                semaphore: semaphore.clone(),
                waiter: None,
                is_correct,
            });
            semaphore.release();
            Ok(())
        });
        if may_end {
            let _ = task.may_end();
        }
    }
    executor.spawn("releases", async move {
        semaphore.release();
        Ok(())
    });
    executor.run()
}
