//! Lends a buffer that a poll returns.
//!
//! # Invariants
//!
//! - **[lent-once]** The poll gets the reader for a lifetime of its own, so nothing but its result
//!   can keep that borrow. If the result is `Pending`, nothing does.

use std::io;
use std::task::Poll;

/// Polls a reader once. Returns the buffer for as long as the reader was borrowed, or the reader.
///
/// # Errors
///
/// Returns the reader if the poll is pending.
pub(super) fn lend<'a, R>(
    reader: &'a mut R,
    poll: impl for<'b> FnOnce(&'b mut R) -> Poll<io::Result<&'b [u8]>>,
) -> Result<io::Result<&'a [u8]>, &'a mut R> {
    let reader: *mut R = reader;
    // SAFETY: the pointer comes from the only reference, which is not used any more.
    match poll(unsafe { &mut *reader }) {
        Poll::Ready(filled) => Ok(filled),
        // SAFETY: as above; [lent-once] the reference that the poll got is gone. The borrow checker
        // does not see that, because it is returned in the other case.
        Poll::Pending => Err(unsafe { &mut *reader }),
    }
}
