//! The bridge: a spawned function and its driver, polled by hand.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet::{
    AwaitInProgress, Greenlet, GreenletExit, NoDriver, StrayMessage, SwitchForbidden, Unwinding, await_,
    getcurrent, getparent, greenlet_spawn, no_switch, try_await_,
};

use crate::support::{Drops, Log, Witness};

/// A future that the test makes ready. It counts its polls, and holds a witness.
pub(crate) struct Manual {
    ready: Rc<Cell<bool>>,
    polls: Rc<Cell<u32>>,
    _witness: Option<Witness>,
}

impl Future for Manual {
    type Output = u32;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
        self.polls.set(self.polls.get() + 1);
        if self.ready.get() {
            Poll::Ready(self.polls.get())
        } else {
            Poll::Pending
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Handle {
    pub(crate) ready: Rc<Cell<bool>>,
    pub(crate) polls: Rc<Cell<u32>>,
}

impl Handle {
    pub(crate) fn future(&self) -> Manual {
        self.future_with(None)
    }

    pub(crate) fn future_with(&self, witness: Option<Witness>) -> Manual {
        Manual {
            ready: self.ready.clone(),
            polls: self.polls.clone(),
            _witness: witness,
        }
    }
}

pub(crate) fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

pub(crate) fn ready<T>(polled: Poll<T>) -> T {
    match polled {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("pending"),
    }
}

#[test]
fn an_await_suspends_until_the_future_is_ready_and_resumes_once() {
    let handle = Handle::default();
    let future = handle.future();
    let resumes = Rc::new(Cell::new(0));
    let seen = resumes.clone();
    let mut spawned = greenlet_spawn(move || {
        let polls = await_(future);
        seen.set(seen.get() + 1);
        polls
    });
    assert_eq!(handle.polls.get(), 0, "nothing runs before the first poll");
    for polls in 1..=3 {
        assert!(poll(&mut spawned).is_pending());
        assert_eq!((handle.polls.get(), resumes.get()), (polls, 0));
    }
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 4);
    assert_eq!(resumes.get(), 1);
}

#[test]
fn the_future_is_polled_by_the_greenlet_that_polls_the_driver() {
    let mut spawned = greenlet_spawn(|| {
        let inside = getcurrent().id();
        let polled_in = await_(async { getcurrent().id() });
        (inside, polled_in)
    });
    let (inside, polled_in) = ready(poll(&mut spawned));
    assert_ne!(inside, polled_in);
    assert_eq!(polled_in, getcurrent().id());
}

#[test]
fn many_drivers_interleave() {
    let log = Log::new();
    let handles: Vec<_> = (0..3).map(|_| Handle::default()).collect();
    let mut spawned: Vec<_> = handles
        .iter()
        .enumerate()
        .map(|(n, handle)| {
            let (future, log) = (handle.future(), log.clone());
            greenlet_spawn(move || {
                log.add(format!("{n} starts"));
                await_(future);
                log.add(format!("{n} ends"));
                n
            })
        })
        .collect();
    for spawn in &mut spawned {
        assert!(poll(spawn).is_pending());
    }
    for n in [2, 0, 1] {
        handles[n].ready.set(true);
        assert_eq!(ready(poll(&mut spawned[n])), n);
    }
    assert_eq!(
        log.take(),
        ["0 starts", "1 starts", "2 starts", "2 ends", "0 ends", "1 ends"]
    );
}

#[test]
fn spawns_nest() {
    let mut spawned = greenlet_spawn(|| {
        let inner = greenlet_spawn(|| await_(async { 20 }) + 1);
        await_(inner) * 2
    });
    assert_eq!(ready(poll(&mut spawned)), 42);
}

#[test]
fn a_child_greenlet_may_await_and_is_resumed_itself() {
    let handle = Handle::default();
    let future = handle.future();
    let log = Log::new();
    let inside = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let log = inside.clone();
        let child = Greenlet::new(move |(): ()| {
            log.add("child awaits");
            await_(future);
            log.add("child goes on");
            Ok("from the child")
        });
        let text: &str = child.switch(()).unwrap();
        inside.add("root goes on");
        text
    });
    assert!(poll(&mut spawned).is_pending());
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), "from the child");
    assert_eq!(log.take(), ["child awaits", "child goes on", "root goes on"]);
}

