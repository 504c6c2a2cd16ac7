//! The handle of a greenlet, and everything that can be done with it.

pub(crate) mod all_threads;
pub(crate) mod await_lock;
pub(crate) mod backtrace;
pub(crate) mod builder;
pub(crate) mod introspect;
pub(crate) mod local;
pub(crate) mod no_switch;

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::ManuallyDrop;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::rc::Rc;

use anyhow::{Error, Result};

use crate::greenlet::builder::Builder;
use crate::node::Inner;
pub use crate::node::handle::Greenlet;
use crate::node::rc::InnerWeak;
use crate::node::status::State;
use crate::payload::Payload;
use crate::payload::error::ParentError;
use crate::payload::exit::{GreenletExit, reason};
use crate::payload::value::Value;
use crate::switch;
use crate::switch::receive;
use crate::switch::teardown;
use crate::thread::{self, Deferred, ThreadState};

impl Greenlet {
    /// Makes a greenlet that will run `function`. Its parent is the running greenlet.
    ///
    /// Nothing runs yet, and no stack is taken. The first [`switch`](Greenlet::switch) passes the
    /// function's argument.
    #[track_caller]
    #[inline]
    pub fn new<A, R, F>(function: F) -> Greenlet
    where
        A: 'static,
        R: 'static,
        F: FnOnce(A) -> Result<R> + 'static,
    {
        Builder::new().build(function)
    }

