//! The driver: the future that runs a synchronous function in a greenlet.

#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::{Error, Result};
use greenlet_core::{
    Builder, Greenlet, GreenletExit, ParentError, TypeMismatch, WeakGreenlet, getcurrent, getmain, may_switch,
};

use crate::bridge::driver::{Driver, Event, Phase, Ready};
use crate::bridge::error::StrayMessage;
use crate::bridge::hooks::{Hooks, SpawnHooks};
use crate::bridge::request::Polled;

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
        // Between polls, and before the first, main is the parent: see `unbind`.
        let main = getmain();
        let greenlet = self.greenlet.parent(&main);
        let root = greenlet.build(move |(): ()| Ok(Event::Done(function())));
        let driver = Rc::new(Driver::new::<T>(main));
        driver.in_place.set(self.in_place);
        root.attach(Rc::clone(&driver));
        Spawn {
            stage: Stage::New,
            root,
            driver,
            result: PhantomData,
            require_await: self.require_await,
            hooks: self.hooks,
            cancelled: Vec::new(),
        }
    }
}

/// The future of a spawned function: see [`greenlet_spawn`].
///
/// Dropping it ends the function: what it awaits is dropped, and a [`GreenletExit`] is thrown into it, so
/// that its destructors run, exactly once, before the drop is over. Awaits in that clean-up are refused, since nobody
/// polls any more; use [`cancel`](Spawn::cancel) where clean-up has to await.
///
/// # Panics
///
/// Polling it panics if the function panics, if it is polled after it has returned its output, and where
/// the function cannot have a result: no stack could be had, the poll is in a `no_switch` section, or the
/// greenlet was ended from elsewhere. [`into_result`](Spawn::into_result) returns these as errors.
///
/// # Examples
///
/// ```
/// use futures::executor::block_on;
/// use greenlet::{await_, greenlet_spawn};
///
/// let mut spawned = greenlet_spawn(|| {
///     await_(std::future::pending::<()>());
/// });
/// block_on(async {
///     assert!(futures::poll!(&mut spawned).is_pending());
/// });
/// assert!(spawned.greenlet().is_awaiting());
/// let greenlet = spawned.greenlet().clone();
/// drop(spawned);
/// assert!(greenlet.is_dead());
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Spawn<T: 'static> {
    stage: Stage,
    root: Greenlet,
    driver: Rc<Driver>,
    result: PhantomData<fn() -> T>,
    require_await: bool,
    hooks: Hooks,
    /// What waited when the spawn was cancelled, to be ended after the function.
    cancelled: Vec<Greenlet>,
}

enum Stage {
    New,
    /// Something is awaited, by the greenlet; `None` means the root.
    Awaiting(Option<Greenlet>),
    Over,
}

/// What came of letting the function go on.
enum Left<T> {
    /// An event came from there, or an error.
    By(Result<Event<T>>),
    /// The root awaits, and this is what a poll of that came to.
    Waits(Polled),
}

/// What a poll does next.
enum Next {
    Turn(Turn),
    /// The root awaits: see [`Spawn::while_ready`].
    Root {
        is_ready: bool,
    },
}

impl Next {
    #[inline]
    fn of(turn: Turn, hooks: &Hooks) -> Next {
        match turn {
            Turn::Resume(None) if hooks.is_empty() => Next::Root { is_ready: true },
            turn => Next::Turn(turn),
        }
    }
}

/// How a poll goes on.
enum Turn {
    /// Start the function.
    Start,
    /// The future is ready: resume who waits for it.
    Resume(Option<Greenlet>),
    /// End the function, and go on polling.
    Exit(GreenletExit),
    /// Something else arrived: tell the greenlet that was resumed last, or else the root.
    Stray(Error, Option<Greenlet>),
}

impl Turn {
    /// The greenlet that is resumed, if it is not the root.
    fn target(&self) -> Option<&Greenlet> {
        match self {
            Turn::Start | Turn::Exit(_) => None,
            Turn::Resume(greenlet) | Turn::Stray(_, greenlet) => greenlet.as_ref(),
        }
    }
}

