//! Polls in place (`SpawnBuilder::poll_in_place`): the first poll runs on the stack of the
//! function, and everything else is as without the option.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use greenlet::{
    Greenlet, NoDriver, Spawn, SpawnBuilder, StrayMessage, SwitchForbidden, Tracer, await_, getcurrent,
    getmain, greenlet_spawn, no_switch, settrace, try_await_,
};

use crate::bridge::{Handle, poll, ready};
use crate::support::{Drops, Log, NoLeaks};

#[track_caller]
fn spawn<T: 'static>(function: impl FnOnce() -> T + 'static) -> Spawn<T> {
    SpawnBuilder::new()
        .require_await(true)
        .poll_in_place(true)
        .spawn(function)
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_ready_future_is_polled_in_the_function() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        let inside = getcurrent().id();
        (inside, await_(async { getcurrent().id() }), await_(async { 3 }))
    });
    let (inside, polled_in, three) = ready(poll(&mut spawned));
    assert_eq!((polled_in, three), (inside, 3));
    assert_ne!(inside, getcurrent().id());
}

#[test]
fn a_pending_future_is_polled_once_per_poll_and_then_by_the_driver() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = spawn(move || await_(future));
    for polls in 1..=3 {
        assert!(poll(&mut spawned).is_pending());
        assert_eq!(handle.polls.get(), polls);
    }
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 4);
}

#[test]
fn the_second_poll_runs_in_the_driver() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        let mut polled_in = Vec::new();
        await_(poll_fn(|_| {
            polled_in.push(getcurrent().is_main());
            if polled_in.len() < 2 {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        }));
        polled_in
    });
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(ready(poll(&mut spawned)), [false, true]);
}

#[test]
fn a_poll_in_place_uses_the_waker_of_the_current_poll() {
    let _no_leaks = NoLeaks::watch();
    let stored: Rc<RefCell<Option<Waker>>> = Rc::default();
    let put = stored.clone();
    let mut spawned = spawn(move || {
        for _ in 0..2 {
            let mut is_first = true;
            await_(poll_fn(|cx| {
                put.replace(Some(cx.waker().clone()));
                if std::mem::take(&mut is_first) {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            }));
        }
    });
    for nth in 0..2 {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let polled = std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        stored.take().unwrap().wake();
        assert_eq!(wakes.count(), 1, "poll {nth}");
    }
    ready(poll(&mut spawned));
}

#[test]
fn an_await_inside_a_poll_in_place_is_refused() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        let inner = await_(async { try_await_(async {}).unwrap_err().downcast::<NoDriver>().unwrap() });
        let below = await_(async {
            let child = Greenlet::new(|(): ()| Ok(try_await_(async {}).unwrap_err().is::<NoDriver>()));
            child.switch::<bool>(()).unwrap()
        });
        inner.is_polled() && below
    });
    assert!(ready(poll(&mut spawned)));
}

#[test]
fn spawns_nest_in_place() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = spawn(|| {
        let inner = spawn(|| await_(future) + await_(greenlet_spawn(|| await_(async { 1 }))));
        await_(async { 10 }) + await_(inner)
    });
    assert!(poll(&mut spawned).is_pending());
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 13);
}

#[test]
fn a_panic_of_the_future_propagates_in_the_function() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        let caught = catch_unwind(|| await_(async { std::panic::resume_unwind(Box::new(7_u8)) }));
        let payload: Result<(), _> = caught;
        (
            payload.unwrap_err().downcast_ref::<u8>().copied(),
            await_(async { 1 }),
        )
    });
    assert_eq!(ready(poll(&mut spawned)), (Some(7), 1));
}

#[test]
fn an_await_is_refused_in_a_no_switch_section() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        await_(async {});
        let polled = Cell::new(false);
        let refused = no_switch(|| try_await_(async { polled.set(true) })).unwrap_err();
        refused.is::<SwitchForbidden>() && !polled.get()
    });
    assert!(ready(poll(&mut spawned)));
}

#[test]
fn a_drop_and_a_cancel_drop_everything_once() {
    for is_cancelled in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let watched = drops.clone();
        let future = Handle::default().future_with(Some(drops.witness()));
        let mut spawned = spawn(move || {
            let _local = watched.witness();
            await_(async {});
            await_(future)
        });
        assert!(poll(&mut spawned).is_pending());
        if is_cancelled {
            assert!(ready(poll(&mut spawned.cancel())).is_err());
        } else {
            drop(spawned);
        }
        assert_eq!(drops.count(), 2);
    }
}

#[test]
fn a_handle_does_not_keep_the_waker() {
    for is_dropped in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = spawn(move || {
            await_(async {});
            if is_dropped {
                await_(pending::<()>());
            }
        });
        let greenlet = spawned.greenlet().clone();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let polled = std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&waker));
        assert_eq!(polled.is_pending(), is_dropped);
        if is_dropped {
            drop(spawned);
        }
        drop(waker);
        assert!(greenlet.is_dead());
        assert_eq!(Arc::strong_count(&wakes), 1, "dropped: {is_dropped}");
    }
}

#[test]
fn a_stream_in_place_hands_over_one_item_at_a_time() {
    let _no_leaks = NoLeaks::watch();
    let stream = SpawnBuilder::new().poll_in_place(true).stream(|items| {
        for n in 1..=3 {
            items.yield_(await_(async { n * n }));
        }
    });
    let all: Vec<u32> = futures::executor::block_on(futures::StreamExt::collect(stream));
    assert_eq!(all, [1, 4, 9]);
}

