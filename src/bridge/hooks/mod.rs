//! Hooks that run each time a spawned function is resumed and suspended.

#![forbid(unsafe_code)]

#[cfg(feature = "tracing")]
mod spans;
pub mod watchdog;

#[cfg(feature = "tracing")]
pub use spans::SpanHooks;

use std::fmt;

use greenlet_core::{Greenlet, raw};

/// Runs code each time a spawned function is resumed and suspended: to swap context in
/// thread-locals, to measure, or to log.
///
/// A spawned function shares its thread with other tasks. While it waits, those tasks see what it
/// has put into a thread-local, unless a hook takes that out again. `resume` is called before the
/// function is resumed, and also before it is ended. `suspend` is called after the function has
/// left: by an await, by its end or by a panic. Several hooks nest: the first to be resumed is the
/// last to be suspended.
///
/// All code of the function runs between the two, destructors included, also if its end had to wait
/// for the end of a panic or of a `no_switch` section. Only [`Greenlet::end`], called on the
/// function's greenlet while it waits, ends it outside of its hooks.
///
/// The hooks get the greenlet that is resumed, or that awaits: the function's own, or one that the
/// function has created. [`suspended_at`](Greenlet::suspended_at) returns the place where it awaits.
///
/// A hook that panics is not called again. The panic propagates out of the poll.
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

    /// Runs after `suspend`, when the awaited future is pending: the executor runs other tasks now.
    /// An await of a ready future suspends and resumes the function without this.
    fn pending(&mut self, greenlet: &Greenlet) {
        let _ = greenlet;
    }
}

/// The hooks of one spawned function.
#[derive(Default)]
pub(super) struct Hooks {
    /// `None` while a hook runs, and after it has panicked.
    all: Vec<Option<Box<dyn SpawnHooks>>>,
}

impl Hooks {
    pub(super) fn add(&mut self, hooks: impl SpawnHooks + 'static) {
        self.all.push(Some(Box::new(hooks)));
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Calls one hook, unless it has panicked before.
    fn call(&mut self, index: usize, call: impl FnOnce(&mut dyn SpawnHooks)) {
        if let Some(mut hooks) = self.all[index].take() {
            // CAUTION: runs arbitrary user code.
            call(&mut *hooks);
            self.all[index] = Some(hooks);
        }
    }

    /// Calls `resume`. The returned guard calls `suspend`, also if a panic unwinds.
    #[inline]
    pub(super) fn run<'a>(&'a mut self, root: &'a Greenlet, resumed: Option<&Greenlet>) -> Resumed<'a> {
        let count = self.all.len();
        let mut run = Resumed {
            root,
            hooks: self,
            resumed: 0,
        };
        for index in 0..count {
            run.hooks
                .call(index, |hooks| hooks.resume(resumed.unwrap_or(root)));
            run.resumed += 1;
        }
        run
    }

    /// Calls `pending`.
    pub(super) fn pending(&mut self, greenlet: &Greenlet) {
        for index in (0..self.all.len()).rev() {
            self.call(index, |hooks| hooks.pending(greenlet));
        }
    }

    /// Calls the hooks around `end`, which ends the function. If a hook panics, `end` is called all the
    /// same.
    pub(super) fn around_end(&mut self, root: &Greenlet, end: impl FnOnce()) {
        let mut unwound = raw::Unwound::default();
        let mut resumed = None;
        unwound.run(|| {
            resumed = Some(self.run(root, None));
            Ok(())
        });
        unwound.run(|| {
            // CAUTION: runs arbitrary user code. It unwinds if the greenlet that runs this is ended
            // meanwhile.
            end();
            Ok(())
        });
        unwound.run(|| {
            drop(resumed);
            Ok(())
        });
        unwound.resume();
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
    /// How many hooks are to be suspended.
    resumed: usize,
}

impl Resumed<'_> {
    /// Ends the run. `left` is the greenlet that awaits; `None` is the root.
    #[inline]
    pub(super) fn end(mut self, left: Option<&Greenlet>) {
        // If a hook panics, the drop suspends the others.
        while self.resumed > 0 {
            self.suspend_last(left);
        }
    }

    fn suspend_last(&mut self, left: Option<&Greenlet>) {
        self.resumed -= 1;
        let greenlet = left.unwrap_or(self.root);
        self.hooks.call(self.resumed, |hooks| hooks.suspend(greenlet));
    }
}

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        // The function or a hook has panicked, or the function was ended. If a hook panics now, the
        // others are suspended all the same.
        let mut unwound = raw::Unwound::default();
        while self.resumed > 0 {
            unwound.run(|| {
                self.suspend_last(None);
                Ok(())
            });
        }
        unwound.resume_or_discard();
    }
}
