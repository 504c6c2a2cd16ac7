//! Hooks around each run of a function; tracing spans; the watchdog.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use greenlet::{Greenlet, SpawnBuilder, SpawnHooks, Watchdog, await_, getmain, try_await_};

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

#[test]
fn the_watchdog_names_the_greenlet_and_the_lines_between_which_it_ran_too_long() {
    let (sender, reports) = std::sync::mpsc::channel();
    let watchdog = Watchdog::new(Duration::from_millis(10), move |overrun| {
        let _ = sender.send(overrun.clone());
    });
    let (first, last) = (line!() + 5, line!() + 10);
    let spawned = SpawnBuilder::new()
        .name("busy")
        .hooks(watchdog.hooks())
        .spawn(|| {
            await_(tokio::task::yield_now());
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(60) {
                std::hint::spin_loop();
            }
            await_(tokio::task::yield_now());
            await_(tokio::task::yield_now());
        });
    futures::executor::block_on(spawned);
    drop(watchdog);
    let mut all: Vec<greenlet::watchdog::Overrun> = reports.iter().collect();
    // On a busy machine the other two may be slow too.
    all.retain(|overrun| overrun.after.is_some_and(|after| after.line() == first));
    let finished: Vec<_> = all.iter().filter(|overrun| overrun.stop.is_some()).collect();
    assert_eq!(finished.len(), 1, "{all:?}");
    let overrun = finished[0];
    assert_eq!(overrun.greenlet, "'busy'");
    assert!(matches!(overrun.stop, Some(greenlet::watchdog::Stop::Await(place)) if place.line() == last));
    assert!(overrun.time >= Duration::from_millis(60));
    // The system schedules the watchdog's thread, so it may miss this. It reports at most once.
    assert!(all.len() <= 2, "{all:?}");
}

#[test]
fn the_watchdog_reports_a_function_that_never_returns() {
    let (sender, reports) = std::sync::mpsc::channel();
    let watchdog = Watchdog::new(Duration::from_millis(2), move |overrun| {
        let _ = sender.send(overrun.to_string());
    });
    let spawned = SpawnBuilder::new()
        .name("stuck")
        .hooks(watchdog.hooks())
        .spawn(move || reports.recv());
    // The function waits until its own waiting is reported.
    let report = futures::executor::block_on(spawned).unwrap();
    assert!(report.contains("greenlet 'stuck'"), "{report}");
    assert!(report.contains("has been running"), "{report}");
    assert!(report.contains("since its start"), "{report}");
}

#[cfg(feature = "tracing")]
#[test]
fn spans_are_left_while_the_function_waits_and_entered_again() {
    use greenlet::SpanHooks;
    use tracing::{Span, info_span};
    use tracing_subscriber::Registry;

    fn current() -> String {
        let name = Span::current().metadata().map(|span| span.name());
        name.unwrap_or("none").to_owned()
    }

    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let spawn = |name: &'static str, handle: &Handle| {
        let (log, future) = (log.clone(), handle.future());
        SpawnBuilder::new()
            .hooks(SpanHooks::new(info_span!("spawn")))
            .spawn(move || {
                let outer = info_span!("outer").entered();
                let inner = info_span!("inner").entered();
                await_(async { log.add(format!("{name} polls in {}", current())) });
                await_(future);
                log.add(format!("{name} in {}", current()));
                drop(inner);
                log.add(format!("{name} in {}", current()));
                drop(outer);
                log.add(format!("{name} in {}", current()));
            })
    };
    let (first, second) = (Handle::default(), Handle::default());
    let mut a = spawn("a", &first);
    let mut b = spawn("b", &second);
    let _around = info_span!("around").entered();
    assert!(poll(&mut a).is_pending());
    assert_eq!(current(), "around");
    assert!(poll(&mut b).is_pending());
    assert_eq!(log.take(), ["a polls in around", "b polls in around"]);
    first.ready.set(true);
    ready(poll(&mut a));
    assert_eq!(log.take(), ["a in inner", "a in outer", "a in spawn"]);
    drop(b); // ends it inside its spans
    assert_eq!(current(), "around");
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
