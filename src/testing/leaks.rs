//! Asserts that code leaves no greenlet behind.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt::Write;

use greenlet_core::{greenlets, stacks_in_use};

/// Runs a closure, and asserts that it leaves nothing behind in this thread: no greenlet that has not
/// ended, and no stack in use.
///
/// Greenlets that were there before do not count. One that the closure made, and whose handle it gives
/// out, does: let the test's own handles go inside.
///
/// # Panics
///
/// Panics if something is left, and says which greenlets: with their names, where they were made and where they are parked.
///
/// # Examples
///
/// ```
/// use greenlet::{Greenlet, assert_no_leaks, getparent};
///
/// assert_no_leaks(|| {
///     let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
///     waiting.switch::<()>(()).unwrap();
///     // The last handle goes here, which ends the greenlet.
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
        // Main is not made, and comes with the first use of greenlets.
        if greenlet.is_dead() || greenlet.is_main() || before.contains(&greenlet.id()) {
            continue;
        }
        count += 1;
        let made_at = greenlet.made_at();
        write!(left, "\n  {greenlet:?}, made at {made_at}").expect("a String takes all that is written");
    }
    let stacks = stacks_in_use();
    assert!(count == 0, "{count} greenlets have not ended:{left}\n");
    assert!(
        stacks <= stacks_before,
        "{stacks} stacks are in use, {stacks_before} were before"
    );
    value
}
