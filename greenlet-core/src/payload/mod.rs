//! What crosses a switch: a payload, which is the tag of a type, and a value of that type or, where
//! it is larger than a word, a pointer to it in the sender's frame. Two words, no allocation.
//!
//! ```text
//!   sender's stack (suspended)                 receiver's stack (running)
//!   ├────────────────────────┤
//!   │ args: ManuallyDrop<T>  │◄─ payload.data ─  take::<T>() moves the value out
//!   │ ...                    │   tag  ─► describes T
//!   │ frame of switch        │
//!   ├────────────────────────┤   T as small as a word: it is in payload.data itself
//! ```
//!
//! Small values go in the word because a round trip through memory is most of what a switch takes: a `u64`
//! sent to and fro takes 2.1 ns a switch behind a pointer, and 1.5 in the word.
//!
//! # Invariants
//!
//! - **P1** A payload's `data` holds a value of the type that `tag` describes, if values of that type go in
//!   the word ([`fits_in_word`]), and else points to one. The value is initialised, and its owner
//!   will not touch or drop it: the payload owns the value.
//! - **P2** A payload is used up exactly once, by [`Payload::take`], [`Payload::take_boxed`] or by being
//!   sent on, and before anything else may run on the stack that it points into. (`receive.rs` keeps it:
//!   who arrives takes the payload before it calls foreign code.)
//! - **P3** Descriptors at the same address describe the same type: a tag is a function that returns one
//!   `TypeId` only. The converse does not hold (each crate may have a copy), so unequal addresses prove
//!   nothing.

pub(crate) mod error;
pub(crate) mod exit;
pub(crate) mod thread_bound;
pub(crate) mod value;

use std::any::{Any, TypeId, type_name};
use std::mem::ManuallyDrop;
use std::ptr;

use anyhow::Error;

use crate::backend::Word;
use crate::greenlet::Greenlet;
use crate::payload::value::Value;

/// What there is to know of a type that can cross a switch.
pub(crate) struct TypeInfo {
    id: TypeId,
    name: &'static str,
    /// Moves a value of the type out of the data of a payload into a box.
    boxed: unsafe fn(Word) -> Box<dyn Any>,
}

#[inline(never)] // or there were one in each code generation unit, and its address would say little
fn describe<T: 'static>() -> TypeInfo {
    TypeInfo {
        id: TypeId::of::<T>(),
        name: type_name::<T>(),
        boxed: boxed::<T>,
    }
}

/// Describes a type that can cross a switch. A function, because neither `TypeId::of` nor `type_name` is `const` on the
/// oldest supported compiler.
#[derive(Clone, Copy)]
pub(crate) struct TypeTag(fn() -> TypeInfo);

impl TypeTag {
    /// The tag of `T`.
    pub(crate) const fn of<T: 'static>() -> TypeTag {
        TypeTag(describe::<T>)
    }

    /// The same, by an instruction that says its address each time. The compiler would keep it in a register for the
    /// next time, and a switch leaves it only two: what is kept there has to be saved, and drives out something else.
    ///
    /// The instruction reads the address from the table of the linker, since the function may be in another object. The
    /// relocation lets the linker write one there that reads nothing, if it is not: a switch takes 1.85 ns then, and else 1.87.
    #[inline(always)] // part of the fast path: one instruction
    fn anew<T: 'static>() -> TypeTag {
        #[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux"))]
        {
            let address: *const ();
            // SAFETY: computes an address. Not `pure`, or it would be kept.
            unsafe {
                std::arch::asm!(
                    "mov {0}, qword ptr [rip]", // its last four bytes are the place of the address in the table
                    "2:",
                    ".reloc 2b - 4, R_X86_64_REX_GOTPCRELX, {1} - 4",
                    out(reg) address,
                    sym describe::<T>,
                    options(nomem, nostack, preserves_flags)
                );
                TypeTag(std::mem::transmute::<*const (), fn() -> TypeInfo>(address))
            }
        }
        #[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux")))]
        TypeTag::of::<T>()
    }

    /// Says whether it surely describes the same type as another one: `false` proves nothing.
    #[inline(always)] // part of the fast path: one comparison
    pub(crate) fn ptr_eq(self, other: TypeTag) -> bool {
        ptr::eq(self.0 as *const (), other.0 as *const ()) // P3
    }

    /// Says whether it describes the same type as another one.
    #[inline]
    pub(crate) fn is(self, other: TypeTag) -> bool {
        self.ptr_eq(other) || self.type_id_eq(other)
    }

    #[cold]
    #[inline(never)] // what it needs of the stack, its callers need not
    fn type_id_eq(self, other: TypeTag) -> bool {
        self.id() == other.id()
    }

    #[inline(always)] // one indirect call
    fn id(self) -> TypeId {
        (self.0)().id
    }

    fn name(self) -> &'static str {
        (self.0)().name
    }
}

