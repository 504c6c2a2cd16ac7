//! The ends of a pool's functions, and of the pool itself: cancel, detach, shutdown, panics.

use std::cell::RefCell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use greenlet::{GreenletExit, PinnedPool, PoolError, Pooled, StackError, await_, greenlet_spawn, try_await_};

fn pool() -> PinnedPool {
    PinnedPool::new(1.try_into().unwrap())
}

/// Sends a text when it is dropped.
struct Says(mpsc::Sender<&'static str>, &'static str);

impl Drop for Says {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// Waits until all that the pool can do now is done.
fn settle(pool: &PinnedPool) {
    block_on(pool.run_local(|| async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }));
}

#[test]
fn a_cancelled_function_cleans_up_with_awaits_on_its_thread() {
    let pool = pool();
    let (log, events) = mpsc::channel();
    let cancelled = pool.run(move || {
        let before = thread::current().id();
        let _dropped = Says(log.clone(), "dropped");
        let waited = try_await_(pending::<()>());
        try_await_(tokio::time::sleep(Duration::from_millis(1))).unwrap();
        log.send("cleaned up").unwrap();
        assert_eq!(thread::current().id(), before);
        waited
    });
    settle(&pool);
    let error = block_on(cancelled.cancel()).unwrap().unwrap_err();
    assert!(error.is::<GreenletExit>(), "{error}");
    assert_eq!(events.iter().collect::<Vec<_>>(), ["cleaned up", "dropped"]);

    let unwound = pool.run(|| await_(pending::<()>()));
    settle(&pool);
    assert!(block_on(unwound.cancel()).unwrap_err().is::<GreenletExit>());
    let over = pool.run(|| 7);
    settle(&pool);
    assert_eq!(block_on(over.cancel()).unwrap(), 7, "it had ended before");
}

#[test]
fn a_cancelled_future_lets_its_spawned_functions_clean_up() {
    let pool = pool();
    let (log, events) = mpsc::channel();
    let cancelled = pool.run_local(move || async move {
        let _dropped = Says(log.clone(), "future dropped");
        let both = [1, 2].map(|_| {
            let log = log.clone();
            greenlet_spawn(move || {
                let _ = try_await_(pending::<()>());
                try_await_(tokio::time::sleep(Duration::from_millis(1))).unwrap();
                log.send("cleaned up").unwrap();
            })
        });
        join_all(both).await;
        pending::<()>().await;
    });
    settle(&pool);
    let error = block_on(cancelled.cancel()).unwrap_err();
    assert!(
        error.downcast_ref::<PoolError>().unwrap().is_cancelled(),
        "{error}"
    );
    let events: Vec<_> = events.iter().collect();
    assert_eq!(events, ["cleaned up", "cleaned up", "future dropped"]);
}

#[test]
fn a_cancelled_function_that_waits_for_its_turn_never_runs() {
    let builder = PinnedPool::builder().threads(1.try_into().unwrap());
    let pool = builder.max_running(1).build().unwrap();
    let running = pool.run(|| await_(pending::<()>()));
    let (log, events) = mpsc::channel();
    let waits: Pooled<()> = {
        let says = Says(log, "dropped");
        pool.run(move || {
            let _says = says;
            unreachable!("it was cancelled")
        })
    };
    let cancel = waits.cancel();
    assert_eq!(events.recv(), Ok("dropped"));
    let error = block_on(cancel).unwrap_err();
    assert!(
        error.downcast_ref::<PoolError>().unwrap().is_cancelled(),
        "{error}"
    );
    drop(running);
    assert_eq!(block_on(pool.run(|| 1)), 1);
}

#[test]
fn a_detached_function_runs_to_its_end_and_may_panic() {
    let pool = pool();
    let (log, events) = mpsc::channel();
    let says = Says(log, "the output was dropped");
    pool.run(move || {
        await_(tokio::time::sleep(Duration::from_millis(1)));
        says
    })
    .detach();
    let panics: Pooled<()> = pool.run(|| resume_unwind(Box::new("nobody sees this")));
    panics.detach();
    drop(pool);
    assert_eq!(events.iter().collect::<Vec<_>>(), ["the output was dropped"]);
}

#[test]
fn a_function_that_cannot_run_is_an_error_of_into_result_and_a_panic_without() {
    let builder = PinnedPool::builder().threads(1.try_into().unwrap());
    let pool = builder
        .spawn_options(|| greenlet::SpawnBuilder::new().stack_size(1))
        .build()
        .unwrap();
    let error = block_on(pool.run(|| ()).into_result()).unwrap_err();
    assert!(error.is::<StackError>(), "{error}");
    let caught = block_on(AssertUnwindSafe(pool.run(|| ())).catch_unwind()).unwrap_err();
    let text = caught.downcast_ref::<String>().unwrap();
    assert!(
        text.starts_with("a function of a pool has no output: a stack of 1 bytes"),
        "{text}"
    );
}

