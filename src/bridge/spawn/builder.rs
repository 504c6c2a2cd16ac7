//! Spawns functions: with the defaults, or with options.

#![forbid(unsafe_code)]

use greenlet_core::{Builder, Locals};

use super::drive::Drive;
use super::future::Spawn;
use crate::bridge::hooks::{Hooks, SpawnHooks};

/// Creates a future that runs a synchronous function in a greenlet and returns its output.
///
/// Nothing runs before the future is polled. Inside the function, [`await_`](crate::await_) waits
/// for other futures. The future is not `Send`, because a greenlet stays on its thread. Use it in
/// `block_on`, on a `LocalSet`, or in any task of one thread.
///
/// The function must be `'static`: a future could be leaked with `mem::forget`, and the function
/// would then use its borrows after their end.
///
/// # Panics
///
/// Polling the future panics with the panic of the function.
///
/// # Examples
///
/// ```
/// use greenlet::{await_, greenlet_spawn};
///
/// let future = greenlet_spawn(|| {
///     let words = ["synchronous", "code"].map(|word| await_(async move { word.len() }));
///     words[0] + words[1]
/// });
/// assert_eq!(futures::executor::block_on(future), 15);
/// ```
#[doc(alias = "spawn")]
#[doc(alias = "spawn_blocking")]
#[doc(alias = "block_in_place")]
#[track_caller]
#[inline]
pub fn greenlet_spawn<T, F>(function: F) -> Spawn<T>
where
    T: 'static,
    F: FnOnce() -> T + 'static,
{
    SpawnBuilder::new().spawn(function)
}

/// Spawns a function with a name, a stack size, hooks or checks.
///
/// # Examples
///
/// ```
/// use greenlet::{SpawnBuilder, await_};
///
/// let future = SpawnBuilder::new()
///     .name("report")
///     .stack_size(1 << 20)
///     .require_await(true)
///     .spawn(|| await_(async { "written" }));
/// assert_eq!(futures::executor::block_on(future), "written");
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder runs nothing before `spawn`"]
pub struct SpawnBuilder {
    greenlet: Builder,
    require_await: bool,
    in_place: bool,
    hooks: Hooks,
}

impl SpawnBuilder {
    /// Creates a builder with the defaults: no name, the default stack size, no hooks.
    #[inline]
    pub fn new() -> SpawnBuilder {
        SpawnBuilder::default()
    }

    /// Sets the name of the greenlet, for messages, traces and trees.
    pub fn name(mut self, name: impl Into<String>) -> SpawnBuilder {
        self.greenlet = self.greenlet.name(name);
        self
    }

    /// Sets the size of the stack: see [`Builder::stack_size`]. The stack holds the synchronous
    /// code alone: futures are polled on the executor's stack, except with
    /// [`poll_in_place`](SpawnBuilder::poll_in_place).
    pub fn stack_size(mut self, bytes: usize) -> SpawnBuilder {
        self.greenlet = self.greenlet.stack_size(bytes);
        self
    }

    /// Sets the values of the function's [`greenlet_local!`](crate::greenlet_local) variables. The
    /// default is none.
    ///
    /// [`Locals::current`] are those of the greenlet that spawns: SQLAlchemy's `greenlet_spawn` hands
    /// the caller's context variables on in the same way. [`Locals::copy`] of them keeps changes apart.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{Locals, SpawnBuilder, await_, greenlet_local};
    ///
    /// greenlet_local!(static USER: &'static str = "nobody");
    ///
    /// USER.set("ann");
    /// let spawned = SpawnBuilder::new().locals(Locals::current()).spawn(|| {
    ///     await_(async {});
    ///     USER.get()
    /// });
    /// assert_eq!(futures::executor::block_on(spawned), "ann");
    /// ```
    pub fn locals(mut self, locals: Locals) -> SpawnBuilder {
        self.greenlet = self.greenlet.locals(locals);
        self
    }

    /// Panics if the function returns without having awaited anything.
    ///
    /// This finds code that should await and blocks the thread instead, such as a synchronous
    /// database driver.
    pub fn require_await(mut self, required: bool) -> SpawnBuilder {
        self.require_await = required;
        self
    }

    /// Polls each future once on the greenlet's own stack, and switches to the driver only if it is
    /// pending.
    ///
    /// An await of a ready future then needs no switch. Use this for functions that mostly await
    /// ready futures: buffered I/O, channels, caches. From the second poll on, the driver polls a
    /// pending future as usual. The costs:
    ///
    /// - The stack must be large enough for these polls, and the memory that they touch stays in
    ///   use while the function waits: see [`stack_size`](SpawnBuilder::stack_size).
    /// - Such a poll runs in the function's greenlet, inside of its hooks and `tracing` spans.
    /// - Its context has the task's waker, and no other data that an executor may have put there.
    ///
    /// Awaits in greenlets that the function creates are not affected.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{SpawnBuilder, await_, getcurrent};
    ///
    /// let spawned = SpawnBuilder::new().poll_in_place(true).spawn(|| {
    ///     let me = getcurrent();
    ///     await_(async { me.is_current() })
    /// });
    /// assert!(futures::executor::block_on(spawned));
    /// ```
    pub fn poll_in_place(mut self, in_place: bool) -> SpawnBuilder {
        self.in_place = in_place;
        self
    }

    /// Adds hooks that run each time the function is resumed and suspended: see [`SpawnHooks`].
    pub fn hooks(mut self, hooks: impl SpawnHooks + 'static) -> SpawnBuilder {
        self.hooks.add(hooks);
        self
    }

    /// Creates the future: see [`greenlet_spawn`].
    #[track_caller]
    #[inline]
    pub fn spawn<T, F>(self, function: F) -> Spawn<T>
    where
        T: 'static,
        F: FnOnce() -> T + 'static,
    {
        Spawn::of(Drive::new(
            self.greenlet,
            function,
            self.in_place,
            self.require_await,
            self.hooks,
        ))
    }
}
