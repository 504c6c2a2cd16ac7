//! Awaits from odd places: inside the poll of an awaited future, and where code blocks a thread.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use greenlet::{
    AwaitInProgress, Greenlet, NoDriver, ParentError, SpawnBuilder, await_, await_nested, block_on_greenlet,
    getmain, greenlet_spawn, no_switch, raw, try_await_, try_await_nested,
};

use crate::bridge::{poll, ready};
use crate::support::{Log, NoLeaks, on_drop};

/// Returns the text of a panic.
fn panic_of<T>(run: impl FnOnce() -> T) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(run)) else {
        panic!("no panic");
    };
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

/// Synchronous code in asynchronous code in synchronous code, `depth` times.
fn sandwich(depth: u32) -> u32 {
    await_nested(async move {
        tokio::task::yield_now().await;
        let below = if depth == 0 { 0 } else { sandwich(depth - 1) };
        tokio::task::yield_now().await;
        below + 1
    })
}

#[test]
fn synchronous_code_in_an_awaited_future_awaits() {
    let _no_leaks = NoLeaks::watch();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for in_place in [false, true] {
        let spawned = SpawnBuilder::new()
            .poll_in_place(in_place)
            .stack_size(1 << 20)
            .spawn(|| sandwich(10));
        assert_eq!(runtime.block_on(spawned), 11);
        let spawned = SpawnBuilder::new().poll_in_place(in_place).spawn(|| {
            let sleep = || await_(tokio::time::sleep(Duration::from_millis(1)));
            let child = Greenlet::new(move |(): ()| Ok(try_await_nested(async move { sleep() }).is_ok()));
            child.switch::<bool>(()).unwrap()
        });
        assert!(runtime.block_on(spawned));
    }
}

/// Counts its calls.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_wake_up_of_a_nested_future_is_not_lost_and_polls_it_once() {
    let _no_leaks = NoLeaks::watch();
    let kept: Rc<RefCell<Vec<Waker>>> = Rc::default();
    let polls = Rc::new(Cell::new(0));
    let inner_is_ready = Rc::new(Cell::new(false));
    let (wakers, counted, gate) = (kept.clone(), polls.clone(), inner_is_ready.clone());
    let mut spawned = greenlet_spawn(move || {
        await_nested(poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            wakers.borrow_mut().push(cx.waker().clone());
            if counted.get() == 3 {
                return Poll::Ready(());
            }
            // Synchronous code that waits in the first poll, while the outer future is woken.
            let gate = gate.clone();
            await_(poll_fn(move |_| {
                if gate.get() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
            Poll::Pending
        }));
    });
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut step = |n| {
        let polled = Pin::new(&mut spawned).poll(&mut Context::from_waker(&waker));
        assert_eq!(polls.get(), n);
        polled.is_ready()
    };
    assert!(!step(1));
    kept.borrow()[0].wake_by_ref();
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(!step(1), "its synchronous code waits");
    inner_is_ready.set(true);
    assert!(!step(1), "the executor gets control first");
    assert_eq!(
        count.0.load(Ordering::SeqCst),
        2,
        "and the wake-up meanwhile is not lost"
    );
    assert!(!step(2));
    assert!(!step(2), "without a wake-up it is not polled");
    kept.borrow()[0].wake_by_ref();
    assert_eq!(count.0.load(Ordering::SeqCst), 3);
    assert!(step(3));
    kept.take();
}

#[test]
fn a_nested_future_that_yields_lets_other_tasks_run() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        await_nested(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
    });
    for _ in 0..3 {
        assert!(poll(&mut spawned).is_pending());
    }
    assert!(poll(&mut spawned).is_ready());
}

#[test]
fn a_panic_of_a_nested_future_propagates_in_the_function() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        panic_of(|| {
            await_nested(async {
                await_(async {});
                panic!("in the future");
            });
        })
    });
    assert_eq!(ready(poll(&mut spawned)), "in the future");
}

