//! Greenlet-local storage: variables of which each greenlet has its own value, as Python's context
//! variables are with greenlets.
//!
//! ```text
//!   Greenlet ── locals ──► Locals ── (address of the key, value), (...), ...
//!                            ▲
//!   another, sharing ────────┘       a copy has its own list, with the same values in it
//! ```
//!
//! A greenlet starts with none. Nothing is cached: every look goes to the running greenlet's own list.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::ptr;
use std::rc::Rc;

use crate::greenlet::Greenlet;
use crate::greenlet::builder::Builder;
use crate::node::extras::LocalValues;
use crate::thread::ThreadState;

/// Declares variables of which each greenlet has its own value.
///
/// The form is that of [`std::thread_local!`]; each static is a [`LocalKey`]. The expression is evaluated
/// in each greenlet that uses the variable before it has set it.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, greenlet_local};
///
/// greenlet_local! {
///     /// Who is being served.
///     static USER: String = "nobody".to_owned();
/// }
///
/// USER.set("ann".to_owned());
/// let other = Greenlet::new(|(): ()| Ok(USER.get()));
/// assert_eq!(other.switch::<String>(())?, "nobody");
/// assert_eq!(USER.get(), "ann");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[macro_export]
macro_rules! greenlet_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $init:expr);* $(;)?) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::LocalKey<$type> = {
                fn init() -> $type {
                    $init
                }
                $crate::LocalKey::new(init)
            };
        )*
    };
}

/// A variable of which each greenlet has its own value: see [`greenlet_local!`](crate::greenlet_local).
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
///
/// use greenlet_core::{Greenlet, getparent, greenlet_local};
///
/// greenlet_local! {
///     static STEPS: Cell<u32> = Cell::new(0);
/// }
///
/// let make = || Greenlet::new(|(): ()| {
///     loop {
///         STEPS.with(|steps| steps.set(steps.get() + 1));
///         getparent().unwrap().switch::<()>(STEPS.with(Cell::get))?;
///         # if false { return Ok(()); }
///     }
/// });
/// let (a, b) = (make(), make());
/// assert_eq!(a.switch::<u32>(())?, 1);
/// assert_eq!(a.switch::<u32>(())?, 2);
/// assert_eq!(b.switch::<u32>(())?, 1);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct LocalKey<T: 'static> {
    /// It also makes the key's address its own: it is not a type without a size.
    init: fn() -> T,
}

impl<T: 'static> LocalKey<T> {
    /// For the macro.
    #[doc(hidden)]
    pub const fn new(init: fn() -> T) -> LocalKey<T> {
        LocalKey { init }
    }

    /// Calls `function` with the value that the running greenlet has, which is made first if it has none.
    ///
    /// The function may switch, and set the variable: it goes on with the value that it was called with.
    pub fn with<R>(&'static self, function: impl FnOnce(&T) -> R) -> R {
        function(&self.current())
    }

    /// The value that the running greenlet has, which is made first if it has none.
    pub fn get(&'static self) -> T
    where
        T: Clone,
    {
        self.with(T::clone)
    }

    /// Gives the running greenlet a value.
    pub fn set(&'static self, value: T) {
        Locals::current().set(self, value);
    }

    /// Takes the running greenlet's value away, so that it is as before its first use.
    pub fn unset(&'static self) -> Option<Rc<T>> {
        Locals::of_current()?.replace(self, None)
    }

    /// Says whether the running greenlet has a value.
    pub fn is_set(&'static self) -> bool {
        Locals::of_current().is_some_and(|locals| locals.get(self).is_some())
    }

    /// Gives the running greenlet a value while `function` runs, and then the one back that it had.
    ///
    /// The value belongs to the greenlet and not to the time: others do not see it, whoever runs
    /// meanwhile. (Greenlets that share their [`Locals`] see it, and should not overlap such calls.)
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::greenlet_local;
    ///
    /// greenlet_local!(static DEPTH: u32 = 0);
    ///
    /// assert_eq!(DEPTH.with_value(1, || DEPTH.get()), 1);
    /// assert_eq!(DEPTH.get(), 0);
    /// ```
    pub fn with_value<R>(&'static self, value: T, function: impl FnOnce() -> R) -> R {
        let locals = Locals::current();
        let before = locals.replace(self, Some(Rc::new(value)));
        let _restore = Restore {
            key: self,
            locals,
            before,
        };
        function()
    }

    fn current(&'static self) -> Rc<T> {
        let locals = Locals::current();
        if let Some(value) = locals.get(self) {
            return value;
        }
        // CAUTION: runs foreign code: it may switch, and set the variable.
        let value = Rc::new((self.init)());
        match locals.get(self) {
            Some(value) => value,
            None => {
                locals.replace(self, Some(Rc::clone(&value)));
                value
            }
        }
    }

    fn address(&'static self) -> *const () {
        ptr::from_ref(self).cast()
    }
}

impl<T> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

/// Puts a value back, also after a panic.
struct Restore<T: 'static> {
    key: &'static LocalKey<T>,
    locals: Locals,
    before: Option<Rc<T>>,
}

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        // CAUTION: runs foreign code: the destructor of the temporary value.
        drop(self.locals.replace(self.key, self.before.take()));
    }
}