#[test]
fn a_panic_of_the_function_comes_out_of_the_poll() {
    let mut spawned = greenlet_spawn(|| {
        await_(async {});
        std::panic::resume_unwind(Box::new("boom"))
    });
    let payload = catch_unwind(AssertUnwindSafe(|| poll::<greenlet::Spawn<()>>(&mut spawned))).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"boom"));
}

#[test]
fn a_panic_of_the_future_propagates_in_the_function() {
    let mut spawned = greenlet_spawn(|| {
        let awaited = catch_unwind(|| await_(async { std::panic::resume_unwind(Box::new(7_u8)) }));
        awaited
            .map(|(): ()| ())
            .unwrap_err()
            .downcast_ref::<u8>()
            .copied()
    });
    assert_eq!(ready(poll(&mut spawned)), Some(7));
}

/// Drops the driver at each point of a spawn's life, and counts the drops of every witness.
#[test]
fn dropping_the_driver_drops_everything_once() {
    for polls in 0..3 {
        let drops = Drops::new();
        let handle = Handle::default();
        let (captured, local) = (drops.witness(), drops.clone());
        let future = handle.future_with(Some(drops.witness()));
        let mut spawned = greenlet_spawn(move || {
            let _captured = captured;
            let _local = local.witness();
            await_(future);
            unreachable!("it is dropped while it waits")
        });
        for _ in 0..polls {
            let polled: Poll<()> = poll(&mut spawned);
            assert!(polled.is_pending());
        }
        assert_eq!(drops.count(), 0);
        drop(spawned);
        assert_eq!(
            drops.count(),
            if polls == 0 { 2 } else { 3 },
            "after {polls} polls"
        );
    }
}

#[test]
fn dropping_the_driver_throws_an_exit_and_refuses_further_awaits() {
    let log = Log::new();
    let inside = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let error = try_await_(std::future::pending::<()>()).unwrap_err();
        inside.add(format!("exit: {}", error.is::<GreenletExit>()));
        let error = try_await_(async {}).unwrap_err();
        inside.add(format!(
            "over: {}",
            error.downcast::<NoDriver>().unwrap().is_over()
        ));
    });
    assert!(poll(&mut spawned).is_pending());
    drop(spawned);
    assert_eq!(log.take(), ["exit: true", "over: true"]);
}

#[test]
fn cancel_throws_the_exit_and_polls_the_clean_up() {
    let handle = Handle::default();
    let goodbye = handle.future();
    let mut spawned = greenlet_spawn(move || -> anyhow::Result<u32> {
        let waited = try_await_(std::future::pending::<()>());
        try_await_(goodbye)?; // a rollback, a message on the wire
        waited?;
        Ok(1)
    });
    assert!(poll(&mut spawned).is_pending());
    let mut cancelled = spawned.cancel();
    assert!(poll(&mut cancelled).is_pending());
    assert_eq!(handle.polls.get(), 1);
    handle.ready.set(true);
    let returned = ready(poll(&mut cancelled)).unwrap();
    assert!(returned.unwrap_err().is::<GreenletExit>());
}

#[test]
fn cancel_of_code_that_cannot_return_an_error_gives_the_exit() {
    let mut spawned = greenlet_spawn(|| await_(std::future::pending::<u32>()));
    assert!(poll(&mut spawned).is_pending());
    let error = ready(poll(&mut spawned.cancel())).unwrap_err();
    assert!(error.is::<GreenletExit>());
}

