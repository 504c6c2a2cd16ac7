//! The attachments of a greenlet: values that other libraries attach to it, one of each type.
//! Python's `__dict__`.

#![forbid(unsafe_code)]

use std::any::Any;
use std::rc::Rc;

use crate::greenlet::Greenlet;
use crate::node::{Inner, lineage};
use crate::thread::ThreadState;

impl Greenlet {
    /// Attaches a value to the greenlet, and returns `true`. Returns `false`, and drops the value, if
    /// a `T` is attached already.
    ///
    /// The attachment stays until the greenlet's last handle is dropped. A library that is built on
    /// greenlets can mark those that it owns, and find them with
    /// [`nearest_attached`](Greenlet::nearest_attached). If each library attaches a type of its own,
    /// none gets in another's way.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use std::rc::Rc;
    /// use greenlet::{Greenlet, getcurrent};
    /// let child = Greenlet::new(|(): ()| Ok(*getcurrent().attached::<u32>().unwrap()));
    /// assert!(child.attach(Rc::new(7_u32)) && child.attach(Rc::new("another library's")));
    /// assert!(!child.attach(Rc::new(8_u32)));
    /// assert_eq!(child.switch::<u32>(())?, 7);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "__dict__")]
    pub fn attach<T: 'static>(&self, value: Rc<T>) -> bool {
        if self.attached::<T>().is_some() {
            return false;
        }
        if let Err(value) = self.inner().attach_first(value) {
            let mut later = ThreadState::current().later_attachments.borrow_mut();
            later.entry(self.id()).or_default().push(value);
        }
        true
    }

    /// Returns the `T` that is attached to the greenlet.
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
    let first: Rc<dyn Any> = Rc::clone(inner.attachment()?);
    first.downcast().ok().or_else(|| {
        let later = ThreadState::current().later_attachments.borrow();
        let mut own = later.get(&inner.id())?.iter();
        own.find_map(|value| Rc::clone(value).downcast().ok())
    })
}