    /// Makes a greenlet with a name, a stack size or a parent of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::Greenlet;
    ///
    /// let worker = Greenlet::builder()
    ///     .name("worker")
    ///     .stack_size(1 << 20)
    ///     .build(|(): ()| Ok("done"));
    /// assert_eq!(worker.name(), Some("worker"));
    /// assert_eq!(worker.switch::<&str>(())?, "done");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Switches to this greenlet with a value, and returns what is next sent to the caller.
    ///
    /// A pending greenlet is started with the value. A suspended one gets it as the result of the switch
    /// that it is suspended in. If the greenlet is dead, the value goes to its nearest ancestor that is
    /// not; if that is the caller, or if the caller switches to itself, the value comes right back.
    ///
    /// The result need not come from this greenlet: it is whatever is next sent to the caller, by anyone.
    /// Nothing is allocated, and the value is moved once.
    ///
    /// # Errors
    ///
    /// - What is thrown at the caller while it is suspended, and what a child's function returns as `Err`
    ///   when it ends.
    /// - [`TypeMismatch`](crate::TypeMismatch) if what arrives is not an `R`; it has the value.
    ///   Ask for a [`Value`] to take anything. A greenlet that ended by exit sends a [`GreenletExit`].
    /// - A refused switch: [`TypeMismatch`](crate::TypeMismatch) for a pending greenlet that takes
    ///   another type, [`StackError`](crate::StackError), [`AwaitInProgress`](crate::AwaitInProgress),
    ///   [`Unwinding`](crate::Unwinding), [`SwitchForbidden`](crate::SwitchForbidden),
    ///   [`ThreadExiting`](crate::ThreadExiting). Nothing has changed then, and the error has the value.
    ///
    /// # Panics
    ///
    /// A panic that leaves a greenlet's function goes on in its parent, out of the parent's `switch`.
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn switch<R: 'static>(&self, value: impl Sized + 'static) -> Result<R> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        switch::switch_to(&self.inner, &mut value, at)
    }

    /// Switches to this greenlet as [`switch`](Greenlet::switch) does, and lets go of the handle: when
    /// the greenlet runs, this handle is gone.
    ///
    /// `switch` holds its handle until it returns. Use this where the caller may stay suspended for long
    /// and must not keep the greenlet alive meanwhile. Where the switch starts a pending greenlet, or takes
    /// one of the rare paths (a tracer is installed, say), the handle is held until the switch returns, as by `switch`.
    ///
    /// # Errors, Panics
    ///
    /// As for [`switch`](Greenlet::switch). If the switch is refused, the handle is dropped all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::Greenlet;
    ///
    /// let once = Greenlet::new(|n: u32| Ok(n + 1));
    /// assert_eq!(once.switch_owned::<u32>(1_u32)?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn switch_owned<R: 'static>(self, value: impl Sized + 'static) -> Result<R> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        let payload = Payload::new(&mut value);
        receive::receive(switch::switch_to_owned(self, payload, at)?)
    }

    /// Switches to the greenlet whose handle is in `place`, as [`switch`](Greenlet::switch) does; no handle
    /// is made for that, nor is `place` borrowed meanwhile: it may be emptied, and the greenlet may end, before
    /// control comes back. `at` is where the caller says it is parked.
    ///
    /// # Errors
    ///
    /// The outer error says why the caller may not switch ([`check_switch_allowed`](crate::check_switch_allowed)): nothing has moved then, and
    /// the value is dropped. The inner ones are as for [`switch`](Greenlet::switch).
    ///
    /// # Panics
    ///
    /// As [`switch`](Greenlet::switch); also if `place` is empty, or mutably borrowed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::RefCell;
    /// use std::panic::Location;
    /// use greenlet_core::{Greenlet, no_switch};
    ///
    /// let place = RefCell::new(Some(Greenlet::new(|n: u32| Ok(n + 1))));
    /// let at = Location::caller();
    /// assert!(no_switch(|| Greenlet::switch_in::<u32>(&place, 1_u32, at)).is_err());
    /// assert_eq!(Greenlet::switch_in::<u32>(&place, 1_u32, at)??, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn switch_in<R: 'static>(
        place: &RefCell<Option<Greenlet>>,
        value: impl Sized + 'static,
        at: &'static Location<'static>,
    ) -> Result<Result<R>> {
        let mut value = ManuallyDrop::new(value);
        match switch::try_switch_in(place, &mut value, at) {
            Ok(back) => Ok(receive::receive(back)),
            Err(unsent) => Ok(Greenlet::switch_in_slow(place, unsent, at)?.and_then(receive::receive)),
        }
    }

    /// Switches from the running greenlet to the parent of this one with a value, and returns what is
    /// next sent to the caller.
    ///
    /// The same as switching to [`parent()`](Greenlet::parent), but no handle of the parent is made.
    ///
    /// # Errors, Panics
    ///
    /// As for [`switch`](Greenlet::switch); also [`ParentError`](crate::ParentError) if this is the main greenlet, which has
    /// no parent.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getcurrent};
    ///
    /// let child = Greenlet::new(|(): ()| getcurrent().switch_to_parent::<u32>("a number, please"));
    /// assert_eq!(child.switch::<&str>(())?, "a number, please");
    /// assert_eq!(child.switch::<u32>(5_u32)?, 5);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn switch_to_parent<R: 'static>(&self, value: impl Sized + 'static) -> Result<R> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        let back = match switch::try_switch_to_parent(&self.inner, &mut value, at) {
            Ok(back) => back,
            Err(unsent) => switch::switch_to_parent_slow(&self.inner, unsent, at)?,
        };
        receive::receive(back)
    }

    #[cold]
    #[inline(never)]
    fn switch_in_slow(
        place: &RefCell<Option<Greenlet>>,
        unsent: Payload,
        at: &'static Location<'static>,
    ) -> Result<Result<Payload>> {
        if let Err(refused) = switch::check_switch_allowed() {
            drop(unsent.into_value());
            return Err(refused);
        }
        let target = place.borrow().clone().expect("`place` has a greenlet");
        Ok(switch::switch_to_owned(target, unsent, at))
    }

    /// Throws an error at this greenlet, and returns what is next sent to the caller.
    ///
    /// A suspended greenlet gets it as `Err` from the switch that it is suspended in. A pending one dies
    /// without running, and the error goes on to its parent. Thrown at a dead one, it goes to its nearest
    /// living ancestor; at the caller itself, it is returned at once.
    ///
    /// A [`GreenletExit`] that reaches the end of a greenlet, or a dead one, is eaten there and goes on
    /// as an ordinary value.
    ///
    /// # Errors, Panics
    ///
    /// As for [`switch`](Greenlet::switch). An error that says that the throw was refused has the error
    /// that was to be thrown, as a [`Value`].
    ///
    /// # Examples
    ///
    /// ```
    /// use anyhow::anyhow;
    /// use greenlet_core::{Greenlet, getparent};
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     let reply = getparent().unwrap().switch::<&str>(());
    ///     Ok(reply.unwrap_or("it failed")) // `except`
    /// });
    /// child.switch::<()>(())?;
    /// assert_eq!(child.throw::<&str>(anyhow!("no more data"))?, "it failed");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn throw<R: 'static>(&self, error: impl Into<Error>) -> Result<R> {
        let at = Location::caller();
        receive::receive(switch::throw(&self.inner, error.into(), at)?)
    }

    /// Throws a [`GreenletExit`] at this greenlet: `throw()` without arguments in Python.
    ///
    /// If the greenlet lets it through, its parent gets the exit as a value; where the parent is the
    /// caller, this returns it.
    ///
    /// # Errors, Panics
    ///
    /// As for [`throw`](Greenlet::throw).
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getparent};
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     getparent().unwrap().switch::<()>(())?; // `?` lets the exit through
    ///     Ok("not reached")
    /// });
    /// child.switch::<()>(())?;
    /// assert!(child.kill()?.is_exit());
    /// assert!(child.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn kill(&self) -> Result<Value> {
        self.throw(GreenletExit::new())
    }

    /// Ends this greenlet, whoever has handles of it, as dropping the last one would: a
    /// [`GreenletExit`] is thrown into it with the caller as its parent, and if that does not end it, it is unwound.
    ///
    /// For things that own a greenlet. A pending greenlet dies unrun; a dead one is left alone. What the
    /// greenlet leaves is discarded, or reported if it is an error
    /// ([`set_unraisable_hook`](crate::set_unraisable_hook)).
    ///
    /// If the current greenlet may not switch because of a panic or a
    /// [`no_switch`](crate::no_switch) section, the greenlet is ended as soon as it may.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use greenlet_core::{Greenlet, getparent};
    ///
    /// let resource = Rc::new("a socket");
    /// let held = resource.clone();
    /// let child = Greenlet::new(move |(): ()| {
    ///     let _held = held;
    ///     getparent().unwrap().switch::<()>(())
    /// });
    /// child.switch::<()>(())?;
    /// child.end();
    /// assert!(child.is_dead());
    /// assert_eq!(Rc::strong_count(&resource), 1);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn end(&self) {
        let thread = ThreadState::current();
        match self.state() {
            State::Dead => {}
            State::Pending => {
                // CAUTION: runs foreign code: the destructors of what the function captured.
                self.inner.status.cancel();
                self.inner.closure.clear();
            }
            State::Active if self.inner.status.is_main() || thread.is_current(&self.inner) => {}
            State::Active if thread.can_end_greenlets() => teardown::end_owned(self, reason::ENDED),
            State::Active => thread.defer(Deferred::End(self.clone())),
        }
    }

    /// The parent: who gets what this greenlet leaves when it ends. `None` for the main greenlet alone.
    pub fn parent(&self) -> Option<Greenlet> {
        self.inner.parent_greenlet()
    }

    /// Makes `parent` the greenlet that gets what this one leaves. Possible in every state.
    ///
    /// # Errors
    ///
    /// [`ParentError`] if it would make a cycle, if this is the main greenlet, or if the old or the new
    /// parent waits for a future. The old parent stays.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getcurrent};
    ///
    /// let boss = Greenlet::new(|report: &str| Ok(format!("boss got: {report}")));
    /// let worker = Greenlet::new(|(): ()| Ok("done"));
    /// worker.set_parent(&boss)?; // what the worker returns goes there
    /// assert_eq!(worker.switch::<String>(())?, "boss got: done");
    /// assert!(getcurrent().set_parent(&worker).unwrap_err().is_main());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn set_parent(&self, parent: &Greenlet) -> Result<(), ParentError> {
        if self.inner.status.is_main() {
            return Err(ParentError::main());
        }
        if parent.inner.has_in_lineage(&self.inner) {
            return Err(ParentError::cycle());
        }
        // G1: neither in nor out. Whatever the state: a dead or pending greenlet may stand between a running one
        // and the gate.
        let leaves = || self.inner.parent.get()?.await_locked_ancestor();
        if parent.inner.await_locked_ancestor().is_some() || leaves().is_some() {
            return Err(ParentError::awaiting());
        }
        let before = self.inner.parent.replace(Some(parent.clone()));
        // CAUTION: runs foreign code: it may end the old parent.
        drop(before);
        Ok(())
    }

    /// Where the greenlet is in its life.
    #[inline]
    pub fn state(&self) -> State {
        self.inner.status.state()
    }

    /// Says whether the greenlet has been started and has not ended: Python's truth value of a greenlet.
    pub fn is_active(&self) -> bool {
        self.state() == State::Active
    }

    /// Says whether the greenlet has ended: Python's `dead`.
    pub fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    /// Says whether this is the main greenlet of its thread: the one that is there without being made.
    pub fn is_main(&self) -> bool {
        self.inner.status.is_main()
    }

    /// Says whether this is the greenlet that runs.
    #[inline]
    pub fn is_current(&self) -> bool {
        ThreadState::current().is_current(&self.inner)
    }

    /// The name that the builder gave it; the main greenlet is called `main`.
    pub fn name(&self) -> Option<&str> {
        self.inner.name()
    }

    /// A number that no other greenlet of the thread has.
    pub fn id(&self) -> u64 {
        self.inner.id()
    }

    /// Where the greenlet was made.
    pub fn created_at(&self) -> &'static Location<'static> {
        self.inner.created_at()
    }

    /// Where the greenlet switched away, if it is suspended.
    pub fn suspended_at(&self) -> Option<&'static Location<'static>> {
        self.inner
            .context
            .suspended_at
            .get()
            .filter(|_| self.is_suspended())
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.is_active() && !self.is_current()
    }

    /// Makes a handle that does not keep the greenlet from being ended.
    pub fn downgrade(&self) -> WeakGreenlet {
        WeakGreenlet {
            inner: self.inner.downgrade(),
        }
    }

    /// Attaches something to the greenlet, once and for good; returns whether there was room.
    ///
    /// One thing can be attached to each greenlet: it is how a layer on top of greenlets marks those that
    /// it owns, to find them with [`attached`](Greenlet::attached) and
    /// [`nearest_attached`](Greenlet::nearest_attached).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use greenlet_core::{Greenlet, getcurrent};
    ///
    /// struct Hits(Cell<u32>);
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     let hits = getcurrent().attached::<Hits>().unwrap();
    ///     hits.0.set(hits.0.get() + 1);
    ///     Ok(())
    /// });
    /// assert!(child.attach(Rc::new(Hits(Cell::new(0)))));
    /// child.switch::<()>(())?;
    /// assert_eq!(child.attached::<Hits>().unwrap().0.get(), 1);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn attach<T: 'static>(&self, thing: Rc<T>) -> bool {
        self.inner.attach(thing)
    }

    /// What was attached, if it is a `T`.
    pub fn attached<T: 'static>(&self) -> Option<Rc<T>> {
        attached_to(&self.inner)
    }

    /// What is attached to the first greenlet from this one upwards that has a `T` attached.
    pub fn nearest_attached<T: 'static>(&self) -> Option<Rc<T>> {
        crate::node::lineage(&self.inner).find_map(|node| attached_to(&node))
    }

    /// Runs `look` with what is attached to the running greenlet, if it is a `T`, and with the number of
    /// that greenlet. No handle is made, so `look` may switch.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use greenlet_core::Greenlet;
    ///
    /// let child = Greenlet::new(|(): ()| Ok(Greenlet::with_attached(|text: Option<&String>, _| text.cloned())));
    /// child.attach(Rc::new(String::from("attached")));
    /// assert_eq!(child.switch::<Option<String>>(())?.as_deref(), Some("attached"));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline(always)] // `look` may switch: a return after that is one that the processor does not predict
    pub fn with_attached<T: 'static, R>(look: impl FnOnce(Option<&T>, u64) -> R) -> R {
        thread::with_current_inner(|node| {
            let thing = node.attachment().and_then(|thing| thing.downcast_ref());
            look(thing, node.id())
        })
    }
}