#[test]
fn cancel_before_the_first_poll_drops_the_function_unrun() {
    let drops = Drops::new();
    let witness = drops.witness();
    let spawned = greenlet_spawn(move || drop(witness));
    assert!(
        ready(poll(&mut spawned.cancel()))
            .unwrap_err()
            .is::<GreenletExit>()
    );
    assert_eq!(drops.count(), 1);
}

#[test]
fn an_await_outside_a_spawn_is_an_error_or_a_panic() {
    assert!(
        try_await_(async {})
            .unwrap_err()
            .downcast::<NoDriver>()
            .unwrap()
            .is_outside()
    );
    let payload = catch_unwind(|| await_(async {})).unwrap_err();
    assert!(
        payload
            .downcast_ref::<String>()
            .unwrap()
            .contains("greenlet_spawn")
    );
}

#[test]
fn an_await_inside_the_poll_of_an_awaited_future_is_refused() {
    let mut spawned = greenlet_spawn(|| {
        await_(async {
            try_await_(async {})
                .unwrap_err()
                .downcast::<NoDriver>()
                .unwrap()
                .is_polled()
        })
    });
    assert!(ready(poll(&mut spawned)));
}

#[test]
fn a_switch_to_a_waiting_greenlet_is_refused_and_returns_the_value() {
    let handle = Handle::default();
    let future = handle.future();
    let inside = Rc::new(RefCell::new(Vec::new()));
    let shown = inside.clone();
    let mut spawned = greenlet_spawn(move || {
        let sibling = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>(()));
        sibling.switch::<()>(()).unwrap();
        shown
            .borrow_mut()
            .extend([getcurrent().downgrade(), sibling.downgrade()]);
        await_(future);
        sibling.switch::<u32>(5_u32).unwrap()
    });
    assert!(poll(&mut spawned).is_pending());
    for weak in inside.borrow().iter() {
        let error = weak.upgrade().unwrap().switch::<()>(1_u8).unwrap_err();
        let refused = error.downcast::<AwaitInProgress>().unwrap();
        assert_eq!(refused.into_value().unwrap().downcast::<u8>().unwrap(), 1);
    }
    handle.ready.set(true);
    assert_eq!(ready(poll(&mut spawned)), 5);
}

#[test]
fn an_await_is_refused_in_a_no_switch_section() {
    let mut spawned = greenlet_spawn(|| {
        let refused = no_switch(|| try_await_(async {}))
            .unwrap_err()
            .is::<SwitchForbidden>();
        await_(async {});
        refused
    });
    assert!(ready(poll(&mut spawned)));
}

#[test]
fn an_await_is_refused_while_a_panic_unwinds() {
    struct AwaitsWhenDropped(Log);
    impl Drop for AwaitsWhenDropped {
        fn drop(&mut self) {
            let error = try_await_(async {}).unwrap_err();
            self.0.add(format!("{}", error.is::<Unwinding>()));
        }
    }
    let log = Log::new();
    let inside = log.clone();
    let mut spawned = greenlet_spawn(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _awaits = AwaitsWhenDropped(inside);
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(caught.is_err());
        await_(async { 1 })
    });
    assert_eq!(ready(poll(&mut spawned)), 1);
    assert_eq!(log.take(), ["true"]);
}

#[test]
fn a_spawn_that_is_ended_while_its_future_is_polled_ends_afterwards() {
    let slot: Rc<RefCell<Option<greenlet::WeakGreenlet>>> = Rc::default();
    let drops = Drops::new();
    let (inside, witness) = (slot.clone(), drops.witness());
    let watched = drops.clone();
    let mut spawned = greenlet_spawn(move || {
        await_(async move {
            let _witness = witness;
            let weak = inside.borrow().clone().unwrap();
            weak.upgrade().unwrap().end();
            assert_eq!(watched.count(), 0, "not while it is polled");
            std::future::pending::<()>().await
        })
    });
    *slot.borrow_mut() = Some(spawned.greenlet().downgrade());
    let result = catch_unwind(AssertUnwindSafe(|| poll(&mut spawned)));
    assert!(result.is_err(), "it has no result");
    assert_eq!(drops.count(), 1);
}

