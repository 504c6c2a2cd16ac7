//! What belongs to the whole process: hooks for reports that nobody can receive, and requests to all
//! threads. One test runs at a time.

extern crate greenlet_core as greenlet;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use greenlet::{
    Greenlet, getcurrent, getparent, run_on_all_threads, run_pending_broadcasts, set_unraisable_hook,
    take_unraisable_hook,
};

/// Waits until no other test uses the hook.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Suspends into the parent.
fn up<R: 'static>(value: impl Sized + 'static) -> Result<R> {
    getparent().unwrap().switch(value)
}

/// Drops `value` while a panic unwinds, so that what it ends is deferred.
fn drop_in_a_panic<T>(value: T) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _value = value;
        resume_unwind(Box::new("a panic"));
    }));
    assert!(outcome.is_err());
}

/// An error whose text, or whose destructor, does something.
#[derive(Debug)]
struct Nasty {
    text: fn(),
    _drop: ActsOnDrop,
}

#[derive(Debug)]
struct ActsOnDrop(fn());

impl Drop for ActsOnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl std::fmt::Display for Nasty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.text)();
        f.write_str("nasty")
    }
}

impl std::error::Error for Nasty {}

// DE-6: neither the text of an error, nor its destructor, nor the hook, unwinds out of a drop.
#[test]
fn a_report_never_unwinds() {
    let _alone = alone();
    let panics: fn() = || panic!("nasty");
    let errors: [fn() -> anyhow::Error; 3] = [
        || {
            Nasty {
                text: || panic!("nasty"),
                _drop: ActsOnDrop(|| ()),
            }
            .into()
        },
        || {
            Nasty {
                text: || (),
                _drop: ActsOnDrop(|| panic!("nasty")),
            }
            .into()
        },
        || anyhow!("plain"),
    ];
    for install in [take_unraisable_hook as fn(), || {
        set_unraisable_hook(|_| panic!("the hook"))
    }] {
        install();
        for error in errors {
            let fails = Greenlet::new(move |(): ()| -> Result<()> {
                let _ = up::<()>(());
                Err(error())
            });
            fails.switch::<()>(()).unwrap();
            drop(fails);
        }
        let unwinds = Greenlet::new(move |(): ()| -> Result<()> {
            let _ = up::<()>(());
            panic_any(ActsOnDrop(panics));
        });
        unwinds.switch::<()>(()).unwrap();
        drop(unwinds);
        // In the last frames of a greenlet.
        let last_frames = Greenlet::new(move |(): ()| {
            let fails = Greenlet::new(move |(): ()| -> Result<()> {
                let _ = up::<()>(());
                Err(Nasty {
                    text: || panic!("nasty"),
                    _drop: ActsOnDrop(|| panic!("nasty")),
                }
                .into())
            });
            fails.switch::<()>(())?;
            drop_in_a_panic(fails);
            Ok("outcome")
        });
        assert_eq!(last_frames.switch::<&str>(()).unwrap(), "outcome");
    }
    take_unraisable_hook();
}

/// The old hook is dropped, and whatever its destructor does works.
#[test]
fn the_destructor_of_a_hook_may_report_and_install_hooks() {
    let _alone = alone();
    let ways: [fn(); 2] = [take_unraisable_hook, || set_unraisable_hook(|_| ())];
    for replaces in ways {
        struct Reports;
        impl Drop for Reports {
            fn drop(&mut self) {
                let fails = Greenlet::new(|(): ()| -> Result<()> {
                    let _ = up::<()>(());
                    Err(anyhow!("reported by a destructor of a hook"))
                });
                fails.switch::<()>(()).unwrap();
                drop(fails);
                set_unraisable_hook(|_| ());
                take_unraisable_hook();
            }
        }
        let reports = Reports;
        set_unraisable_hook(move |_| {
            let _ = &reports;
        });
        replaces();
    }
    take_unraisable_hook();
}

/// The destructors of what requests captured may ask and switch: each runs after the previous one.
#[test]
fn the_destructors_of_many_requests_do_not_run_inside_one_another() {
    const COUNT: u32 = 20_000;
    static DROPPED: AtomicU32 = AtomicU32::new(0);
    static DEEPEST: AtomicU32 = AtomicU32::new(0);
    thread_local!(static DEPTH: Cell<u32> = const { Cell::new(0) });
    struct Switches;
    impl Drop for Switches {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() + 1);
            DEEPEST.fetch_max(DEPTH.get(), Ordering::Relaxed);
            drop(run_on_all_threads(|| ()));
            Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
            DEPTH.set(DEPTH.get() - 1);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let _alone = alone();
    std::thread::spawn(|| {
        let _main = getcurrent();
        for _ in 0..COUNT {
            let switches = Switches;
            drop(run_on_all_threads(move || {
                let _ = &switches;
            }));
        }
        run_pending_broadcasts();
    })
    .join()
    .unwrap();
    assert_eq!(DROPPED.load(Ordering::Relaxed), COUNT);
    assert_eq!(DEEPEST.load(Ordering::Relaxed), 1);
}

// TE-1: a thread that ends drops the requests that it has not run. Their destructors may panic.
#[test]
fn the_end_of_a_thread_survives_the_destructors_of_its_requests() {
    struct AlwaysPanics;
    impl Drop for AlwaysPanics {
        fn drop(&mut self) {
            panic!("always");
        }
    }
    let _alone = alone();
    let thread = std::thread::spawn(|| {
        let _main = getcurrent();
        for _ in 0..2 {
            let panics = AlwaysPanics;
            drop(run_on_all_threads(move || {
                let _ = &panics;
            }));
        }
    });
    thread.join().unwrap();
}
