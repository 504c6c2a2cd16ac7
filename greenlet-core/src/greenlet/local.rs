//! Greenlet-local variables, of which each greenlet has its own value: Python's `ContextVar`.
//!
//! Nothing is cached: each access searches the running greenlet's [`Locals`].

#![forbid(unsafe_code)]

use std::fmt;
use std::ptr;
use std::rc::Rc;

use crate::greenlet::locals::Locals;

/// Declares variables of which each greenlet has its own value.
///
/// The syntax is that of [`std::thread_local!`], and each static is a [`LocalKey`]. A new greenlet
/// starts without values. Its first access evaluates the expression.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, greenlet_local};
/// greenlet_local! {
///     /// The user whose request is handled.
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

/// A variable of which each greenlet has its own value: Python's `ContextVar`. Declare it with
/// [`greenlet_local!`](crate::greenlet_local), whose example shows it.
pub struct LocalKey<T: 'static> {
    /// Also gives the key a size, so that no other key has its address.
    init: fn() -> T,
}

impl<T: 'static> LocalKey<T> {
    /// Creates a key. For the macro [`greenlet_local!`](crate::greenlet_local).
    #[doc(hidden)]
    pub const fn new(init: fn() -> T) -> LocalKey<T> {
        LocalKey { init }
    }

    /// Calls `function` with the running greenlet's value, which is initialised first if there is
    /// none.
    ///
    /// The function may switch, and may set the variable. Its argument stays the same value.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static NAME: String = "nobody".to_owned());
    /// assert_eq!(NAME.with(|name| name.len()), 6);
    /// ```
    pub fn with<R>(&'static self, function: impl FnOnce(&T) -> R) -> R {
        function(&self.current())
    }

    /// Returns a clone of the running greenlet's value, which is initialised first if there is
    /// none.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static DEPTH: u32 = 3);
    /// assert_eq!(DEPTH.get(), 3);
    /// ```
    pub fn get(&'static self) -> T
    where
        T: Clone,
    {
        self.with(T::clone)
    }

    /// Sets the running greenlet's value.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// DEPTH.set(1);
    /// assert_eq!(DEPTH.get(), 1);
    /// ```
    pub fn set(&'static self, value: T) {
        Locals::current().set(self, value);
    }

    /// Removes the running greenlet's value and returns it. The next access initialises the
    /// variable again.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// DEPTH.set(1);
    /// assert_eq!(DEPTH.unset().as_deref(), Some(&1));
    /// ```
    pub fn unset(&'static self) -> Option<Rc<T>> {
        Locals::of_current()?.replace(self, None)
    }

    /// Returns `true` if the running greenlet has a value.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// assert!(!DEPTH.is_set());
    /// DEPTH.set(1);
    /// assert!(DEPTH.is_set());
    /// ```
    pub fn is_set(&'static self) -> bool {
        Locals::of_current().is_some_and(|locals| locals.get(self).is_some())
    }

    /// Sets the running greenlet's value while `function` runs, and restores the previous one
    /// afterwards.
    ///
    /// Greenlets that share their [`Locals`] also see the value, and should not overlap such calls.
    ///
    /// # Panics
    ///
    /// Propagates a panic of `function`. The previous value is restored first.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::greenlet_local;
    /// greenlet_local!(static DEPTH: u32 = 0);
    /// assert_eq!(DEPTH.with_value(1, || DEPTH.get()), 1);
    /// assert_eq!(DEPTH.get(), 0);
    /// ```
    pub fn with_value<R>(&'static self, value: T, function: impl FnOnce() -> R) -> R {
        let locals = Locals::current();
        let before = locals.replace(self, Some(Rc::new(value)));
        let key = self;
        let _restore = Restore { key, locals, before };
        // CAUTION: runs arbitrary user code, which may panic.
        function()
    }

    fn current(&'static self) -> Rc<T> {
        let locals = Locals::current();
        if let Some(value) = locals.get(self) {
            return value;
        }
        // CAUTION: runs arbitrary user code: it may switch, and set the variable.
        let value = Rc::new((self.init)());
        match locals.get(self) {
            Some(value) => value,
            None => {
                locals.replace(self, Some(Rc::clone(&value)));
                value
            }
        }
    }

    pub(super) fn address(&'static self) -> *const () {
        ptr::from_ref(self).cast()
    }
}

impl<T> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

/// Restores a value when it is dropped, also after a panic.
struct Restore<T: 'static> {
    key: &'static LocalKey<T>,
    locals: Locals,
    before: Option<Rc<T>>,
}

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        // CAUTION: runs arbitrary user code: the destructor of the temporary value.
        drop(self.locals.replace(self.key, self.before.take()));
    }
}
