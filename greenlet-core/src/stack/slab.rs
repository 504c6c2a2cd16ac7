//! Slabs: one mapping, many stacks.
//!
//! ```text
//!   start                                                                       start + len
//!   ├─┬──────────────┬─┬──────────────┬─┬──────────────┬ ... ┬─┬──────────────┤
//!   │g│ stack 0      │g│ stack 1      │g│ stack 2      │     │g│ stack n-1    │
//!   └─┴──────────────┴─┴──────────────┴─┴──────────────┴ ... ┴─┴──────────────┘
//!   └──── stride ────┘  an odd number of pages
//! ```
//!
//! # Invariants
//!
//! - **[slab-mapped]** Slabs are never unmapped. Only the memory of idle stacks is returned.
//! - **[guard-installed]** `take_guarded` makes every `Stack`, and only of a stride whose guard is
//!   installed. Without its guard, an overflow would overwrite the next stack.
//! - **[slab-list]** The list of slabs only grows at its end, and its entries live forever. So a
//!   signal handler can read it while any thread adds to it.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::{StackError, StackErrorKind};
use super::sys::{Address, Region};
use super::{Class, GuardHit, Stack, page_size, valgrind};

/// How many stacks the first slab of a size has room for. Each further slab has room for twice
/// that.
const FIRST_SLAB: usize = 16;

/// The largest slab, in bytes, unless one stack needs more.
const MAX_SLAB: usize = if cfg!(target_pointer_width = "64") {
    1 << 40
} else {
    64 << 20
};

/// The source of new stacks of one size.
#[derive(Debug)]
pub(super) struct Slabs {
    /// The newest slab, and the part of it that is not carved yet.
    newest: Option<&'static Slab>,
    rest: Region,
    /// How many stacks were carved, of all slabs together.
    pub(super) carved: usize,
    /// How many stacks the next slab should have room for.
    next_room: usize,
}

impl Slabs {
    pub(super) const fn new() -> Slabs {
        Slabs {
            newest: None,
            rest: Region::EMPTY,
            carved: 0,
            next_room: FIRST_SLAB,
        }
    }

    /// Carves up to `wanted` stacks, at least one, out of a slab. [`guard`] makes them usable.
    pub(super) fn carve(&mut self, class: Class, wanted: usize) -> Result<Unguarded, StackError> {
        let slab = match self.newest {
            Some(slab) if self.rest.len() > 0 => slab,
            _ => self.grow(class)?,
        };
        let count = wanted.min(self.rest.len() / class.stride());
        self.carved += count;
        slab.carved.fetch_add(count, Ordering::Relaxed);
        let region = self.rest.split_off_start(count * class.stride());
        Ok(Unguarded { region, class })
    }

    #[cold]
    fn grow(&mut self, class: Class) -> Result<&'static Slab, StackError> {
        let size = class.stride();
        let mut room = self.next_room.min(MAX_SLAB / size).max(1);
        self.rest = loop {
            match Region::map(size * room) {
                Ok(region) => break region,
                // The system may limit address space: a smaller slab may still fit.
                Err(_) if room > 1 => room /= 2,
                Err(error) => return Err(StackErrorKind::Map { size, error }.into()),
            }
        };
        self.next_room = room.saturating_mul(2);
        let slab = list(Slab {
            start: self.rest.start(),
            len: self.rest.len(),
            class,
            carved: AtomicUsize::new(0),
            next: OnceLock::new(),
        });
        self.newest = Some(slab);
        Ok(slab)
    }
}

/// A slab in the list of all slabs.
#[derive(Debug)]
pub(super) struct Slab {
    start: Address,
    pub(super) len: usize,
    class: Class,
    /// How many stacks were carved out of it. They are the lowest ones.
    carved: AtomicUsize,
    next: OnceLock<&'static Slab>,
}

static FIRST: OnceLock<&'static Slab> = OnceLock::new();

/// Appends a slab to the list [slab-list].
fn list(slab: Slab) -> &'static Slab {
    let slab: &'static Slab = Box::leak(Box::new(slab));
    let mut end = &FIRST;
    while end.set(slab).is_err() {
        end = &end.get().expect("`set` fails if there is a value").next;
    }
    slab
}

/// Returns all slabs. Safe in a signal handler [slab-list].
pub(super) fn slabs() -> impl Iterator<Item = &'static Slab> {
    std::iter::successors(FIRST.get().copied(), |slab| slab.next.get().copied())
}

/// Finds the stack whose stride an address is in: its base and its size. Safe in a signal handler.
pub(super) fn stack_at(address: usize) -> Option<(Address, Class)> {
    let slab = slabs().find(|slab| (slab.start.get()..slab.start.get() + slab.len).contains(&address))?;
    let index = (address - slab.start.get()) / slab.class.stride();
    Some((slab.start.above((index + 1) * slab.class.stride()), slab.class))
}

/// Finds the stack whose guard page an address is in. Safe in a signal handler.
pub(crate) fn guard_at(address: usize) -> Option<GuardHit> {
    let (base, class) = stack_at(address)?;
    let limit = base.get() - class.usable();
    let hit = GuardHit {
        base: base.pointer().as_ptr(),
        limit,
        size: class.size(),
        is_on_its_stack: false,
    };
    (limit - page_size()..limit).contains(&address).then_some(hit)
}

impl Slab {
    /// Returns the part that was carved into stacks: its start, and its length in bytes.
    pub(super) fn carved_part(&self) -> (*mut u8, usize) {
        let carved = self.carved.load(Ordering::Relaxed);
        (self.start.pointer().as_ptr(), carved * self.class.stride())
    }

    /// Returns the [`Stack::pages`] of each carved stack.
    pub(super) fn stacks(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        let (start, len) = self.carved_part();
        let (stride, usable) = (self.class.stride(), self.class.usable());
        (0..len)
            .step_by(stride)
            .map(move |offset| (start.wrapping_add(offset + stride - usable), usable))
    }

    /// Returns `true` if the page at `offset` bytes from the start is usable by a stack.
    pub(super) fn is_usable(&self, offset: usize) -> bool {
        offset % self.class.stride() >= self.class.stride() - self.class.usable()
    }
}

/// The strides of at least one future stack, side by side, without their guards.
#[derive(Debug)]
pub(super) struct Unguarded {
    region: Region,
    class: Class,
}

impl Unguarded {
    pub(super) fn count(&self) -> usize {
        self.region.len() / self.class.stride()
    }

    /// Takes the lowest stack. Its guard must be installed. [guard-installed]
    fn take_guarded(&mut self) -> Stack {
        let stack = Stack::new(self.region.split_off_start(self.class.stride()), self.class);
        valgrind::announce(stack.pages());
        stack
    }
}

/// Makes the guards of carved stacks, and adds the stacks to `done`. On an error it returns the
/// others, which can be tried again.
pub(super) fn guard(mut carved: Unguarded, done: &mut Vec<Stack>) -> Result<(), (Unguarded, StackError)> {
    let stride = carved.class.stride();
    let guard = stride - carved.class.usable() - page_size();
    while carved.count() > 0 {
        match carved.region.install_guards(guard, stride) {
            Ok(count) => done.extend((0..count).map(|_| carved.take_guarded())),
            Err(error) => return Err((carved, StackErrorKind::Guard { error }.into())),
        }
    }
    Ok(())
}
