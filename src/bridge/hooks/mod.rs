//! Hooks around the time in which a spawned function runs.

#![forbid(unsafe_code)]

#[cfg(feature = "tracing")]
mod spans;
pub mod watchdog;

#[cfg(feature = "tracing")]
pub use spans::SpanHooks;

use std::fmt;

use greenlet_core::Greenlet;

/// What is to be done each time a spawned function goes on, and each time it leaves: to swap context that
/// is kept in thread-locals, to measure, to log.
///
/// All greenlets of a spawned function run on a thread that it shares with everything else there. What
/// the function puts into a thread-local is seen by whoever runs while it waits, unless a hook takes
/// it out again. `resume` is called before the function goes on, and also before it is ended; `suspend`
/// after it has left for whatever reason: an await, its end, a panic. Several hooks are nested: the
/// first to be resumed is the last to be suspended.
///
/// The greenlet is the one that goes on, or that awaits: the function's own, or one that it has made. Where it awaits is
/// its [`parked_at`](Greenlet::parked_at).
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
    /// Called before `greenlet` goes on.
    fn resume(&mut self, greenlet: &Greenlet);

    /// Called after `greenlet` has left.
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
            // CAUTION: runs foreign code.
            hooks.resume(greenlet);
        }
    }

    #[inline]
    fn suspend(&mut self, greenlet: &Greenlet) {
        for hooks in self.all.iter_mut().rev() {
            // CAUTION: runs foreign code.
            hooks.suspend(greenlet);
        }
    }

    /// Resumes; what this returns suspends, also if a panic unwinds.
    #[inline]
    pub(super) fn run<'a>(&'a mut self, root: &'a Greenlet, resumed: Option<&Greenlet>) -> Resumed<'a> {
        self.resume(resumed.unwrap_or(root));
        Resumed { root, hooks: self }
    }

    /// Runs `end`, which ends the function.
    pub(super) fn around_end(&mut self, root: &Greenlet, end: impl FnOnce()) {
        let _resumed = self.run(root, None);
        // CAUTION: runs foreign code, and may unwind: whoever ends the function may be ended meanwhile.
        end();
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hooks", self.all.len())
    }
}

/// Hooks that are to be suspended.
pub(super) struct Resumed<'a> {
    root: &'a Greenlet,
    hooks: &'a mut Hooks,
}

impl Resumed<'_> {
    /// `left` has left: by an await, or, if it is the root, in any way.
    #[inline]
    pub(super) fn end(self, left: Option<&Greenlet>) {
        self.hooks.suspend(left.unwrap_or(self.root));
        std::mem::forget(self);
    }
}

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        // A panic came out of the function; or it has been ended.
        self.hooks.suspend(self.root);
    }
}
