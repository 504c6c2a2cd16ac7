//! The same tests on every executor.

use std::cell::Cell;
use std::rc::Rc;

use futures::channel::{mpsc, oneshot};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use greenlet::{Greenlet, GreenletExit, await_, greenlet_spawn, iter_stream, try_await_};

use crate::support::{Drops, NoLeaks};

/// Runs one future to its end, on this thread.
trait Executor {
    fn block_on<T>(future: impl Future<Output = T>) -> T;
}

/// Yields to other tasks once, using only the waker.
async fn yields() {
    let mut is_first = true;
    std::future::poll_fn(move |cx| {
        if std::mem::take(&mut is_first) {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
}

fn many_at_once<E: Executor>() {
    let _no_leaks = NoLeaks::watch();
    let running = Rc::new(Cell::new(0));
    let most = Rc::new(Cell::new(0));
    let sum: u64 = E::block_on(async {
        let spawned = (0..500_u64).map(|n| {
            let (running, most) = (running.clone(), most.clone());
            greenlet_spawn(move || {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                for _ in 0..n % 5 {
                    await_(yields());
                }
                let child = Greenlet::new(move |n: u64| {
                    await_(yields());
                    Ok(await_(greenlet_spawn(move || n + await_(async { 1 }))))
                });
                let sum = child.switch::<u64>(n).unwrap();
                running.set(running.get() - 1);
                sum
            })
        });
        join_all(spawned).await.into_iter().sum()
    });
    assert_eq!(sum, 500 * 499 / 2 + 500);
    assert!(most.get() > 100, "they ran at once: {}", most.get());
}

/// A wake-up from another thread, at any time, is not lost.
fn wake_ups_from_another_thread<E: Executor>() {
    let _no_leaks = NoLeaks::watch();
    let (ask, mut asked) = mpsc::unbounded::<oneshot::Sender<u32>>();
    let thread = std::thread::spawn(move || {
        futures::executor::block_on(async {
            let mut n = 0;
            while let Some(sender) = asked.next().await {
                n += 1;
                let _ = sender.send(n);
            }
        });
    });
    let last = E::block_on(greenlet_spawn(move || {
        let ask_one = || {
            let (sender, receiver) = oneshot::channel();
            ask.unbounded_send(sender).unwrap();
            await_(receiver).unwrap()
        };
        (0..300).fold(0, |_, _| ask_one())
    }));
    thread.join().unwrap();
    assert_eq!(last, 300);
}

fn a_race_drops_the_loser<E: Executor>() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    E::block_on(async {
        let mut waits = greenlet_spawn(move || {
            let _local = watched.witness();
            await_(std::future::pending::<()>());
        })
        .fuse();
        let mut quick = greenlet_spawn(|| await_(yields())).fuse();
        futures::select_biased! {
            () = waits => unreachable!(),
            () = quick => {}
        }
    });
    assert_eq!(drops.count(), 1);
}

fn a_cancel_awaits_its_clean_up<E: Executor>() {
    let _no_leaks = NoLeaks::watch();
    let said = Rc::new(Cell::new(false));
    let goodbye = said.clone();
    let result = E::block_on(async {
        let mut spawned = greenlet_spawn(move || {
            let waited = try_await_(std::future::pending::<()>());
            await_(yields());
            goodbye.set(true);
            waited
        });
        assert!(futures::poll!(&mut spawned).is_pending());
        spawned.cancel().await
    });
    assert!(result.unwrap().unwrap_err().is::<GreenletExit>());
    assert!(said.get());
}

fn streams_between_functions<E: Executor>() {
    let _no_leaks = NoLeaks::watch();
    let (sender, receiver) = mpsc::channel::<u32>(2);
    let sum = E::block_on(async {
        let produce = greenlet_spawn(move || {
            let mut sender = sender;
            for n in 0..100 {
                await_(futures::SinkExt::send(&mut sender, n)).unwrap();
            }
        });
        let consume = greenlet_spawn(move || iter_stream(receiver).sum::<u32>());
        futures::join!(produce, consume).1
    });
    assert_eq!(sum, 4950);
}

macro_rules! suite {
    ($($executor:ident: $block_on:expr;)*) => {$(
        mod $executor {
            struct This;
            impl super::Executor for This {
                fn block_on<T>(future: impl Future<Output = T>) -> T {
                    $block_on(future)
                }
            }
            suite!(@ many_at_once wake_ups_from_another_thread a_race_drops_the_loser
                a_cancel_awaits_its_clean_up streams_between_functions);
        }
    )*};
    (@ $($test:ident)*) => {$(
        #[test]
        fn $test() {
            super::$test::<This>();
        }
    )*};
}

suite! {
    futures_executor: futures::executor::block_on;
    smol_executor: |future| smol::block_on(smol::LocalExecutor::new().run(future));
    tokio_current_thread: |future| {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    };
    tokio_multi_thread_local_set: |future| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(future))
    };
}

#[test]
fn a_timeout_around_a_spawn_ends_it() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let spawned = greenlet_spawn(move || {
            let _local = watched.witness();
            await_(greenlet_spawn(|| await_(std::future::pending::<()>())));
        });
        let waited = tokio::time::timeout(std::time::Duration::from_millis(2), spawned).await;
        assert!(waited.is_err());
    });
    assert_eq!(drops.count(), 1);
}
