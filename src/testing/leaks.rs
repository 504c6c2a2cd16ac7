//! Asserts that code leaks no greenlet.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt::Write;

use greenlet_core::{greenlets, raw, stacks_in_use};

/// Runs a closure, and asserts that it leaks nothing in this thread: all its greenlets have ended,
/// and no further stack is in use.
///
/// A frequent leak is a ring: a suspended child on its parent's stack, or a handle of itself on a greenlet's
/// own stack. No drop ends it. [`scope`](crate::scope), [`Greenlet::end`](crate::Greenlet::end) and
/// [`run_to_end`](crate::run_to_end) do.
///
/// Greenlets that existed before do not count. A greenlet whose handle the closure returns counts
/// as a leak: drop handles inside the closure.
///
/// # Panics
///
/// Panics if anything is left. The message names each greenlet, with the places where it was
/// created and is suspended.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, assert_no_leaks, getparent};
///
/// assert_no_leaks(|| {
///     let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
///     waiting.switch::<()>(()).unwrap();
///     // The last handle is dropped here, which ends the greenlet.
/// });
/// ```
///
/// ```should_panic
/// # use greenlet::{Greenlet, assert_no_leaks, getparent};
/// assert_no_leaks(|| {
///     let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
///     waiting.switch::<()>(()).unwrap();
///     std::mem::forget(waiting);
/// });
/// ```
#[track_caller]
pub fn assert_no_leaks<T>(run: impl FnOnce() -> T) -> T {
    let before: HashSet<u64> = greenlets().iter().map(|greenlet| greenlet.id()).collect();
    let stacks_before = stacks_in_use();
    let value = run();
    let mut left = String::new();
    let mut count = 0;
    for greenlet in greenlets() {
        // The first use of greenlets creates main.
        if greenlet.is_dead() || greenlet.is_main() || before.contains(&greenlet.id()) {
            continue;
        }
        count += 1;
        let created_at = greenlet.created_at();
        let handles = match raw::other_handles(&greenlet) {
            0 => "no handle is left",
            1 => "1 handle is left",
            handles => &format!("{handles} handles are left"),
        };
        let hint = if greenlet.is_active() {
            ": does its own stack hold one?"
        } else {
            ""
        };
        write!(left, "\n  {greenlet:?}, created at {created_at}; {handles}{hint}")
            .expect("writing to a String cannot fail");
    }
    let stacks = stacks_in_use();
    let have = if count == 1 {
        "greenlet has"
    } else {
        "greenlets have"
    };
    assert!(count == 0, "{count} {have} not ended:{left}\n");
    assert!(
        stacks <= stacks_before,
        "{stacks} stacks are in use, and {stacks_before} were before: a greenlet still has its stack"
    );
    value
}
