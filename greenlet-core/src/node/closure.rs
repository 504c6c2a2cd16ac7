//! The function of a pending greenlet: a closure of any type, stored in the node until the greenlet
//! starts.
//!
//! ```text
//!   ClosureCell:  vtable │ storage       the closure itself, up to four words, or its box
//!                    │
//!                    └─► ClosureVTable   what it takes, the entry that calls it, its destructor
//! ```
//!
//! A closure in the node costs no allocation: creation and start take 41 ns, and 46 with a box.
//!
//! # Invariants
//!
//! - **[closure-present]** `vtable` is `Some` exactly while `storage` holds a closure of the type
//!   that the vtable was made for.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::mem::{MaybeUninit, needs_drop};

use crate::backend;
use crate::payload::TypeTag;

/// The largest closure that is stored without a box, in words.
const WORDS: usize = 4;

type Storage = MaybeUninit<[usize; WORDS]>;

/// Returns `true` if a closure of the type `S` is stored without a box.
pub(crate) const fn fits_in_node<S>() -> bool {
    size_of::<S>() <= size_of::<Storage>() && align_of::<S>() <= align_of::<Storage>()
}

/// The operations on a stored closure, whatever its type.
pub(crate) struct ClosureVTable {
    /// The type of the value that the closure takes.
    pub(crate) takes: TypeTag,
    /// The first function on the greenlet's stack. It takes the closure out of its cell and calls
    /// it.
    pub(crate) entry: backend::Entry,
    /// `None` if the closure needs no destructor.
    drop: Option<unsafe fn(*mut Storage)>,
}

/// The [`ClosureVTable`] of closures of the type `S`.
pub(crate) struct VTableOf<S>(ClosureVTable, PhantomData<fn(S)>);

impl<S> VTableOf<S> {
    /// Creates the vtable of a closure that takes what `takes` describes.
    ///
    /// # Safety
    ///
    /// - `entry` takes an `S` out of the cell, if it takes anything out.
    pub(crate) const unsafe fn new(takes: TypeTag, entry: backend::Entry) -> VTableOf<S> {
        let drop: Option<unsafe fn(*mut Storage)> = match needs_drop::<S>() {
            true => Some(drop_closure::<S>),
            false => None,
        };
        VTableOf(ClosureVTable { takes, entry, drop }, PhantomData)
    }
}

/// Drops the closure in `storage`.
///
/// # Safety
///
/// - `storage` holds an `S`, which nobody uses afterwards.
unsafe fn drop_closure<S>(storage: *mut Storage) {
    // SAFETY: it holds an `S`, says the caller.
    // CAUTION: runs arbitrary user code.
    unsafe { storage.cast::<S>().drop_in_place() };
}

/// The closure of a greenlet, or nothing. Main never has one; others have one while they are
/// pending.
pub(crate) struct ClosureCell {
    vtable: Cell<Option<&'static ClosureVTable>>,
    storage: UnsafeCell<Storage>,
}

impl ClosureCell {
    pub(super) const fn empty() -> ClosureCell {
        ClosureCell {
            vtable: Cell::new(None),
            storage: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// The vtable of the closure. `None` if there is no closure.
    #[inline]
    pub(crate) fn vtable(&self) -> Option<&'static ClosureVTable> {
        self.vtable.get()
    }

    /// Stores a closure. A closure that was there is leaked.
    ///
    /// # Panics
    ///
    /// Panics if the closure does not [fit](fits_in_node).
    // Inlined, so that the closure is written where it stays. A copy of it costs more than all
    // other stores of a creation.
    #[inline(always)]
    pub(crate) fn put<S>(&self, vtable: &'static VTableOf<S>, closure: S) {
        assert!(fits_in_node::<S>());
        // SAFETY: it fits, and no reference into the storage exists.
        unsafe { self.storage.get().cast::<S>().write(closure) };
        self.vtable.set(Some(&vtable.0));
    }

    /// Takes the closure out.
    ///
    /// # Safety
    ///
    /// - The cell holds a closure of the type `S`.
    #[inline]
    pub(crate) unsafe fn take<S>(&self) -> S {
        self.vtable.set(None);
        // SAFETY: the storage holds an `S`, says the caller; the vtable is gone, so nobody reads it
        // again [closure-present].
        unsafe { self.storage.get().cast::<S>().read() }
    }

    /// Drops the closure, if there is one.
    #[inline]
    pub(crate) fn clear(&self) {
        if let Some(drop) = self.vtable.take().and_then(|vtable| vtable.drop) {
            // SAFETY: the closure is of the vtable's type; the vtable is gone, so nobody uses it
            // again [closure-present].
            // CAUTION: runs arbitrary user code.
            unsafe { drop(self.storage.get()) };
        }
    }
}
