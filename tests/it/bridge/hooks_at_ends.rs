//! All code of a spawned function runs inside of its hooks, however it ends. Hooks that panic.

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::task::Poll;

use greenlet::{Greenlet, Spawn, SpawnBuilder, SpawnHooks, await_, getcurrent, no_switch, try_await_};

use crate::bridge::{poll, ready};
use crate::support::{Log, NoLeaks, OnDrop, catch_reports, on_drop, take_reports};

thread_local!(static USER: Cell<&'static str> = const { Cell::new("nobody") });

/// Swaps the user of the thread.
struct User(&'static str);

impl SpawnHooks for User {
    fn resume(&mut self, _: &Greenlet) {
        self.0 = USER.replace(self.0);
    }

    fn suspend(&mut self, _: &Greenlet) {
        self.0 = USER.replace(self.0);
    }
}

/// Logs the user in its destructor.
fn says(name: &'static str, log: &Log) -> OnDrop {
    let log = log.clone();
    on_drop(move || log.add(format!("{name} {}", USER.get())))
}

/// A function of ann with a local, whose child waits with another one.
fn with_child(log: &Log) -> Spawn<()> {
    let log = log.clone();
    SpawnBuilder::new().hooks(User("ann")).spawn(move || {
        let _local = says("function", &log);
        let child = Greenlet::new(move |(): ()| {
            let _local = says("child", &log);
            try_await_(pending::<()>())
        });
        let _ = child.switch::<()>(());
        let _ = try_await_(pending::<()>());
    })
}

fn drop_in_a_panic<T>(value: T) {
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _value = value;
        resume_unwind(Box::new(()))
    }));
    assert!(unwound.is_err());
    no_switch(|| ()); // its end runs what was deferred
}

fn drop_in_a_section<T>(value: T) {
    no_switch(|| drop(value));
}

#[test]
fn every_end_runs_inside_of_the_hooks() {
    let ends: [fn(Spawn<()>); 5] = [
        drop,
        drop_in_a_panic,
        drop_in_a_section,
        |spawned| {
            let mut cancelled = spawned.cancel();
            let _ = poll(&mut cancelled);
        },
        |spawned| {
            let mut cancelled = spawned.cancel();
            let _ = poll(&mut cancelled);
            drop_in_a_panic(cancelled);
        },
    ];
    for polls in [0, 1] {
        for end in ends {
            let _no_leaks = NoLeaks::watch();
            let log = Log::new();
            let mut spawned = with_child(&log);
            if polls == 1 {
                assert!(poll(&mut spawned).is_pending());
            }
            end(spawned);
            assert_eq!(USER.get(), "nobody");
            let mut said = log.take();
            said.sort();
            let both = ["child ann", "function ann"];
            assert_eq!(said, if polls == 1 { &both[..] } else { &[] });
        }
    }
}

#[test]
fn captures_of_a_function_that_never_ran_are_dropped_inside_of_the_hooks() {
    let ends: [fn(Spawn<()>); 4] = [drop, drop_in_a_panic, drop_in_a_section, |spawned| {
        assert!(ready(poll(&mut spawned.cancel())).is_err());
    }];
    for end in ends {
        let _no_leaks = NoLeaks::watch();
        let log = Log::new();
        let capture = says("capture", &log);
        end(SpawnBuilder::new()
            .hooks(User("ann"))
            .spawn(move || drop(capture)));
        assert_eq!(log.take(), ["capture ann"]);
        assert_eq!(USER.get(), "nobody");
    }
}

#[test]
fn an_end_by_the_awaited_future_runs_inside_of_the_hooks() {
    let _no_leaks = NoLeaks::watch();
    for is_child in [false, true] {
        let log = Log::new();
        let written = log.clone();
        let waits = move || {
            let _local = says("local", &written);
            let me = getcurrent().downgrade();
            let _ = try_await_(std::future::poll_fn(move |_| {
                me.upgrade().unwrap().end();
                Poll::<()>::Pending
            }));
        };
        let spawned = SpawnBuilder::new().hooks(User("ann")).spawn(move || {
            if is_child {
                let child = Greenlet::new(move |(): ()| {
                    waits();
                    Ok(())
                });
                let _ = child.switch::<()>(());
            } else {
                waits();
            }
        });
        let _ = poll(&mut spawned.into_result());
        assert_eq!(log.take(), ["local ann"]);
        assert_eq!(USER.get(), "nobody");
    }
}

