//! The pool of worker threads.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use greenlet::{Greenlet, PinnedPool, Pooled, await_, getcurrent, getparent, try_await_};

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
