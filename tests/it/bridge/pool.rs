//! The pool of worker threads.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use greenlet::{
    Greenlet, PinnedPool, PoolError, PoolStream, Pooled, SpawnBuilder, SpawnHooks, await_, getcurrent,
    getparent, try_await_,
};

fn pool(threads: usize) -> PinnedPool {
    PinnedPool::new(threads.try_into().unwrap())
}

fn on_threads<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn the_future_is_send_and_the_greenlet_stays_on_its_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let pool = pool(2);
    let running = (0..100).map(|n| {
        is_send(pool.run(move || {
            let before = thread::current().id();
            for _ in 0..10 {
                await_(tokio::time::sleep(Duration::from_micros(n % 7)));
                await_(tokio::task::yield_now());
            }
            assert_eq!(thread::current().id(), before);
            before
        }))
    });
    let tasks: Vec<_> = running.collect();
    let threads = on_threads(async { tokio::spawn(join_all(tasks)).await.unwrap() });
    let different: std::collections::HashSet<_> = threads.into_iter().collect();
    assert_eq!(different.len(), 2);
}

#[test]
fn dropping_the_future_ends_the_function_on_its_thread() {
    struct Report(mpsc::Sender<thread::ThreadId>);
    impl Drop for Report {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }
    let (sender, receiver) = mpsc::channel();
    let pool = pool(1);
    let running: Pooled<()> = pool.run(move || {
        sender.send(thread::current().id()).unwrap();
        let _report = Report(sender);
        let _ = try_await_(std::future::pending::<()>());
    });
    let began_on = receiver.recv().unwrap();
    drop(running);
    assert_eq!(receiver.recv().unwrap(), began_on);
    assert!(receiver.recv().is_err(), "once");
}

#[test]
fn a_panic_of_the_function_comes_out_of_the_future() {
    let pool = pool(1);
    let panics: Pooled<()> = pool.run(|| std::panic::resume_unwind(Box::new("boom")));
    let caught = on_threads(AssertUnwindSafe(panics).catch_unwind());
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"boom"));
    assert_eq!(
        on_threads(pool.run(|| await_(async { 1 }))),
        1,
        "the worker lives on"
    );
}

#[test]
fn a_worker_ends_its_suspended_greenlets_before_it_ends() {
    let (sender, receiver) = mpsc::channel::<()>();
    let pool = pool(1);
    on_threads(pool.run(|| {
        let ring = Greenlet::new(move |(): ()| {
            let _kept = (sender, getcurrent()); // its own handle keeps it suspended
            getparent().unwrap().switch_owned::<()>(())
        });
        ring.switch::<()>(()).unwrap();
    }));
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(pool);
    assert_eq!(receiver.recv(), Err(mpsc::RecvError));
}

#[test]
fn the_least_loaded_worker_gets_the_next_function() {
    let pool = pool(3);
    let block = || pool.run(|| await_(std::future::pending::<()>()));
    let _blocked = [block(), block()];
    let which = || on_threads(pool.run(|| thread::current().id()));
    let first = which();
    assert!((0..5).all(|_| which() == first), "it is idle, the others are not");
}

#[test]
fn an_idle_worker_is_chosen_before_one_with_fewer_functions_that_computes() {
    let pool = pool(2);
    let (release, released) = mpsc::channel::<()>();
    let (sender, begun) = mpsc::channel();
    let computes = pool.run(move || {
        sender.send(thread::current().id()).unwrap();
        let _ = released.recv(); // blocks the thread
    });
    let computing = begun.recv().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (sender, begun) = mpsc::channel();
            let waits = pool.run(move || {
                sender.send(thread::current().id()).unwrap();
                await_(std::future::pending::<()>());
            });
            assert_ne!(begun.recv().unwrap(), computing);
            thread::sleep(Duration::from_millis(100)); // until the worker is idle again
            waits
        })
        .collect();
    drop((waiting, release));
    on_threads(computes);
}

