//! Values as a step carries them: up to three words in registers, a pointer to the value otherwise.

use std::mem::ManuallyDrop;
use std::ptr;

use crate::backend::{Word, Words};

const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<Words>() && align_of::<T>() <= align_of::<Words>()
}

/// Packs the value in `slot`, which the words own from now on. The slot stays in place until they are unpacked.
#[inline(always)] // a few moves between registers
pub(super) fn pack<T>(slot: &mut ManuallyDrop<T>) -> Words {
    let mut words = [Word::uninit(); 3];
    let value: *mut T = (&raw mut *slot).cast();
    if fits::<T>() {
        // SAFETY: it fits, and the slot gives it up.
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
/// - The words are those of a `T`, its slot is in place, and nobody uses them afterwards.
#[inline(always)] // a few moves between registers
pub(super) unsafe fn unpack<T>(words: Words) -> T {
    if fits::<T>() {
        // SAFETY: the words hold a `T`.
        unsafe { words.as_ptr().cast::<T>().read() }
    } else {
        // SAFETY: the first word is a pointer to a `T`.
        unsafe { words[0].assume_init().cast::<T>().read() }
    }
}