/// Panics in its nth call, and logs all of its calls.
struct Panics {
    name: &'static str,
    in_call: u32,
    log: Log,
}

impl Panics {
    fn call(&mut self, what: &str) {
        self.log.add(format!("{} {what}", self.name));
        self.in_call -= 1;
        assert!(self.in_call > 0, "{} panics", self.name);
    }
}

impl SpawnHooks for Panics {
    fn resume(&mut self, _: &Greenlet) {
        self.call("resumes");
    }

    fn suspend(&mut self, _: &Greenlet) {
        self.call("suspends");
    }
}

#[test]
fn a_hook_that_panics_is_not_called_again_and_the_others_are() {
    for in_call in 1..=4 {
        let _no_leaks = NoLeaks::watch();
        catch_reports();
        let log = Log::new();
        let hook = |name, in_call| Panics {
            name,
            in_call,
            log: log.clone(),
        };
        let mut spawned = SpawnBuilder::new()
            .hooks(hook("a", 100))
            .hooks(hook("b", in_call))
            .hooks(hook("c", 100))
            .spawn(|| {
                await_(tokio::task::yield_now());
                let _ = try_await_(pending::<()>());
            });
        let mut panics = 0;
        for _ in 0..2 {
            let polled = catch_unwind(AssertUnwindSafe(|| poll(&mut spawned).is_pending()));
            if polled.is_err() {
                panics += 1;
                break;
            }
        }
        drop(spawned);
        assert_eq!(panics, 1, "in its call number {in_call}");
        let said = log.take();
        let count = |text: &str| said.iter().filter(|line| *line == text).count();
        assert_eq!(count("b resumes") + count("b suspends"), in_call as usize);
        assert_eq!(count("a resumes"), count("a suspends"), "{said:?}");
        assert_eq!(count("c resumes"), count("c suspends"), "{said:?}");
        assert_eq!(take_reports(), [""; 0]);
    }
}

/// The end of a function comes, also if the hook around it panics. Otherwise nobody would end a function
/// that a child of its own keeps.
#[test]
fn a_hook_that_panics_does_not_keep_the_function_from_ending() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let hook = Panics {
        name: "a",
        in_call: 3,
        log: log.clone(),
    };
    let written = log.clone();
    let mut spawned = SpawnBuilder::new().hooks(hook).spawn(move || {
        let _local = on_drop(move || written.add("function ends"));
        let child = Greenlet::new(|(): ()| try_await_(pending::<()>()));
        let _ = child.switch::<()>(());
    });
    assert!(poll(&mut spawned).is_pending());
    let function = spawned.greenlet().clone();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(spawned))).is_err());
    assert!(function.is_dead());
    assert_eq!(
        log.take(),
        ["a resumes", "a suspends", "a resumes", "function ends"]
    );
}

#[test]
fn two_hooks_that_panic_do_not_abort() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let hook = |name, in_call| Panics {
        name,
        in_call,
        log: log.clone(),
    };
    let mut spawned = SpawnBuilder::new()
        .hooks(hook("a", 2))
        .hooks(hook("b", 2))
        .spawn(|| resume_unwind(Box::new("the function panics")));
    assert!(catch_unwind(AssertUnwindSafe(|| poll::<Spawn<()>>(&mut spawned))).is_err());
    assert_eq!(log.take(), ["a resumes", "b resumes", "b suspends", "a suspends"]);
}

#[test]
fn pending_is_called_when_the_executor_gets_control() {
    struct Pendings(Rc<Cell<u32>>);
    impl SpawnHooks for Pendings {
        fn resume(&mut self, _: &Greenlet) {}
        fn suspend(&mut self, _: &Greenlet) {}
        fn pending(&mut self, greenlet: &Greenlet) {
            assert!(greenlet.is_awaiting());
            self.0.set(self.0.get() + 1);
        }
    }
    let _no_leaks = NoLeaks::watch();
    let count = Rc::default();
    let mut spawned = SpawnBuilder::new().hooks(Pendings(Rc::clone(&count))).spawn(|| {
        for _ in 0..3 {
            await_(async {});
        }
        await_(tokio::task::yield_now());
        await_(async {});
    });
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(count.get(), 1);
    ready(poll(&mut spawned));
    assert_eq!(count.get(), 1);
}
