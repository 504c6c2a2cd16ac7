//! The builder: what can be chosen about a greenlet before it is created.

#![forbid(unsafe_code)]

use std::panic::Location;

use anyhow::Result;

use crate::greenlet::Greenlet;
use crate::greenlet::locals::Locals;
use crate::switch::first_frame;
use crate::thread;

/// Builds a greenlet with a name, a stack size, a parent or local variables: see
/// [`Greenlet::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder creates nothing before `build`"]
pub struct Builder {
    name: Option<Box<str>>,
    stack_size: Option<usize>,
    parent: Option<Greenlet>,
    locals: Option<Locals>,
}

impl Builder {
    /// Creates a builder with the defaults: no name, a stack of the default size, and the greenlet
    /// that runs at [`build`](Builder::build) as the parent.
    #[inline]
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Sets the name, which errors, traces and [`Debug`](std::fmt::Debug) show. It need not be
    /// unique.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let worker = Greenlet::builder().name("worker").build(|(): ()| Ok(()));
    /// assert_eq!(format!("{worker:?}"), "<Greenlet 'worker', pending>");
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Sets the size of the stack, in bytes. It is rounded up to the size class of the stack pool.
    ///
    /// The default is [`stack::default_size`](crate::stack::default_size), the minimum
    /// [`stack::MIN_SIZE`](crate::stack::MIN_SIZE). Only touched pages cost memory. The first
    /// switch reports a size that is out of range, as a [`StackError`](crate::StackError).
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// let size = |(): ()| Ok(getcurrent().stack_usage().unwrap().size);
    /// let roomy = Greenlet::builder().stack_size(1 << 20).build(size);
    /// assert!(roomy.switch::<usize>(())? >= 1 << 20);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets the parent, which receives what the greenlet leaves when it ends.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let boss = Greenlet::new(|report: u32| Ok(report + 1));
    /// let worker = Greenlet::builder().parent(&boss).build(|(): ()| Ok(41_u32));
    /// assert_eq!(worker.switch::<u32>(())?, 42);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn parent(mut self, parent: &Greenlet) -> Builder {
        self.parent = Some(parent.clone());
        self
    }

    /// Sets the values of the greenlet's [`greenlet_local!`](crate::greenlet_local) variables. The
    /// default is none.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, Locals, greenlet_local};
    /// greenlet_local!(static USER: &'static str = "nobody");
    /// USER.set("ann");
    /// let child = Greenlet::builder().locals(Locals::current()).build(|(): ()| Ok(USER.get()));
    /// assert_eq!(child.switch::<&str>(())?, "ann");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn locals(mut self, locals: Locals) -> Builder {
        self.locals = Some(locals);
        self
    }

    /// Creates the greenlet, which will run `function`: see [`Greenlet::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Builder;
    /// let greenlet = Builder::new().build(|n: u32| Ok(n * 2));
    /// assert_eq!(greenlet.switch::<u32>(21_u32)?, 42);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline]
    pub fn build<A, R, F>(self, function: F) -> Greenlet
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        let parent = self.parent.unwrap_or_else(thread::current_greenlet);
        let inner = first_frame::create(parent, Location::caller(), function);
        if let Some(size) = self.stack_size {
            inner.set_stack_size(size);
        }
        if let Some(name) = self.name {
            inner.set_name(name);
        }
        if let Some(locals) = self.locals {
            inner.replace_locals(Some(locals.0));
        }
        Greenlet::from_inner(inner)
    }
}
