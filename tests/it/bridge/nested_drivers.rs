//! Drivers, executors and generators inside of each other.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use greenlet::{
    Generator, Greenlet, GreenletExit, Spawn, await_, getcurrent, greenlet_spawn, scope, try_await_,
};

use crate::bridge::soundness::Shared;
use crate::bridge::{Handle, poll, ready};
use crate::support::{Drops, NoLeaks};

#[test]
fn a_future_may_poll_another_driver_inside_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let (outer_future, inner_future) = (handle.future(), handle.future());
    let inner: Shared<Spawn<u32>> = Rc::default();
    inner.replace(Some(greenlet_spawn(move || await_(inner_future) + 100)));
    let polled = inner.clone();
    let mut outer_future = Box::pin(outer_future);
    let mut outer = greenlet_spawn(move || {
        let before = getcurrent();
        let got = await_(poll_fn(move |cx| {
            // Another driver runs in the middle of this driver's poll.
            let taken = polled.take();
            if let Some(mut spawn) = taken {
                if Pin::new(&mut spawn).poll(cx).is_pending() {
                    polled.replace(Some(spawn));
                }
            }
            outer_future.as_mut().poll(cx)
        }));
        assert!(before.is_current());
        drop(before);
        got
    });
    assert!(poll(&mut outer).is_pending());
    assert!(inner.borrow().is_some());
    handle.ready.set(true);
    ready(poll(&mut outer));
    assert!(inner.borrow().is_none());
}

#[test]
fn executors_nest_inside_of_a_spawned_function() {
    let _no_leaks = NoLeaks::watch();
    let mut outer = greenlet_spawn(|| {
        let me = getcurrent().id();
        let inner = greenlet::block_on_greenlet(|| await_(async { 1 }) + await_(greenlet_spawn(|| 1)));
        assert_eq!(getcurrent().id(), me);
        inner + await_(async { 40 })
    });
    assert_eq!(ready(poll(&mut outer)), 42);
}

#[test]
fn generators_and_scopes_inside_of_a_spawned_function_await() {
    for polls in 1..=3 {
        let _no_leaks = NoLeaks::watch();
        let drops = Drops::new();
        let watched = drops.clone();
        let handles = [Handle::default(), Handle::default()];
        let [first, second] = handles.clone().map(|handle| handle.future());
        let mut spawned = greenlet_spawn(move || {
            let local = watched.witness();
            let doubled = Generator::new(move |out| {
                let _local = local;
                out.yield_(2 * await_(first))?;
                out.yield_(0)
            });
            let mut sum: u32 = doubled.map(Result::unwrap).sum();
            let borrowed = watched.witness();
            scope(|s| {
                let adds = s.greenlet(|(): ()| {
                    let _borrowed = &borrowed;
                    sum += try_await_(second)?;
                    Ok(())
                });
                adds.switch::<()>(())
            })
            .unwrap();
            sum
        });
        for n in 1..=polls {
            let polled = poll(&mut spawned);
            if n == 3 {
                assert_eq!(ready(polled), 2 * 2 + 2);
            } else {
                assert!(polled.is_pending());
                handles[n - 1].ready.set(true);
            }
        }
        drop(spawned);
        assert_eq!(drops.count(), if polls == 1 { 1 } else { 2 });
    }
}

#[test]
fn the_nearest_driver_serves_a_greenlet_below() {
    let _no_leaks = NoLeaks::watch();
    let mut outer = greenlet_spawn(|| {
        let polled_in = futures::executor::block_on(greenlet_spawn(|| {
            let child = Greenlet::new(|(): ()| Ok(await_(async { getcurrent().id() })));
            child.switch::<u64>(()).unwrap()
        }));
        // The outer function polls the inner driver, which polls its future on that stack.
        polled_in == getcurrent().id()
    });
    assert!(ready(poll(&mut outer)));
}