fn attached_to<T: 'static>(node: &Inner) -> Option<Rc<T>> {
    let thing: Rc<dyn Any> = Rc::clone(node.attachment()?);
    thing.downcast().ok()
}

impl PartialEq for Greenlet {
    fn eq(&self, other: &Greenlet) -> bool {
        self.inner.ptr_eq(&other.inner)
    }
}

impl Eq for Greenlet {}

// A panic on its way through code that holds a handle cannot leave the greenlet in a half-done state.
impl UnwindSafe for Greenlet {}
impl RefUnwindSafe for Greenlet {}

impl Hash for Greenlet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.as_ptr().hash(state);
    }
}

impl fmt::Debug for Greenlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Greenlet ")?;
        match self.name() {
            Some(name) => write!(f, "'{name}'")?,
            None => write!(f, "#{} created at {}", self.id(), self.created_at())?,
        }
        match self.state() {
            State::Pending => f.write_str(", pending")?,
            State::Dead => f.write_str(", dead")?,
            State::Active if self.is_current() => f.write_str(", current")?,
            State::Active => f.write_str(", suspended")?,
        }
        if let Some(place) = self.suspended_at() {
            write!(f, " at {place}")?;
        }
        f.write_str(">")
    }
}

/// A handle that does not keep its greenlet from being ended.
///
/// A greenlet whose function needs a handle of itself, or of its ancestors, for long, holds a weak one:
/// a handle held on its own stack would keep it alive for ever.
///
/// # Examples
///
/// ```
/// use greenlet_core::Greenlet;
///
/// let greenlet = Greenlet::new(|(): ()| Ok(()));
/// let weak = greenlet.downgrade();
/// assert_eq!(weak.upgrade(), Some(greenlet.clone()));
/// drop(greenlet);
/// assert_eq!(weak.upgrade(), None);
/// ```
#[derive(Clone, Debug)]
pub struct WeakGreenlet {
    inner: InnerWeak,
}

