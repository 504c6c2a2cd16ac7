//! How a function is spawned: with the defaults, or with options.

#![forbid(unsafe_code)]

use greenlet_core::Builder;

use super::drive::Drive;
use super::future::Spawn;
use crate::bridge::hooks::{Hooks, SpawnHooks};

/// Runs a synchronous function in a greenlet; the result is a future that gives what it returns.
///
/// Nothing runs before the future is polled. Inside the function, [`await_`](crate::await_) waits for
/// other futures. The future is not `Send`, because a greenlet stays on its thread: use it in
/// `block_on`, on a `LocalSet`, or in any task of one thread.
///
/// The function is `'static`: a future can always be forgotten, and what it borrowed would then be used
/// after its end.
///
/// # Panics
///
/// A panic of the function comes out of `poll`.
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
#[track_caller]
#[inline]
pub fn greenlet_spawn<T, F>(function: F) -> Spawn<T>
where
    T: 'static,
    F: FnOnce() -> T + 'static,
{
    SpawnBuilder::new().spawn(function)
}

/// Chooses a name, a stack size and checks for a spawned function.
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
    /// Starts with no name and the default stack size.
    #[inline]
    pub fn new() -> SpawnBuilder {
        SpawnBuilder::default()
    }

    /// Names the greenlet, for messages, traces and trees.
    pub fn name(mut self, name: impl Into<String>) -> SpawnBuilder {
        self.greenlet = self.greenlet.name(name);
        self
    }

    /// Sets the size of the stack: see [`Builder::stack_size`]. Futures are not polled on this stack, so
    /// it need hold the synchronous code only; unless [`poll_in_place`](SpawnBuilder::poll_in_place) says so.
    pub fn stack_size(mut self, bytes: usize) -> SpawnBuilder {
        self.greenlet = self.greenlet.stack_size(bytes);
        self
    }

    /// Asks for a panic if the function returns without having awaited anything.
    ///
    /// It finds code that was meant to await and blocks the thread instead: a synchronous driver, say.
    pub fn require_await(mut self, required: bool) -> SpawnBuilder {
        self.require_await = required;
        self
    }

    /// Lets the function poll what it awaits itself, on its own stack, before it leaves for the driver.
    ///
    /// An await of what is ready then needs no switch. It is for functions that mostly await
    /// what is ready: buffered I/O, channels, caches. The rest is as before: what is not ready is polled by the
    /// driver from then on. In return:
    ///
    /// - the stack has to be large enough for the polls of what is awaited, and the part of it that they touch stays in
    ///   memory while the function waits: see [`stack_size`](SpawnBuilder::stack_size);
    /// - such a poll runs in the function's greenlet, inside of its hooks and `tracing` spans;
    /// - its context is made of the task's waker, and has nothing else that an executor may have put there.
    ///
    /// In greenlets that the function makes, it changes nothing.
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

    /// Adds hooks that are called each time the function is resumed and suspended: see [`SpawnHooks`].
    pub fn hooks(mut self, hooks: impl SpawnHooks + 'static) -> SpawnBuilder {
        self.hooks.add(hooks);
        self
    }

    /// Makes the future: see [`greenlet_spawn`].
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
