//! The values that a greenlet has for all greenlet-local variables: Python's `gr_context`.
//!
//! ```text
//!   Greenlet ── locals ──► Locals ── (address of the key, value), (...), ...
//!                            ▲
//!   another greenlet ────────┘       a copy has its own list, with the same values in it
//! ```

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::greenlet::Greenlet;
use crate::greenlet::local::LocalKey;
use crate::node::extras::LocalValues;
use crate::thread::ThreadState;

/// The values of all [`greenlet_local!`](crate::greenlet_local) variables in one greenlet: Python's
/// `gr_context`.
///
/// A greenlet starts without values. You may give it a [`copy`](Locals::copy) of another greenlet's
/// values, or the other greenlet's `Locals` itself, to share every later write. A clone of a
/// `Locals` is the same one, and compares equal. A dead greenlet keeps its values as long as it has
/// handles.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, Locals, greenlet_local};
///
/// greenlet_local!(static USER: &'static str = "nobody");
///
/// USER.set("ann");
/// let get = |(): ()| Ok(USER.get());
/// let heir = Greenlet::builder().locals(Locals::current().copy()).build(get);
/// let partner = Greenlet::builder().locals(Locals::current()).build(get);
/// USER.set("bob");
/// assert_eq!(heir.switch::<&str>(())?, "ann");
/// assert_eq!(partner.switch::<&str>(())?, "bob");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Locals(pub(crate) LocalValues);

impl Locals {
    /// Creates one without values.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, greenlet_local};
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// assert!(Locals::new().get(&DEPTH).is_none());
    /// ```
    pub fn new() -> Locals {
        Locals::default()
    }

    /// Returns the running greenlet's own, which is created first if there is none.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, getcurrent};
    /// let locals = Locals::current();
    /// assert_eq!(getcurrent().locals(), Some(locals));
    /// ```
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

    pub(super) fn of_current() -> Option<Locals> {
        Greenlet::from_inner(ThreadState::current().current_inner()).locals()
    }

    /// Creates another one with the same values. Later writes to one do not affect the other.
    ///
    /// The values themselves are shared, not cloned, so a change inside a `Cell` shows in both.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, greenlet_local};
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// Locals::current().copy().set(&DEPTH, 2);
    /// assert_eq!(DEPTH.get(), 0);
    /// ```
    pub fn copy(&self) -> Locals {
        Locals(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// Returns the value that a variable has here. Does not initialise the variable.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, greenlet_local};
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// DEPTH.set(1);
    /// assert_eq!(Locals::current().get(&DEPTH).as_deref(), Some(&1));
    /// ```
    pub fn get<T: 'static>(&self, key: &'static LocalKey<T>) -> Option<Rc<T>> {
        let entries = self.0.borrow();
        let (_, value) = entries.iter().find(|(address, _)| *address == key.address())?;
        Some(downcast(Rc::clone(value)))
    }

    /// Sets the value of a variable here.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, greenlet_local};
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// Locals::current().set(&DEPTH, 1);
    /// assert_eq!(DEPTH.get(), 1);
    /// ```
    pub fn set<T: 'static>(&self, key: &'static LocalKey<T>, value: T) {
        // CAUTION: runs arbitrary user code: the destructor of the previous value.
        drop(self.replace(key, Some(Rc::new(value))));
    }

    /// Runs `function` with these values as the running greenlet's own, and restores the previous
    /// ones afterwards: Python's `Context.run`.
    ///
    /// The greenlet keeps these values until `function` returns, also while other greenlets run.
    /// Several greenlets can use them at once.
    ///
    /// # Panics
    ///
    /// Propagates a panic of `function`. The previous values are restored first.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Locals, greenlet_local};
    /// greenlet_local!(static USER: &'static str = "nobody");
    /// let locals = Locals::new();
    /// locals.run(|| USER.set("ann"));
    /// assert_eq!(USER.get(), "nobody");
    /// assert_eq!(locals.run(|| USER.get()), "ann");
    /// ```
    pub fn run<R>(&self, function: impl FnOnce() -> R) -> R {
        let before = swap_current(Some(self.clone()));
        let _leave = Leave { before };
        // CAUTION: runs arbitrary user code, which may panic.
        function()
    }

    /// Sets or removes a value, and returns the previous one.
    pub(super) fn replace<T: 'static>(
        &self,
        key: &'static LocalKey<T>,
        value: Option<Rc<T>>,
    ) -> Option<Rc<T>> {
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
    value.downcast().expect("no two keys have the same address")
}

fn swap_current(locals: Option<Locals>) -> Option<Locals> {
    let locals = locals.map(|locals| locals.0);
    ThreadState::current()
        .current_inner()
        .replace_locals(locals)
        .map(Locals)
}

/// Restores the running greenlet's locals when it is dropped, also after a panic.
struct Leave {
    before: Option<Locals>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // CAUTION: runs arbitrary user code: the destructors of the values, if this was their last
        // owner.
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
    /// Returns the values of the greenlet's [`greenlet_local!`](crate::greenlet_local) variables:
    /// Python's `gr_context`. `None` if the greenlet has neither used such a variable nor been
    /// given values.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{getcurrent, greenlet_local};
    /// greenlet_local!(static USER: &'static str = "nobody");
    /// assert!(getcurrent().locals().is_none());
    /// USER.set("ann");
    /// assert_eq!(getcurrent().locals().unwrap().get(&USER).as_deref(), Some(&"ann"));
    /// ```
    pub fn locals(&self) -> Option<Locals> {
        self.inner().locals().map(Locals)
    }

    /// Replaces or removes the values of the greenlet's variables, in any state.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, Locals, greenlet_local};
    /// greenlet_local!(static USER: &'static str = "nobody");
    /// let child = Greenlet::new(|(): ()| Ok(USER.get()));
    /// USER.set("ann");
    /// child.set_locals(Locals::current());
    /// assert_eq!(child.switch::<&str>(())?, "ann");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn set_locals(&self, locals: impl Into<Option<Locals>>) {
        // CAUTION: runs arbitrary user code: the destructors of the values, if this was their last
        // owner.
        drop(self.inner().replace_locals(locals.into().map(|locals| locals.0)));
    }
}
