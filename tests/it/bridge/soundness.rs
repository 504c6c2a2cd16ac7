//! Attempts to break the bridge from safe code: to drop a future while it is polled, to resume a
//! waiting greenlet, to lose a wake-to hang an executor.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet::{
    AwaitInProgress, Greenlet, GreenletExit, NoDriver, ParentError, Spawn, StrayMessage, Tracer,
    WeakGreenlet, await_, getcurrent, getmain, getparent, greenlet_spawn, no_switch, raw, settrace,
    try_await_,
};

use crate::bridge::{Handle, poll, ready};
use crate::support::{Drops, Log, NoLeaks, Witness};

pub(super) type Shared<T> = Rc<RefCell<Option<T>>>;

/// Knows whether the future that holds it is being polled, and panics when it is dropped during a
/// poll.
struct Polled {
    is_polled: Rc<Cell<bool>>,
    _witness: Witness,
}

impl Drop for Polled {
    fn drop(&mut self) {
        assert!(!self.is_polled.get(), "dropped while it was polled");
    }
}

/// Returns a future that runs `attack` in its first poll, and is ready in its second.
fn attacking(drops: &Drops, mut attack: impl FnMut()) -> impl Future<Output = ()> {
    let is_polled = Rc::new(Cell::new(false));
    let inside = Polled {
        is_polled: is_polled.clone(),
        _witness: drops.witness(),
    };
    let mut polls = 0;
    poll_fn(move |_| {
        let _alive = &inside;
        is_polled.set(true);
        polls += 1;
        if polls == 1 {
            attack();
        }
        is_polled.set(false);
        if polls == 1 {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
}

/// Spawns a function whose child awaits a future that runs `attack` on the child.
fn attack_a_waiting_child(attack: impl Fn(&Greenlet, &Greenlet) + 'static) -> (Spawn<bool>, Drops) {
    let drops = Drops::new();
    let watched = drops.clone();
    let spawned = greenlet_spawn(move || {
        let root = getcurrent().downgrade();
        let child = Greenlet::new(move |(): ()| {
            let me = getcurrent().downgrade();
            let future = attacking(&watched, move || {
                attack(&root.upgrade().unwrap(), &me.upgrade().unwrap());
            });
            try_await_(future)?;
            Ok(true)
        });
        child.switch::<bool>(()).unwrap_or(false)
    });
    (spawned, drops)
}

#[test]
fn a_waiting_child_cannot_be_reparented_and_resumed_during_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let (mut spawned, drops) = attack_a_waiting_child(|_, child| {
        assert!(child.set_parent(&getmain()).unwrap_err().is_awaiting());
        assert!(child.switch::<()>(1_u8).unwrap_err().is::<AwaitInProgress>());
    });
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(drops.count(), 0);
    assert!(ready(poll(&mut spawned)));
    assert_eq!(drops.count(), 1);
}

#[test]
fn an_unlocked_child_cannot_be_resumed_during_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let (mut spawned, drops) = attack_a_waiting_child(|root, child| {
        raw::unlock(root);
        raw::unlock(child);
        assert!(child.switch::<()>(1_u8).unwrap_err().is::<AwaitInProgress>());
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    assert_eq!(drops.count(), 1);
}

#[test]
fn an_unlocked_function_cannot_be_resumed_during_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let mut spawned = greenlet_spawn(move || {
        let root = getcurrent().downgrade();
        try_await_(attacking(&watched, move || {
            let root = root.upgrade().unwrap();
            raw::unlock(&root);
            assert!(root.switch::<()>(1_u8).unwrap_err().is::<AwaitInProgress>());
            assert!(
                root.throw::<()>(GreenletExit::new())
                    .unwrap_err()
                    .is::<AwaitInProgress>()
            );
        }))
        .is_ok()
    });
    assert!(poll(&mut spawned).is_pending());
    assert!(ready(poll(&mut spawned)));
    assert_eq!(drops.count(), 1);
}

#[test]
fn ending_the_parent_of_a_waiter_does_not_resume_the_waiter_during_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let log = Log::new();
    let written = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let middle = Greenlet::new(move |(): ()| -> anyhow::Result<()> {
            let me = getcurrent().downgrade();
            let inner = Greenlet::new(move |(): ()| {
                try_await_(attacking(&watched, || {
                    let middle = me.upgrade().unwrap();
                    middle.end();
                }))
            });
            let stopped = inner.switch::<()>(());
            // This is the clean-up of the end. The waiting greenlet is a descendant.
            let refused = inner.switch::<()>(()).unwrap_err();
            written.add(format!(
                "{} {}",
                stopped.is_err(),
                refused.is::<AwaitInProgress>()
            ));
            let below = Greenlet::builder().parent(&inner).build(|(): ()| Ok(()));
            written.add(
                below
                    .switch::<()>(())
                    .unwrap_err()
                    .is::<AwaitInProgress>()
                    .to_string(),
            );
            stopped
        });
        middle.switch::<()>(()).is_ok()
    })
    .into_result();
    let polled = poll(&mut spawned);
    drop(polled);
    drop(spawned);
    assert_eq!(log.take(), ["true true", "true"]);
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_future_is_not_dropped_while_it_is_polled_by_the_second_stage_of_an_end() {
    /// Panics if it is dropped while it is polled.
    struct Guarded {
        ender: Shared<WeakGreenlet>,
        canary: Box<u64>,
        is_polled: Rc<Cell<bool>>,
    }
    impl Future for Guarded {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            self.is_polled.set(true);
            let ender = self.ender.borrow().as_ref().unwrap().upgrade().unwrap();
            let _ = ender.switch::<()>(());
            *self.canary += 1;
            assert_eq!(*self.canary, 43);
            self.is_polled.set(false);
            Poll::Ready(())
        }
    }
    impl Drop for Guarded {
        fn drop(&mut self) {
            assert!(!self.is_polled.get(), "dropped while it was polled");
        }
    }
    let ender: Shared<WeakGreenlet> = Shared::default();
    let inside = ender.clone();
    let mut spawned = greenlet_spawn(move || {
        // The first stage: the greenlet switches to the poller, which polls again and waits for a
        // second future.
        assert!(try_await_(poll_fn(|_| Poll::<()>::Pending)).is_err());
        let _ = getmain().switch::<()>(());
        await_(Guarded {
            ender: inside,
            canary: Box::new(42),
            is_polled: Rc::new(Cell::new(false)),
        });
    });
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut spawned).poll(&mut cx).is_pending());
    let waiting = spawned.greenlet().clone();
    let ending = Greenlet::new(move |(): ()| {
        waiting.end();
        Ok(())
    });
    *ender.borrow_mut() = Some(ending.downgrade());
    ending.switch::<()>(()).unwrap(); // returns from the first stage
    let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut spawned).poll(&mut cx)));
    let what = polled.err().map(|payload| match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(_) => "another panic".into(),
    });
    assert!(
        what.as_ref().is_some_and(|what| what.contains("ended")),
        "{what:?}"
    );
    assert!(ending.is_dead());
}

