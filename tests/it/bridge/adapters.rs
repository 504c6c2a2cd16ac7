//! Small things around an await: time limits, blocking where there is no driver, writers, local
//! variables, yields.

use std::future::{pending, poll_fn, ready};
use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::join;
use futures::{FutureExt, StreamExt};
use greenlet::{
    AwaitFailed, Greenlet, GreenletExit, Locals, NoDriver, SpawnBuilder, SpawnStream, await_, await_nested,
    await_or_block, greenlet_local, greenlet_spawn, in_greenlet, stream_from, try_await_,
    with_blocking_awaits, yield_now,
};

#[test]
fn a_signal_cancels_the_function_which_cleans_up_with_awaits() {
    let (signal, signalled) = oneshot::channel::<()>();
    let (finish, finished) = oneshot::channel::<()>();
    let spawned = greenlet_spawn(move || {
        let waited = try_await_(pending::<()>());
        try_await_(finished).unwrap().unwrap();
        waited.unwrap_err().is::<GreenletExit>()
    });
    let mut limited = spawned.cancel_when(signalled.map(drop));
    assert!((&mut limited).now_or_never().is_none());
    signal.send(()).unwrap();
    assert!((&mut limited).now_or_never().is_none(), "it cleans up");
    finish.send(()).unwrap();
    assert!(block_on(limited).unwrap());
}

#[test]
fn an_output_that_is_ready_comes_before_the_signal() {
    assert_eq!(block_on(greenlet_spawn(|| 7).cancel_when(ready(()))).unwrap(), 7);
    // A signal that is polled again after it was ready panics.
    let mut is_over = false;
    let once = poll_fn(move |_| {
        assert!(!std::mem::replace(&mut is_over, true));
        Poll::Ready(())
    });
    let unwound = greenlet_spawn(|| await_(pending::<()>())).cancel_when(once);
    assert!(block_on(unwound).unwrap_err().is::<GreenletExit>());
}

#[test]
fn a_future_is_awaited_in_a_spawned_function_and_blocks_the_thread_elsewhere() {
    let late = || {
        let (sender, receiver) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            sender.send(in_greenlet())
        });
        receiver
    };
    let start = Instant::now();
    assert_eq!(await_or_block(late()), Ok(false));
    assert!(start.elapsed() >= Duration::from_millis(5));
    // In a spawned function the other one runs meanwhile.
    let (sender, receiver) = oneshot::channel();
    let first = greenlet_spawn(|| await_or_block(receiver));
    let second = greenlet_spawn(move || sender.send(in_greenlet()).unwrap());
    assert_eq!(block_on(join(first, second)).0, Ok(true));
    // It may borrow, on any thread.
    let numbers = [1, 2, 3];
    let sum = std::thread::scope(|threads| {
        let sums = threads.spawn(|| await_or_block(async { numbers.iter().sum::<i32>() }));
        sums.join().unwrap()
    });
    assert_eq!(sum, 6);
}

#[test]
fn a_future_that_would_block_for_ever_or_an_executor_panics() {
    let said = |function: &dyn Fn()| {
        let caught = catch_unwind(AssertUnwindSafe(function)).unwrap_err();
        let text = caught.downcast_ref::<String>().cloned();
        text.or_else(|| Some((*caught.downcast_ref::<&str>()?).into()))
            .unwrap()
    };
    let text = said(&|| await_or_block(pending::<()>()));
    assert!(text.contains("for ever: the future has kept no waker"), "{text}");
    let text = said(&|| with_blocking_awaits(|| await_(pending::<()>())));
    assert!(
        text.contains("adapters.rs") && text.contains("has kept no waker"),
        "{text}"
    );
    let polled = async || await_or_block(ready(1));
    let text = said(&|| {
        block_on(greenlet_spawn(move || await_(polled())));
    });
    assert!(text.contains("`await_or_block` would block"), "{text}");
    assert_eq!(block_on(greenlet_spawn(move || await_nested(polled()))), 1);
}

