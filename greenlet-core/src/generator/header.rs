//! The header of a segment, which can be found from any address on the segment's stack.
//!
//! ```text
//!   base   ─►├──────────────────┤
//!            │ header           │  in the room above the entry: [header-room] in `stack/`
//!   entry  ─►├──────────────────┤
//!            │ function, unrun  │
//!            ├──────────────────┤
//!            │ backend's frame  │
//!            │ enter, body      │
//! ```
//!
//! The header begins with the label, so [`Label::at`] finds the header, too.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::num::NonZero;
use std::ops::Deref;
use std::panic::Location;
use std::ptr::NonNull;

use super::yielder::Types;
use crate::backend;
use crate::backend::abort::abort;
use crate::stack::label::Label;
use crate::stack::{self, Stack, valgrind};
use crate::thread::ThreadState;

/// A function that drops the function of a generator.
pub(super) type DropFunction = unsafe fn(NonNull<Header>);

/// The shared state of a generator and its yielders.
#[repr(C, align(64))]
pub(super) struct Header {
    /// First: see [`Label::at`].
    pub(super) label: Label,
    /// How far below the header an address is surely on this stack.
    pub(super) reach: usize,
    /// [header-alive]
    handles: Cell<u32>,
    /// How many yields may still be refused, plus one, while the body is thrown an exit.
    pub(super) refusals_left: Cell<Option<NonZero<u32>>>,
    stack: Stack,
    types: fn() -> Types,
    /// `None` after the body has begun, or the function was dropped.
    pub(super) unrun: Cell<Option<DropFunction>>,
}

const _: () = {
    assert!(size_of::<Header>() <= stack::HEADER_ROOM);
    assert!(std::mem::offset_of!(Header, label) == 0);
    assert!(std::mem::offset_of!(Label, outer) == 0);
};

impl Header {
    /// Writes a header into the room of a stack. The caller owns its two counts.
    pub(super) fn put(
        stack: Stack,
        created_at: &'static Location<'static>,
        name: Option<Box<str>>,
        types: fn() -> Types,
        unrun: DropFunction,
    ) -> NonNull<Header> {
        valgrind::reuse(&stack);
        let header = stack.entry().cast::<Header>();
        // SAFETY: the room is large enough for a header, aligned to 64 bytes, and nobody else uses
        // it [header-room].
        unsafe {
            header.write(Header {
                label: Label::new(created_at, name),
                reach: stack.size(),
                handles: Cell::new(2),
                refusals_left: Cell::new(None),
                stack,
                types,
                unrun: Cell::new(Some(unrun)),
            });
        }
        header
    }

    /// Finds the header of the segment whose stack contains `address`.
    pub(super) fn at(address: *const u8) -> Option<NonNull<Header>> {
        Label::at(address).map(NonNull::cast)
    }

    /// Returns the headers of all segments that the caller runs in, from the innermost outwards.
    pub(super) fn chain() -> impl Iterator<Item = NonNull<Header>> {
        // The body of each of them runs, so its consumer waits [outer-waits].
        std::iter::successors(Header::at(backend::stack_pointer()), |header| {
            Header::at(Header::of(header).label.outer.get())
        })
    }

    #[inline]
    pub(super) fn of(header: &NonNull<Header>) -> &Header {
        // SAFETY: the owner of the pointer owns a count too, or the body runs [header-alive].
        unsafe { header.as_ref() }
    }

    /// Returns what to call the generator.
    pub(super) fn describe(&self) -> String {
        let name = self
            .label
            .name()
            .map_or_else(String::new, |name| format!(" '{name}'"));
        let place = self
            .label
            .created_at()
            .map_or_else(String::new, |place| format!(" created at {place}"));
        format!("generator{name}{place}")
    }

    pub(super) fn types(&self) -> Types {
        (self.types)()
    }
}

/// Returns what to call each generator that the caller runs in, from the innermost outwards.
pub(crate) fn labels_of_running() -> impl Iterator<Item = String> {
    Header::chain().map(|header| Header::of(&header).describe())
}

/// Owns one count of a header.
pub(super) struct Held(NonNull<Header>);

impl Held {
    /// Adds a count.
    ///
    /// # Safety
    ///
    /// - The header lives.
    #[inline]
    pub(super) unsafe fn clone_from_raw(header: NonNull<Header>) -> Held {
        Held::clone(&ManuallyDrop::new(Held(header)))
    }

    /// Takes over a count.
    ///
    /// # Safety
    ///
    /// - The caller owns a count, and gives it up.
    #[inline]
    pub(super) unsafe fn from_raw(header: NonNull<Header>) -> Held {
        Held(header)
    }
}

impl Deref for Held {
    type Target = Header;

    #[inline]
    fn deref(&self) -> &Header {
        Header::of(&self.0)
    }
}

impl Clone for Held {
    #[inline]
    fn clone(&self) -> Held {
        let Some(count) = self.handles.get().checked_add(1) else {
            abort("a generator has too many yielders");
        };
        self.handles.set(count);
        Held(self.0)
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        match self.handles.get() {
            // SAFETY: nobody else has a count.
            1 => unsafe { release(self) },
            count => self.handles.set(count - 1),
        }
    }
}

/// Releases the segment's stack.
///
/// # Safety
///
/// - Nobody uses the header afterwards.
#[inline(never)]
unsafe fn release(header: &Header) {
    // SAFETY: nobody uses the header any more, so nobody has borrowed the name.
    unsafe { header.label.clear() };
    // SAFETY: it is the last use of the field.
    let stack = unsafe { std::ptr::read(&raw const header.stack) };
    ThreadState::current().take_back(stack);
}
