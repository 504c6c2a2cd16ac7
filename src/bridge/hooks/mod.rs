//! Hooks that run each time a spawned function is resumed and suspended.

#![forbid(unsafe_code)]

#[cfg(feature = "tracing")]
mod spans;
pub mod watchdog;

#[cfg(feature = "tracing")]
pub use spans::SpanHooks;

use std::fmt;

use greenlet_core::Greenlet;

/// Runs code each time a spawned function is resumed and suspended: to swap context in
/// thread-locals, to measure, or to log.
///
/// A spawned function shares its thread with other tasks. While it waits, those tasks see what it
/// has put into a thread-local, unless a hook takes that out again. `resume` is called before the
/// function is resumed, and also before it is ended. `suspend` is called after the function has
/// left: by an await, by its end or by a panic. Several hooks nest: the first to be resumed is the
/// last to be suspended.
///
/// The hooks get the greenlet that is resumed, or that awaits: the function's own, or one that the
/// function has created. [`suspended_at`](Greenlet::suspended_at) returns the place where it awaits.
///
/// Hooks must not panic.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use greenlet::{Greenlet, SpawnBuilder, SpawnHooks, await_};
///
/// thread_local!(static USER: Cell<&'static str> = const { Cell::new("nobody") });
///
/// /// Keeps the user of one request.
/// struct User(&'static str);
///
/// impl SpawnHooks for User {
///     fn resume(&mut self, _: &Greenlet) {
///         self.0 = USER.replace(self.0);
///     }
///     fn suspend(&mut self, _: &Greenlet) {
///         self.0 = USER.replace(self.0);
///     }
/// }
///
/// let spawned = SpawnBuilder::new().hooks(User("ann")).spawn(|| {
///     let meanwhile = await_(async { USER.get() });
///     (USER.get(), meanwhile)
/// });
/// assert_eq!(futures::executor::block_on(spawned), ("ann", "nobody"));
/// ```
pub trait SpawnHooks {
    /// Runs before `greenlet` is resumed.
    fn resume(&mut self, greenlet: &Greenlet);

    /// Runs after `greenlet` was suspended or has ended.
    fn suspend(&mut self, greenlet: &Greenlet);
}

/// The hooks of one spawned function.
#[derive(Default)]
pub(super) struct Hooks {
    all: Vec<Box<dyn SpawnHooks>>,
}

impl Hooks {
    pub(super) fn add(&mut self, hooks: impl SpawnHooks + 'static) {
        self.all.push(Box::new(hooks));
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    #[inline]
    fn resume(&mut self, greenlet: &Greenlet) {
        for hooks in &mut self.all {
            // CAUTION: runs arbitrary user code.
            hooks.resume(greenlet);
        }
    }

    #[inline]
    fn suspend(&mut self, greenlet: &Greenlet) {
        for hooks in self.all.iter_mut().rev() {
            // CAUTION: runs arbitrary user code.
            hooks.suspend(greenlet);
        }
    }

    /// Calls `resume`. The returned guard calls `suspend`, also if a panic unwinds.
    #[inline]
    pub(super) fn run<'a>(&'a mut self, root: &'a Greenlet, resumed: Option<&Greenlet>) -> Resumed<'a> {
        self.resume(resumed.unwrap_or(root));
        Resumed { root, hooks: self }
    }

    /// Calls the hooks around `end`, which ends the function.
    pub(super) fn around_end(&mut self, root: &Greenlet, end: impl FnOnce()) {
        let _resumed = self.run(root, None);
        // CAUTION: runs arbitrary user code. It unwinds if the greenlet that runs this is ended
        // meanwhile.
        end();
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hooks", self.all.len())
    }
}

/// Calls `suspend` at the end of a run.
pub(super) struct Resumed<'a> {
    root: &'a Greenlet,
    hooks: &'a mut Hooks,
}

impl Resumed<'_> {
    /// Ends the run. `left` is the greenlet that awaits; `None` is the root.
    #[inline]
    pub(super) fn end(self, left: Option<&Greenlet>) {
        self.hooks.suspend(left.unwrap_or(self.root));
        std::mem::forget(self);
    }
}

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        // The function has panicked, or it was ended.
        self.hooks.suspend(self.root);
    }
}
