//! Code that handles every failure can tell an end from a failure, and lets the end pass.

use std::any::Any;
use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::{catch_unwind, panic_any, resume_unwind};
use std::rc::Rc;

use anyhow::{Context, Error, Result, anyhow};
use greenlet::{
    Caught, Generator, Greenlet, GreenletExit, Value, catch, into_io_error, is_end, pass_exit, raise,
};

use crate::support::{NoLeaks, up};

/// Suspends for ever, and ignores every error.
fn wait_stubbornly() {
    loop {
        let _ = up::<Value>(());
    }
}

/// Waits, and raises the error that ends it.
fn wait_or_raise() {
    up::<()>(()).unwrap_or_else(|exit| raise(exit));
}

/// Waits, and raises the exit inside another error.
fn wait_or_raise_inside() {
    let Err(exit) = up::<()>(()) else { return };
    raise(Error::new(into_io_error(exit)).context("reading"));
}

/// Closes a generator in the clean-up, whose function is unwound by force.
fn wait_in_a_generator() {
    let mut numbers = Generator::new(|out| {
        loop {
            let _ = out.yield_(1);
        }
        #[allow(unreachable_code)]
        Ok(())
    });
    assert_eq!(numbers.next().unwrap().unwrap(), 1);
    wait_stubbornly();
}

const WAITS: [fn(); 4] = [
    wait_stubbornly,
    wait_or_raise,
    wait_or_raise_inside,
    wait_in_a_generator,
];

type Ends = fn(Greenlet);

#[test]
fn an_end_passes_through_a_worker_that_catches_every_failure() {
    let _no_leaks = NoLeaks::watch();
    let ends: [Ends; 2] = [drop, |greenlet| greenlet.end()];
    for wait in WAITS {
        for end in ends {
            let failures = Rc::new(Cell::new(0));
            let counted = failures.clone();
            let worker = Greenlet::new(move |(): ()| -> Result<()> {
                for _ in 0..500 {
                    if catch(wait).is_err() {
                        counted.set(counted.get() + 1);
                    }
                }
                Ok(())
            });
            worker.switch::<()>(()).unwrap();
            let weak = worker.downgrade();
            end(worker);
            assert!(weak.upgrade().is_none(), "it is suspended");
            assert_eq!(failures.get(), 0);
        }
    }
}

#[test]
fn a_payload_that_another_library_caught_can_be_told_apart() {
    let _no_leaks = NoLeaks::watch();
    for wait in WAITS {
        let worker = Greenlet::new(move |(): ()| -> Result<()> {
            let payload = catch_unwind(wait).unwrap_err();
            assert!(is_end(&*payload));
            let caught = Caught::of_payload(payload);
            panic!("an end was returned: {caught}")
        });
        worker.switch::<()>(()).unwrap();
        worker.end();
        assert!(worker.is_dead());
    }
}

#[test]
fn the_end_of_a_generator_passes_through_catch() {
    let _no_leaks = NoLeaks::watch();
    let failures = Rc::new(Cell::new(0));
    let counted = failures.clone();
    let mut numbers = Generator::new(move |out| {
        for _ in 0..500 {
            let outcome = catch(|| {
                loop {
                    let _ = out.yield_(1);
                }
            });
            counted.set(counted.get() + u32::from(outcome.is_err()));
        }
        Ok(())
    });
    assert_eq!(numbers.next().unwrap().unwrap(), 1);
    drop(numbers);
    assert_eq!(failures.get(), 0);
}

#[test]
fn catch_returns_panics_and_raised_errors() {
    let _no_leaks = NoLeaks::watch();
    struct Custom;
    let panics: [(fn(), &str); 4] = [
        (|| panic!("a text"), "a text"),
        (|| panic!("text {}", 2), "text 2"),
        (|| panic_any(Custom), "a panic without a text"),
        (|| resume_unwind(Box::new(7_u8)), "a panic without a text"),
    ];
    for (panics, text) in panics {
        let caught = catch(panics).unwrap_err();
        assert!(matches!(caught, Caught::Panic(_)));
        assert_eq!(caught.to_string(), text);
    }
    let raised = catch(|| -> () { raise(anyhow!("disk full").context("saving")) }).unwrap_err();
    assert!(matches!(raised, Caught::Raised(_)));
    assert_eq!(raised.to_string(), "saving: disk full");
    let payload: Box<dyn Any + Send> = catch_unwind(|| -> () { raise(anyhow!("disk full")) }).unwrap_err();
    assert!(!is_end(&*payload));
    assert!(matches!(Caught::of_payload(payload), Caught::Raised(_)));
    assert_eq!(catch(|| 7).unwrap(), 7);
}