/// Says whether values of a type travel in the payload itself.
const fn fits_in_word<T>() -> bool {
    size_of::<T>() <= size_of::<Word>() && align_of::<T>() <= align_of::<Word>()
}

/// Moves the value out of the data of a payload.
///
/// # Safety
///
/// - `data` is the data of a payload of a `T` (P1), and nobody uses it afterwards.
#[inline(always)] // part of the fast path; one register, or one load
unsafe fn read_value<T>(data: Word) -> T {
    if fits_in_word::<T>() {
        // SAFETY: P1: the word holds a `T`.
        unsafe { data.as_ptr().cast::<T>().read() }
    } else {
        // SAFETY: P1: the word is a pointer to a `T`.
        unsafe { data.assume_init().cast::<T>().read() }
    }
}

/// Moves the value of a payload into a box.
///
/// # Safety
///
/// - As for [`unpack`].
unsafe fn boxed<T: 'static>(data: Word) -> Box<dyn Any> {
    // SAFETY: the contract of this function.
    Box::new(unsafe { read_value::<T>(data) })
}

/// A value on its way: see the picture above.
#[must_use = "a payload owns the value it points to"]
pub(crate) struct Payload {
    tag: TypeTag,
    data: Word,
}

impl Payload {
    /// Makes a payload of the value in `slot`, which it owns from now on.
    #[inline(always)]
    pub(crate) fn new<T: 'static>(slot: &mut ManuallyDrop<T>) -> Payload {
        let mut data = Word::uninit();
        let value: *mut T = (&raw mut *slot).cast();
        if fits_in_word::<T>() {
            // SAFETY: it fits into the word, and the slot gives it up (P1).
            unsafe { ptr::copy_nonoverlapping(value, data.as_mut_ptr().cast::<T>(), 1) };
        } else {
            data.write(value.cast());
        }
        Payload {
            tag: TypeTag::of::<T>(),
            data,
        }
    }

    /// The payload as the two words that a backend carries.
    #[inline(always)]
    pub(crate) fn into_words(self) -> (*const (), Word) {
        (self.tag.0 as *const (), self.data)
    }

    /// The payload that the two words stand for.
    ///
    /// # Safety
    ///
    /// - The words come from [`Payload::into_words`], through a switch, and this is their first use.
    #[inline(always)]
    pub(crate) unsafe fn from_words(word: *const (), data: Word) -> Payload {
        Payload {
            // SAFETY: `into_words` made it from such a function.
            tag: TypeTag(unsafe { std::mem::transmute::<*const (), fn() -> TypeInfo>(word) }),
            data,
        }
    }

    /// The same payload, of a `T`, right before it leaves: see [`TypeTag::anew`].
    #[inline(always)] // part of the fast path: nothing
    pub(crate) fn described_anew<T: 'static>(self) -> Payload {
        debug_assert!(self.is::<T>());
        Payload {
            tag: TypeTag::anew::<T>(),
            data: self.data,
        }
    }

    /// Says whether it surely is an error that was [`Thrown`]: `false` proves nothing.
    #[inline]
    pub(crate) fn is_thrown(&self) -> bool {
        self.tag.ptr_eq(THROWN)
    }

    /// Says whether the value is a `T`, which it mostly is.
    ///
    /// The second look is not left to a cold path: where sender and receiver were compiled into different
    /// units, as they often are by default, their tags differ (P3), and it is this that decides, every time.
    #[inline(always)] // part of the fast path: one comparison
    pub(crate) fn is_fast<T: 'static>(&self) -> bool {
        self.tag.ptr_eq(TypeTag::anew::<T>())
            || (!self.is_thrown() && self.tag.type_id_eq(TypeTag::of::<T>()))
    }

    /// Says whether the value is a `T`.
    #[inline]
    pub(crate) fn is<T: 'static>(&self) -> bool {
        self.tag.is(TypeTag::of::<T>())
    }

    /// Moves the value out.
    ///
    /// # Safety
    ///
    /// - The value is a `T`: `is` or `is_fast` said so.
    #[inline(always)]
    pub(crate) unsafe fn take<T: 'static>(self) -> T {
        // SAFETY: P1, and the contract: the described type is `T`.
        unsafe { read_value(self.data) }
    }

    /// Moves the value out into a box of its own, or out of the box where it is a [`Value`].
    pub(crate) fn into_value(self) -> Value {
        if self.is::<Value>() {
            // SAFETY: just looked.
            return unsafe { self.take() };
        }
        let TypeInfo { name, boxed, .. } = (self.tag.0)();
        // SAFETY: P1.
        let inner = unsafe { boxed(self.data) };
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
    ForcedUnwind,
}