#[test]
fn an_await_where_it_cannot_work_says_which_case_it_is() {
    let _no_leaks = NoLeaks::watch();
    let refused = || try_await_(async {}).unwrap_err().downcast::<NoDriver>().unwrap();
    let in_poll = move || {
        let error = refused();
        assert!(error.is_polled() && !error.is_outside() && !error.is_over());
        error.to_string()
    };
    // In the poll itself, in a destructor of the future, below it, and in a nested executor.
    let mut spawned = greenlet_spawn(move || {
        let log = Log::new();
        await_(async { log.add(in_poll()) });
        let written = log.clone();
        let dropped = on_drop(move || written.add(in_poll()));
        await_(async move { drop(dropped) });
        await_(async {
            let child = Greenlet::new(move |(): ()| Ok(in_poll()));
            log.add(child.switch::<String>(()).unwrap());
        });
        log.take()
    });
    let said = ready(poll(&mut spawned));
    assert_eq!(said.len(), 3);
    assert!(
        said.iter().all(|text| text.contains("`await_nested`")),
        "{said:?}"
    );
    // After the poll, the thread is outside again, although a spawn waits.
    let mut waiting = greenlet_spawn(|| await_(pending::<()>()));
    assert!(poll(&mut waiting).is_pending());
    assert!(refused().is_outside());
    assert!(poll(&mut waiting).is_pending());
    assert!(refused().is_outside());
    let on_another = std::thread::spawn(move || refused().to_string()).join().unwrap();
    assert!(on_another.contains("on this thread"), "{on_another}");
}

#[test]
fn clean_up_of_an_ended_greenlet_is_told_so_and_unwound() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let written = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let _exit = try_await_(pending::<()>());
        written.add(try_await_(async {}).unwrap_err().to_string());
        await_(async {}); // unwinds, and does not panic
    });
    assert!(poll(&mut spawned).is_pending());
    spawned.greenlet().clone().end();
    let said = log.take().concat();
    assert!(said.contains("ended or resumed from outside"), "{said}");
}