#[test]
fn polling_a_spawn_that_was_ended_while_it_waited_returns_the_exit() {
    let drops = Drops::new();
    let handle = Handle::default();
    let future = handle.future_with(Some(drops.witness()));
    let mut spawned = greenlet_spawn(move || await_(future)).into_result();
    assert!(poll(&mut spawned).is_pending());
    greenlet::end_suspended().unwrap();
    assert_eq!(drops.count(), 1);
    handle.ready.set(true);
    assert!(ready(poll(&mut spawned)).unwrap_err().is::<GreenletExit>());
    assert_eq!(handle.polls.get(), 1, "a dropped future is not polled");
}

#[test]
fn a_foreign_greenlet_that_ends_into_the_driver_is_reported_to_the_function() {
    let foreign = Greenlet::new(|(): ()| Ok(5_u16));
    let mut spawned = greenlet_spawn(move || {
        let error = foreign.switch::<u16>(()).unwrap_err();
        let error: StrayMessage = error.downcast().unwrap();
        await_(async { error.to_string() })
    });
    assert!(ready(poll(&mut spawned)).contains("u16"));
}

#[test]
fn a_foreign_greenlet_is_reported_to_the_last_resumed_greenlet() {
    for polls in 0..2 {
        let handle = Handle::default();
        let (future, ready_later) = (handle.future(), handle.ready.clone());
        ready_later.set(polls == 0);
        let foreign = Greenlet::new(|(): ()| Ok(5_u16));
        let mut spawned = greenlet_spawn(move || {
            let below = Greenlet::new(move |(): ()| {
                await_(future); // from here on only the driver resumes it
                let error = foreign.switch::<u16>(()).unwrap_err();
                Ok(error.is::<StrayMessage>())
            });
            below.switch::<bool>(()).unwrap()
        });
        for _ in 0..polls {
            assert!(poll(&mut spawned).is_pending());
        }
        ready_later.set(true);
        assert!(ready(poll(&mut spawned)), "after {polls} polls");
    }
}

#[test]
fn a_spawn_can_move_between_polling_greenlets() {
    let handle = Handle::default();
    let future = handle.future();
    let mut spawned = greenlet_spawn(move || await_(future));
    assert!(poll(&mut spawned).is_pending());
    let poller = Greenlet::new(move |(): ()| {
        let polled = poll(&mut spawned).is_pending();
        getparent().unwrap().switch::<()>(polled)?;
        Ok(ready(poll(&mut spawned)))
    });
    assert!(poller.switch::<bool>(()).unwrap());
    handle.ready.set(true);
    assert_eq!(poller.switch::<u32>(()).unwrap(), 3);
}

#[test]
fn a_greenlet_that_polled_a_spawn_can_be_ended_while_the_spawn_waits() {
    let drops = Drops::new();
    let witness = drops.witness();
    let mut spawned = Some(greenlet_spawn(|| await_(std::future::pending::<()>())));
    let out = Rc::new(RefCell::new(None));
    let put = out.clone();
    let poller = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let mut spawned = spawned.take().unwrap();
        assert!(poll(&mut spawned).is_pending());
        put.borrow_mut().replace(spawned);
        getparent().unwrap().switch::<()>(())
    });
    poller.switch::<()>(()).unwrap();
    drop(poller);
    assert_eq!(drops.count(), 1);
    assert!(
        pin!(out.borrow_mut().take().unwrap())
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
}

#[test]
fn a_function_that_must_await_panics_if_it_does_not() {
    let mut spawned = greenlet::SpawnBuilder::new().require_await(true).spawn(|| 1);
    let payload = catch_unwind(AssertUnwindSafe(|| poll(&mut spawned))).unwrap_err();
    assert!(
        payload
            .downcast_ref::<String>()
            .unwrap()
            .contains("without awaiting")
    );
}
