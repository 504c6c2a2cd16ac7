//! The poll loop of a spawned function.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::{Error, Result};
use greenlet_core::{
    AwaitInProgress, Builder, Greenlet, GreenletExit, ParentError, SwitchForbidden, ThreadExiting,
    TypeMismatch, Unwinding, WeakGreenlet, check_switch_allowed, getcurrent, getmain, raise, raw,
};

use crate::bridge::driver::{self, Await, CANCELLED, Done, Driver, Event, Phase, Polled, Ready};
use crate::bridge::error::StrayMessage;
use crate::bridge::hooks::Hooks;
use crate::bridge::nested_polls;

/// A spawned function with the state of its poll loop.
pub(super) struct Drive<T: 'static> {
    stage: Stage,
    root: Greenlet,
    driver: Rc<Driver>,
    result: PhantomData<fn() -> T>,
    require_await: bool,
    hooks: Hooks,
    /// Set if there are no hooks and the spawn was not cancelled.
    is_plain: bool,
    /// Set if the function has ended because an outer spawn was cancelled.
    pub(super) is_ended_from_outside: bool,
    /// The greenlets that waited when the spawn was cancelled. They are ended after the function.
    cancelled: Vec<Greenlet>,
}

enum Stage {
    New,
    /// The greenlet waits for a future. `None` is the root.
    Waiting(Option<Greenlet>),
    Over,
}

/// A way to resume the function.
enum Action {
    /// Start the function.
    Start,
    /// Resume the greenlet whose future is ready. `None` is the root.
    Resume(Option<Greenlet>),
    /// Throw the exit of a cancel at the root.
    Cancel(GreenletExit),
    /// Throw the error of a stray message at the greenlet that was resumed last. `None` is the
    /// root.
    Stray(Error, Option<Greenlet>),
}

impl Action {
    /// Returns the greenlet that is resumed, if it is not the root.
    fn target(&self) -> Option<&Greenlet> {
        match self {
            Action::Start | Action::Cancel(_) => None,
            Action::Resume(greenlet) | Action::Stray(_, greenlet) => greenlet.as_ref(),
        }
    }
}

