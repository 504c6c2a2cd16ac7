//! Generators: functions that produce values one by one, as an [`Iterator`].
//!
//! ```text
//!   consumer                                  the generator's function, on a stack of its own
//!     next ──────────── input ──────────────►  yield_ returns the input
//!     next returns the item  ◄──── item ─────  yield_
//!     next returns None      ◄────────────────  the function returned
//! ```
//!
//! The function runs as a part of the greenlet that calls `next`: see `step.rs`.

#![deny(unsafe_code)] // the files below allow it

mod builder;
#[allow(unsafe_code)] // prepares a stack
mod create;
pub(crate) mod describe;
#[allow(unsafe_code)] // sends a pointer that nobody follows
mod end;
mod error;
#[allow(unsafe_code)] // counts the header
mod header;
#[allow(unsafe_code)] // switches stacks
mod step;
#[allow(unsafe_code)] // copies values
mod words;
#[allow(unsafe_code)] // switches stacks
mod yielder;

use std::cell::Cell;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::panic::Location;
use std::ptr::NonNull;

use anyhow::{Error, Result};

use crate::payload::error::Unwinding;
use crate::payload::value::Value;
use crate::switch::unwind::into_error;

pub use builder::GeneratorBuilder;
pub use error::GeneratorError;
use error::Kind;
use header::Header;
pub use yielder::{Yielder, yield_};

/// A function with its own stack that produces values one by one: Python's generators. Unlike in
/// Python, the function may yield from any depth of calls.
///
/// The function receives a [`Yielder`], and each [`yield_`](Yielder::yield_) produces an item. Each
/// step runs the function up to its next `yield_`; the first step starts it. The iteration is over
/// when the function returns. An item is a `Result`: an error that the function returns is the last
/// item. The consumer resumes a panic of the function.
///
/// `Y` is the type of the items, `S` of the values that the steps send, and `R` of the value that
/// the function returns: see [`take_return`](Generator::take_return). The compiler cannot infer the
/// `R` of a function that never returns; write `Generator::<u32>::new(...)` then.
///
/// # The function is a part of its consumer
///
/// As in Python, the function runs in the greenlet that steps it, like a called function. Each step
/// may come from another greenlet. [`getcurrent`](crate::getcurrent) and greenlet-locals in the
/// function are those of the consumer. If the function switches elsewhere, an error that is thrown
/// at the consumer returns from that switch, and propagates through the function to the consumer.
///
/// Until the function yields, the generator is executing, and steps are refused
/// ([`GeneratorError::is_busy`]).
///
/// # Dropping it
///
/// Dropping a generator ends its function. Its `yield_` returns a
/// [`GreenletExit`](crate::GreenletExit) as an error; if it yields once more, its stack is unwound.
/// Errors and panics go to the [unraisable hook](crate::set_unraisable_hook).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Generator, Yielder};
///
/// fn walk(depth: u32, out: &Yielder<u32>) -> anyhow::Result<()> {
///     if depth > 0 {
///         walk(depth - 1, out)?;
///         out.yield_(depth)?; // from any depth
///         walk(depth - 1, out)?;
///     }
///     Ok(())
/// }
///
/// let ruler = Generator::new(|out| walk(3, &out));
/// let marks = ruler.collect::<anyhow::Result<Vec<u32>>>()?;
/// assert_eq!(marks, [1, 2, 1, 3, 1, 2, 1]);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[doc(alias = "coroutine")]
#[doc(alias = "Gn")]
pub struct Generator<Y: 'static, S: 'static = (), R: 'static = ()> {
    /// [body-suspended]
    sp: Cell<*mut u8>,
    /// `None` after the end of the body. [header-alive]
    header: Cell<Option<NonNull<Header>>>,
    returned: Cell<Option<R>>,
    /// The error of a failed creation, which the first step returns.
    failed: Cell<Option<Error>>,
    types: PhantomData<fn(S) -> (Y, R)>,
}

impl<Y: 'static, R: 'static> Generator<Y, (), R> {
    /// Creates a generator. The function starts with the first step.
    #[track_caller]
    pub fn new(function: impl FnOnce(Yielder<Y>) -> Result<R> + 'static) -> Generator<Y, (), R> {
        GeneratorBuilder::new().build(function)
    }
}