#[test]
fn blocking_in_a_spawned_function_is_a_nested_call() {
    let _no_leaks = NoLeaks::watch();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let library = || {
        block_on_greenlet(|| {
            await_(tokio::time::sleep(Duration::from_millis(2)));
            block_on_greenlet(|| await_(tokio::task::yield_now()));
            7
        })
    };
    let other = Cell::new(0);
    let (result, ()) = runtime.block_on(async {
        let others = async {
            while other.get() < 3 {
                other.set(other.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        futures::join!(greenlet_spawn(library), others)
    });
    assert_eq!((result, other.get()), (7, 3));
    // In a child, and in a generator.
    let spawned = greenlet_spawn(move || {
        let child = Greenlet::new(move |(): ()| Ok(library()));
        let in_child = child.switch::<i32>(()).unwrap();
        let mut numbers = greenlet::Generator::new(move |out| out.yield_(library()));
        in_child + numbers.next().unwrap().unwrap()
    });
    assert_eq!(runtime.block_on(spawned), 14);
}

#[test]
fn blocking_under_an_executor_is_refused() {
    let _no_leaks = NoLeaks::watch();
    let blocks = || block_on_greenlet(|| await_(pending::<()>()));
    let mut spawned = greenlet_spawn(move || await_(async move { panic_of(blocks) }));
    let said = ready(poll(&mut spawned));
    assert!(said.contains("`await_nested`"), "{said}");
    for runtime in [
        tokio::runtime::Builder::new_current_thread().build().unwrap(),
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap(),
    ] {
        let said = runtime.block_on(async { panic_of(blocks) });
        // Without the feature, it is refused because nothing could wake it.
        let reason = if cfg!(feature = "tokio") {
            "from within a runtime"
        } else {
            "for ever"
        };
        assert!(said.contains(reason), "{said}");
        // On a thread that may block, it works.
        let _entered = runtime.enter();
        assert_eq!(block_on_greenlet(|| await_(async { 7 })), 7);
    }
}

#[test]
fn blocking_under_an_executor_of_futures_is_refused() {
    let _no_leaks = NoLeaks::watch();
    let blocks = || block_on_greenlet(|| await_(pending::<()>()));
    // Without the feature, it is refused because nothing could wake it.
    let reason = if cfg!(feature = "futures-io") {
        "an executor of `futures`"
    } else {
        "for ever"
    };
    let said = futures::executor::block_on(async { panic_of(blocks) });
    assert!(said.contains(reason), "{said}");
    let mut tasks = futures::executor::LocalPool::new();
    let said = tasks.run_until(async { panic_of(blocks) });
    assert!(said.contains(reason), "{said}");
    // In a spawned function it is a nested call, and after the executor it works.
    let nested = greenlet_spawn(|| block_on_greenlet(|| await_(async { 7 })));
    assert_eq!(tasks.run_until(nested), 7);
    assert_eq!(block_on_greenlet(|| await_(async { 7 })), 7);
}

#[test]
fn blocking_under_smol_returns_when_another_thread_wakes_it() {
    let _no_leaks = NoLeaks::watch();
    smol::block_on(async {
        let timer = || await_(smol::Timer::after(Duration::from_millis(1)));
        block_on_greenlet(timer);
        let task = smol::spawn(async { 7 });
        assert_eq!(block_on_greenlet(|| await_(task)), 7);
    });
}

#[test]
fn blocking_for_what_nobody_can_wake_is_refused() {
    let _no_leaks = NoLeaks::watch();
    let said = panic_of(|| block_on_greenlet(|| await_(pending::<()>())));
    assert!(said.contains("for ever") && said.contains("nested.rs"), "{said}");
    // The waker was kept once, and is dropped later without a call.
    let mut kept = None;
    let said = panic_of(|| {
        block_on_greenlet(move || {
            await_(poll_fn(move |cx| {
                if kept.is_none() {
                    kept = Some(cx.waker().clone());
                    cx.waker().wake_by_ref();
                } else {
                    kept = None;
                }
                Poll::<()>::Pending
            }));
        })
    });
    assert!(said.contains("for ever"), "{said}");
}

#[test]
fn a_refused_poll_is_an_error_and_the_function_ends() {
    // The root has left for main, and is kept suspended while it is polled.
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        let _ = try_await_(pending::<()>());
        let _ = getmain().switch::<()>(());
    })
    .into_result();
    let error = {
        assert!(poll(&mut spawned).is_pending());
        let root = root_of(&spawned);
        raw::unlock(&root);
        root.switch::<()>(()).unwrap();
        raw::keep_suspended(&root, || ready(poll(&mut spawned)).unwrap_err())
    };
    assert!(error.is::<AwaitInProgress>(), "{error}");
    drop(spawned);

    // The root was moved below a function that waits.
    let mut waiting = greenlet_spawn(|| await_(pending::<()>()));
    let mut moved = greenlet_spawn(|| await_(tokio::task::yield_now())).into_result();
    assert!(poll(&mut moved).is_pending());
    root_of(&moved).set_parent(waiting.greenlet()).unwrap();
    assert!(poll(&mut waiting).is_pending());
    assert!(ready(poll(&mut moved)).unwrap_err().is::<ParentError>());

    // The function reports a stray message, in a section where it cannot be resumed.
    let mut spawned = greenlet_spawn(|| await_(pending::<()>())).into_result();
    assert!(poll(&mut spawned).is_pending());
    assert!(no_switch(|| ready(poll(&mut spawned)).is_err()));
    assert!(poll(&mut spawned).is_pending(), "nothing has changed");
}

#[test]
fn a_function_with_another_parent_returns_to_its_driver() {
    let _no_leaks = NoLeaks::watch();
    let other = Greenlet::new(|n: u32| Ok(n));
    let mut spawned = greenlet_spawn(|| {
        await_(tokio::task::yield_now());
        7_u32
    });
    spawned.greenlet().set_parent(&other).unwrap();
    assert!(poll(&mut spawned).is_pending());
    spawned.greenlet().set_parent(&other).unwrap();
    assert_eq!(ready(poll(&mut spawned)), 7);
    assert_eq!(other.state(), greenlet::State::Pending);
}

/// Returns the greenlet of a function that waits.
fn root_of<T>(_: &greenlet::SpawnResult<T>) -> Greenlet {
    let all = greenlet::greenlets();
    let last = all.into_iter().rfind(|greenlet| !greenlet.is_main());
    last.expect("a spawn has a greenlet")
}
