//! What crosses a switch: a parcel, which is the descriptor of a type, and a value of that type or, where
//! it is larger than a word, a pointer to it in the sender's frame. Two words, no allocation.
//!
//! ```text
//!   sender's stack (suspended)                 receiver's stack (running)
//!   ├────────────────────────┤
//!   │ args: ManuallyDrop<T>  │◄─ parcel.data ─  take::<T>() moves the value out
//!   │ ...                    │   parcel.info ─► TypeInfo of T
//!   │ frame of switch        │
//!   ├────────────────────────┤   T as small as a word: it is in parcel.data itself
//! ```
//!
//! Small values go in the word because a round trip through memory is most of what a switch takes: a `u64`
//! sent to and fro takes 2.1 ns a switch behind a pointer, and 1.5 in the word.
//!
//! # Invariants
//!
//! - **P1** A parcel's `data` holds a value of the type that `info` describes, if values of that type go in
//!   the word ([`goes_in_word`]), and else points to one. The value is initialised, and its owner
//!   will not touch or drop it: the parcel owns the value.
//! - **P2** A parcel is used up exactly once, by [`Parcel::take`], [`Parcel::take_boxed`] or by being
//!   sent on, and before anything else may run on the stack that it points into. (`switch.rs` keeps it:
//!   who arrives takes the parcel before it calls foreign code.)
//! - **P3** Descriptors at the same address describe the same type: a descriptor is immutable, so equal
//!   addresses mean the same `id` function, and that function returns one `TypeId` only. The converse
//!   does not hold (each code generation unit may have a copy), so unequal addresses prove nothing.

use std::any::{Any, TypeId, type_name};
use std::mem::ManuallyDrop;
use std::ptr;

use anyhow::Error;

use crate::backend::Word;
use crate::greenlet::Greenlet;
use crate::value::Value;

/// Describes a type that can cross a switch.
pub(crate) struct TypeInfo {
    /// Functions, because neither `TypeId::of` nor `type_name` is `const` on the oldest supported
    /// compiler.
    id: fn() -> TypeId,
    name: fn() -> &'static str,
    /// Moves a value of the type out of the data of a parcel into a box.
    boxed: unsafe fn(Word) -> Box<dyn Any>,
}

struct Describe<T>(std::marker::PhantomData<T>);

impl<T: 'static> Describe<T> {
    const INFO: TypeInfo = TypeInfo {
        id: TypeId::of::<T>,
        name: type_name::<T>,
        boxed: boxed::<T>,
    };
}

/// Says whether values of a type travel in the parcel itself.
const fn goes_in_word<T>() -> bool {
    size_of::<T>() <= size_of::<Word>() && align_of::<T>() <= align_of::<Word>()
}

/// Moves the value out of the data of a parcel.
///
/// # Safety
///
/// - `data` is the data of a parcel of a `T` (P1), and nobody uses it afterwards.
#[inline(always)] // part of the fast path; one register, or one load
unsafe fn unpack<T>(data: Word) -> T {
    if goes_in_word::<T>() {
        // SAFETY: P1: the word holds a `T`.
        unsafe { data.as_ptr().cast::<T>().read() }
    } else {
        // SAFETY: P1: the word is a pointer to a `T`.
        unsafe { data.assume_init().cast::<T>().read() }
    }
}

/// Moves the value of a parcel into a box.
///
/// # Safety
///
/// - As for [`unpack`].
unsafe fn boxed<T: 'static>(data: Word) -> Box<dyn Any> {
    // SAFETY: the contract of this function.
    Box::new(unsafe { unpack::<T>(data) })
}

impl TypeInfo {
    /// The descriptor of `T`.
    #[inline(always)] // one address, a constant after inlining
    pub(crate) fn of<T: 'static>() -> &'static TypeInfo {
        const { &Describe::<T>::INFO }
    }

    #[inline(always)] // one indirect call
    pub(crate) fn id(&self) -> TypeId {
        (self.id)()
    }

    pub(crate) fn name(&self) -> &'static str {
        (self.name)()
    }
}

/// A value on its way: see the picture above.
#[must_use = "a parcel owns the value it points to"]
pub(crate) struct Parcel {
    info: &'static TypeInfo,
    data: Word,
}