impl UnwindSafe for WeakGreenlet {}
impl RefUnwindSafe for WeakGreenlet {}

impl WeakGreenlet {
    /// A handle of the greenlet, if it still exists: a dead one exists as long as it has handles. While
    /// a greenlet is being ended because its last handle went, it still exists.
    pub fn upgrade(&self) -> Option<Greenlet> {
        self.inner.upgrade().map(Greenlet::from_inner)
    }
}

/// The greenlet that runs. In a thread that has made none, that is its main greenlet.
///
/// Do not keep the handle over a switch: a suspended greenlet whose own stack holds a handle of it is
/// never without one, so it is not ended when all others are gone (as in Python, where it is a cycle).
/// Mind temporaries, which live to the end of their statement: write `getparent()`, not
/// `getcurrent().parent()`, in front of a `switch`; keep a [`WeakGreenlet`] where you need one for long.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, getcurrent};
///
/// let main = getcurrent();
/// assert!(main.is_main());
/// let child = Greenlet::new(move |(): ()| Ok(getcurrent().parent() == Some(main)));
/// assert!(child.switch::<bool>(())?);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline]
pub fn getcurrent() -> Greenlet {
    thread::current_greenlet()
}

/// The main greenlet of the thread.
///
/// # Examples
///
/// ```
/// use greenlet_core::{getcurrent, getmain};
///
/// assert_eq!(getmain(), getcurrent());
/// ```
pub fn getmain() -> Greenlet {
    Greenlet::from_inner(ThreadState::current().main_inner())
}

/// The parent of the greenlet that runs; `None` in the main greenlet.
///
/// The same as `getcurrent().parent()`, but it makes no handle of the running greenlet, which would
/// keep it alive if it were held over a switch.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, getparent};
///
/// let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>("give me a number"));
/// assert_eq!(child.switch::<&str>(())?, "give me a number");
/// assert_eq!(child.switch::<u32>(7_u32)?, 7);
/// assert!(getparent().is_none());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline]
pub fn getparent() -> Option<Greenlet> {
    thread::with_current_inner(Inner::parent_greenlet)
}
