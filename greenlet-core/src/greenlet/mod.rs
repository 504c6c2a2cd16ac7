//! The handle of a greenlet, and its main methods: creation, switching, ending, and the tree.
//!
//! The child modules add the others: state and introspection, backtraces, local variables; and the
//! functions that are not methods.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::ManuallyDrop;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};

use anyhow::{Error, Result};

use crate::greenlet::builder::Builder;
pub use crate::node::handle::Greenlet;
use crate::node::rc::InnerWeak;
use crate::node::status::State;
use crate::payload::error::ParentError;
use crate::payload::exit::GreenletExit;
use crate::payload::value::Value;
use crate::payload::{Payload, TypeTag};
use crate::switch;
use crate::switch::receive;
use crate::switch::teardown;
use crate::switch::unwind::into_error;
use crate::thread::ThreadState;

impl Greenlet {
    /// Creates a greenlet that will run `function`. Its parent is the running greenlet.
    ///
    /// Nothing runs yet, and no stack is allocated. The first [`switch`](Greenlet::switch) passes
    /// the function's argument. An `Err` that the function returns is returned by the parent's
    /// switch.
    ///
    /// The function takes exactly one argument; write `|(): ()|` if there is nothing to pass. The
    /// error type is [`anyhow::Error`], and `?` turns every other error into one. If the compiler
    /// asks for type annotations, write the result:
    ///
    /// - `|(): ()| -> anyhow::Result<()> { .. }`, if the function uses `?` and ends in `Ok(..)`;
    /// - `|(): ()| -> anyhow::Result<std::convert::Infallible> { loop { .. } }`, if it never returns
    ///   a value.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|n: u32| Ok(n + 1));
    /// assert_eq!(child.switch::<u32>(1_u32)?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
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