impl Parcel {
    /// Makes a parcel of the value in `slot`, which it owns from now on.
    #[inline(always)]
    pub(crate) fn new<T: 'static>(slot: &mut ManuallyDrop<T>) -> Parcel {
        let mut data = Word::uninit();
        let value: *mut T = (&raw mut *slot).cast();
        if goes_in_word::<T>() {
            // SAFETY: it fits into the word, and the slot gives it up (P1).
            unsafe { ptr::copy_nonoverlapping(value, data.as_mut_ptr().cast::<T>(), 1) };
        } else {
            data.write(value.cast());
        }
        Parcel {
            info: TypeInfo::of::<T>(),
            data,
        }
    }

    /// The parcel as the two words that a backend carries.
    #[inline(always)]
    pub(crate) fn into_words(self) -> (*const (), Word) {
        ((&raw const *self.info).cast(), self.data)
    }

    /// The parcel that the two words stand for.
    ///
    /// # Safety
    ///
    /// - The words come from [`Parcel::into_words`], through a switch, and this is their first use.
    #[inline(always)]
    pub(crate) unsafe fn from_words(word: *const (), data: Word) -> Parcel {
        Parcel {
            // SAFETY: `into_words` made it from a `&'static TypeInfo`.
            info: unsafe { &*word.cast::<TypeInfo>() },
            data,
        }
    }

    /// Says whether the value is a `T`, by the address of its descriptor alone: `false` proves nothing.
    #[inline(always)]
    pub(crate) fn is_surely<T: 'static>(&self) -> bool {
        ptr::eq(self.info, TypeInfo::of::<T>()) // P3
    }

    /// Says whether the value is a `T`.
    #[inline(always)] // part of the fast path where descriptors differ
    pub(crate) fn is<T: 'static>(&self) -> bool {
        self.is_surely::<T>() || self.info.id() == TypeId::of::<T>()
    }

    /// Moves the value out.
    ///
    /// # Safety
    ///
    /// - The value is a `T`: `is` or `is_surely` said so.
    #[inline(always)]
    pub(crate) unsafe fn take<T: 'static>(self) -> T {
        // SAFETY: P1, and the contract: the described type is `T`.
        unsafe { unpack(self.data) }
    }

    /// Moves the value out into a box of its own, or out of the box where it is a [`Value`].
    pub(crate) fn take_value(self) -> Value {
        if self.is::<Value>() {
            // SAFETY: just looked.
            return unsafe { self.take() };
        }
        let name = self.info.name();
        // SAFETY: P1.
        let inner = unsafe { (self.info.boxed)(self.data) };
        Value::from_parts(inner, name)
    }
}

/// What is delivered to a greenlet, once it has been taken out of the sender's frame.
#[derive(Debug)]
pub(crate) enum Message {
    /// A value: `switch` returns it.
    Value(Value),
    /// An error: `switch` returns it as `Err`.
    Error(Error),
    /// A panic that left a child: `switch` goes on with it.
    Panic(Box<dyn Any + Send>),
    /// The second stage of an exit: `switch` unwinds, without a hook, and nobody is asked.
    Force,
}

impl Message {
    /// Says whether the delivery is what Python calls a "throw".
    pub(crate) fn is_throw(&self) -> bool {
        !matches!(self, Message::Value(_))
    }
}

/// What a [`Control`] delivers.
pub(crate) enum Content {
    /// A value that still is in the sender's frame.
    Parcel(Parcel),
    Message(Message),
}

impl Content {
    /// What is delivered, out of the sender's frame.
    pub(crate) fn into_message(self) -> Message {
        match self {
            Content::Parcel(parcel) => Message::Value(parcel.take_value()),
            Content::Message(message) => message,
        }
    }

    /// Says whether a function that takes `taken` can be started with this; the type's name if not.
    /// Errors can be delivered to any.
    pub(crate) fn fits(&self, taken: &TypeInfo) -> Result<(), &'static str> {
        let found = match self {
            Content::Parcel(parcel) if ptr::eq(parcel.info, taken) => return Ok(()),
            Content::Parcel(parcel) if parcel.is::<Value>() => {
                const { assert!(!goes_in_word::<Value>()) };
                // SAFETY: P1, and just looked, here and one line above; the parcel stays as it is.
                unsafe { &*parcel.data.assume_init().cast::<Value>() }.type_id_inside()
            }
            Content::Parcel(parcel) => parcel.info.id(),
            Content::Message(Message::Value(value)) => value.type_id_inside(),
            Content::Message(_) => return Ok(()),
        };
        if found == taken.id() || taken.id() == TypeId::of::<Value>() {
            Ok(())
        } else {
            Err(taken.name())
        }
    }
}

/// The parcel of everything that is not a plain value from a greenlet that stays alive: whoever
/// receives one has more to do than to take a value. Always of this one type, so the receiver's
/// fast path, which looks for the type it asked for, never sees it.
pub(crate) struct Control {
    pub(crate) content: Content,
    /// The greenlet that control comes from: to be shown to the tracer, and then let go of. Where that
    /// was its last handle, letting go of it ends it (rule DE-15), in the receiver's context.
    pub(crate) origin: Option<Greenlet>,
    /// Whether the tracer is to be called with it.
    pub(crate) traced: bool,
}

impl Control {
    /// Boxes a message that never leaves this stack: the answer to a refused switch.
    pub(crate) fn local(message: Message) -> Parcel {
        let control = Control {
            content: Content::Message(message),
            origin: None,
            traced: false,
        };
        const { assert!(goes_in_word::<Box<Control>>()) }; // so nothing of it is left in this frame
        Parcel::new(&mut ManuallyDrop::new(Box::new(control)))
    }

    /// Takes the control out of a parcel, or says that it is a plain value.
    pub(crate) fn open(parcel: Parcel) -> Result<Control, Parcel> {
        if parcel.is::<Control>() {
            // SAFETY: just looked.
            return Ok(unsafe { parcel.take() });
        }
        if parcel.is::<Box<Control>>() {
            // SAFETY: just looked.
            let control: Box<Control> = unsafe { parcel.take() };
            return Ok(*control);
        }
        Err(parcel)
    }
}