impl<T: 'static> Spawn<T> {
    /// Ends the function, and lets it clean up: a [`GreenletExit`] is thrown into it, and the future
    /// that this returns goes on polling until it has ended.
    ///
    /// [`try_await_`](crate::try_await_) returns the exit as an error, [`await_`](crate::await_) unwinds.
    /// Clean-up code that runs on the way may await, as long as no panic unwinds: return from the function with `?`.
    ///
    /// The future gives `Ok` if the function returned a value all the same, and otherwise the error that
    /// it ended with: the exit.
    ///
    /// # Panics
    ///
    /// As polling the spawn does.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::executor::block_on;
    /// use greenlet::{greenlet_spawn, try_await_};
    ///
    /// let mut spawned = greenlet_spawn(|| {
    ///     let waited = try_await_(std::future::pending::<()>());
    ///     // Clean-up may await:
    ///     try_await_(async { "goodbye sent" }).unwrap_or(if waited.is_err() { "no" } else { "never" })
    /// });
    /// block_on(async {
    ///     assert!(futures::poll!(&mut spawned).is_pending());
    ///     assert_eq!(spawned.cancel().await.unwrap(), "goodbye sent");
    /// });
    /// ```
    pub fn cancel(self) -> SpawnResult<T> {
        SpawnResult {
            spawn: self,
            cancels: true,
        }
    }

    /// The same future, but one that returns an error where polling this one panics because the
    /// function has no result: no stack could be had, switching is not possible here, or the function's
    /// greenlet was ended from elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{SpawnBuilder, StackError};
    ///
    /// let too_small = SpawnBuilder::new().stack_size(1).spawn(|| "never runs").into_result();
    /// let error = futures::executor::block_on(too_small).unwrap_err();
    /// assert!(error.is::<StackError>());
    /// ```
    pub fn into_result(self) -> SpawnResult<T> {
        SpawnResult {
            spawn: self,
            cancels: false,
        }
    }

    /// The greenlet that the function runs in.
    ///
    /// It is the driver that switches to it; do not. While it waits, that is refused.
    pub fn greenlet(&self) -> &Greenlet {
        &self.root
    }

    /// Whether to stop at each await before it is polled: see [`testing`](super::testing).
    pub(in crate::bridge) fn stop_at_awaits(&self, stops: bool) {
        self.driver.stops.set(stops);
        if stops {
            self.driver.in_place.set(false);
        }
    }

    /// How often something was awaited.
    pub(in crate::bridge) fn awaits(&self) -> u64 {
        self.driver.awaits.get()
    }

    /// Where it awaits.
    pub(in crate::bridge) fn awaits_at(&self) -> Option<&'static Location<'static>> {
        match &self.stage {
            Stage::Awaiting(waiter) => waiter.as_ref().unwrap_or(&self.root).parked_at(),
            Stage::New | Stage::Over => None,
        }
    }

    /// The greenlet that waits and its ancestors below the root; none if the root waits itself.
    ///
    /// They are ended one by one: one whose child is on its own stack is not ended by dropping its handle.
    fn lineage_of_waiter(&self) -> Vec<Greenlet> {
        let Stage::Awaiting(Some(waiter)) = &self.stage else {
            return Vec::new();
        };
        std::iter::successors(Some(waiter.clone()), Greenlet::parent)
            .take_while(|greenlet| *greenlet != self.root && !greenlet.is_main())
            .collect()
    }

    /// Makes the greenlet that polls the parent of the root, and the one that awaits switch to.
    #[inline]
    fn bind(&self) -> Result<(), ParentError> {
        if self.is_bound_to(Greenlet::is_current) {
            return Ok(());
        }
        self.bind_to(getcurrent())
    }

    /// Between polls the main greenlet is the parent: one that has polled is not kept alive.
    #[inline]
    fn unbind(&self) {
        if !self.is_bound_to(Greenlet::is_main) {
            // Refused only while main is kept suspended. Then the poller is kept alive.
            drop(self.bind_to(getmain()));
        }
    }

    #[inline]
    fn is_bound_to(&self, whom: impl FnOnce(&Greenlet) -> bool) -> bool {
        self.driver.poller.borrow().as_ref().is_some_and(whom)
    }

    #[cold]
    fn bind_to(&self, poller: Greenlet) -> Result<(), ParentError> {
        self.root.set_parent(&poller)?;
        // CAUTION: runs foreign code: it may end the previous poller.
        drop(self.driver.poller.replace(Some(poller)));
        Ok(())
    }

    /// Goes on with `turn`, and with what follows, until the function waits or has ended.
    ///
    /// All in one function, and it in the caller's: each return from here goes elsewhere than the processor predicts,
    /// because the function has left in the middle of other calls meanwhile.
    #[inline(always)]
    fn run(&mut self, turn: Turn, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // Should a panic come out of a switch, this is what is left.
        self.stage = Stage::Over;
        self.bind()?; // whoever polls may stand below the root, as long as that is pending
        self.driver.keep_waker(cx.waker());
        let mut last: Option<WeakGreenlet>; // who was resumed last, if not the root
        let mut next = Next::of(turn, &self.hooks);
        loop {
            let left = match next {
                Next::Root { is_ready } => {
                    last = None;
                    self.while_ready(is_ready, cx)
                }
                Next::Turn(turn) => {
                    last = match &turn {
                        Turn::Resume(Some(waiter)) => Some(waiter.downgrade()),
                        _ => None,
                    };
                    Left::By(self.enter(turn))
                }
            };
            let (waiter, polled) = match left {
                Left::Waits(polled) => (None, polled),
                Left::By(Ok(Event::Await(None))) => {
                    next = Next::Root { is_ready: false };
                    continue;
                }
                Left::By(Ok(Event::Await(Some(waiter)))) => {
                    // While it is polled, the one who waits is kept suspended, and so is what is below it.
                    // That is all there is to close, unless it is not the root.
                    self.root.close_gate();
                    let polled = self.poll_first(&waiter, cx);
                    (Some(waiter), polled)
                }
                Left::By(Ok(Event::Done(output))) if self.root.is_dead() => {
                    return Poll::Ready(Ok(self.finish(output)));
                }
                Left::By(other) => {
                    next = Next::Turn(self.after_surprise(other, last.take())?);
                    continue;
                }
            };
            next = Next::of(
                match polled {
                    Polled::Ready => Turn::Resume(waiter),
                    Polled::Pending => {
                        self.root.close_gate();
                        self.stage = Stage::Awaiting(waiter);
                        self.unbind();
                        return Poll::Pending;
                    }
                    // It was ended by what it awaits.
                    Polled::Gone => self.after_loss()?,
                },
                &self.hooks,
            );
        }
    }

    /// Lets the root go on for as long as what it awaits is ready; it awaits now, and this is ready where
    /// `is_ready`.
    ///
    /// It does what [`enter`](Spawn::enter) does, for the most frequent turn and without hooks.
    #[inline(always)] // see `run`
    fn while_ready(&mut self, mut is_ready: bool, cx: &mut Context<'_>) -> Left<T> {
        let (root, driver) = (&self.root, &*self.driver);
        loop {
            if !is_ready {
                let polled = self.poll_first(root, cx);
                if polled != Polled::Ready || !self.hooks.is_empty() {
                    return Left::Waits(polled);
                }
            }
            is_ready = false;
            root.open_gate();
            let running = driver.go();
            let event = root.switch::<Event<T>>(Ready);
            drop(running);
            match event {
                Ok(Event::Await(None)) => {}
                event => return Left::By(event),
            }
        }
    }

    /// Polls what `waiter` has just begun to await.
    #[inline]
    fn poll_first(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Polled {
        self.driver.awaits.set(self.driver.awaits.get() + 1);
        if self.driver.stops.get() || self.driver.is_polled.take() {
            return Polled::Pending;
        }
        self.driver.poll_request(waiter, cx)
    }

    /// Lets the function go on until it leaves; returns what comes from there.
    #[inline]
    fn enter(&mut self, turn: Turn) -> Result<Event<T>> {
        self.root.open_gate();
        let hooks = self.hooks.run(&self.root, turn.target());
        let running = self.driver.go();
        let event = match turn {
            Turn::Start => self.root.switch(()),
            Turn::Resume(None) => self.root.switch(Ready),
            Turn::Resume(Some(waiter)) => waiter.switch_owned(Ready),
            Turn::Exit(exit) => self.root.throw(exit),
            Turn::Stray(error, who) => who.as_ref().unwrap_or(&self.root).throw(error),
        };
        drop(running);
        hooks.end(match &event {
            Ok(Event::Await(waiter)) => waiter.as_ref(),
            _ => None,
        });
        event
    }

    #[inline]
    fn over(&mut self) {
        self.driver.phase.set(Phase::Over);
        self.driver.forget_waker();
        self.unbind();
        self.end_cancelled();
    }

    #[inline]
    fn end_cancelled(&mut self) {
        if !self.cancelled.is_empty() {
            self.end_cancelled_ones();
        }
    }

    #[cold]
    fn end_cancelled_ones(&mut self) {
        for greenlet in std::mem::take(&mut self.cancelled) {
            // CAUTION: runs foreign code.
            greenlet.end();
        }
    }

    /// Neither an await nor the end of the function arrived.
    #[cold]
    fn after_surprise(&mut self, event: Result<Event<T>>, last: Option<WeakGreenlet>) -> Result<Turn> {
        let error = match event {
            Ok(_) => Error::msg("an event of another driver"),
            Err(error) => error,
        };
        if self.root.is_active() {
            return Ok(stray(&error, last));
        }
        // The function is dead without a result, or could not be started.
        self.over();
        Err(ended_by(error))
    }

    /// The greenlet that waited was ended by somebody else.
    #[cold]
    fn after_loss(&mut self) -> Result<Turn> {
        if self.root.is_active() {
            let error = StrayMessage::new("the greenlet that waited was ended from outside".into());
            return Ok(Turn::Stray(error.into(), None));
        }
        self.over();
        Err(GreenletExit::with_reason("the spawned function was ended from outside").into())
    }

    /// The function has returned.
    #[inline]
    fn finish(&mut self, output: T) -> T {
        self.over();
        if self.require_await && self.driver.awaits.get() == 0 {
            panic!(
                "the function spawned at {} returned without awaiting anything: does it use a driver that \
                 blocks?",
                self.root.made_at()
            );
        }
        output
    }

    /// Polls what is awaited, and goes on if it is ready.
    #[inline]
    fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        may_switch()?; // while everything is as it was
        let turn = match &self.stage {
            Stage::New => Turn::Start,
            Stage::Over => panic!("a spawned function was polled after it had ended"),
            Stage::Awaiting(waiter) => {
                let polled = self
                    .driver
                    .poll_request(waiter.as_ref().unwrap_or(&self.root), cx);
                if polled == Polled::Pending {
                    return Poll::Pending;
                }
                match std::mem::replace(&mut self.stage, Stage::Over) {
                    Stage::Awaiting(waiter) if polled == Polled::Ready => Turn::Resume(waiter),
                    _ => self.after_loss()?,
                }
            }
        };
        self.run(turn, cx)
    }
}

