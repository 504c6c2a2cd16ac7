//! The watchdog: functions that keep their thread.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use greenlet::watchdog::{Overrun, Stop};
use greenlet::{SpawnBuilder, Watchdog, await_};

use crate::bridge::poll;

#[test]
fn the_watchdog_names_the_greenlet_and_the_lines_between_which_it_ran_too_long() {
    let (sender, reports) = mpsc::channel();
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
    let mut all: Vec<Overrun> = reports.iter().collect();
    // On a busy machine the other two may be slow too.
    all.retain(|overrun| overrun.after.is_some_and(|after| after.line() == first));
    let finished: Vec<_> = all.iter().filter(|overrun| overrun.stop.is_some()).collect();
    assert_eq!(finished.len(), 1, "{all:?}");
    let overrun = finished[0];
    assert_eq!(overrun.greenlet, "'busy'");
    assert!(matches!(overrun.stop, Some(Stop::Await(place)) if place.line() == last));
    assert!(overrun.time >= Duration::from_millis(60));
    // The system schedules the watchdog's thread, so it may miss this. It reports at most once.
    assert!(all.len() <= 2, "{all:?}");
}

#[test]
fn the_watchdog_reports_a_function_that_never_returns() {
    let (sender, reports) = mpsc::channel();
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

/// A watchdog whose reports are collected.
/// The initialiser of a lazy static awaits, and another function of the thread asks for the value.
#[test]
fn a_report_names_the_functions_that_wait_on_the_same_thread() {
    let (watchdog, reports) = collected(Duration::from_millis(2));
    let waiting = |name| {
        let line = line!() + 2;
        let hooks = SpawnBuilder::new().name(name).hooks(watchdog.hooks());
        let mut spawned = hooks.spawn(|| await_(pending::<()>()));
        assert!(poll(&mut spawned).is_pending());
        (spawned, line)
    };
    let (first, line) = waiting("first");
    let elsewhere = watchdog.hooks();
    std::thread::spawn(move || {
        let mut spawned = SpawnBuilder::new()
            .hooks(elsewhere)
            .spawn(|| await_(pending::<()>()));
        assert!(poll(&mut spawned).is_pending());
    })
    .join()
    .unwrap();
    // Each waits for the report of the watchdog's own thread.
    let blocks = |name, reports: mpsc::Receiver<Overrun>| {
        let hooks = SpawnBuilder::new().name(name).hooks(watchdog.hooks());
        futures::executor::block_on(hooks.spawn(move || {
            let asked = format!("'{name}'");
            let mut running = reports.iter().filter(|report| report.stop.is_none());
            let report = running.find(|report| report.greenlet == asked);
            (report.unwrap().to_string(), reports)
        }))
    };
    let (said, reports) = blocks("second", reports);
    let place = format!("'first' at {}:{line}:", file!());
    assert!(said.contains(&place), "{said}");
    assert!(!said.contains("more"), "{said}");
    // A report names three, and counts the others.
    let others = ["a", "b", "c"].map(waiting);
    let (said, reports) = blocks("third", reports);
    assert!(
        said.contains("'a' at ") && said.ends_with(", and 1 more"),
        "{said}"
    );
    drop((first, others));
    let (said, _reports) = blocks("fourth", reports);
    assert!(!said.contains("wait on the same thread"), "{said}");
}

fn collected(bound: Duration) -> (Watchdog, mpsc::Receiver<Overrun>) {
    let (sender, reports) = mpsc::channel();
    let watchdog = Watchdog::new(bound, move |overrun| {
        let _ = sender.send(overrun.clone());
    });
    (watchdog, reports)
}

#[test]
fn the_watchdog_reports_a_function_whose_awaits_are_always_ready() {
    let (watchdog, reports) = collected(Duration::from_millis(10));
    let spawned = SpawnBuilder::new().hooks(watchdog.hooks()).spawn(|| {
        let start = Instant::now();
        let mut awaits = 0;
        while start.elapsed() < Duration::from_millis(60) {
            await_(async {});
            awaits += 1;
        }
        awaits
    });
    let awaits: u64 = futures::executor::block_on(spawned);
    drop(watchdog);
    let all: Vec<Overrun> = reports.iter().collect();
    let last = all.last().expect("it has kept its thread for 60 ms");
    assert_eq!((last.stop, last.ready_awaits), (Some(Stop::End), awaits));
    assert!(
        last.to_string()
            .contains(&format!("({awaits} awaits of ready futures)")),
        "{last}"
    );
    assert_eq!(all.iter().filter(|overrun| overrun.stop.is_some()).count(), 1);
}

#[test]
fn a_function_that_waits_is_not_reported() {
    let (watchdog, reports) = collected(Duration::from_millis(20));
    let mut spawned = SpawnBuilder::new()
        .hooks(watchdog.hooks())
        .spawn(|| await_(pending::<()>()));
    assert!(poll(&mut spawned).is_pending());
    std::thread::sleep(Duration::from_millis(60));
    drop((spawned, watchdog));
    assert_eq!(reports.iter().count(), 0);
}

#[test]
fn a_report_that_panics_is_lost_and_the_next_ones_come() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&seen);
    let watchdog = Watchdog::new(Duration::from_millis(5), move |overrun| {
        let who = overrun.greenlet.clone();
        written
            .lock()
            .unwrap()
            .push((who.clone(), overrun.stop.is_some()));
        assert_ne!(who, "'a'", "the report of 'a' panics");
    });
    for name in ["a", "b"] {
        // Each waits for the report of the watchdog's own thread.
        let seen = Arc::clone(&seen);
        let spawned = SpawnBuilder::new()
            .name(name)
            .hooks(watchdog.hooks())
            .spawn(move || {
                let start = Instant::now();
                let expected = (format!("'{name}'"), false);
                while !seen.lock().unwrap().contains(&expected) {
                    assert!(start.elapsed() < Duration::from_secs(60), "no report");
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        futures::executor::block_on(spawned);
    }
}

/// What a report panics with. It counts its drops, and panics in its destructor.
struct Payload(Arc<AtomicUsize>);

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("in the destructor of the payload");
    }
}

#[test]
fn the_payload_of_a_report_that_panics_is_dropped() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let (made, counted) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&dropped));
    let reports = Arc::clone(&made);
    let watchdog = Watchdog::new(Duration::from_millis(1), move |_| {
        reports.fetch_add(1, Ordering::SeqCst);
        std::panic::panic_any(Payload(Arc::clone(&counted)));
    });
    let seen = Arc::clone(&made);
    let spawned = SpawnBuilder::new().hooks(watchdog.hooks()).spawn(move || {
        let start = Instant::now();
        // The first report comes from the watchdog's thread, the second one from this thread.
        while seen.load(Ordering::SeqCst) == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "no report");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    futures::executor::block_on(spawned);
    let start = Instant::now();
    while dropped.load(Ordering::SeqCst) < 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "a payload is leaked");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(made.load(Ordering::SeqCst), 2);
}

#[test]
fn the_watchdog_forgets_functions_that_have_ended() {
    let (watchdog, _reports) = collected(Duration::from_secs(3600));
    for _ in 0..10 {
        let mut spawned = SpawnBuilder::new().hooks(watchdog.hooks()).spawn(|| ());
        assert!(poll(&mut spawned).is_ready());
        drop(spawned);
    }
    let mut waiting = SpawnBuilder::new()
        .hooks(watchdog.hooks())
        .spawn(|| await_(pending::<()>()));
    assert!(poll(&mut waiting).is_pending());
    assert_eq!(format!("{watchdog:?}"), "Watchdog(3600s, 1 watched)");
}