    /// Creates a builder, to set a name, a stack size or another parent first.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let worker = Greenlet::builder().name("worker").stack_size(1 << 20).build(|(): ()| Ok(()));
    /// assert_eq!(worker.name(), Some("worker"));
    /// ```
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Switches to this greenlet with a value, and returns what is next sent to the caller.
    ///
    /// A pending greenlet starts with the value as its argument. A suspended one receives it as the
    /// result of the switch in which it is suspended. If the greenlet is dead, its nearest living
    /// ancestor receives the value. If that is the caller, or if the caller switches to itself, the
    /// value is returned at once.
    ///
    /// The result need not come from this greenlet: any greenlet may switch to the caller next. The
    /// value is moved once, and nothing is allocated.
    ///
    /// # Errors
    ///
    /// - What another greenlet throws at the caller meanwhile, or the error with which a child
    ///   ends.
    /// - [`TypeMismatch`](crate::TypeMismatch) if what arrives is not an `R`. The error owns the
    ///   value. Ask for a [`Value`] to accept any type. A greenlet that ended by exit sends a
    ///   [`GreenletExit`]. A type without values, such as `!`, does not compile: in
    ///   `child.switch(())?;` nothing says which type is meant.
    /// - The switch was refused: [`TypeMismatch`](crate::TypeMismatch) for a pending greenlet that
    ///   takes another type, [`StackError`](crate::StackError),
    ///   [`AwaitInProgress`](crate::AwaitInProgress), [`Unwinding`](crate::Unwinding),
    ///   [`SwitchForbidden`](crate::SwitchForbidden), [`ThreadExiting`](crate::ThreadExiting).
    ///   Nothing has changed then, and the error owns the value.
    ///
    /// # Panics
    ///
    /// Propagates the panic of a child that ended with one.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// let main = getcurrent();
    /// let child = Greenlet::new(move |name: &str| {
    ///     let count = main.switch::<usize>(format!("hello, {name}"))?;
    ///     Ok(name.repeat(count))
    /// });
    /// assert_eq!(child.switch::<String>("ann")?, "hello, ann");
    /// assert_eq!(child.switch::<String>(2_usize)?, "annann");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "resume")]
    #[track_caller]
    #[inline(always)] // the processor mispredicts a return that follows a switch
    pub fn switch<R: 'static>(&self, value: impl Sized + 'static) -> Result<R> {
        const { receive::assert_has_values::<R>() }
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        receive::receive(switch::switch_to(
            &self.inner,
            Payload::new(&mut value),
            at,
            TypeTag::of::<R>(),
        )?)
    }

    /// Switches to this greenlet as [`switch`](Greenlet::switch) does, and drops the handle on the
    /// way, so that a caller that stays suspended does not keep the greenlet alive.
    ///
    /// If the switch starts a pending greenlet, or a tracer is installed, the handle may be kept
    /// until the switch returns.
    ///
    /// # Errors
    ///
    /// Those of [`switch`](Greenlet::switch). The handle is dropped even if the switch is refused.
    ///
    /// # Panics
    ///
    /// Propagates the panic of a child that ended with one.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let once = Greenlet::new(|n: u32| Ok(n + 1));
    /// assert_eq!(once.switch_owned::<u32>(1_u32)?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "resume")]
    #[track_caller]
    pub fn switch_owned<R: 'static>(self, value: impl Sized + 'static) -> Result<R> {
        const { receive::assert_has_values::<R>() }
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        receive::receive(switch::switch_to_owned(
            self,
            Payload::new(&mut value),
            at,
            TypeTag::of::<R>(),
        )?)
    }

    /// Throws an error at this greenlet, and returns what is next sent to the caller.
    ///
    /// A suspended greenlet receives the error as `Err` from the switch in which it is suspended. A
    /// pending one dies without running, and its parent receives the error. Thrown at a dead
    /// greenlet, the error reaches the nearest living ancestor. Thrown at the caller itself, it is
    /// returned at once.
    ///
    /// A [`GreenletExit`] that ends a greenlet is no error for the parent, which receives it as an
    /// ordinary value. The same is true of one that is thrown at a dead greenlet.
    ///
    /// # Errors
    ///
    /// Those of [`switch`](Greenlet::switch). If the throw is refused, the returned error owns the
    /// error that was to be thrown, as a [`Value`].
    ///
    /// # Panics
    ///
    /// Propagates the panic of a child that ended with one.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use anyhow::anyhow;
    /// use greenlet::{Greenlet, getparent};
    /// let child = Greenlet::new(|(): ()| {
    ///     let reply = getparent().unwrap().switch::<&str>(());
    ///     Ok(reply.unwrap_or("it failed")) // `except`
    /// });
    /// child.switch::<()>(())?;
    /// assert_eq!(child.throw::<&str>(anyhow!("no more data"))?, "it failed");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn throw<R: 'static>(&self, error: impl Into<Error> + 'static) -> Result<R> {
        const { receive::assert_has_values::<R>() }
        let at = Location::caller();
        let payload = Payload::thrown(into_error(error));
        receive::receive(switch::switch_to(&self.inner, payload, at, TypeTag::of::<R>())?)
    }

    /// Throws a [`GreenletExit`] at this greenlet: Python's `throw()` without arguments.
    ///
    /// If the exit ends the greenlet, its parent receives the exit as a value. If the parent is the
    /// caller, this returns it.
    ///
    /// # Errors
    ///
    /// Those of [`throw`](Greenlet::throw).
    ///
    /// # Panics
    ///
    /// Propagates the panic of a child that ended with one.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getparent};
    /// let child = Greenlet::new(|(): ()| {
    ///     getparent().unwrap().switch::<()>(())?; // `?` lets the exit through
    ///     Ok("not reached")
    /// });
    /// child.switch::<()>(())?;
    /// assert!(child.kill()?.is_exit());
    /// assert!(child.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "GreenletExit")]
    #[track_caller]
    pub fn kill(&self) -> Result<Value> {
        self.throw(GreenletExit::new())
    }

    /// Ends this greenlet, even if it has other handles, as dropping the last one would.
    ///
    /// A [`GreenletExit`] is thrown into it, with the caller as its parent. If that does not end
    /// the greenlet, its stack is unwound. A pending greenlet dies without running. Ending a dead,
    /// a running or a main greenlet does nothing.
    ///
    /// What the greenlet returns is dropped. An error or a panic of its clean-up is reported to the
    /// [unraisable hook](crate::set_unraisable_hook). If the running greenlet may not switch,
    /// because of a panic or a [`no_switch`](crate::no_switch) section, the greenlet is ended as
    /// soon as it may. If the greenlet itself waits for the end that the caller is a part of, it is
    /// ended after that: clean-up is not interrupted.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::{Greenlet, getparent};
    ///
    /// let socket = Rc::new("a socket");
    /// let held = socket.clone();
    /// let child = Greenlet::new(move |(): ()| {
    ///     let _held = held;
    ///     getparent().unwrap().switch::<()>(())
    /// });
    /// child.switch::<()>(())?;
    /// child.end();
    /// assert_eq!(Rc::strong_count(&socket), 1);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn end(&self) {
        // CAUTION: runs arbitrary user code.
        teardown::end_or_defer(self);
    }

    /// Returns the parent, which receives what this greenlet leaves when it ends. Only the main
    /// greenlet has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// assert_eq!(child.parent(), Some(getcurrent()));
    /// assert_eq!(getcurrent().parent(), None);
    /// ```
    pub fn parent(&self) -> Option<Greenlet> {
        self.inner.parent_greenlet()
    }

    /// Sets the greenlet that receives what this one leaves when it ends. Works in every state.
    ///
    /// # Errors
    ///
    /// [`ParentError`] if the new parent is this greenlet or one of its descendants, if this is the
    /// main greenlet, or if the old or the new parent awaits a future. The old parent stays.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// let boss = Greenlet::new(|report: &str| Ok(format!("boss got: {report}")));
    /// let worker = Greenlet::new(|(): ()| Ok("done"));
    /// worker.set_parent(&boss)?; // receives what the worker returns
    /// assert_eq!(worker.switch::<String>(())?, "boss got: done");
    /// assert!(getcurrent().set_parent(&worker).unwrap_err().is_main());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn set_parent(&self, parent: &Greenlet) -> Result<(), ParentError> {
        if self.inner.status.is_main() {
            return Err(ParentError::MAIN);
        }
        if parent.inner.has_in_lineage(&self.inner) {
            return Err(ParentError::CYCLE);
        }
        // [locked-branch] In every state: a dead or pending greenlet may be between a running one
        // and the lock.
        let leaves_lock = || self.inner.parent.get()?.await_locked_ancestor();
        if parent.inner.await_locked_ancestor().is_some() || leaves_lock().is_some() {
            return Err(ParentError::AWAITING);
        }
        ThreadState::current().count_parent_change();
        let before = self.inner.parent.replace(Some(parent.clone()));
        // CAUTION: runs arbitrary user code: it may end the old parent.
        drop(before);
        Ok(())
    }

    /// Creates a handle that does not keep the greenlet alive.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// assert_eq!(child.downgrade().upgrade(), Some(child));
    /// ```
    pub fn downgrade(&self) -> WeakGreenlet {
        WeakGreenlet {
            inner: self.inner.downgrade(),
        }
    }
}

