//! Errors, panics, `throw` and `close`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Result, anyhow, bail};

use super::{count, is_kind, named, note};
use crate::support::{Drops, Log, NoLeaks, up};
use greenlet::{Generator, GeneratorError, GreenletExit, raise};

// GN-9
#[test]
fn an_error_is_the_last_item() {
    let mut generator = Generator::<u32>::new(|out| {
        out.yield_(1)?;
        bail!("no more today")
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert_eq!(
        generator.next().unwrap().unwrap_err().to_string(),
        "no more today"
    );
    assert!(generator.is_finished());
    assert!(generator.next().is_none());
}

// GN-9: the exit propagates in the consumer, like any error.
#[test]
fn an_exit_of_the_function_is_its_last_item() {
    let mut generator = Generator::<u32>::new(|out| {
        out.yield_(1)?;
        Err(GreenletExit::new().into())
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    assert!(generator.next().unwrap().unwrap_err().is::<GreenletExit>());
    assert!(generator.next().is_none());
}

// GN-9
#[test]
fn a_panic_propagates_to_the_consumer_and_finishes_the_generator() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inner = log.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        let _inner = note(&inner, "function");
        out.yield_(1)?;
        resume_unwind(Box::new("broken"));
    });
    assert_eq!(generator.next().unwrap().unwrap(), 1);
    let payload = catch_unwind(AssertUnwindSafe(|| generator.next())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"broken"));
    assert_eq!(log.take(), ["function in main"]);
    assert!(!std::thread::panicking());
    assert!(generator.next().is_none());
}

// GN-9
#[test]
fn an_error_raised_in_the_function_ends_the_consumer() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let (own, inner) = (log.clone(), log.clone());
    let consumer = named("a", move |()| {
        let _own = note(&own, "consumer");
        let mut generator = Generator::<u32>::new(move |_| {
            let _inner = note(&inner, "function");
            raise(anyhow!("raised"))
        });
        generator.next();
        Ok(())
    });
    assert_eq!(consumer.switch::<()>(()).unwrap_err().to_string(), "raised");
    assert_eq!(log.take(), ["function in a", "consumer in a"]);
}

// GN-12
#[test]
fn an_error_thrown_at_the_function_comes_out_of_its_yield() {
    let generator = Generator::new(|out| {
        let error = out.yield_(1).unwrap_err();
        out.yield_(error.downcast::<u32>().unwrap())?;
        Ok("returned")
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert_eq!(generator.throw(anyhow::Error::msg(2_u32)).unwrap().unwrap(), 2);
    let error = generator.throw(anyhow!("through")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "through");
    assert!(generator.is_finished());
    let error = generator.throw(anyhow!("after the end")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "after the end");

    let generator = Generator::new(|out| out.yield_(1).map_or(Ok("caught"), |()| bail!("no error")));
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert!(generator.throw(anyhow!("stop")).is_none());
    assert_eq!(generator.take_return(), Some("caught"));
}

// GN-12
#[test]
fn a_throw_before_the_start_drops_the_function_unrun() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let generator = Generator::<u32>::new(move |_| {
        let _witness = &witness;
        unreachable!()
    });
    let error = generator.throw(anyhow!("early")).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "early");
    assert_eq!(drops.count(), 1);
    assert!(generator.is_finished());
    assert!(generator.resume(()).is_none());
}

// GN-13
#[test]
fn close_throws_an_exit_at_the_function() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let generator = Generator::<u32>::new(move |out| {
        let error = out.yield_(1).unwrap_err();
        let exit = error.downcast_ref::<GreenletExit>().unwrap();
        seen.add(exit.reason().unwrap());
        Err(error.context("under a context"))
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    generator.close().unwrap();
    assert_eq!(log.take(), ["the generator was closed"]);
    assert!(generator.is_finished());
    generator.close().unwrap();

    let unrun = count(1);
    unrun.close().unwrap();
    assert!(unrun.is_finished());
}

// GN-13
#[test]
fn close_returns_the_error_that_the_function_ends_with() {
    let ends_with = |end: fn() -> Result<&'static str>| {
        let generator = Generator::new(move |out| {
            let _ = out.yield_(1);
            end()
        });
        generator.resume(()).unwrap().unwrap();
        generator
    };
    let generator = ends_with(|| Ok("returned"));
    generator.close().unwrap();
    assert_eq!(generator.take_return(), Some("returned"));
    let error = ends_with(|| bail!("disk full")).close().unwrap_err();
    assert_eq!(error.to_string(), "disk full");
    let error = ends_with(|| Err(GreenletExit::with_reason("another").into()))
        .close()
        .unwrap_err();
    assert_eq!(
        error.downcast::<GreenletExit>().unwrap().reason(),
        Some("another")
    );
    let generator = ends_with(|| resume_unwind(Box::new("broken")));
    let payload = catch_unwind(AssertUnwindSafe(|| generator.close())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"broken"));
}

// GN-13
#[test]
fn a_function_that_yields_during_close_stays_suspended() {
    let generator = Generator::new(|out| {
        let _ = out.yield_(1);
        let got = out.yield_(2);
        got?;
        out.yield_(3)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    let error = generator.close().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_exit_ignored));
    assert_eq!(generator.resume(()).unwrap().unwrap(), 3);
    generator.close().unwrap();
}

/// An exit of the consumer is no answer to the exit that `close` threw.
// GN-13
#[test]
fn an_exit_of_the_consumer_propagates_out_of_close() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let consumer = named("a", move |()| {
        let generator = Generator::new(|out| {
            let _ = out.yield_(1);
            up::<()>(())
        });
        generator.resume(()).unwrap()?;
        let closed = generator.close();
        seen.add(closed.as_ref().unwrap_err().to_string());
        closed
    });
    consumer.switch::<()>(()).unwrap();
    let _: GreenletExit = consumer
        .throw(GreenletExit::with_reason("the consumer is to end"))
        .unwrap();
    assert!(consumer.is_dead());
    assert_eq!(log.take(), ["greenlet exit: the consumer is to end"]);
}