/// The error that a greenlet ended with, which had no value to return.
#[cold]
fn ended_by(error: Error) -> Error {
    // An exit arrives as a value, which is not what was asked for.
    match error.downcast::<TypeMismatch>() {
        Ok(mismatch) => {
            let found = mismatch.found();
            match mismatch
                .into_value()
                .map(|value| value.downcast::<GreenletExit>())
            {
                Some(Ok(exit)) => exit.into(),
                _ => StrayMessage::new(format!("a value of type `{found}`")).into(),
            }
        }
        Err(error) => error,
    }
}

/// Something else than an await or the end arrived: whoever ran last is told.
#[cold]
fn stray(error: &Error, last: Option<WeakGreenlet>) -> Turn {
    let what = match error.downcast_ref::<TypeMismatch>() {
        Some(mismatch) => format!("a value of type `{}`", mismatch.found()),
        None => format!("an error: {error:#}"),
    };
    let last = last.and_then(|last| last.upgrade()).filter(Greenlet::is_active);
    Turn::Stray(StrayMessage::new(what).into(), last)
}

impl<T: 'static> Future for Spawn<T> {
    type Output = T;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.get_mut().poll_result(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(output)) => Poll::Ready(output),
            Poll::Ready(Err(error)) => ended_without_output(&error),
        }
    }
}