impl<T: 'static> Drive<T> {
    #[track_caller]
    #[inline]
    pub(super) fn new(
        greenlet: Builder,
        function: impl FnOnce() -> T + 'static,
        in_place: bool,
        require_await: bool,
        hooks: Hooks,
    ) -> Drive<T> {
        // Main is the parent before the first poll and between polls: see `unbind`.
        let main = getmain();
        let root = greenlet.parent(&main).build(move |(): ()| Ok(Done(function())));
        let driver = Driver::attach(&root, main);
        driver.in_place.set(in_place);
        Drive {
            stage: Stage::New,
            root,
            driver,
            result: PhantomData,
            require_await,
            is_plain: hooks.is_empty(),
            hooks,
            is_ended_from_outside: false,
            cancelled: Vec::new(),
        }
    }

    pub(super) fn root(&self) -> &Greenlet {
        &self.root
    }

    pub(super) fn stop_at_awaits(&self, stops: bool) {
        self.driver.stops.set(stops);
        if stops {
            self.driver.in_place.set(false);
        }
    }

    pub(super) fn awaits(&self) -> u64 {
        self.driver.awaits.get()
    }

    pub(super) fn awaits_at(&self) -> Option<&'static Location<'static>> {
        match &self.stage {
            Stage::Waiting(waiter) => waiter.as_ref().unwrap_or(&self.root).suspended_at(),
            Stage::New | Stage::Over => None,
        }
    }

    /// Polls the awaited future, and resumes the function if that is ready.
    #[inline(always)] // nested polls have one frame less each
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // Refuse before anything has changed.
        check_switch_allowed()?;
        let _polled = self.driver.enter_poll()?;
        if nested_polls::is_cancelled_from_outside(cx) {
            return self.clean_up_nested(cx);
        }
        self.poll_ordinary(cx)
    }

    /// Polls a spawn that is not being cancelled from outside. Not inlined: the polls of nested
    /// clean-up would keep its frame.
    #[inline(never)]
    fn poll_ordinary(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if nested_polls::has_stops() {
            self.driver.stops.set(true);
        }
        let action = match &self.stage {
            Stage::New => Action::Start,
            Stage::Over if self.is_ended_from_outside => return Poll::Ready(Err(cancelled())),
            Stage::Over => panic!("a spawned function was polled after it had ended"),
            Stage::Waiting(_) => match self.poll_waiter(cx) {
                Polled::Pending => return self.pending(),
                polled => match std::mem::replace(&mut self.stage, Stage::Over) {
                    Stage::Waiting(waiter) if polled == Polled::Ready => Action::Resume(waiter),
                    _ => self.waiter_gone()?,
                },
            },
        };
        self.run(action, cx)
    }

    /// Returns `Pending` to the executor.
    #[inline]
    fn pending(&self) -> Poll<Result<T>> {
        self.note_pending();
        Poll::Pending
    }

    #[inline]
    fn note_pending(&self) {
        self.driver.phase.set(Phase::Suspended);
        driver::note_pending_spawn();
    }

    /// Polls the future that the function waits for.
    // In a debug build, nested polls have one frame less each. In a release build they would keep more.
    #[cfg_attr(debug_assertions, inline(always))]
    #[cfg_attr(not(debug_assertions), inline)]
    fn poll_waiter(&mut self, cx: &mut Context<'_>) -> Polled {
        let Stage::Waiting(waiter) = &self.stage else {
            return Polled::Withdrawn;
        };
        self.driver.phase.set(Phase::Polling);
        let waiter = waiter.as_ref().unwrap_or(&self.root);
        let polled = self.driver.poll_again(waiter, cx);
        if polled == Polled::ToEnd {
            return self.end_waiting(cx);
        }
        polled
    }

    /// Ends the greenlet that waits, as its awaited future has asked for.
    #[cold]
    #[inline(never)]
    fn end_waiting(&mut self, cx: &mut Context<'_>) -> Polled {
        let waiter = match &self.stage {
            Stage::Waiting(Some(waiter)) => waiter.clone(),
            _ => self.root.clone(),
        };
        self.end_waiter(waiter, cx)
    }

    /// Ends `waiter`, which has posted a future.
    #[cold]
    fn end_waiter(&mut self, waiter: Greenlet, cx: &mut Context<'_>) -> Polled {
        self.driver.phase.set(Phase::Suspended);
        self.hooks.around_end(&self.root, || waiter.end());
        if !self.driver.has_request() {
            return Polled::Withdrawn;
        }
        // It could not be ended, and still waits.
        cx.waker().wake_by_ref();
        Polled::Pending
    }

    /// Throws an exit into the function, and lets it run until it waits or has ended. First does the
    /// same to the spawns that the function awaits, until they have ended.
    pub(super) fn cancel(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if self.driver.is_cancelled.get() {
            return self.poll(cx);
        }
        match self.stage {
            Stage::Over => Poll::Ready(Err(GreenletExit::with_reason(
                "the spawned function had ended before it was cancelled",
            )
            .into())),
            Stage::New => {
                self.driver.is_cancelled.set(true);
                self.end_function();
                Poll::Ready(Err(cancelled()))
            }
            Stage::Waiting(_) => {
                let has_nested = self.driver.has_nested.get();
                if has_nested && nested_polls::cancel_nested(cx, |cx| self.poll_waiter(cx) == Polled::Pending)
                {
                    return self.pending();
                }
                self.throw_cancel(cx)
            }
        }
    }

    /// Throws the exit of a cancel. Not inlined, as [`poll_ordinary`](Drive::poll_ordinary).
    #[cold]
    #[inline(never)]
    fn throw_cancel(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        self.driver.is_cancelled.set(true);
        self.driver.in_place.set(false);
        self.is_plain = false;
        self.cancelled = self.lineage_of_waiter();
        self.run(Action::Cancel(GreenletExit::with_reason(CANCELLED)), cx)
    }

    /// Cancels the function, because the spawn that awaits this one was cancelled, or polls its
    /// clean-up.
    #[cold]
    fn clean_up_nested(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if self.is_ended_from_outside {
            return Poll::Ready(Err(cancelled()));
        }
        let polled = nested_polls::clean_up_nested(|| self.cancel(cx), Poll::is_pending);
        self.is_ended_from_outside = matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    /// Resumes the function, again and again, until it waits for a pending future or has ended.
    ///
    /// Inlined with all that it calls on the common path: the processor mispredicts each return
    /// that it executes after a switch. Split into functions, a poll takes twice as long.
    #[inline(always)]
    fn run(&mut self, mut action: Action, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // The stage that remains if a panic propagates out of a switch.
        self.stage = Stage::Over;
        // Fails if the poller is a descendant of a root that has not started, or if the root was
        // moved below a greenlet that awaits.
        self.bind()?;
        self.driver.keep_waker(cx.waker());
        loop {
            // The greenlet that gets the error of a stray message.
            let mut last = None;
            let mut event = self.resume_by(action, &mut last);
            let (polled, waiter) = 'waits: loop {
                match event {
                    Ok(Event::First(Await(None))) if self.is_plain && self.driver.polls_at_once() => {
                        last = None;
                        // Without building an action: an await of a ready future takes 22 ns
                        // instead of 30.
                        event = loop {
                            let polled = self.driver.poll_request(true, &self.root, cx);
                            if polled != Polled::Ready {
                                break 'waits (polled, None);
                            }
                            match self.resume_root() {
                                Ok(Event::First(Await(None))) => {}
                                other => break other,
                            }
                        };
                    }
                    Ok(Event::First(Await(None))) => break (self.driver.poll_first(&self.root, cx), None),
                    Ok(Event::First(Await(Some(waiter)))) => {
                        break (self.poll_below(&waiter, cx)?, Some(waiter));
                    }
                    Ok(Event::Second(Done(output))) if self.root.is_dead() => {
                        return Poll::Ready(Ok(self.finish(output)));
                    }
                    other => event = self.after_unexpected(other, last.take())?,
                }
            };
            action = match self.act_on(polled, waiter, cx) {
                Some(action) => action?,
                None => return Poll::Pending,
            };
        }
    }

    /// Resumes the function. Stores the greenlet that gets the error of a stray message in `last`;
    /// `None` is the root.
    #[cfg_attr(not(debug_assertions), inline(always))] // see `resume_root`
    fn resume_by(&mut self, action: Action, last: &mut Option<WeakGreenlet>) -> Result<Event<T>> {
        *last = match &action {
            Action::Resume(Some(waiter)) => Some(waiter.downgrade()),
            _ => None,
        };
        match action {
            Action::Resume(None) if self.is_plain => {
                raw::unlock(&self.root);
                self.resume_root()
            }
            action => self.resume(action),
        }
    }

    /// Resumes the function after a message that is neither an await nor its end.
    #[cold]
    fn after_unexpected(
        &mut self,
        event: Result<Event<T>>,
        last: Option<WeakGreenlet>,
    ) -> Result<Result<Event<T>>> {
        let action = self.unexpected_message(event, last)?;
        Ok(self.resume(action))
    }

    /// Decides what follows the first poll of a future. `None` means that the future is pending.
    #[cfg_attr(not(debug_assertions), inline(always))] // see `resume_root`
    fn act_on(
        &mut self,
        mut polled: Polled,
        waiter: Option<Greenlet>,
        cx: &mut Context<'_>,
    ) -> Option<Result<Action>> {
        if polled == Polled::ToEnd {
            polled = self.end_waiter(waiter.as_ref().unwrap_or(&self.root).clone(), cx);
        }
        match polled {
            Polled::Ready => Some(Ok(Action::Resume(waiter))),
            Polled::Pending => {
                if let Err(error) = self.lock_root() {
                    return Some(Err(error.into()));
                }
                self.stage = Stage::Waiting(waiter);
                self.unbind();
                self.note_pending();
                self.call_pending_hooks();
                None
            }
            Polled::Withdrawn | Polled::ToEnd => Some(self.waiter_gone()),
        }
    }

    /// Does what [`resume`](Drive::resume) does for `Action::Resume(None)` without hooks, if the
    /// root is not locked: the most frequent case.
    ///
    /// Inlined as [`run`](Drive::run), except in a debug build: there its temporaries would be on the
    /// stack of each nested poll.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn resume_root(&self) -> Result<Event<T>> {
        let running = self.driver.enter_running();
        let event = raw::switch_either(&self.root, Ready);
        drop(running);
        event
    }

    #[inline]
    fn call_pending_hooks(&mut self) {
        if let (Stage::Waiting(waiter), false) = (&self.stage, self.hooks.is_empty()) {
            self.hooks.pending(waiter.as_ref().unwrap_or(&self.root));
        }
    }

    /// Polls a future that a greenlet below the root has just posted.
    #[inline(never)]
    fn poll_below(&self, waiter: &Greenlet, cx: &mut Context<'_>) -> Result<Polled, ParentError> {
        // The poll keeps only the waiter suspended. The lock keeps other code out of the root.
        self.lock_root()?;
        Ok(self.driver.poll_first(waiter, cx))
    }

    /// Resumes the function. Returns the message with which it leaves.
    #[inline]
    fn resume(&mut self, action: Action) -> Result<Event<T>> {
        raw::unlock(&self.root);
        let has_hooks = !self.hooks.is_empty();
        let hooks = has_hooks.then(|| self.hooks.run(&self.root, action.target()));
        let running = self.driver.enter_running_or_ending();
        let event = match action {
            Action::Start => raw::switch_either(&self.root, ()),
            Action::Resume(None) => raw::switch_either(&self.root, Ready),
            Action::Resume(Some(waiter)) => raw::switch_owned_either(waiter, Ready),
            Action::Cancel(exit) => self.root.throw(exit).and_then(Event::from_value),
            Action::Stray(error, last) => {
                let target = last.as_ref().unwrap_or(&self.root);
                target.throw(error).and_then(Event::from_value)
            }
        };
        drop(running);
        if let Some(hooks) = hooks {
            hooks.end(match &event {
                Ok(Event::First(Await(waiter))) => waiter.as_ref(),
                _ => None,
            });
        }
        event
    }

    /// Returns the greenlet that waits and its ancestors below the root. Empty if the root itself
    /// waits.
    ///
    /// Each of them must be ended explicitly: a child on the stack of its parent keeps a handle of
    /// it.
    fn lineage_of_waiter(&self) -> Vec<Greenlet> {
        let Stage::Waiting(Some(waiter)) = &self.stage else {
            return Vec::new();
        };
        std::iter::successors(Some(waiter.clone()), Greenlet::parent)
            .take_while(|greenlet| *greenlet != self.root && !greenlet.is_main())
            .collect()
    }

    /// Makes the running greenlet the poller: the parent of the root, and the target of awaits.
    #[inline]
    fn bind(&self) -> Result<(), ParentError> {
        if self.driver.poller.is_current() && raw::is_child_of_current(&self.root) {
            return Ok(());
        }
        self.bind_to(getcurrent())
    }

    /// Makes the main greenlet the poller between polls, so that no other poller is kept alive.
    #[inline]
    fn unbind(&self) {
        if !self.driver.poller.is_main() {
            // Refused only while main is kept suspended. The poller stays alive then.
            drop(self.bind_to(getmain()));
        }
    }

    /// Keeps other code than this driver out of the root. Fails, as [`bind`](Drive::bind) does, if
    /// the poller is below the root: a greenlet of the function may have ended the poller.
    #[inline]
    fn lock_root(&self) -> Result<(), ParentError> {
        match raw::lock_for_await(&self.root) {
            true => Ok(()),
            false => self.bind_to(getcurrent()),
        }
    }

    #[cold]
    fn bind_to(&self, poller: Greenlet) -> Result<(), ParentError> {
        self.root.set_parent(&poller)?;
        // CAUTION: runs arbitrary user code: it may end the previous poller.
        drop(self.driver.poller.replace(poller));
        Ok(())
    }

    #[inline]
    fn shut_down(&mut self) {
        self.driver.phase.set(Phase::Over);
        self.driver.forget_waker();
        self.unbind();
        self.end_cancelled();
    }

    #[inline]
    fn end_cancelled(&mut self) {
        if !self.cancelled.is_empty() {
            self.end_cancelled_slow();
        }
    }

    #[cold]
    fn end_cancelled_slow(&mut self) {
        let cancelled = std::mem::take(&mut self.cancelled);
        self.hooks.around_end(&self.root, || end_all(cancelled));
    }

    /// Ends the function, or lets it end as soon as that is possible. Its hooks run around the end.
    #[cold]
    fn end_function(&mut self) {
        self.driver.phase.set(Phase::Over);
        // First the greenlet that waits, then its ancestors up to the root.
        let mut ended = self.lineage_of_waiter();
        ended.append(&mut self.cancelled);
        self.stage = Stage::Over;
        self.unbind();
        let root = self.root.clone();
        if ended.is_empty() && self.hooks.is_empty() {
            // CAUTION: runs arbitrary user code.
            root.end();
            self.driver.forget_waker();
            return;
        }
        let mut hooks = std::mem::take(&mut self.hooks);
        let driver = Rc::clone(&self.driver);
        raw::end_or_defer(&self.root, move || {
            ended.push(root.clone());
            hooks.around_end(&root, || end_all(ended));
            driver.forget_waker();
        });
    }

    /// Handles a message that is neither an await nor the end of the function.
    #[cold]
    fn unexpected_message(&mut self, event: Result<Event<T>>, last: Option<WeakGreenlet>) -> Result<Action> {
        let error = match event {
            Ok(_) => Error::msg("an event of another driver"),
            Err(error) => error,
        };
        if self.root.is_active() {
            let is_refusal = is_refusal(&error);
            // The exit of the poller, from code that ends or kills it.
            let is_exit = GreenletExit::in_error(&error).is_some() && !getcurrent().is_main();
            if !is_refusal && !is_exit {
                return Ok(stray(&error, last));
            }
            self.end_function();
            if is_exit {
                raise(error);
            }
            return Err(error);
        }
        // The function has died without a result, or could not be started.
        self.shut_down();
        Err(ended_by(error))
    }

    /// Handles a waiter that does not wait any more, because it was ended from outside.
    #[cold]
    fn waiter_gone(&mut self) -> Result<Action> {
        if self.driver.gives_up() {
            self.end_function();
            return Err(cancelled());
        }
        if self.root.is_active() {
            let error = StrayMessage::new("the greenlet that waited was ended from outside".into());
            return Ok(Action::Stray(error.into(), None));
        }
        self.shut_down();
        Err(GreenletExit::with_reason("the spawned function was ended from outside").into())
    }

    /// Shuts down after the function has returned.
    #[inline]
    fn finish(&mut self, output: T) -> T {
        self.shut_down();
        if self.require_await && self.driver.awaits.get() == 0 {
            panic!(
                "the function spawned at {} returned without awaiting anything: check whether it uses a \
                 driver that blocks",
                self.root.created_at()
            );
        }
        output
    }
}