impl Message {
    /// Says whether the delivery is what Python calls a "throw".
    pub(crate) fn is_throw(&self) -> bool {
        !matches!(self, Message::Value(_))
    }
}

/// What a [`Envelope`] delivers.
pub(crate) enum Delivery {
    /// A value that still is in the sender's frame.
    Payload(Payload),
    Message(Message),
}

impl Delivery {
    /// What is delivered, out of the sender's frame.
    pub(crate) fn into_message(self) -> Message {
        match self {
            Delivery::Payload(payload) => Message::Value(payload.into_value()),
            Delivery::Message(message) => message,
        }
    }

    /// Says whether a function that takes `taken` can be started with this; the type's name if not.
    /// Errors can be delivered to any.
    pub(crate) fn fits(&self, taken: TypeTag) -> Result<(), &'static str> {
        let found = match self {
            Delivery::Payload(payload) if payload.tag.is(taken) => return Ok(()),
            Delivery::Payload(payload) if payload.is::<Value>() => {
                const { assert!(!fits_in_word::<Value>()) };
                // SAFETY: P1, and just looked, here and one line above; the payload stays as it is.
                unsafe { &*payload.data.assume_init().cast::<Value>() }.type_id_inside()
            }
            Delivery::Payload(payload) => payload.tag.id(),
            Delivery::Message(Message::Value(value)) => value.type_id_inside(),
            Delivery::Message(_) => return Ok(()),
        };
        if found == taken.id() || taken.id() == TypeId::of::<Value>() {
            Ok(())
        } else {
            Err(taken.name())
        }
    }
}

/// An error on its way to a greenlet that is simply suspended. What there is more to say of goes in a [`Envelope`].
pub(crate) struct Thrown(pub(crate) Error);

/// The tag that these have, wherever they are received: one place for all, so that a look at it is mostly right. Where
/// it says no, the slow look decides (P3).
static THROWN: TypeTag = TypeTag::of::<Thrown>();

impl Thrown {
    #[inline]
    pub(crate) fn into_payload(self) -> Payload {
        const { assert!(fits_in_word::<Thrown>()) }; // so nothing of it is left in this frame
        Payload {
            tag: THROWN,
            data: Payload::new(&mut ManuallyDrop::new(self)).data,
        }
    }
}

/// The payload of everything else that is not a plain value from a greenlet that stays alive: whoever
/// receives one has more to do than to take a value. Always of this one type, so the receiver's
/// fast path, which looks for the type it asked for, never sees it.
pub(crate) struct Envelope {
    pub(crate) delivery: Delivery,
    /// The greenlet that control comes from: to be shown to the tracer, and then let go of. Where that
    /// was its last handle, letting go of it ends it (rule DE-15), in the receiver's context.
    pub(crate) origin: Option<Greenlet>,
    /// Whether the tracer is to be called with it.
    pub(crate) traced: bool,
}

impl Envelope {
    /// Boxes a message that never leaves this stack: the answer to a refused switch.
    pub(crate) fn local(message: Message) -> Payload {
        let envelope = Envelope {
            delivery: Delivery::Message(message),
            origin: None,
            traced: false,
        };
        const { assert!(fits_in_word::<Box<Envelope>>()) }; // so nothing of it is left in this frame
        Payload::new(&mut ManuallyDrop::new(Box::new(envelope)))
    }

    /// Takes the control out of a payload, or says that it is a plain value.
    pub(crate) fn open(payload: Payload) -> Result<Envelope, Payload> {
        if payload.is::<Envelope>() {
            // SAFETY: just looked.
            return Ok(unsafe { payload.take() });
        }
        if payload.is::<Box<Envelope>>() {
            // SAFETY: just looked.
            let envelope: Box<Envelope> = unsafe { payload.take() };
            return Ok(*envelope);
        }
        Err(payload)
    }
}
