//! The header of a segment: what is known of it, at a place where an address on its stack leads.
//!
//! ```text
//!   base   ─►├──────────────────┤
//!            │ header           │  in the room above the entry: `[header-room]` in `stack/`
//!   entry  ─►├──────────────────┤
//!            │ function, unrun  │
//!            ├──────────────────┤
//!            │ backend's frame  │
//!            │ enter, body      │
//! ```
//!
//! The header begins with the label, so [`Label::at`] finds the header, too.

use std::any::TypeId;
use std::cell::Cell;
use std::panic::Location;
use std::ptr::NonNull;

use crate::backend::abort::abort;
use crate::stack::label::Label;
use crate::stack::{self, Stack};
use crate::thread::ThreadState;

/// Drops the function of a segment.
type DropFunction = unsafe fn(NonNull<Header>);

/// What is known of a segment.
#[repr(C, align(64))]
pub(crate) struct Header {
    /// First: see [`Label::at`].
    label: Label,
    /// How far down the frames of the body surely are its own.
    pub(super) reach: usize,
    /// `[header-alive]`
    handles: Cell<usize>,
    stack: Cell<Option<Stack>>,
    types: fn() -> [TypeId; 2],
    /// `None` once the body has begun, or the function is dropped.
    unrun: Cell<Option<DropFunction>>,
    /// While the body is thrown an exit: how many more yields are refused before one unwinds.
    pub(super) refusals_left: Cell<Option<u32>>,
}

const _: () = {
    assert!(size_of::<Header>() <= stack::HEADER_ROOM);
    assert!(std::mem::offset_of!(Header, label) == 0);
    assert!(std::mem::offset_of!(Label, outer) == 0);
};

impl Header {
    /// Puts a header into the room of a stack. The caller owns its one count.
    pub(super) fn put(
        stack: Stack,
        created_at: &'static Location<'static>,
        name: Option<Box<str>>,
        types: fn() -> [TypeId; 2],
        unrun: DropFunction,
    ) -> NonNull<Header> {
        let header = stack.entry().cast::<Header>();
        // SAFETY: `[header-room]`: the room is as large as a header, aligned to a line of the cache, and used by nobody else.
        unsafe {
            header.write(Header {
                label: Label::new(created_at, name),
                reach: stack.size(),
                handles: Cell::new(1),
                stack: Cell::new(Some(stack)),
                types,
                unrun: Cell::new(Some(unrun)),
                refusals_left: Cell::new(None),
            });
        }
        header
    }

    /// Finds the header of the segment that an address lies on.
    pub(super) fn at(address: *const u8) -> Option<NonNull<Header>> {
        Label::at(address).map(NonNull::cast)
    }

    /// The headers of all segments that the running code is in, from the innermost outwards, up to the stack of the greenlet.
    pub(super) fn chain() -> impl Iterator<Item = NonNull<Header>> {
        let innermost = Header::at(crate::backend::stack_pointer());
        // `[outer-waits]`: the body of each of them runs.
        std::iter::successors(innermost, |header| Header::at(Header::of(header).outer().get()))
    }

    #[inline(always)] // nothing
    pub(super) fn of(header: &NonNull<Header>) -> &Header {
        // SAFETY: `[header-alive]`: pointers are kept only where the header is counted, or its body runs.
        unsafe { header.as_ref() }
    }

    /// The function is used from now on. Returns how to drop it, if it was not.
    #[inline]
    pub(super) fn begin(&self) -> Option<DropFunction> {
        self.unrun.take()
    }

    pub(super) fn has_types(&self, types: [TypeId; 2]) -> bool {
        (self.types)() == types
    }

    /// Returns where the consumer waits while the body runs [outer-waits].
    #[inline]
    pub(super) fn outer(&self) -> &Cell<*mut u8> {
        &self.label.outer
    }

    /// Returns where the segment was created.
    pub(super) fn created_at(&self) -> Option<&'static Location<'static>> {
        self.label.created_at()
    }

    /// Returns the name of the segment. It does not change.
    pub(super) fn name(&self) -> Option<&str> {
        self.label.name()
    }
}

/// A count of a header.
pub(super) struct Held(NonNull<Header>);

impl Held {
    /// # Safety
    ///
    /// - The header lives.
    #[inline]
    pub(super) unsafe fn clone_from_raw(header: NonNull<Header>) -> Held {
        let handles = &Header::of(&header).handles;
        let Some(count) = handles.get().checked_add(1) else {
            abort("a generator has too many yielders");
        };
        handles.set(count);
        Held(header)
    }

    /// # Safety
    ///
    /// - The caller owns a count, and gives it up.
    #[inline]
    pub(super) unsafe fn from_raw(header: NonNull<Header>) -> Held {
        Held(header)
    }

    #[inline(always)] // nothing
    pub(super) fn header(&self) -> &Header {
        Header::of(&self.0)
    }

    #[inline(always)] // nothing
    pub(super) fn place(&self) -> NonNull<Header> {
        self.0
    }
}

impl Clone for Held {
    fn clone(&self) -> Held {
        // SAFETY: this one counts it.
        unsafe { Held::clone_from_raw(self.0) }
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        let header = self.header();
        let left = header.handles.get() - 1;
        header.handles.set(left);
        if left == 0 {
            release(header);
        }
    }
}

/// The last count is gone.
#[inline(never)]
fn release(header: &Header) {
    // SAFETY: a name is borrowed only from a header that is counted.
    unsafe { header.label.clear() };
    if let Some(stack) = header.stack.take() {
        ThreadState::current().take_back(stack);
    }
}
