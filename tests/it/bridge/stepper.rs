//! The helpers for tests of code on the bridge.

use std::panic::{AssertUnwindSafe, catch_unwind};

use greenlet::bridge::testing::{Step, Stepper, end_at_each_await};
use greenlet::{Greenlet, await_, greenlet_spawn, try_await_};

use crate::bridge::{Handle, poll};
use crate::support::Log;

#[test]
fn a_test_chooses_the_order_of_two_functions() {
    let log = Log::new();
    let stepper = |name: &'static str| {
        let log = log.clone();
        Stepper::new(move || {
            for n in 1..=2 {
                await_(async {});
                log.add(format!("{name}{n}"));
            }
        })
    };
    let (mut a, mut b) = (stepper("a"), stepper("b"));
    for stepper in [&mut a, &mut b] {
        assert!(matches!(stepper.step(), Step::Awaits { nth: 1, at } if at.file() == file!()));
    }
    assert_eq!(log.take(), [""; 0], "not polled before the next step");
    b.step();
    a.step();
    a.step();
    b.step();
    assert_eq!(log.take(), ["b1", "a1", "a2", "b2"]);
    assert!(
        catch_unwind(AssertUnwindSafe(|| a.step())).is_err(),
        "it has ended"
    );
}

#[test]
fn a_step_reports_a_pending_future_and_counts_wakes() {
    let handle = Handle::default();
    let future = handle.future();
    let mut stepper = Stepper::new(move || {
        let mut is_first = true;
        await_(std::future::poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            if std::mem::take(&mut is_first) {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(())
            }
        }));
        await_(future)
    });
    assert!(matches!(stepper.step(), Step::Awaits { nth: 1, .. }));
    assert_eq!(stepper.step(), Step::Pending);
    assert_eq!(stepper.wakes(), 1);
    assert!(matches!(stepper.step(), Step::Awaits { nth: 2, .. }));
    handle.ready.set(true);
    assert_eq!(handle.polls.get(), 0);
    assert_eq!(stepper.step(), Step::Returned(1));
}

#[test]
fn a_drop_and_a_cancel_end_every_await_of_nested_greenlets() {
    let awaits = end_at_each_await(|witnesses| {
        let (captured, witnesses) = (witnesses.make(), witnesses.clone());
        move || -> anyhow::Result<()> {
            let _captured = captured;
            let in_future = witnesses.make();
            try_await_(async move {
                let _held = in_future;
                tokio::task::yield_now().await;
            })?;
            let inner = witnesses.clone();
            let child = Greenlet::new(move |(): ()| {
                let _local = inner.make();
                try_await_(async {})?;
                let nested = inner.clone();
                try_await_(greenlet_spawn(move || {
                    let _local = nested.make();
                    try_await_(async {})
                }))?
            });
            child.switch::<()>(())?;
            let _last = witnesses.make();
            try_await_(async {})
        }
    });
    assert_eq!(awaits, 5);
}

#[test]
fn leaks_are_found_and_named() {
    let caught = catch_unwind(|| {
        end_at_each_await(|witnesses| {
            let witnesses = witnesses.clone();
            move || {
                let leaked = std::mem::ManuallyDrop::new(witnesses.make());
                await_(async {});
                drop(std::mem::ManuallyDrop::into_inner(leaked));
            }
        })
    });
    let message = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("await number 1 by Drop"), "{message}");
}

#[test]
fn a_cancel_polls_the_clean_up() {
    let mut stepper = Stepper::new(|| {
        let waited = try_await_(std::future::pending::<()>());
        try_await_(tokio::task::yield_now()).unwrap();
        waited.is_err()
    });
    stepper.step();
    assert!(stepper.cancel().unwrap());
    let mut spawned = greenlet_spawn(|| ());
    assert!(poll(&mut spawned).is_ready());
}

#[test]
fn a_leak_in_a_nested_spawn_is_found() {
    for wrapped in [false, true] {
        let caught = catch_unwind(|| {
            end_at_each_await(|witnesses| {
                let witnesses = witnesses.clone();
                move || {
                    let inner = greenlet_spawn(move || {
                        for n in 0..4 {
                            let witness = witnesses.make();
                            if try_await_(async {}).is_err() {
                                if n == 2 {
                                    std::mem::forget(witness);
                                }
                                return;
                            }
                        }
                    });
                    if wrapped {
                        // A future that polls another one only when that has called its waker.
                        let all: futures::stream::FuturesUnordered<_> = [inner].into_iter().collect();
                        let _ = try_await_(futures::StreamExt::collect::<Vec<()>>(all));
                    } else {
                        let _ = try_await_(inner);
                    }
                }
            })
        });
        let payload = caught.unwrap_err();
        assert!(payload.downcast_ref::<String>().unwrap().contains("witnesses"));
    }
}
