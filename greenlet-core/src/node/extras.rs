//! The rarely used parts of a greenlet: its name, its local variables, what is attached to it, its
//! stack size.
//!
//! Each setter sets the flag `HAS_EXTRAS` of [`Status`](crate::node::status::Status). A greenlet
//! without that flag is released without looking at any of these.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use crate::node::Inner;
use crate::stack;

/// The data of a `Locals`: for each variable the address of its key, and its value. They are few,
/// and a list is searched faster than a map.
pub(crate) type LocalValues = Rc<RefCell<Vec<(*const (), Rc<dyn Any>)>>>;

#[repr(C)] // without padding, and in the order of the fields: `rc` replaces it as a whole
pub(crate) struct Extras {
    /// Boxed twice, so that it takes one word of the node (gdb).
    name: OnceCell<Box<Box<str>>>,
    /// `None` until the first variable is set.
    locals: Cell<Option<LocalValues>>,
    /// The first attachment. The thread state has the others, which are rare.
    attachment: OnceCell<Rc<dyn Any>>,
    /// `UNSPECIFIED` unless a size was asked for.
    stack_size: Cell<usize>,
}

impl Extras {
    pub(crate) const fn none() -> Extras {
        Extras {
            name: OnceCell::new(),
            locals: Cell::new(None),
            attachment: OnceCell::new(),
            stack_size: Cell::new(stack::UNSPECIFIED),
        }
    }
}

impl Inner {
    /// The size of the stack that the greenlet starts on, in bytes: see [`stack::or_default`].
    #[inline]
    pub(crate) fn stack_size(&self) -> usize {
        stack::or_default(self.extras.stack_size.get())
    }

    pub(crate) fn set_stack_size(&self, bytes: usize) {
        self.status.set_has_extras();
        self.extras.stack_size.set(stack::explicit(bytes));
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.extras.name.get().map(|name| &***name)
    }

    /// Names the greenlet, unless it has a name.
    pub(crate) fn set_name(&self, name: Box<str>) {
        self.status.set_has_extras();
        self.extras.name.get_or_init(|| Box::new(name));
    }

    pub(crate) fn locals(&self) -> Option<LocalValues> {
        let locals = self.extras.locals.take();
        self.extras.locals.set(locals.clone());
        locals
    }

    /// Replaces the local variables, and returns the previous ones.
    pub(crate) fn replace_locals(&self, locals: Option<LocalValues>) -> Option<LocalValues> {
        self.status.set_has_extras();
        self.extras.locals.replace(locals)
    }

    /// The first attachment.
    pub(crate) fn attachment(&self) -> Option<&Rc<dyn Any>> {
        self.extras.attachment.get()
    }

    /// Sets the first attachment, or returns `value` if there is one.
    pub(crate) fn attach_first(&self, value: Rc<dyn Any>) -> Result<(), Rc<dyn Any>> {
        self.status.set_has_extras();
        self.extras.attachment.set(value)
    }
}
