//! What a switch carries: a type tag and a word of data. Nothing is allocated.
//!
//! ```text
//!   sender's stack (suspended)                 receiver's stack (running)
//!   ├────────────────────────┤
//!   │ value: ManuallyDrop<T> │◄─ payload.data ── downcast::<T>() moves the value out
//!   │ ...                    │   payload.tag ──► describes T
//!   │ frame of the switch    │
//!   ├────────────────────────┤   A T that fits into a word is in payload.data itself.
//! ```
//!
//! A `u64` sent to and fro in the word takes 1.5 ns a switch, behind a pointer 2.1.
//!
//! # Invariants
//!
//! - **[payload-owned]** `data` holds a value of the type that `tag` describes if such values fit
//!   into the word ([`fits_in_word`]), and points to one otherwise. The payload owns the value: its
//!   former owner neither uses nor drops it. A payload is consumed once.
//! - **[take-first]** A payload may point into the sender's stack. The receiver moves the value out
//!   before it runs user code, which may reuse that stack.
//! - **[tag-type]** Tags at the same address describe the same type. The converse does not hold,
//!   since each crate may have a copy of a tag.

pub(crate) mod error;
pub(crate) mod exit;
pub(crate) mod message;
pub(crate) mod thread_bound;
pub(crate) mod thread_id;
pub(crate) mod value;
pub(crate) mod why;

use std::any::{Any, TypeId, type_name};
use std::mem::ManuallyDrop;
use std::ptr;

use anyhow::Error;

use crate::backend::Word;
use crate::payload::value::Value;

/// The description of a type whose values cross switches.
struct TypeInfo {
    id: TypeId,
    name: &'static str,
    /// Moves a value of the type from the data of a payload into a box.
    into_box: unsafe fn(Word) -> Box<dyn Any>,
}

// Not inlined: each code generation unit would have a copy with an address of its own, and tags
// would differ.
#[inline(never)]
fn describe<T: 'static>() -> TypeInfo {
    TypeInfo {
        id: TypeId::of::<T>(),
        name: type_name::<T>(),
        into_box: into_box::<T>,
    }
}

/// Identifies a type. A function, because `TypeId::of` is not `const` in old compilers.
#[derive(Clone, Copy)]
pub(crate) struct TypeTag(fn() -> TypeInfo);

impl TypeTag {
    pub(crate) const fn of<T: 'static>() -> TypeTag {
        TypeTag(describe::<T>)
    }

    /// Returns `true` if both tags are at one address, so they describe one type. `false` proves
    /// nothing ([tag-type]).
    #[inline]
    pub(crate) fn ptr_eq(self, other: TypeTag) -> bool {
        ptr::eq(self.0 as *const (), other.0 as *const ())
    }

    /// Returns `true` if both tags describe one type.
    #[inline]
    pub(crate) fn is(self, other: TypeTag) -> bool {
        self.ptr_eq(other) || self.id() == other.id()
    }

    pub(crate) fn id(self) -> TypeId {
        (self.0)().id
    }

    pub(crate) fn name(self) -> &'static str {
        (self.0)().name
    }
}

/// The type of thrown errors. Kill and throw take 57 and 33 ns with it, 150 and 84 in an envelope.
struct Thrown(Error);

/// The tag of every thrown error. It is a static, so its address is the same in all crates.
static THROWN: TypeTag = TypeTag::of::<Thrown>();

/// Returns `true` if values of a type travel in the payload's word.
const fn fits_in_word<T>() -> bool {
    size_of::<T>() <= size_of::<Word>() && align_of::<T>() <= align_of::<Word>()
}

/// Moves a value out of the data of a payload.
///
/// # Safety
///
/// - `data` belongs to a payload of a `T` ([payload-owned]), and is not used afterwards.
#[inline]
unsafe fn read_value<T>(data: Word) -> T {
    let value: *const T = if fits_in_word::<T>() {
        data.as_ptr().cast()
    } else {
        // SAFETY: a value that does not fit is behind a pointer ([payload-owned]).
        unsafe { data.assume_init() }.cast()
    };
    // SAFETY: an initialised `T` is there, and nobody else reads it, says the caller.
    unsafe { value.read() }
}

/// As [`read_value`], into a box.
///
/// # Safety
///
/// - As for [`read_value`].
unsafe fn into_box<T: 'static>(data: Word) -> Box<dyn Any> {
    // SAFETY: the caller passes the data of a payload of a `T`, and does not use them afterwards.
    Box::new(unsafe { read_value::<T>(data) })
}