#[test]
fn a_panic_on_the_way_to_the_end_is_delivered_and_the_worker_lives_on() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                resume_unwind(Box::new("dropped"));
            }
        }
    }
    let pool = pool();
    let payload = |pooled: Pooled<()>| {
        let caught = block_on(AssertUnwindSafe(pooled).catch_unwind());
        *caught.unwrap_err().downcast::<&str>().unwrap()
    };
    // While the future is created, and when it is dropped after its end.
    let creation = pool.run_local(|| -> std::future::Ready<()> { resume_unwind(Box::new("created")) });
    assert_eq!(payload(creation), "created");
    let finished = pool.run_local(|| {
        let bomb = Bomb;
        std::future::poll_fn(move |_| {
            let _bomb = &bomb;
            std::task::Poll::Ready(())
        })
    });
    assert_eq!(payload(finished), "dropped");
    // Nobody waits for these: a panic in the destructor of the function, and of its output.
    let ended = pool.run(|| {
        let _bomb = Bomb;
        let _ = try_await_(pending::<()>());
    });
    settle(&pool);
    drop(ended);
    pool.run(|| Some(Bomb)).detach();
    assert_eq!(block_on(pool.run(|| 1)), 1);
    block_on(pool.shutdown());
}

#[test]
fn a_shutdown_waits_for_all_functions_and_joins_the_threads() {
    thread_local!(static LAST: RefCell<Option<Says>> = const { RefCell::new(None) });
    let (log, events) = mpsc::channel();
    let builder = PinnedPool::builder().threads(1.try_into().unwrap());
    let pool = builder.max_running(1).build().unwrap();
    let (release, released) = futures::channel::oneshot::channel::<()>();
    let says = Says(log.clone(), "the thread's variables were dropped");
    let [runs, waits] = [log.clone(), log];
    let running = pool.run(move || {
        LAST.set(Some(says));
        let _ = await_(released);
        runs.send("the running one ended").unwrap();
    });
    let waiting = pool.run(move || waits.send("the waiting one ended").unwrap());
    drop(pool.shutdown()); // it goes on without its future
    let refused = block_on(pool.run(|| ()).into_result()).unwrap_err();
    assert!(refused.downcast_ref::<PoolError>().unwrap().is_shut_down());
    assert!(pool.shutdown().now_or_never().is_none(), "a function runs");
    release.send(()).unwrap();
    block_on(pool.shutdown());
    let events: Vec<_> = events.try_iter().collect();
    assert_eq!(
        events,
        [
            "the running one ended",
            "the waiting one ended",
            "the thread's variables were dropped"
        ]
    );
    block_on(join_all([running, waiting]));
    block_on(pool.shutdown());
}

#[test]
fn a_shutdown_inside_a_function_of_the_pool_panics() {
    let pool = pool();
    let inner = pool.clone();
    let waits_for_itself = pool.run(move || await_(inner.shutdown()));
    let caught = block_on(AssertUnwindSafe(waits_for_itself).catch_unwind()).unwrap_err();
    let text = caught.downcast_ref::<&str>().unwrap();
    assert!(text.contains("would wait for itself"), "{text}");
    block_on(pool.shutdown());
}

#[test]
fn all_functions_can_be_cancelled_those_that_wait_included() {
    let builder = PinnedPool::builder().threads(1.try_into().unwrap());
    let pool = builder.max_running(1).build().unwrap();
    let (log, events) = mpsc::channel();
    let running = pool.run(move || {
        log.send("begun").unwrap();
        let waited = try_await_(pending::<()>());
        try_await_(tokio::time::sleep(Duration::from_millis(1))).unwrap();
        log.send("cleaned up").unwrap();
        waited.is_err()
    });
    let waiting = pool.run(|| unreachable!("it was cancelled")).into_result();
    assert_eq!(events.recv(), Ok("begun"));
    pool.cancel_all();
    assert!(block_on(running));
    let _: PoolError = block_on::<_>(waiting)
        .map(|(): ()| ())
        .unwrap_err()
        .downcast()
        .unwrap();
    assert_eq!(events.iter().collect::<Vec<_>>(), ["cleaned up"]);
    block_on(pool.shutdown());
}

#[test]
fn many_functions_of_many_threads_end_once_however_their_handles_go() {
    const EACH: usize = 300;
    let builder = PinnedPool::builder().threads(2.try_into().unwrap());
    let pool = builder.max_running(7).build().unwrap();
    let (log, events) = mpsc::channel();
    thread::scope(|scope| {
        for seed in 0..3 {
            let (pool, log) = (pool.clone(), log.clone());
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for n in 0..EACH {
                    let says = Says(log.clone(), "ended");
                    let sleep = Duration::from_micros(random.u64(..300));
                    let function = pool.run(move || {
                        let _says = says;
                        let _ = try_await_(tokio::time::sleep(sleep));
                        n
                    });
                    match random.u32(..4) {
                        0 => drop(function),
                        1 => function.detach(),
                        2 => drop(block_on(function.cancel())),
                        _ => assert_eq!(block_on(function), n),
                    }
                }
            });
        }
    });
    drop(log);
    block_on(pool.shutdown());
    assert_eq!(events.iter().count(), 3 * EACH);
}
