//! The yielder, by which the function of a generator yields.

use std::fmt;

use anyhow::{Error, Result};

use crate::segment::{self, NotYielded};

use super::GeneratorError;
use super::error::Kind;

/// Yields the items of a [`Generator`](crate::Generator), whose function receives it.
///
/// A clone yields for the same generator, from anywhere in the function. That includes a generator
/// whose consumer is the function: it can yield to the outer consumer directly. Another greenlet
/// cannot yield for the function. The stack of the function is not reused while a yielder exists.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::Generator;
///
/// let squares = Generator::<i32>::new(|outer| {
///     let numbers = Generator::new(move |inner| {
///         for n in 1..4 {
///             inner.yield_(n)?; // to the loop below
///             outer.yield_(n * n)?; // to the consumer of `squares`
///         }
///         Ok(())
///     });
///     numbers.map(|number| number.map(drop)).collect()
/// });
/// assert_eq!(squares.collect::<anyhow::Result<Vec<i32>>>()?, [1, 4, 9]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Yielder<Y: 'static, S: 'static = ()>(segment::Yielder<Y, S>);

impl<Y: 'static, S: 'static> Yielder<Y, S> {
    pub(super) fn of(yielder: segment::Yielder<Y, S>) -> Yielder<Y, S> {
        Yielder(yielder)
    }

    /// Finds the innermost generator of these types whose function the caller runs in.
    ///
    /// # Errors
    ///
    /// Returns a [`GeneratorError`] (`is_outside`) if there is none.
    pub fn nearest() -> Result<Yielder<Y, S>, GeneratorError> {
        segment::Yielder::nearest()
            .map(Yielder)
            .ok_or(GeneratorError::new(Kind::Outside))
    }

    /// Gives an item to the consumer, and returns the value that the next step sends: `()` in an
    /// iteration.
    ///
    /// # Errors
    ///
    /// - The error that is thrown at the function ([`Generator::throw`](crate::Generator::throw)),
    ///   or a [`GreenletExit`](crate::GreenletExit) when the generator is closed or dropped. Pass
    ///   it on with `?`.
    /// - [`GeneratorError::is_outside`] if the caller does not run in the function.
    /// - [`Unwinding`](crate::Unwinding) while a panic unwinds the thread, and
    ///   [`SwitchForbidden`](crate::SwitchForbidden) in a [`no_switch`](crate::no_switch) section
    ///   that began in the function. Nothing has changed, and the error owns the value.
    #[inline(always)] // the processor mispredicts a return that follows a switch
    pub fn yield_(&self, value: Y) -> Result<S> {
        self.0.yield_(value).map_err(error_of)
    }
}

#[cold]
fn error_of(outcome: NotYielded) -> Error {
    match outcome {
        NotYielded::Error(error) => error,
        NotYielded::Outside => GeneratorError::new(Kind::Outside).into(),
    }
}

impl<Y, S> Clone for Yielder<Y, S> {
    fn clone(&self) -> Yielder<Y, S> {
        Yielder(self.0.clone())
    }
}

impl<Y, S> fmt::Debug for Yielder<Y, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder").finish_non_exhaustive()
    }
}

/// Yields a value for the innermost [`Generator`](crate::Generator) of such values that the caller
/// runs in.
///
/// It is for functions that have no [`Yielder`], which is faster.
///
/// # Errors
///
/// As for [`Yielder::yield_`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Generator, GeneratorError, yield_};
///
/// fn count_down(from: u32) -> anyhow::Result<()> {
///     (0..from).rev().try_for_each(yield_)
/// }
/// let numbers = Generator::<u32>::new(|_| count_down(3));
/// assert_eq!(numbers.collect::<anyhow::Result<Vec<_>>>()?, [2, 1, 0]);
///
/// let error = count_down(1).unwrap_err();
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn yield_<Y: 'static>(value: Y) -> Result<()> {
    Yielder::<Y>::nearest()?.yield_(value)
}
