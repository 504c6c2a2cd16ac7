//! Generators. This file has the helpers that their tests share.

use anyhow::Result;

use crate::support::{Log, name};
use greenlet::{Generator, GeneratorError, Greenlet, Unwinding, Yielder, getcurrent};

mod consumers;
mod drops;
mod errors;
mod misuse;
mod nesting;
mod stacks;
mod steps;

fn count(to: u32) -> Generator<u32> {
    Generator::new(move |out| (1..=to).try_for_each(|n| out.yield_(n)))
}

fn all<T: 'static>(generator: Generator<T>) -> Vec<T> {
    generator.collect::<Result<_>>().unwrap()
}

fn is_kind(error: &anyhow::Error, predicate: fn(&GeneratorError) -> bool) -> bool {
    error.downcast_ref().is_some_and(predicate)
}

fn named<R: 'static>(name: &str, function: impl FnOnce(()) -> Result<R> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(function)
}

/// Logs `what` and the current greenlet when it is dropped.
struct Note {
    log: Log,
    what: &'static str,
}

impl Drop for Note {
    fn drop(&mut self) {
        self.log.add(format!("{} in {}", self.what, name(&getcurrent())));
    }
}

fn note(log: &Log, what: &'static str) -> Note {
    Note {
        log: log.clone(),
        what,
    }
}

/// Yields when it is dropped, and logs whether the yield was refused.
struct YieldsLate {
    out: Yielder<u32>,
    log: Log,
}

impl Drop for YieldsLate {
    fn drop(&mut self) {
        self.log.add(match self.out.yield_(99) {
            Ok(()) => "yielded".into(),
            Err(error) if error.is::<Unwinding>() => "unwinding".into(),
            Err(error) => error.to_string(),
        });
    }
}
