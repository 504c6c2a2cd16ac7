//! What can be chosen about a greenlet before it is made.

#![forbid(unsafe_code)]

use std::panic::Location;

use anyhow::Result;

use crate::greenlet::Greenlet;
use crate::greenlet::local::Locals;
use crate::switch::first_frame;
use crate::thread;

/// Makes a greenlet with a name, a stack size or a parent of its own: see [`Greenlet::builder`].
///
/// # Examples
///
/// ```
/// use greenlet_core::{Builder, getcurrent};
///
/// let greenlet = Builder::new().name("g").parent(&getcurrent()).build(|n: u8| Ok(n + 1));
/// assert_eq!(greenlet.switch::<u8>(1_u8)?, 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder makes nothing before `build`"]
pub struct Builder {
    name: Option<Box<str>>,
    stack_size: Option<usize>,
    parent: Option<Greenlet>,
    pub(crate) locals: Option<Locals>,
}

impl Builder {
    /// Starts with no name, the default stack size, and the running greenlet as the parent.
    #[inline]
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Names the greenlet, for messages, traces and trees.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Sets the size of the stack, in bytes; it is rounded up. The default is
    /// [`stack::DEFAULT_SIZE`](crate::stack::DEFAULT_SIZE), the minimum
    /// [`stack::MIN_SIZE`](crate::stack::MIN_SIZE).
    ///
    /// A stack costs the memory that is touched, so a generous size is cheap. A size out of range is
    /// reported by the first switch, as a [`StackError`](crate::StackError).
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets the parent.
    pub fn parent(mut self, parent: &Greenlet) -> Builder {
        self.parent = Some(parent.clone());
        self
    }

    /// Makes the greenlet.
    #[track_caller]
    #[inline]
    pub fn build<A, R, F>(self, function: F) -> Greenlet
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        let parent = self.parent.unwrap_or_else(thread::current_greenlet);
        let node = first_frame::create(parent, Location::caller(), function);
        if let Some(size) = self.stack_size {
            node.set_stack_size(size);
        }
        if let Some(name) = self.name {
            node.set_name(name);
        }
        if let Some(locals) = self.locals {
            node.replace_locals(Some(locals.0));
        }
        Greenlet::from_inner(node)
    }
}