#[test]
fn a_greenlet_of_the_outer_driver_awaits_in_the_middle_of_an_inner_poll() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let future = handle.future();
    let mut outer = greenlet_spawn(move || {
        let sibling = Greenlet::new(move |(): ()| Ok(await_(future)));
        let inner = greenlet_spawn(move || sibling.switch::<u32>(()).unwrap_or(0));
        futures::executor::block_on(inner)
    });
    // The sibling switches to the outer driver. The inner poll stays on the stack of the outer
    // greenlet.
    assert!(poll(&mut outer).is_pending());
    handle.ready.set(true);
    let polled = catch_unwind(AssertUnwindSafe(|| poll(&mut outer)));
    // The sibling ended into its parent, the inner driver, so the inner function gets the report.
    assert_eq!(ready(polled.unwrap()), 0);
}

/// Awaits spawned functions, one inside the other, and waits in the innermost one.
fn nest(depth: u32) -> u32 {
    match depth {
        0 => await_(wait_once()),
        _ => 1 + await_(greenlet_spawn(move || nest(depth - 1))),
    }
}

fn wait_once() -> impl Future<Output = u32> {
    let mut is_polled = false;
    poll_fn(move |_| match std::mem::replace(&mut is_polled, true) {
        true => Poll::Ready(0),
        false => Poll::Pending,
    })
}

fn on_two_mebibytes<T: Send + 'static>(function: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    thread.spawn(function).unwrap().join().unwrap()
}

#[test]
fn two_mebibytes_hold_1000_nested_spawns_in_debug_and_4000_in_release() {
    if cfg!(feature = "asan") {
        return; // its frames are larger
    }
    const DEPTH: u32 = if cfg!(debug_assertions) { 1000 } else { 4000 };
    let depth = on_two_mebibytes(|| {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = greenlet_spawn(|| nest(DEPTH));
        assert!(poll(&mut spawned).is_pending());
        ready(poll(&mut spawned))
    });
    assert_eq!(depth, DEPTH);
    on_two_mebibytes(|| {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = greenlet_spawn(|| nest(DEPTH));
        assert!(poll(&mut spawned).is_pending());
        drop(spawned);
    });
    on_two_mebibytes(|| {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = greenlet_spawn(|| nest(DEPTH));
        assert!(poll(&mut spawned).is_pending());
        assert!(
            ready(poll(&mut spawned.cancel()))
                .unwrap_err()
                .is::<GreenletExit>()
        );
    });
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn too_many_nested_spawns_are_an_error_before_the_stack_overflows() {
    /// The innermost function that is polled gets the error, and returns how deep it is.
    fn until_refused(depth: u32) -> (u32, String) {
        match await_(greenlet_spawn(move || until_refused(depth + 1)).into_result()) {
            Ok(deepest) => deepest,
            Err(error) => (depth, error.to_string()),
        }
    }
    let (depth, message) = on_two_mebibytes(|| {
        let _no_leaks = NoLeaks::watch();
        ready(poll(&mut greenlet_spawn(|| until_refused(1))))
    });
    assert!((500..100_000).contains(&depth), "{depth}");
    assert!(
        message.contains(&format!("{depth} spawned functions await each other")),
        "{message}"
    );
    assert!(message.contains("a larger stack"), "{message}");
    // On a thread with a larger stack there is more room for them.
    let larger = std::thread::Builder::new().stack_size(4 << 20);
    let deeper = larger.spawn(|| ready(poll(&mut greenlet_spawn(|| until_refused(1)))).0);
    let deeper = deeper.unwrap().join().unwrap();
    assert!(deeper > depth * 3 / 2, "{deeper} and {depth}");
    // Without `into_result` it is a panic, which propagates through all the functions.
    on_two_mebibytes(|| {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = greenlet_spawn(|| nest(100_000));
        let panic = catch_unwind(AssertUnwindSafe(|| poll(&mut spawned))).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(
            message.contains("spawned functions await each other"),
            "{message}"
        );
        drop(spawned);
        assert_eq!(ready(poll(&mut greenlet_spawn(|| 1))), 1);
    });
}