/// The values that a greenlet has for all [`greenlet_local!`](crate::greenlet_local) variables: Python's
/// `gr_context`.
///
/// A greenlet starts with none, and inherits only what it is given: a [`copy`](Locals::copy) of another
/// one's values, from which both go on alone, or the other one's own `Locals`, to share every write. A clone
/// of a `Locals` is the same one, and compares equal.
///
/// Everything works in every state of the greenlet, dead ones included: it keeps its values as long as it
/// has handles.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, Locals, greenlet_local};
///
/// greenlet_local!(static USER: &'static str = "nobody");
///
/// USER.set("ann");
/// let get = |(): ()| Ok(USER.get());
/// let alone = Greenlet::new(get);
/// let heir = Greenlet::builder().locals(Locals::current().copy()).build(get);
/// let partner = Greenlet::builder().locals(Locals::current()).build(get);
/// USER.set("bob");
/// assert_eq!(alone.switch::<&str>(())?, "nobody");
/// assert_eq!(heir.switch::<&str>(())?, "ann");
/// assert_eq!(partner.switch::<&str>(())?, "bob");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Locals(pub(crate) LocalValues);

impl Locals {
    /// Makes one without values.
    pub fn new() -> Locals {
        Locals::default()
    }

    /// The running greenlet's own. It gets a new one if it has none.
    pub fn current() -> Locals {
        if let Some(locals) = Locals::of_current() {
            return locals;
        }
        let locals = Locals::new();
        ThreadState::current()
            .current_inner()
            .replace_locals(Some(locals.0.clone()));
        locals
    }

    fn of_current() -> Option<Locals> {
        Greenlet::from_inner(ThreadState::current().current_inner()).locals()
    }

    /// Makes another one with the same values. They are not cloned: what has inner mutability is shared;
    /// what is set in one, the other does not see.
    pub fn copy(&self) -> Locals {
        Locals(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// The value of a variable here, if it has one.
    pub fn get<T: 'static>(&self, key: &'static LocalKey<T>) -> Option<Rc<T>> {
        let entries = self.0.borrow();
        let (_, value) = entries.iter().find(|(address, _)| *address == key.address())?;
        Some(downcast(Rc::clone(value)))
    }

    /// Gives a variable a value here.
    pub fn set<T: 'static>(&self, key: &'static LocalKey<T>, value: T) {
        // CAUTION: runs foreign code: the destructor of the value before.
        drop(self.replace(key, Some(Rc::new(value))));
    }

    /// Runs `function` with these as the running greenlet's own, and then gives it those back that it had.
    ///
    /// The greenlet has them until then, also while others run. Unlike a Python context, they may be used
    /// by several greenlets at once, and left in any order.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Locals, greenlet_local};
    ///
    /// greenlet_local!(static USER: &'static str = "nobody");
    ///
    /// let locals = Locals::new();
    /// locals.run(|| USER.set("ann"));
    /// assert_eq!(USER.get(), "nobody");
    /// assert_eq!(locals.run(|| USER.get()), "ann");
    /// ```
    pub fn run<R>(&self, function: impl FnOnce() -> R) -> R {
        let before = swap_current(Some(self.clone()));
        let _leave = Leave { before };
        function()
    }

    /// Puts a value, or none, in the place of the one that is there.
    fn replace<T: 'static>(&self, key: &'static LocalKey<T>, value: Option<Rc<T>>) -> Option<Rc<T>> {
        let mut entries = self.0.borrow_mut();
        let place = entries.iter().position(|(address, _)| *address == key.address());
        let before = match (place, value) {
            (Some(place), Some(value)) => std::mem::replace(&mut entries[place].1, value),
            (Some(place), None) => entries.swap_remove(place).1,
            (None, Some(value)) => {
                entries.push((key.address(), value));
                return None;
            }
            (None, None) => return None,
        };
        Some(downcast(before))
    }
}

fn downcast<T: 'static>(value: Rc<dyn Any>) -> Rc<T> {
    value
        .downcast()
        .expect("a key's address is its own, so is its type")
}

fn swap_current(locals: Option<Locals>) -> Option<Locals> {
    let locals = locals.map(|locals| locals.0);
    ThreadState::current()
        .current_inner()
        .replace_locals(locals)
        .map(Locals)
}

/// Gives the running greenlet its locals back, also after a panic.
struct Leave {
    before: Option<Locals>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // CAUTION: runs foreign code, where these were the last ones.
        drop(swap_current(self.before.take()));
    }
}

impl PartialEq for Locals {
    fn eq(&self, other: &Locals) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Locals {}

impl fmt::Debug for Locals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Locals({} values)", self.0.borrow().len())
    }
}

impl Greenlet {
    /// The values of its [`greenlet_local!`](crate::greenlet_local) variables; `None` as long as it has
    /// neither used nor been given any. Python's `gr_context`.
    pub fn locals(&self) -> Option<Locals> {
        self.inner().locals().map(Locals)
    }

    /// Gives it other values for its variables, or none. Possible in every state; the running greenlet
    /// sees them at once.
    pub fn set_locals(&self, locals: impl Into<Option<Locals>>) {
        // CAUTION: runs foreign code, where these were the last ones.
        drop(self.inner().replace_locals(locals.into().map(|locals| locals.0)));
    }
}

impl Builder {
    /// Gives the greenlet values for its [`greenlet_local!`](crate::greenlet_local) variables, which it
    /// would start without.
    pub fn locals(mut self, locals: Locals) -> Builder {
        self.locals = Some(locals);
        self
    }
}
