//! The options of a generator: its name and the size of its stack.

#![forbid(unsafe_code)]

use std::panic::Location;

use anyhow::Result;

use crate::stack;

use super::{Generator, Yielder};

/// Creates a generator with options: see [`Generator::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder creates nothing before `build`"]
pub struct GeneratorBuilder {
    name: Option<Box<str>>,
    stack_size: Option<usize>,
}

impl GeneratorBuilder {
    /// Creates a builder with no name and the default stack size.
    pub const fn new() -> GeneratorBuilder {
        GeneratorBuilder {
            name: None,
            stack_size: None,
        }
    }

    /// Names the generator, for messages.
    pub fn name(mut self, name: impl Into<String>) -> GeneratorBuilder {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Sets the size of the stack, in bytes, as [`Builder::stack_size`](crate::Builder::stack_size)
    /// does. For a size out of range the first step returns a [`StackError`](crate::StackError).
    pub fn stack_size(mut self, bytes: usize) -> GeneratorBuilder {
        self.stack_size = Some(bytes);
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

    /// Creates a generator that receives a value with each step: see [`Generator::with_input`].
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
        let stack_size = self.stack_size.map_or(stack::UNSPECIFIED, stack::explicit);
        Generator::create(self.name, stack_size, Location::caller(), function)
    }
}

impl Default for GeneratorBuilder {
    fn default() -> GeneratorBuilder {
        GeneratorBuilder::new()
    }
}