#[test]
fn a_tracer_cannot_await_between_an_await_and_its_poll() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let written = log.clone();
    let second: Shared<WeakGreenlet> = Rc::default();
    let put = second.clone();
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = greenlet_spawn(move || {
        let second = Greenlet::new(move |(): ()| {
            getparent().unwrap().switch::<()>(())?;
            let refused = try_await_(async {}).unwrap_err();
            let refused = refused.downcast::<NoDriver>()?;
            written.add(format!("{} {}", refused.is_outside(), refused.is_over()));
            getmain().switch::<()>(())
        });
        second.switch::<()>(()).unwrap();
        put.replace(Some(second.downgrade()));
        settrace(Some(Tracer::new(move |event| {
            if event.target.is_main() {
                settrace(None);
                let second = put.borrow().clone().unwrap().upgrade().unwrap();
                second.switch::<()>(())?; // between the await and its poll
            }
            Ok(())
        })));
        let polls = await_(future);
        drop(second);
        polls
    });
    assert!(poll(&mut spawned).is_pending());
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 2);
    assert_eq!(log.take(), ["false false"]);
}

#[test]
fn the_end_of_another_function_does_not_finish_a_spawn() {
    let _no_leaks = NoLeaks::watch();
    let mut first = greenlet_spawn(|| {
        drop(getmain().switch::<()>("for nobody"));
        1_u32
    });
    let root = first.greenlet().downgrade();
    let got = Rc::new(Cell::new(0));
    let put = got.clone();
    settrace(Some(Tracer::new(move |event| {
        if event.target.is_main() {
            settrace(None);
            // Runs in the middle of the first driver's poll, on its stack.
            let root = root.upgrade().unwrap();
            let mut second = greenlet_spawn(move || {
                // The function returns into the greenlet that polls both drivers.
                let stray = root.switch::<u32>(()).unwrap_err();
                assert!(stray.is::<StrayMessage>());
                2_u32
            });
            put.set(ready(poll(&mut second)));
        }
        Ok(())
    })));
    let polled = catch_unwind(AssertUnwindSafe(|| poll(&mut first)));
    assert!(polled.is_err(), "its result has gone elsewhere");
    assert_eq!(got.get(), 2);
}