fn end_all(greenlets: Vec<Greenlet>) {
    for greenlet in greenlets {
        // CAUTION: runs arbitrary user code.
        greenlet.end();
    }
}

fn cancelled() -> Error {
    GreenletExit::with_reason(CANCELLED).into()
}

/// Returns `true` if a switch to the function was refused: nothing has been delivered to it.
fn is_refusal(error: &Error) -> bool {
    error.is::<AwaitInProgress>()
        || error.is::<SwitchForbidden>()
        || error.is::<Unwinding>()
        || error.is::<ThreadExiting>()
}

/// Returns the error with which the root has ended.
#[cold]
fn ended_by(error: Error) -> Error {
    // An exit arrives as a value, so the switch reports it as a mismatch.
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

/// Returns the action that reports a stray message to the greenlet that was resumed last.
#[cold]
fn stray(error: &Error, last: Option<WeakGreenlet>) -> Action {
    let what = match error.downcast_ref::<TypeMismatch>() {
        Some(mismatch) => format!("a value of type `{}`", mismatch.found()),
        None => format!("an error: {error:#}"),
    };
    let last = last.and_then(|last| last.upgrade()).filter(Greenlet::is_active);
    Action::Stray(StrayMessage::new(what).into(), last)
}

impl<T: 'static> Drop for Drive<T> {
    fn drop(&mut self) {
        if self.driver.phase.get() == Phase::Over {
            return;
        }
        match self.root.is_dead() {
            true => self.shut_down(),
            false => self.end_function(),
        }
    }
}

impl<T: 'static> fmt::Debug for Drive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.stage {
            Stage::New => "not started",
            Stage::Waiting(_) => "waiting",
            Stage::Over => "ended",
        };
        write!(f, "Spawn({state}, {:?})", self.root)
    }
}
