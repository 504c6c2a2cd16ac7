//! The data of a step: a value of up to three words, in registers, or a pointer to a larger value.
//!
//! A cold function takes the three words as three arguments. An array would be passed by reference,
//! so each step would store it, also on the hot path.

use std::mem::ManuallyDrop;
use std::ptr;

use crate::backend::{Word, Words};

const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<Words>() && align_of::<T>() <= align_of::<Words>()
}

/// Packs the value in `slot`, which the words own from now on. The slot must stay in place until
/// they are unpacked.
#[inline]
pub(super) fn pack<T>(slot: &mut ManuallyDrop<T>) -> Words {
    let mut words = [Word::uninit(); 3];
    let value: *mut T = (&raw mut *slot).cast();
    if fits::<T>() {
        // SAFETY: the words have room for a `T`, and the slot gives the value up.
        unsafe { ptr::copy_nonoverlapping(value, words.as_mut_ptr().cast::<T>(), 1) };
    } else {
        words[0].write(value.cast());
    }
    words
}

/// Moves a value out of its words.
///
/// # Safety
///
/// - `pack` made the words of a `T`, whose slot is in place, and nobody uses them afterwards.
#[inline]
pub(super) unsafe fn unpack<T>(words: Words) -> T {
    let value: *const T = if fits::<T>() {
        words.as_ptr().cast()
    } else {
        // SAFETY: `pack` stores a pointer to a value that does not fit.
        unsafe { words[0].assume_init() }.cast()
    };
    // SAFETY: a `T` is there, and nobody else reads it, says the caller.
    unsafe { value.read() }
}