#[test]
fn a_withdrawn_future_polled_in_place_does_not_count_for_the_next() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = spawn(move || {
        settrace(Some(Tracer::new(|event| {
            if event.target.is_main() {
                settrace(None);
                anyhow::bail!("lost on its way to the driver");
            }
            Ok(())
        })));
        let error = try_await_(pending::<()>()).unwrap_err();
        assert!(error.is::<StrayMessage>());
        let below = Greenlet::new(move |(): ()| Ok(await_(future)));
        below.switch::<u32>(()).unwrap()
    });
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(handle.polls.get(), 1, "it has to know whom to wake");
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 2);
}

/// A poll in place that switches to the greenlet that polls the driver. That greenlet resumes it
/// with an error, and the poll then waits in the middle.
fn half_way(between: impl Future<Output = ()>, end: Poll<bool>) -> impl Future<Output = bool> {
    let mut between = Some(Box::pin(between));
    poll_fn(move |cx| {
        let Some(between) = between.take() else {
            return Poll::Ready(true);
        };
        let stray = getmain().switch::<()>("who is this for?");
        assert!(stray.is_err());
        let waited = try_await_(between);
        cx.waker().wake_by_ref(); // the previous waker must still be valid
        if end.is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(waited.is_ok())
    })
}

#[test]
fn a_driver_can_be_dropped_in_the_middle_of_a_poll_in_place() {
    for end in [Poll::Ready(true), Poll::Pending] {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let watched = drops.clone();
        let written = Log::new();
        let log = written.clone();
        let mut spawned = spawn(move || {
            let _local = watched.witness();
            log.add(match try_await_(half_way(pending(), end)) {
                Ok(is_ok) => format!("ready: {is_ok}"),
                Err(error) => format!("over: {}", error.downcast::<NoDriver>().unwrap().is_over()),
            });
        });
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        assert!(
            std::pin::Pin::new(&mut spawned)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(waker); // only the driver still holds the waker
        drop(spawned);
        assert_eq!(drops.count(), 1);
        assert_eq!(
            written.take(),
            [if end.is_ready() {
                "ready: false"
            } else {
                "over: true"
            }]
        );
        assert_eq!(wakes.count(), 1);
        assert_eq!(Arc::strong_count(&wakes), 1);
    }
}

#[test]
fn a_poll_in_place_that_continues_with_another_waker_loses_no_wake_up() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let between = handle.future();
    let mut spawned = spawn(move || {
        let waits = half_way(async { assert_eq!(between.await, 2) }, Poll::Pending);
        await_(waits) && await_(async { true })
    });
    let wakes = [(); 2].map(|()| Arc::new(Wakes::default()));
    let wakers = wakes.clone().map(Waker::from);
    let polled = std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&wakers[0]));
    assert!(polled.is_pending());
    handle.ready.set(true);
    // It ends the poll in place with `Pending` and the first waker, so the driver polls once more.
    assert!(ready(
        std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&wakers[1]))
    ));
}

#[test]
fn a_wake_up_in_the_middle_of_a_poll_in_place_is_not_lost() {
    let _no_leaks = NoLeaks::watch();
    let (event, between) = (Handle::default(), Handle::default());
    let (waited_for, waits) = (event.future(), between.future());
    let mut spawned = spawn(move || {
        let (mut waited_for, mut waits) = (waited_for, Some(waits));
        await_(poll_fn(move |cx| {
            let polled = std::pin::Pin::new(&mut waited_for).poll(cx);
            if let Some(waits) = waits.take() {
                assert!(getmain().switch::<()>("who is this for?").is_err());
                await_(waits);
            }
            polled
        }))
    });
    let waker = Waker::from(Arc::new(Wakes::default()));
    let mut poll = || std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    // The same waker wakes the task, which finds that another future is awaited.
    event.ready.set(true);
    assert!(poll().is_pending());
    between.ready.set(true);
    assert_eq!(ready(poll()), 2);
}

#[test]
fn a_replaced_waker_is_dropped() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let between = handle.future();
    let mut spawned = spawn(move || {
        let waits = half_way(async { assert_eq!(between.await, 2) }, Poll::Pending);
        await_(waits)
    });
    let greenlet = spawned.greenlet().clone();
    let wakes = [(); 2].map(|()| Arc::new(Wakes::default()));
    for (nth, wakes) in wakes.iter().enumerate() {
        let waker = Waker::from(wakes.clone());
        let polled = std::pin::Pin::new(&mut spawned).poll(&mut Context::from_waker(&waker));
        assert_eq!(polled.is_ready(), nth == 1);
        handle.ready.set(true);
    }
    assert!(greenlet.is_dead());
    for wakes in &wakes {
        assert_eq!(Arc::strong_count(wakes), 1);
    }
}

#[test]
fn an_await_whose_poll_panics_is_counted() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = spawn(|| {
        let caught = catch_unwind(|| await_(async { std::panic::resume_unwind(Box::new(7_u8)) }));
        let payload: Result<(), _> = caught;
        payload.is_err()
    });
    assert!(ready(poll(&mut spawned)));
}
