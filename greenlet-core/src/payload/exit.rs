//! `GreenletExit`: asks a greenlet to end. It is thrown as an error, but a greenlet that returns it
//! has ended normally.

#![forbid(unsafe_code)]

use std::backtrace::BacktraceStatus;
use std::borrow::Cow;
use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::io;

use anyhow::Error;

/// Asks a greenlet to end: Python's `GreenletExit`.
///
/// The suspended `switch` of the greenlet returns it as an `Err`, and `?` passes it on. If the
/// function returns it, the greenlet has ended normally, and its parent receives the `GreenletExit`
/// as a value.
///
/// `error.is::<GreenletExit>()` finds it in an [`anyhow::Error`], also below a `context`.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, GreenletExit, getparent};
///
/// let waiting = Greenlet::new(|(): ()| {
///     let main = getparent().unwrap();
///     main.switch::<()>("ready")?; // returns the exit, as an error
///     Ok("not reached")
/// });
/// assert_eq!(waiting.switch::<&str>(())?, "ready");
/// let received: GreenletExit = waiting.throw(GreenletExit::with_reason("no longer needed"))?;
/// assert_eq!(received.reason(), Some("no longer needed"));
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GreenletExit {
    reason: Option<Cow<'static, str>>,
}

impl GreenletExit {
    /// Creates an exit without a reason.
    pub const fn new() -> GreenletExit {
        GreenletExit { reason: None }
    }

    /// Creates an exit with a reason, which the error message shows.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::GreenletExit;
    ///
    /// assert_eq!(GreenletExit::with_reason("shutdown").to_string(), "greenlet exit: shutdown");
    /// ```
    pub fn with_reason(reason: impl Into<Cow<'static, str>>) -> GreenletExit {
        GreenletExit {
            reason: Some(reason.into()),
        }
    }

    /// Returns the exit if `error` is one, also below a `context`, and inside an [`io::Error`].
    ///
    /// A greenlet whose function returns such an error has ended normally. An exit that is only a
    /// `source()` of another error is not found: that error is an ordinary one.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::io;
    /// use greenlet::GreenletExit;
    ///
    /// let error = anyhow::Error::new(io::Error::other(GreenletExit::new())).context("reading");
    /// assert!(GreenletExit::in_error(&error).is_some());
    /// assert!(GreenletExit::in_error(&anyhow::anyhow!("disk full")).is_none());
    /// ```
    pub fn in_error(error: &Error) -> Option<&GreenletExit> {
        error
            .downcast_ref::<GreenletExit>()
            .or_else(|| find_exit(error.downcast_ref::<io::Error>()?))
    }

    /// Creates the exit of a greenlet that the library ends.
    pub(crate) const fn because(reason: &'static str) -> GreenletExit {
        GreenletExit {
            reason: Some(Cow::Borrowed(reason)),
        }
    }

    /// Returns the reason, if there is one.
    ///
    /// The library's own exits have a reason: the last handle was dropped, the owner called
    /// [`end`](crate::Greenlet::end), or a generator was closed.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

impl fmt::Display for GreenletExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("greenlet exit")?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

impl StdError for GreenletExit {}

/// How many links of a chain of errors are searched. A chain may have no end.
const LINKS: usize = 64;

/// Returns the exit in a chain of errors: each error's `source()`, or what an [`io::Error`] wraps.
fn find_exit<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a GreenletExit> {
    fn next<'a>(&error: &&'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
        match error.downcast_ref::<io::Error>() {
            // Its `source()` is that of the wrapped error.
            Some(error) => error.get_ref().map(|inner| inner as _),
            // CAUTION: runs arbitrary user code.
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), next)
        .take(LINKS)
        .find_map(|error| error.downcast_ref())
}

/// Returns `error`, unless a [`GreenletExit`] is in it: for code that handles all errors.
///
/// Code that logs every error and goes on would also swallow the request to end. Pass each error
/// through this function first. It searches all sources of the error.
///
/// # Errors
///
/// Returns the exit, if there is one in `error`. Return it from the greenlet's function by `?`.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getmain, pass_exit};
///
/// fn job() -> anyhow::Result<()> {
///     getmain().switch::<()>(())
/// }
/// let worker = Greenlet::new(|(): ()| -> anyhow::Result<()> {
///     loop {
///         if let Err(error) = job() {
///             let error = pass_exit(error)?;
///             eprintln!("the job failed: {error:#}");
///         }
///     }
/// });
/// worker.switch::<()>(())?;
/// worker.end(); // without `pass_exit`, this would have to unwind the worker's stack
/// assert!(worker.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn pass_exit(error: impl Into<Error>) -> Result<Error, Error> {
    let error = error.into();
    let exit = GreenletExit::in_error(&error).or_else(|| find_exit(&*error));
    match exit.cloned() {
        None => Ok(error),
        Some(exit) => {
            // CAUTION: runs arbitrary user code (destructors).
            drop(error);
            Err(exit.into())
        }
    }
}

