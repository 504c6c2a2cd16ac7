//! The loop that runs a spawned function from await to await.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::{Error, Result};
use greenlet_core::{
    Builder, Greenlet, GreenletExit, ParentError, TypeMismatch, WeakGreenlet, getcurrent, getmain, may_switch,
};

use crate::bridge::driver::{Driver, Event, Phase, Polled, Ready};
use crate::bridge::error::StrayMessage;
use crate::bridge::hooks::Hooks;

/// A spawned function, and what drives it.
pub(super) struct Drive<T: 'static> {
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

/// How the function is resumed.
enum Action {
    Start,
    /// The future is ready: resume the greenlet that waits for it; `None` means the root.
    Resume(Option<Greenlet>),
    /// Throw the exit of a cancel at the root.
    Cancel(GreenletExit),
    /// Something else than an event arrived: throw the error at the greenlet that was resumed last; `None` means the root.
    Stray(Error, Option<Greenlet>),
}

impl Action {
    /// The greenlet that is resumed, if it is not the root.
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
        // Between polls, and before the first, main is the parent: see `unbind`.
        let main = getmain();
        let root = greenlet
            .parent(&main)
            .build(move |(): ()| Ok(Event::Done(function())));
        let driver = Rc::new(Driver::new::<T>(main));
        driver.in_place.set(in_place);
        root.attach(Rc::clone(&driver));
        Drive {
            stage: Stage::New,
            root,
            driver,
            result: PhantomData,
            require_await,
            hooks,
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
            Stage::Awaiting(waiter) => waiter.as_ref().unwrap_or(&self.root).parked_at(),
            Stage::New | Stage::Over => None,
        }
    }

    /// Polls what is awaited, and resumes the function if that is ready.
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        may_switch()?; // while everything is as it was
        let action = match &self.stage {
            Stage::New => Action::Start,
            Stage::Over => panic!("a spawned function was polled after it had ended"),
            Stage::Awaiting(waiter) => {
                let polled = self
                    .driver
                    .poll_request(waiter.as_ref().unwrap_or(&self.root), cx);
                if polled == Polled::Pending {
                    return Poll::Pending;
                }
                match std::mem::replace(&mut self.stage, Stage::Over) {
                    Stage::Awaiting(waiter) if polled == Polled::Ready => Action::Resume(waiter),
                    _ => self.waiter_gone()?,
                }
            }
        };
        self.run(action, cx)
    }

    /// Throws an exit into the function, and lets it clean up.
    pub(super) fn cancel(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let exit = GreenletExit::with_reason("the spawn was cancelled");
        match self.stage {
            Stage::Over => panic!("a spawned function was cancelled after it had ended"),
            Stage::New => {
                self.stage = Stage::Over;
                self.shut_down();
                // CAUTION: runs foreign code: drops the function unrun.
                self.root.end();
                Poll::Ready(Err(exit.into()))
            }
            Stage::Awaiting(_) => {
                self.cancelled = self.lineage_of_waiter();
                self.run(Action::Cancel(exit), cx)
            }
        }
    }

    /// Resumes the function, and what follows, until it waits or has ended.
    ///
    /// All in one function, and it in the caller's: each return from here goes elsewhere than the processor predicts,
    /// because the function has left in the middle of other calls meanwhile.
    #[inline(always)]
    fn run(&mut self, mut action: Action, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // Should a panic come out of a switch, this is what is left.
        self.stage = Stage::Over;
        self.bind()?; // whoever polls may stand below the root, as long as that is pending
        self.driver.keep_waker(cx.waker());
        loop {
            // The greenlet that is told of a stray message.
            let mut last = match &action {
                Action::Resume(Some(waiter)) => Some(waiter.downgrade()),
                _ => None,
            };
            let mut event = match action {
                Action::Resume(None) if self.hooks.is_empty() => self.resume_root(),
                action => self.resume(action),
            };
            let (waiter, polled) = loop {
                match event {
                    Ok(Event::Await(None)) => {
                        let polled = self.poll_first(&self.root, cx);
                        if polled != Polled::Ready || !self.hooks.is_empty() {
                            break (None, polled);
                        }
                        // Not by way of an action: saves a third of such an await, 21 ns instead of 30.
                        last = None;
                        event = self.resume_root();
                    }
                    Ok(Event::Await(Some(waiter))) => {
                        // Only the greenlet that waits is kept suspended while it is polled.
                        self.root.close_gate();
                        let polled = self.poll_first(&waiter, cx);
                        break (Some(waiter), polled);
                    }
                    Ok(Event::Done(output)) if self.root.is_dead() => {
                        return Poll::Ready(Ok(self.finish(output)));
                    }
                    other => {
                        let action = self.after_surprise(other, last.take())?;
                        event = self.resume(action);
                    }
                }
            };
            action = match polled {
                Polled::Ready => Action::Resume(waiter),
                Polled::Pending => {
                    self.root.close_gate();
                    self.stage = Stage::Awaiting(waiter);
                    self.unbind();
                    return Poll::Pending;
                }
                Polled::Withdrawn => self.waiter_gone()?,
            };
        }
    }

    /// Does what [`resume`](Drive::resume) does, for the most frequent action and without hooks.
    #[inline(always)] // see `run`
    fn resume_root(&self) -> Result<Event<T>> {
        self.root.open_gate();
        let running = self.driver.enter_running();
        let event = self.root.switch(Ready);
        drop(running);
        event
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

    /// Lets the function run until it leaves; returns what comes from there.
    #[inline]
    fn resume(&mut self, action: Action) -> Result<Event<T>> {
        self.root.open_gate();
        let hooks = self.hooks.run(&self.root, action.target());
        let running = self.driver.enter_running();
        let event = match action {
            Action::Start => self.root.switch(()),
            Action::Resume(None) => self.root.switch(Ready),
            Action::Resume(Some(waiter)) => waiter.switch_owned(Ready),
            Action::Cancel(exit) => self.root.throw(exit),
            Action::Stray(error, last) => last.as_ref().unwrap_or(&self.root).throw(error),
        };
        drop(running);
        hooks.end(match &event {
            Ok(Event::Await(waiter)) => waiter.as_ref(),
            _ => None,
        });
        event
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
    fn after_surprise(&mut self, event: Result<Event<T>>, last: Option<WeakGreenlet>) -> Result<Action> {
        let error = match event {
            Ok(_) => Error::msg("an event of another driver"),
            Err(error) => error,
        };
        if self.root.is_active() {
            return Ok(stray(&error, last));
        }
        // The function is dead without a result, or could not be started.
        self.shut_down();
        Err(ended_by(error))
    }

    /// The greenlet that waited was ended by somebody else.
    #[cold]
    fn waiter_gone(&mut self) -> Result<Action> {
        if self.root.is_active() {
            let error = StrayMessage::new("the greenlet that waited was ended from outside".into());
            return Ok(Action::Stray(error.into(), None));
        }
        self.shut_down();
        Err(GreenletExit::with_reason("the spawned function was ended from outside").into())
    }

    /// The function has returned.
    #[inline]
    fn finish(&mut self, output: T) -> T {
        self.shut_down();
        if self.require_await && self.driver.awaits.get() == 0 {
            panic!(
                "the function spawned at {} returned without awaiting anything: does it use a driver that \
                 blocks?",
                self.root.made_at()
            );
        }
        output
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

impl<T: 'static> fmt::Debug for Drive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.stage {
            Stage::New => "not started",
            Stage::Awaiting(_) => "waiting",
            Stage::Over => "ended",
        };
        write!(f, "Spawn({state}, {:?})", self.root)
    }
}