#[test]
fn awaits_of_a_function_that_borrows_block_its_thread() {
    let late = |n: u32| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        n
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let outside = || try_await_(ready(())).unwrap_err().is::<NoDriver>();
    let numbers = [1, 2, 3];
    let sums = || {
        let own: u32 = numbers
            .iter()
            .map(|n| await_(runtime.spawn(late(*n))).unwrap())
            .sum();
        let handle = runtime.handle().clone();
        let child = Greenlet::new(move |n: u32| Ok(await_(handle.spawn(late(n))).unwrap()));
        own + child.switch::<u32>(4_u32).unwrap() + with_blocking_awaits(|| await_(ready(5)))
    };
    assert_eq!(with_blocking_awaits(sums), 15);
    assert!(outside(), "the section is over");
    // Also after a panic, and while the section is suspended.
    let panics = catch_unwind(AssertUnwindSafe(|| {
        with_blocking_awaits(|| resume_unwind(Box::new(())))
    }));
    assert!(panics.is_err() && outside());
    let suspended = Greenlet::new(|(): ()| {
        with_blocking_awaits(|| greenlet::getparent().unwrap().switch::<()>(()))?;
        Ok(())
    });
    suspended.switch::<()>(()).unwrap();
    assert!(outside());
    suspended.switch::<()>(()).unwrap();
    // In a spawned function the awaits suspend it.
    let (sender, receiver) = oneshot::channel();
    let first = greenlet_spawn(|| with_blocking_awaits(|| await_(receiver)));
    let second = greenlet_spawn(move || sender.send(1).unwrap());
    assert_eq!(block_on(join(first, second)).0, Ok(1));
}

#[test]
fn a_writer_into_a_stream_gets_the_exit_when_the_stream_is_dropped() {
    let seen = Rc::new(std::cell::Cell::new(false));
    let sees = Rc::clone(&seen);
    let mut stream: SpawnStream<Vec<u8>> = stream_from(move |out| {
        assert_eq!(out.write(b"").unwrap(), 0);
        out.write_all(b"first").unwrap();
        let error = write!(BufWriter::with_capacity(4, out), "second").unwrap_err();
        sees.set(AwaitFailed::of(&error).unwrap().is::<GreenletExit>());
    });
    assert_eq!(block_on(stream.next()).unwrap(), b"first");
    assert_eq!(block_on(stream.next()).unwrap(), b"second");
    drop(stream);
    assert!(seen.get());
}

#[test]
fn a_spawned_function_has_the_local_variables_that_it_is_given() {
    greenlet_local!(static USER: String = "nobody".into());
    USER.set("ann".into());
    let user = || {
        yield_now();
        USER.get()
    };
    assert_eq!(block_on(greenlet_spawn(user)), "nobody");
    let given = |locals: Locals| SpawnBuilder::new().locals(locals);
    assert_eq!(block_on(given(Locals::current()).spawn(user)), "ann");
    // The caller's own variables, or a copy of them.
    let renames = || USER.set("bob".into());
    block_on(given(Locals::current().copy()).spawn(renames));
    assert_eq!(USER.get(), "ann");
    block_on(given(Locals::current()).spawn(renames));
    assert_eq!(USER.get(), "bob");
}

#[test]
fn a_yield_wakes_its_task_and_unwinds_at_an_end() {
    let woken = Arc::new(AtomicUsize::new(0));
    let waker = Waker::from(Arc::new(CountWakes(Arc::clone(&woken))));
    let mut spawned = greenlet_spawn(|| {
        yield_now();
        yield_now();
        unreachable!("it was dropped")
    });
    for wakes in 1..=2 {
        let polled = spawned.poll_unpin(&mut Context::from_waker(&waker));
        assert_eq!(polled, Poll::<()>::Pending);
        assert_eq!(woken.load(Ordering::SeqCst), wakes);
    }
    let greenlet = spawned.greenlet().clone();
    drop(spawned);
    assert!(greenlet.is_dead());
}

struct CountWakes(Arc<AtomicUsize>);

impl Wake for CountWakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
