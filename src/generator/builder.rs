//! What can be chosen about a generator before it is created.

use std::cell::Cell;
use std::panic::Location;

use anyhow::Result;

use greenlet_core::raw::Segment;
use greenlet_core::stack;

use super::{Generator, Yielder};

/// Creates a generator with a name or a stack size of its own: see [`Generator::builder`].
///
/// # Examples
///
/// ```
/// use greenlet::GeneratorBuilder;
///
/// let mut one = GeneratorBuilder::new().name("one").build(|out| out.yield_(1));
/// assert_eq!(one.next().unwrap()?, 1);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder creates nothing before `build`"]
pub struct GeneratorBuilder {
    name: Option<Box<str>>,
    stack_size: usize,
}

impl GeneratorBuilder {
    /// Starts with no name, and the default stack size.
    pub const fn new() -> GeneratorBuilder {
        GeneratorBuilder {
            name: None,
            stack_size: stack::DEFAULT_SIZE,
        }
    }

    /// Names the generator, for messages.
    pub fn name(mut self, name: impl Into<String>) -> GeneratorBuilder {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Sets the size of the stack, in bytes, as [`Builder::stack_size`](crate::Builder::stack_size) does. A size out of range is
    /// reported by the first step, as a [`StackError`](crate::StackError).
    pub fn stack_size(mut self, bytes: usize) -> GeneratorBuilder {
        self.stack_size = bytes;
        self
    }

    /// Creates the generator.
    #[track_caller]
    #[inline]
    pub fn build<Y, R>(self, function: impl FnOnce(Yielder<Y>) -> Result<R> + 'static) -> Generator<Y, (), R>
    where
        Y: 'static,
        R: 'static,
    {
        self.build_with_input(move |out, ()| function(out))
    }

    /// Creates a generator that is sent a value with each step: see [`Generator::with_input`].
    #[track_caller]
    #[inline]
    pub fn build_with_input<Y, S, R>(
        self,
        function: impl FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static,
    ) -> Generator<Y, S, R>
    where
        Y: 'static,
        S: 'static,
        R: 'static,
    {
        let function = move |out, first| function(Yielder::of(out), first);
        let (segment, failed) = match Segment::new(self.name, self.stack_size, Location::caller(), function) {
            Ok(segment) => (segment, None),
            Err(error) => (Segment::finished(), Some(error.into())),
        };
        Generator {
            segment,
            returned: Cell::new(None),
            failed: Cell::new(failed),
        }
    }
}

impl Default for GeneratorBuilder {
    fn default() -> GeneratorBuilder {
        GeneratorBuilder::new()
    }
}