#[cold]
fn ended_without_output(error: &Error) -> ! {
    panic!("a spawned function was ended before it returned: {error:#}")
}

// Nothing is pinned in it: what is awaited stands on the greenlet's stack.
impl<T: 'static> Unpin for Spawn<T> {}

impl<T: 'static> Drop for Spawn<T> {
    fn drop(&mut self) {
        let is_over = self.driver.phase.replace(Phase::Over) == Phase::Over;
        self.end_cancelled();
        if is_over {
            return;
        }
        if self.root.is_dead() {
            self.driver.forget_waker();
            return;
        }
        // First what waits, then what it was called from, up to the root.
        let lineage = self.lineage_of_waiter();
        self.stage = Stage::Over;
        self.hooks.around_end(&self.root, || {
            for greenlet in lineage {
                // CAUTION: runs foreign code.
                greenlet.end();
            }
            self.root.end();
        });
        self.driver.forget_waker();
    }
}

impl<T: 'static> fmt::Debug for Spawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.stage {
            Stage::New => "not started",
            Stage::Awaiting(_) => "waiting",
            Stage::Over => "ended",
        };
        write!(f, "Spawn({state}, {:?})", self.root)
    }
}

/// The future of a spawned function that may end without a result: see [`Spawn::cancel`] and
/// [`Spawn::into_result`].
///
/// Dropping it before it is ready is dropping the spawn: the function is ended without further awaits.
#[must_use = "futures do nothing unless polled"]
pub struct SpawnResult<T: 'static> {
    spawn: Spawn<T>,
    /// The exit is yet to be thrown.
    cancels: bool,
}

impl<T: 'static> Future for SpawnResult<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = &mut *self;
        may_switch()?;
        if !std::mem::take(&mut this.cancels) {
            return this.spawn.poll_result(cx);
        }
        let exit = GreenletExit::with_reason("the spawn was cancelled");
        match this.spawn.stage {
            Stage::Over => panic!("a spawned function was cancelled after it had ended"),
            Stage::New => {
                this.spawn.stage = Stage::Over;
                this.spawn.over();
                // CAUTION: runs foreign code: drops the function unrun.
                this.spawn.root.end();
                Poll::Ready(Err(exit.into()))
            }
            Stage::Awaiting(_) => {
                this.spawn.cancelled = this.spawn.lineage_of_waiter();
                this.spawn.run(Turn::Exit(exit), cx)
            }
        }
    }
}

impl<T: 'static> Unpin for SpawnResult<T> {}

impl<T: 'static> fmt::Debug for SpawnResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spawn.fmt(f)
    }
}
