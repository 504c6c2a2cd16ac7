//! `GreenletExit`: asks a greenlet to end. It travels as an error, and is none: who lets it through has ended
//! in the ordinary way.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

/// Asks a greenlet to end: Python's `GreenletExit`.
///
/// Thrown into a suspended greenlet, it is what its `switch` returns as `Err`; `?` takes it out of the
/// function, running the destructors on its way. When it leaves the function it does not go on as an
/// error: the greenlet has ended, and its parent gets the `GreenletExit` as an ordinary value.
///
/// It is found in an [`anyhow::Error`] by `is::<GreenletExit>()`, also under a `context`.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, GreenletExit, getparent};
///
/// let waiting = Greenlet::new(|(): ()| {
///     let main = getparent().unwrap();
///     main.switch::<()>("ready")?; // the exit comes back here, as an error
///     Ok("not reached")
/// });
/// assert_eq!(waiting.switch::<&str>(())?, "ready");
/// let ended: GreenletExit = waiting.throw(GreenletExit::new())?;
/// assert!(waiting.is_dead());
/// # let _ = ended;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GreenletExit {
    reason: Option<Cow<'static, str>>,
}

impl GreenletExit {
    /// Makes an exit without a reason.
    pub const fn new() -> GreenletExit {
        GreenletExit { reason: None }
    }

    /// Makes an exit with a reason, for whoever looks at it.
    pub fn with_reason(reason: impl Into<Cow<'static, str>>) -> GreenletExit {
        GreenletExit {
            reason: Some(reason.into()),
        }
    }

    /// The exit of a greenlet whose last handle was dropped.
    pub(crate) const fn abandoned() -> GreenletExit {
        GreenletExit {
            reason: Some(Cow::Borrowed("the last handle of the greenlet was dropped")),
        }
    }

    /// The exit of a greenlet that its owner ended.
    pub(crate) const fn ended() -> GreenletExit {
        GreenletExit {
            reason: Some(Cow::Borrowed("the owner of the greenlet ended it")),
        }
    }

    /// The exit of a greenlet that was still suspended when its thread ended.
    pub(crate) const fn thread_ended() -> GreenletExit {
        GreenletExit {
            reason: Some(Cow::Borrowed("the thread of the greenlet ended")),
        }
    }

    /// Why the greenlet is to end, if that was said. An exit that was caused by dropping the last handle
    /// has a reason that says so.
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

impl std::error::Error for GreenletExit {}