#[test]
fn the_builder_sets_names_stack_sizes_and_hooks() {
    struct Count(mpsc::Sender<&'static str>);
    impl SpawnHooks for Count {
        fn resume(&mut self, _: &Greenlet) {
            self.0.send("resume").unwrap();
        }
        fn suspend(&mut self, _: &Greenlet) {
            self.0.send("suspend").unwrap();
        }
    }
    let (sender, hooks) = mpsc::channel();
    let pool = PinnedPool::builder()
        .threads(1.try_into().unwrap())
        .thread_name("reports")
        .spawn_options(move || {
            let options = SpawnBuilder::new().name("report").stack_size(8 << 20);
            options.hooks(Count(sender.clone()))
        })
        .build()
        .unwrap();
    let seen = || {
        let current = getcurrent();
        let size = current.stack_usage().unwrap().size;
        (
            thread::current().name().map(String::from),
            current.name().map(String::from),
            size,
        )
    };
    let expected = (Some("reports-0".into()), Some("report".into()), 8 << 20);
    assert_eq!(on_threads(pool.run(seen)), expected);
    let streamed: Vec<_> = on_threads(pool.stream(move |items| items.yield_(seen())).collect());
    assert_eq!(streamed, [expected]);
    drop(pool);
    assert_eq!(hooks.iter().take(2).collect::<Vec<_>>(), ["resume", "suspend"]);
}

/// A pool of two threads that runs one function at once, and lets two wait.
fn narrow() -> PinnedPool {
    let builder = PinnedPool::builder().threads(2.try_into().unwrap());
    builder.max_running(1).max_waiting(2).build().unwrap()
}

#[test]
fn functions_past_the_limit_wait_in_order_and_past_that_are_refused() {
    let pool = narrow();
    let (log, order) = mpsc::channel();
    let (release, released) = futures::channel::oneshot::channel::<()>();
    let first = pool.run(move || await_(released).unwrap());
    let waiting = ["second", "third"].map(|name| {
        let log = log.clone();
        pool.run(move || log.send(name).unwrap())
    });
    let refused = on_threads(pool.run(|| unreachable!("it is refused")).into_result());
    let error = refused.unwrap_err();
    assert!(error.downcast_ref::<PoolError>().unwrap().is_full(), "{error}");
    assert_eq!(
        error.to_string(),
        "the pool refused the function: 1 functions run, and 2 wait, which is the limit; try again later, or \
         allow more with `PoolBuilder::max_waiting`"
    );
    assert_eq!(order.try_recv(), Err(mpsc::TryRecvError::Empty));
    release.send(()).unwrap();
    on_threads(first);
    on_threads(join_all(waiting));
    assert_eq!(
        [order.recv().unwrap(), order.recv().unwrap()],
        ["second", "third"]
    );
}

#[test]
fn dropping_the_handle_of_a_waiting_function_drops_it_and_makes_room() {
    let pool = narrow();
    let running = pool.run(|| await_(std::future::pending::<()>()));
    let (kept, dropped) = mpsc::channel::<()>();
    let waiting = [1, 2].map(|_| {
        let kept = kept.clone();
        pool.run(move || {
            let _kept = kept;
            unreachable!("its handle was dropped")
        })
    });
    drop(kept);
    drop::<[Pooled<()>; 2]>(waiting);
    let (log, order) = mpsc::channel();
    let next = [1, 2].map(|n| {
        let log = log.clone();
        pool.run(move || log.send(n).unwrap())
    });
    assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    drop(running);
    on_threads(join_all(next));
    assert_eq!(order.try_iter().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_stream_is_send_and_its_function_is_at_most_one_item_ahead() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let pool = pool(1);
    let (log, yielded) = mpsc::channel();
    let mut stream = is_send(pool.stream(move |items| {
        for n in 0..4 {
            log.send(n).unwrap();
            items.yield_(n);
            await_(tokio::task::yield_now());
        }
    }));
    assert_eq!(yielded.recv(), Ok(0));
    on_threads(pool.run(|| ())); // what it does without being polled is done then
    assert_eq!(yielded.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert_eq!(on_threads(stream.next()), Some(0));
    let rest = on_threads(async { tokio::spawn(stream.collect::<Vec<_>>()).await.unwrap() });
    assert_eq!(rest, [1, 2, 3]);
}

#[test]
fn a_stream_delivers_its_items_before_the_panic_of_its_function() {
    let pool = pool(1);
    let mut stream: PoolStream<u32> = pool.stream(|items| {
        items.yield_(1);
        std::panic::resume_unwind(Box::new("boom"))
    });
    assert_eq!(on_threads(stream.next()), Some(1));
    let caught = on_threads(AssertUnwindSafe(stream.next()).catch_unwind());
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"boom"));
}

#[test]
fn dropping_a_stream_ends_its_function_on_its_thread() {
    let pool = pool(1);
    let (log, events) = mpsc::channel();
    let waits = pool.stream(move |items| {
        items.yield_(thread::current().id());
        let _sent_at_the_end = log;
        await_(std::future::pending::<()>());
    });
    drop(waits);
    assert_eq!(events.recv(), Err::<(), _>(mpsc::RecvError));
    // Also while it waits in `yield_`.
    let (log, events) = mpsc::channel();
    let yields = pool.stream(move |items| {
        log.send(()).unwrap();
        loop {
            items.yield_(());
        }
    });
    events.recv().unwrap();
    drop(yields);
    assert_eq!(events.recv(), Err(mpsc::RecvError));
}
