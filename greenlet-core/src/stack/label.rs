//! The label of a generator's stack: the part of its header that does not depend on the generator.
//!
//! It lies in the room above the entry [header-room], so any address on the stack leads to it. The
//! report of an overflow reads it in a signal handler.
//!
//! - **[label-mark]** `created_at` is `None` in a room without a label. So [`Label::at`] tells a
//!   generator's stack from a greenlet's.

use std::cell::Cell;
use std::panic::Location;
use std::ptr::{self, NonNull};

use crate::stack::Around;

/// What anybody may know of a generator's stack. The owner of the stack puts it first in its
/// header.
#[repr(C)]
pub(crate) struct Label {
    /// Where the consumer waits while the generator runs. It comes first: the backend's first frame
    /// continues a backtrace at it.
    pub(crate) outer: Cell<*mut u8>,
    /// Where the generator was created [label-mark].
    created_at: Cell<Option<&'static Location<'static>>>,
    name: Cell<Option<Box<str>>>,
}

impl Label {
    pub(crate) fn new(created_at: &'static Location<'static>, name: Option<Box<str>>) -> Label {
        Label {
            outer: Cell::new(ptr::null_mut()),
            created_at: Cell::new(Some(created_at)),
            name: Cell::new(name),
        }
    }

    /// Finds the label of the stack that an address is on. Safe in a signal handler.
    pub(crate) fn at(address: *const u8) -> Option<NonNull<Label>> {
        let label = Around::of(address)?.room().cast::<Label>();
        // SAFETY: the room has zeros or a label [header-room]. The reference is to one field, whose
        // zeros are a `None`.
        let created_at = unsafe { &(*label.as_ptr()).created_at };
        created_at.get().is_some().then_some(label)
    }

    /// Returns where the generator was created. `None` after [`clear`](Label::clear).
    pub(crate) fn created_at(&self) -> Option<&'static Location<'static>> {
        self.created_at.get()
    }

    /// Returns the name of the generator. It does not change.
    pub(crate) fn name(&self) -> Option<&str> {
        // SAFETY: only `clear` writes to the field, and nobody uses the label after that.
        unsafe { &*self.name.as_ptr() }.as_deref()
    }

    /// Clears the label, which nobody uses any more [header-room].
    ///
    /// # Safety
    ///
    /// - Nobody has borrowed the name.
    pub(crate) unsafe fn clear(&self) {
        self.created_at.set(None);
        drop(self.name.take());
    }
}
