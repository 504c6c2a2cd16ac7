//! Hooks around each run of a function.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use greenlet::{Greenlet, SpawnBuilder, SpawnHooks, await_, getmain, try_await_};

use crate::bridge::{Handle, poll, ready};
use crate::support::{Log, NoLeaks};

struct Logged(&'static str, Log);

impl SpawnHooks for Logged {
    fn resume(&mut self, greenlet: &Greenlet) {
        self.1
            .add(format!("{} resumes {}", self.0, greenlet.name().unwrap_or("?")));
    }

    fn suspend(&mut self, greenlet: &Greenlet) {
        let place = greenlet.suspended_at().map_or("end", |place| place.file());
        self.1.add(format!(
            "{} suspends {} at {place}",
            self.0,
            greenlet.name().unwrap_or("?")
        ));
    }
}

#[test]
fn hooks_nest_around_each_run_and_get_the_running_greenlet() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let (inside, handle) = (log.clone(), Handle::default());
    let future = handle.future();
    let mut spawned = SpawnBuilder::new()
        .name("root")
        .hooks(Logged("a", log.clone()))
        .hooks(Logged("b", log.clone()))
        .spawn(move || {
            inside.add("runs");
            Greenlet::builder()
                .name("child")
                .build(move |(): ()| Ok(await_(future)))
                .switch::<u32>(())
                .unwrap()
        });
    assert!(poll(&mut spawned).is_pending());
    let here = file!();
    assert_eq!(
        log.take(),
        [
            "a resumes root".into(),
            "b resumes root".into(),
            "runs".into(),
            format!("b suspends child at {here}"),
            format!("a suspends child at {here}"),
        ]
    );
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(
        log.take(),
        [""; 0],
        "nothing is resumed before the future is ready"
    );
    handle.ready.set(true);
    ready(poll(&mut spawned));
    assert_eq!(
        log.take(),
        [
            "a resumes child",
            "b resumes child",
            "b suspends root at end",
            "a suspends root at end"
        ]
    );
}

#[test]
fn hooks_run_around_an_end_by_a_drop_or_a_panic() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let mut spawned = SpawnBuilder::new()
        .name("g")
        .hooks(Logged("a", log.clone()))
        .spawn(move || {
            let _ = try_await_(std::future::pending::<()>());
            inside.add("cleans up");
        });
    assert!(poll(&mut spawned).is_pending());
    log.take();
    drop(spawned);
    assert_eq!(log.take(), ["a resumes g", "cleans up", "a suspends g at end"]);

    let mut spawned = SpawnBuilder::new()
        .name("g")
        .hooks(Logged("a", log.clone()))
        .spawn(|| std::panic::resume_unwind(Box::new(())));
    let polled = catch_unwind(AssertUnwindSafe(|| poll::<greenlet::Spawn<()>>(&mut spawned)));
    assert!(polled.is_err());
    drop(spawned);
    assert_eq!(log.take(), ["a resumes g", "a suspends g at end"]);
}

/// Counts the greenlets that were resumed and not yet suspended.
struct Depth(Rc<Cell<i32>>);

impl SpawnHooks for Depth {
    fn resume(&mut self, _: &Greenlet) {
        self.0.set(self.0.get() + 1);
    }

    fn suspend(&mut self, _: &Greenlet) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn hooks_are_suspended_when_the_drop_of_a_future_is_unwound() {
    let depth = Rc::new(Cell::new(0));
    let counted = depth.clone();
    let dropper = Greenlet::new(move |(): ()| {
        let mut spawned = SpawnBuilder::new().hooks(Depth(counted)).spawn(|| {
            drop(try_await_(std::future::pending::<()>()));
            for _ in 0..2 {
                // It stops even the forced unwind, so the greenlet that drops the spawn is unwound
                // instead.
                let stopped = catch_unwind(|| drop(getmain().switch::<()>("from the clean-up")));
                drop(stopped);
            }
        });
        assert!(poll(&mut spawned).is_pending());
        drop(spawned);
        Ok(())
    });
    assert_eq!(dropper.switch::<&str>(()).unwrap(), "from the clean-up");
    dropper.end();
    assert!(dropper.is_dead());
    assert_eq!(depth.get(), 0);
}