/// The panic of a child arrives in `switch` as the panic of the parent: `catch` returns it.
#[test]
fn the_panic_of_a_child_is_a_failure_for_catch() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| -> Result<()> { panic!("of the child") });
    let caught = catch(|| child.switch::<()>(())).unwrap_err();
    assert_eq!(caught.to_string(), "of the child");
}

/// An error of a user, whose source may be anything, also itself.
#[derive(Debug)]
struct Wrapped(Option<Box<dyn StdError + Send + Sync>>);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wrapped")
    }
}

impl StdError for Wrapped {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0 {
            Some(source) => Some(&**source),
            None => Some(self),
        }
    }
}

fn exit() -> GreenletExit {
    GreenletExit::with_reason("wrapped up")
}

// EX-3
#[test]
fn an_exit_inside_an_io_error_ends_a_greenlet_normally() {
    let _no_leaks = NoLeaks::watch();
    let errors: [fn() -> Error; 6] = [
        || io::Error::other(exit()).into(),
        || Error::new(io::Error::other(exit())).context("a").context("b"),
        || Err::<(), _>(io::Error::other(exit())).context("a").unwrap_err(),
        || io::Error::other(io::Error::new(io::ErrorKind::TimedOut, exit())).into(),
        || io::Error::other(Error::new(exit()).context("a")).into(),
        || into_io_error(Error::new(exit()).context("a")).into(),
    ];
    for error in errors {
        assert_eq!(GreenletExit::in_error(&error()), Some(&exit()));
        let returns = Greenlet::new(move |(): ()| -> Result<()> { Err(error()) });
        assert_eq!(returns.switch::<GreenletExit>(()).unwrap(), exit());
        let raises = Greenlet::new(move |(): ()| -> Result<()> { raise(error()) });
        assert_eq!(raises.switch::<GreenletExit>(()).unwrap(), exit());
        // A dead one passes it up as a value.
        assert_eq!(raises.throw::<GreenletExit>(error()).unwrap(), exit());
        let waits = Greenlet::new(move |(): ()| {
            let asked = up::<()>(());
            asked.map_err(|_| error())
        });
        waits.switch::<()>(()).unwrap();
        assert!(waits.kill().unwrap().is_exit());
    }
}

// EX-10
#[test]
fn an_exit_that_another_error_has_as_its_source_is_an_ordinary_error() {
    let _no_leaks = NoLeaks::watch();
    let wrapped = || Wrapped(Some(Box::new(io::Error::other(exit()))));
    let errors: [&dyn Fn() -> Error; 2] = [&|| wrapped().into(), &|| Error::new(wrapped()).context("a")];
    for error in errors {
        assert!(GreenletExit::in_error(&error()).is_none());
        assert!(pass_exit(error()).unwrap_err().is::<GreenletExit>());
    }
    let waits = Greenlet::new(move |(): ()| up::<()>(()).map_err(|_| wrapped().into()));
    waits.switch::<()>(()).unwrap();
    assert!(waits.kill().unwrap_err().is::<Wrapped>());
}

#[test]
fn a_catch_all_that_asks_pass_exit_lets_an_exit_through() {
    let _no_leaks = NoLeaks::watch();
    let failures: [fn(Error) -> Error; 4] = [
        |exit| exit,
        |exit| exit.context("a"),
        |exit| into_io_error(exit).into(),
        |exit| Wrapped(Some(into_io_error(exit).into())).into(),
    ];
    for failure in failures {
        let worker = Greenlet::new(move |(): ()| -> Result<()> {
            loop {
                let Err(error) = up::<()>(()) else { continue };
                let error = pass_exit(failure(error))?;
                panic!("an exit was no exit: {error}");
            }
        });
        worker.switch::<()>(()).unwrap();
        assert!(worker.kill().unwrap().is_exit());
    }
    assert_eq!(pass_exit(anyhow!("disk full")).unwrap().to_string(), "disk full");
}

#[test]
fn the_search_for_an_exit_ends_in_a_chain_without_an_end() {
    assert!(pass_exit(Wrapped(None)).unwrap().is::<Wrapped>());
    let mut error = io::Error::other(Wrapped(None));
    for _ in 0..1000 {
        error = io::Error::other(error);
    }
    let error = Error::new(error);
    assert!(GreenletExit::in_error(&error).is_none());
    assert!(pass_exit(error).is_ok());
}

#[test]
fn an_io_error_of_another_error_keeps_its_kind_and_its_text() {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    for error in [
        into_io_error(refused()),
        into_io_error(Error::new(refused()).context("connecting")),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
    let other = into_io_error(anyhow!("disk full").context("saving"));
    assert_eq!(
        (other.kind(), other.to_string()),
        (io::ErrorKind::Other, "saving".into())
    );
}