/// A value on its way from one greenlet to another: see the picture above.
///
/// It has no destructor. A function that does not pass it on must take the value out.
#[must_use = "a payload owns its value"]
pub(crate) struct Payload {
    tag: TypeTag,
    data: Word,
}

impl Payload {
    /// Creates a payload of the value in `slot`. It owns the value from now on; `slot` must stay in
    /// place until the receiver has run.
    #[inline]
    pub(crate) fn new<T: 'static>(slot: &mut ManuallyDrop<T>) -> Payload {
        let value: *mut T = ptr::from_mut(slot).cast();
        let mut data = Word::uninit();
        if fits_in_word::<T>() {
            // SAFETY: the word has room for a `T`, and the slot gives the value up
            // ([payload-owned]).
            unsafe { ptr::copy_nonoverlapping(value, data.as_mut_ptr().cast::<T>(), 1) };
        } else {
            data.write(value.cast());
        }
        Payload {
            tag: TypeTag::of::<T>(),
            data,
        }
    }

    /// Creates a payload of an error that the receiver gets as `Err`. The error is in the word.
    #[inline]
    pub(crate) fn thrown(error: Error) -> Payload {
        const { assert!(fits_in_word::<Thrown>()) };
        let Payload { data, .. } = Payload::new(&mut ManuallyDrop::new(Thrown(error)));
        Payload { tag: THROWN, data }
    }

    /// Returns the payload as the two words that a backend carries.
    #[inline]
    pub(crate) fn into_words(self) -> (*const (), Word) {
        (self.tag.0 as *const (), self.data)
    }

    /// Returns the payload that two words represent.
    ///
    /// # Safety
    ///
    /// - The words come from [`Payload::into_words`], through a switch, and this is their first
    ///   use.
    #[inline]
    pub(crate) unsafe fn from_words(word: *const (), data: Word) -> Payload {
        // SAFETY: the word comes from `into_words`, which made it from a function of this type.
        let tag = TypeTag(unsafe { std::mem::transmute::<*const (), fn() -> TypeInfo>(word) });
        Payload { tag, data }
    }

    #[inline]
    pub(crate) fn tag(&self) -> TypeTag {
        self.tag
    }

    /// Returns `true` if the value is a `T`.
    #[inline]
    pub(crate) fn is<T: 'static>(&self) -> bool {
        self.tag.is(TypeTag::of::<T>())
    }

    /// Moves the value out if one comparison tells that it is a `T`. Otherwise returns the payload,
    /// whose value may still be a `T` ([tag-type]).
    #[inline]
    pub(crate) fn downcast_fast<T: 'static>(self) -> Result<T, Payload> {
        if self.tag.ptr_eq(TypeTag::of::<T>()) {
            // SAFETY: the tag says that the value is a `T` ([payload-owned]).
            Ok(unsafe { read_value(self.data) })
        } else {
            Err(self)
        }
    }

    /// Moves the value out, or returns the payload if the value is not a `T`.
    pub(crate) fn downcast<T: 'static>(self) -> Result<T, Payload> {
        if self.is::<T>() {
            // SAFETY: the tag says that the value is a `T` ([payload-owned]).
            Ok(unsafe { read_value(self.data) })
        } else {
            Err(self)
        }
    }

    /// Moves a [thrown](Payload::thrown) error out, or returns the payload if it is none.
    pub(crate) fn into_thrown(self) -> Result<Error, Payload> {
        if self.tag.ptr_eq(THROWN) {
            self.downcast::<Thrown>().map(|thrown| thrown.0)
        } else {
            Err(self)
        }
    }

    /// Moves the value into a [`Value`], unless it is one already.
    pub(crate) fn into_value(self) -> Value {
        self.downcast::<Value>().unwrap_or_else(|payload| {
            let TypeInfo { name, into_box, .. } = (payload.tag.0)();
            // SAFETY: `into_box` is for the type that the tag describes ([payload-owned]).
            let inner = unsafe { into_box(payload.data) };
            Value::from_parts(inner, name)
        })
    }

    /// Returns the type of the value; of a [`Value`], the type inside.
    fn type_id(&self) -> TypeId {
        if !self.is::<Value>() {
            return self.tag.id();
        }
        const { assert!(!fits_in_word::<Value>()) };
        // SAFETY: a `Value` does not fit into the word, so the word is a pointer ([payload-owned]).
        let value = unsafe { self.data.assume_init() }.cast::<Value>();
        // SAFETY: the tag says that it points to a `Value`, which the payload owns.
        unsafe { &*value }.type_id_inside()
    }
}