#[test]
fn an_await_of_a_cancelled_child_does_not_hide_the_next_one() {
    let _no_leaks = NoLeaks::watch();
    let handle = Handle::default();
    let goodbye = handle.future();
    let kept: Shared<Greenlet> = Rc::default();
    let put = kept.clone();
    let mut spawned = greenlet_spawn(move || {
        let child = Greenlet::new(|(): ()| try_await_(pending::<()>()));
        put.replace(Some(child.clone()));
        let stopped = child.switch::<()>(()).is_err();
        drop(child);
        // The clean-up ends the child, which made the last request, while the function awaits too.
        let polls = await_(async {
            drop(put.take());
            goodbye.await
        });
        (stopped, polls)
    });
    assert!(poll(&mut spawned).is_pending());
    let mut cancelled = spawned.cancel();
    assert!(poll(&mut cancelled).is_pending());
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut cancelled)).unwrap(), (true, 2));
}

#[test]
fn a_panic_in_the_destructor_of_an_awaited_future_propagates_in_the_function() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("bomb"));
        }
    }
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        let bomb = Bomb;
        let caught = catch_unwind(AssertUnwindSafe(|| {
            await_(async move {
                let _bomb = bomb;
            });
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"bomb"));
        await_(async { 5 })
    });
    assert_eq!(ready(poll(&mut spawned)), 5);
}

#[test]
fn a_poll_after_the_function_panicked_does_not_run_anything() {
    let _no_leaks = NoLeaks::watch();
    let kept: Shared<Greenlet> = Rc::default();
    let put = kept.clone();
    let mut spawned = greenlet_spawn(move || {
        let child = Greenlet::new(|(): ()| {
            getparent().unwrap().switch::<()>(())?;
            Ok(try_await_(async {}).unwrap_err().is::<NoDriver>())
        });
        child.switch::<()>(()).unwrap();
        put.replace(Some(child));
        std::panic::resume_unwind(Box::new("boom"));
    });
    let polled = catch_unwind(AssertUnwindSafe(|| poll::<Spawn<()>>(&mut spawned)));
    assert!(polled.is_err());
    // A greenlet that the function left behind may still run, but finds no driver.
    assert!(kept.take().unwrap().switch::<bool>(()).unwrap());
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut spawned))).is_err());
}

#[test]
fn polling_a_spawn_in_a_no_switch_section_changes_nothing() {
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| await_(async { 1 })).into_result();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(ready(no_switch(|| Pin::new(&mut spawned).poll(&mut cx))).is_err());
    assert_eq!(ready(poll(&mut spawned)).unwrap(), 1);

    // The same with a panic, also while the function waits.
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = greenlet_spawn(move || await_(future));
    for polls in 0..2 {
        let refused = catch_unwind(AssertUnwindSafe(|| no_switch(|| poll(&mut spawned))));
        assert!(refused.is_err());
        assert_eq!(handle.polls.get(), polls);
        handle.ready.set(polls > 0);
        if polls == 0 {
            assert!(poll(&mut spawned).is_pending());
            handle.ready.set(true);
        }
    }
    assert_eq!(ready(poll(&mut spawned)), 2);
}

#[test]
fn a_poller_below_the_function_that_it_would_start_is_refused() {
    let _no_leaks = NoLeaks::watch();
    let spawned = greenlet_spawn(|| unreachable!("it has nobody to return to"));
    let root = spawned.greenlet().clone();
    let poller = Greenlet::builder().parent(&root).build(move |(): ()| {
        let result: anyhow::Result<()> = ready(poll(&mut spawned.into_result()));
        Ok(result.unwrap_err().downcast::<ParentError>().unwrap().is_cycle())
    });
    drop(root);
    assert!(poller.switch::<bool>(()).unwrap());
}

#[test]
fn a_poll_is_refused_while_an_ancestor_of_the_poller_is_kept_suspended() {
    for has_begun in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let handle = Handle::default();
        let future = handle.future();
        let poller = Greenlet::new(move |(): ()| {
            let mut spawned = greenlet_spawn(|| await_(future)).into_result();
            if has_begun {
                assert!(poll(&mut spawned).is_pending());
                handle.ready.set(true);
            }
            let result = raw::keep_suspended(&getmain(), || ready(poll(&mut spawned)));
            Ok(result.unwrap_err().is::<ParentError>())
        });
        assert!(poller.switch::<bool>(()).unwrap());
    }
}