impl Generator<()> {
    /// Returns a builder, for a generator with a name or another stack size.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Generator;
    ///
    /// let builder = Generator::builder().name("one").stack_size(64 << 10);
    /// let mut one = builder.build(|out| out.yield_(1));
    /// assert_eq!(one.next().unwrap()?, 1);
    /// assert!(one.next().is_none());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn builder() -> GeneratorBuilder {
        GeneratorBuilder::new()
    }
}

impl<Y: 'static, S: 'static, R: 'static> Generator<Y, S, R> {
    /// Creates a generator that receives a value with each step.
    ///
    /// The value of the first step is the function's second argument. `yield_` returns the others.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Generator;
    ///
    /// let mut average = Generator::<f64, f64>::with_input(|out, first| {
    ///     let (mut sum, mut count) = (first, 1.0);
    ///     loop {
    ///         sum += out.yield_(sum / count)?;
    ///         count += 1.0;
    ///     }
    /// });
    /// assert_eq!(average.send(10.0).unwrap()?, 10.0);
    /// assert_eq!(average.send(20.0).unwrap()?, 15.0);
    /// assert_eq!(average.send(30.0).unwrap()?, 20.0);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn with_input(function: impl FnOnce(Yielder<Y, S>, S) -> Result<R> + 'static) -> Generator<Y, S, R> {
        GeneratorBuilder::new().build_with_input(function)
    }

    /// Runs the function up to its next `yield_`, and returns the item, or `None` if it has
    /// returned. The `yield_` in which it is suspended returns `value`.
    ///
    /// # Errors
    ///
    /// - The error that the function returns.
    /// - [`StackError`](crate::StackError) at the first step, if there was no stack for the
    ///   function.
    /// - [`Unwinding`](crate::Unwinding) while a panic unwinds the thread. Nothing has changed, and
    ///   the error owns the value.
    ///
    /// # Panics
    ///
    /// Resumes a panic of the function.
    #[inline(always)] // the processor mispredicts a return that follows a switch
    pub fn send(&mut self, value: S) -> Option<Result<Y>> {
        self.resume(value)
    }

    /// Does the same as [`send`](Generator::send), for a generator that is shared.
    ///
    /// # Errors
    ///
    /// As for [`send`](Generator::send); also [`GeneratorError::is_busy`] if the function runs, or
    /// has switched elsewhere.
    ///
    /// # Panics
    ///
    /// Resumes a panic of the function.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::{Generator, GeneratorError};
    ///
    /// let numbers = Rc::<Generator<u32>>::new_cyclic(|itself| {
    ///     let itself = itself.clone();
    ///     Generator::new(move |out| {
    ///         let error = itself.upgrade().unwrap().resume(()).unwrap().unwrap_err();
    ///         assert!(error.downcast_ref::<GeneratorError>().unwrap().is_busy());
    ///         out.yield_(1)
    ///     })
    /// });
    /// assert_eq!(numbers.resume(()).unwrap()?, 1);
    /// assert!(numbers.resume(()).is_none());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "next")]
    #[inline(always)] // the processor mispredicts a return that follows a switch
    pub fn resume(&self, value: S) -> Option<Result<Y>> {
        self.step(value)
    }

    /// Throws an error at the function, and runs it up to its next `yield_`. The `yield_` in which
    /// it is suspended returns the error. If the function has not started, it ends with the error.
    /// If it has ended, this returns the error.
    ///
    /// # Errors, Panics
    ///
    /// As for [`resume`](Generator::resume).
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Generator;
    ///
    /// let mut numbers = Generator::new(|out| {
    ///     let error = out.yield_(1).unwrap_err();
    ///     out.yield_(error.to_string().len())
    /// });
    /// assert_eq!(numbers.next().unwrap()?, 1);
    /// assert_eq!(numbers.throw(anyhow::anyhow!("four")).unwrap()?, 4);
    /// assert!(numbers.next().is_none());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn throw(&self, error: impl Into<Error> + 'static) -> Option<Result<Y>> {
        let error = into_error(error);
        if self.is_executing() {
            return Some(Err(GeneratorError::new(Kind::Busy).into()));
        }
        if std::thread::panicking() && !self.has_ended() {
            return Some(Err(Unwinding::new(Some(Value::new(error))).into()));
        }
        match self.deliver(error) {
            Ok(item) => Some(Ok(item)),
            Err(end) => end.into_error().map(Err),
        }
    }

    /// Asks the function to end: its `yield_` returns a [`GreenletExit`](crate::GreenletExit),
    /// which it should pass on. A function that has not started is dropped. If it returns a value,
    /// [`take_return`](Generator::take_return) returns that.
    ///
    /// # Errors
    ///
    /// - Another error that the function returns.
    /// - [`GeneratorError::is_exit_ignored`] if the function yields. It is suspended then, and the
    ///   item is dropped.
    ///
    /// # Panics
    ///
    /// Resumes a panic of the function.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Generator;
    ///
    /// let mut numbers = Generator::new(|out| (1..).try_for_each(|n| out.yield_(n)));
    /// assert_eq!(numbers.next().unwrap()?, 1);
    /// numbers.close()?;
    /// assert!(numbers.is_finished());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn close(&self) -> Result<()> {
        self.failed.take();
        if self.is_executing() {
            return Err(GeneratorError::new(Kind::Busy).into());
        }
        match self.deliver_exit() {
            Ok(_item) => Err(GeneratorError::new(Kind::ExitIgnored).into()),
            Err(end) => end.into_error().map_or(Ok(()), Err),
        }
    }

    /// Returns `true` if the iteration is over.
    pub fn is_finished(&self) -> bool {
        let failed = self.failed.take();
        let is_over = self.has_ended() && failed.is_none();
        self.failed.set(failed);
        is_over
    }

    /// Takes the value that the function has returned. `None` before that, after an error, and the
    /// second time.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Generator;
    ///
    /// let mut numbers = Generator::new(|out| {
    ///     out.yield_(1)?;
    ///     Ok("that was all")
    /// });
    /// assert_eq!(numbers.by_ref().count(), 1);
    /// assert_eq!(numbers.take_return(), Some("that was all"));
    /// ```
    pub fn take_return(&self) -> Option<R> {
        self.returned.take()
    }

    /// Ends the function like a drop of the generator: by an exit first, then by force. Errors are
    /// [reported](crate::set_unraisable_hook).
    ///
    /// Returns `false`, and does nothing, if the function runs or has switched elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::Generator;
    ///
    /// let shared = Rc::new(Generator::new(|out| (1..).try_for_each(|n| out.yield_(n))));
    /// assert_eq!(shared.resume(()).unwrap()?, 1);
    /// assert!(shared.end());
    /// assert!(shared.is_finished());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline(never)]
    pub fn end(&self) -> bool {
        end::end(self)
    }

    /// Returns `true` if the function has ended, or there was no stack for it.
    fn has_ended(&self) -> bool {
        self.header.get().is_none()
    }

    /// Returns `true` if the function runs, or is in the middle of a switch.
    fn is_executing(&self) -> bool {
        self.sp.get().is_null() && !self.has_ended()
    }

    /// Returns where the generator was created, until the function has ended.
    fn created_at(&self) -> Option<&'static Location<'static>> {
        Header::of(&self.header.get()?).label.created_at()
    }
}

impl<Y: 'static, R: 'static> Iterator for Generator<Y, (), R> {
    type Item = Result<Y>;

    #[inline(always)] // the processor mispredicts a return that follows a switch
    fn next(&mut self) -> Option<Result<Y>> {
        self.resume(())
    }
}

impl<Y: 'static, R: 'static> FusedIterator for Generator<Y, (), R> {}

impl<Y: 'static, S: 'static, R: 'static> Drop for Generator<Y, S, R> {
    fn drop(&mut self) {
        if !self.has_ended() {
            // CAUTION: runs arbitrary user code.
            self.end();
        }
    }
}

impl<Y, S, R> fmt::Debug for Generator<Y, S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut output = f.debug_struct("Generator");
        if let Some(header) = self.header.get() {
            if let Some(name) = Header::of(&header).label.name() {
                output.field("name", &name);
            }
        }
        if let Some(created_at) = self.created_at() {
            output.field("created_at", &format_args!("{created_at}"));
        }
        output
            .field("is_executing", &self.is_executing())
            .field("is_finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}
