//! The attachment of a greenlet: one value that another library attaches to it. Python's
//! `__dict__`.

#![forbid(unsafe_code)]

use std::any::Any;
use std::rc::Rc;

use crate::greenlet::Greenlet;
use crate::node::{Inner, lineage};

impl Greenlet {
    /// Attaches a value to the greenlet, and returns `true`. Returns `false` if something is
    /// attached already.
    ///
    /// The attachment stays until the greenlet's last handle is dropped. A library that is built on
    /// greenlets can mark those that it owns, and find them with
    /// [`nearest_attached`](Greenlet::nearest_attached).
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::{Greenlet, getcurrent};
    /// let child = Greenlet::new(|(): ()| Ok(*getcurrent().attached::<u32>().unwrap()));
    /// assert!(child.attach(Rc::new(7_u32)));
    /// assert_eq!(child.switch::<u32>(())?, 7);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn attach<T: 'static>(&self, value: Rc<T>) -> bool {
        self.inner().attach(value)
    }

    /// Returns what is attached to the greenlet, if that is a `T`.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// child.attach(Rc::new(7_u32));
    /// assert!(child.attached::<u32>().is_some() && child.attached::<String>().is_none());
    /// ```
    pub fn attached<T: 'static>(&self) -> Option<Rc<T>> {
        attached_to(self.inner())
    }

    /// Returns what is attached to this greenlet or to its nearest ancestor that has a `T`
    /// attached.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::{Greenlet, getcurrent};
    /// getcurrent().attach(Rc::new("the root's"));
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// assert_eq!(child.nearest_attached::<&str>().as_deref(), Some(&"the root's"));
    /// ```
    pub fn nearest_attached<T: 'static>(&self) -> Option<Rc<T>> {
        lineage(self.inner()).find_map(|inner| attached_to(&inner))
    }
}

fn attached_to<T: 'static>(inner: &Inner) -> Option<Rc<T>> {
    let attached: Rc<dyn Any> = Rc::clone(inner.attachment()?);
    attached.downcast().ok()
}