impl PartialEq for Greenlet {
    fn eq(&self, other: &Greenlet) -> bool {
        self.inner.ptr_eq(&other.inner)
    }
}

impl Eq for Greenlet {}

// A panic in code that holds a handle cannot leave the greenlet in an inconsistent state.
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

/// A handle that does not keep its greenlet alive: Python's `weakref.ref`.
///
/// Use it in a greenlet whose function needs a handle of itself, or of an ancestor, for long. A
/// strong handle on the greenlet's own stack would keep the greenlet alive forever.
#[derive(Clone, Debug)]
pub struct WeakGreenlet {
    inner: InnerWeak,
}

impl UnwindSafe for WeakGreenlet {}
impl RefUnwindSafe for WeakGreenlet {}

impl WeakGreenlet {
    /// Returns a handle of the greenlet, if the greenlet still exists.
    ///
    /// A dead greenlet exists as long as it has handles. One that is being ended still exists.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// let weak = child.downgrade();
    /// assert_eq!(weak.upgrade(), Some(child.clone()));
    /// drop(child);
    /// assert_eq!(weak.upgrade(), None);
    /// ```
    pub fn upgrade(&self) -> Option<Greenlet> {
        self.inner.upgrade().map(Greenlet::from_inner)
    }

    /// Returns `true` if the greenlet has ended. Makes no handle, so no greenlet is ended by it.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    ///
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// let weak = child.downgrade();
    /// assert!(!weak.is_dead());
    /// child.switch::<()>(())?;
    /// assert!(weak.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn is_dead(&self) -> bool {
        self.inner.is_dead()
    }
}

// The modules are declared here, and in this order, because rustdoc lists the methods of `Greenlet`
// in the order of the source.
pub(crate) mod introspect;

pub(crate) mod backtrace;
pub(crate) mod locals;

pub(crate) mod attachment;

pub(crate) mod all_threads;
pub(crate) mod await_lock;
pub(crate) mod builder;
pub(crate) mod current;
pub(crate) mod local;
pub(crate) mod no_switch;
pub mod raw;
