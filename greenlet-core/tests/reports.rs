//! Reports that nobody can receive, with hooks of the whole process: one test runs at a time.

extern crate greenlet_core as greenlet;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, getparent, set_unraisable_hook, take_unraisable_hook};

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