/// Converts an error for a trait that requires an [`io::Error`], such as [`io::Read`].
///
/// A [`GreenletExit`] in the error stays an exit: if the function of the greenlet returns the
/// `io::Error`, the greenlet has ended normally. `io::Error::other(error)` would hide the exit, since
/// it cannot be found in an [`anyhow::Error`] that was boxed. The kind of an `io::Error` stays.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::io::{self, Read};
/// use greenlet::{Greenlet, getmain, into_io_error};
///
/// struct FromMain;
/// impl Read for FromMain {
///     fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
///         let byte: u8 = getmain().switch(()).map_err(into_io_error)?;
///         buffer[0] = byte;
///         Ok(1)
///     }
/// }
/// let reader = Greenlet::new(|(): ()| {
///     let mut text = String::new();
///     FromMain.read_to_string(&mut text)?;
///     Ok(text)
/// });
/// reader.switch::<()>(())?;
/// assert!(reader.kill()?.is_exit());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn into_io_error(error: impl Into<Error>) -> io::Error {
    let error = error.into();
    if let Some(exit) = GreenletExit::in_error(&error) {
        return io::Error::other(exit.clone());
    }
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    io::Error::new(kind.unwrap_or(io::ErrorKind::Other), error)
}

/// The reasons of the library's own exits.
pub(crate) mod reason {
    pub(crate) const ABANDONED: &str = "the last handle of the greenlet was dropped";
    pub(crate) const ENDED: &str = "the owner of the greenlet ended it";
    pub(crate) const CLOSED: &str = "the generator was closed";
}

/// Caches one boxed [`GreenletExit`] per thread. Allocating and freeing it would double the cost of
/// a kill.
pub(crate) struct ExitCache {
    error: Cell<Option<Error>>,
    /// `false` if errors capture backtraces: a cached one would show the first use. `None` before
    /// that is known.
    may_cache: Cell<Option<bool>>,
}

impl ExitCache {
    pub(crate) const fn none() -> ExitCache {
        ExitCache {
            error: Cell::new(None),
            may_cache: Cell::new(None),
        }
    }

    /// Creates an exit with a reason, as an error.
    #[inline]
    pub(crate) fn error(&self, reason: &'static str) -> Error {
        if let Some(mut error) = self.error.take() {
            if let Some(exit) = downcast_exit(&mut error) {
                exit.reason = Some(Cow::Borrowed(reason));
                return error;
            }
        }
        Error::new(GreenletExit::because(reason))
    }

    /// Takes the exit out of an error, and caches the error's box.
    ///
    /// # Errors
    ///
    /// Returns the error again if it is another one, or has a context.
    #[inline]
    pub(crate) fn exit_of(&self, mut error: Error) -> Result<GreenletExit, Error> {
        let Some(exit) = downcast_exit(&mut error) else {
            return Err(error);
        };
        let exit = std::mem::take(exit);
        if self.may_cache.get().unwrap_or_else(|| self.find_out(&error)) {
            self.error.set(Some(error));
        }
        Ok(exit)
    }

    /// One look is enough: the environment decides whether errors capture backtraces.
    #[cold]
    fn find_out(&self, error: &Error) -> bool {
        let may_cache = error.backtrace().status() != BacktraceStatus::Captured;
        self.may_cache.set(Some(may_cache));
        may_cache
    }

    /// Empties the cache.
    pub(crate) fn clear(&self) {
        drop(self.error.take());
    }
}

/// Returns the exit in an error, unless it is below a context.
#[inline]
fn downcast_exit(error: &mut Error) -> Option<&mut GreenletExit> {
    let error: &mut (dyn StdError + Send + Sync + 'static) = &mut **error;
    error.downcast_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A context of size zero: the exit below it may be at the address of the error.
    #[derive(Debug)]
    struct Nothing;

    impl fmt::Display for Nothing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("nothing")
        }
    }

    #[test]
    fn an_exit_with_a_context_is_not_cached() {
        let cache = ExitCache::none();
        let exit = || GreenletExit::with_reason("test");
        for error in [
            Error::new(exit()).context(Nothing),
            anyhow::Context::context(Err::<(), GreenletExit>(exit()), Nothing).unwrap_err(),
        ] {
            let back = cache.exit_of(error).unwrap_err();
            assert_eq!(back.to_string(), "nothing");
            assert!(cache.error.take().is_none());
        }
    }

    #[test]
    fn a_cached_exit_is_reused_with_the_new_reason() {
        let cache = ExitCache::none();
        let first = cache.error(reason::ENDED);
        let place: *const GreenletExit = first.downcast_ref().unwrap();
        assert_eq!(
            cache.exit_of(first).unwrap(),
            GreenletExit::because(reason::ENDED)
        );
        let second = cache.error("the second");
        assert_eq!(second.to_string(), "greenlet exit: the second");
        if std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value == "0") {
            assert!(std::ptr::eq(place, second.downcast_ref().unwrap()));
        }
    }
}
