//! Sections in which the running greenlet must not be switched away from.

#![forbid(unsafe_code)]

use std::panic::Location;

use crate::backend::asan;
use crate::thread::{ThreadState, flag};

/// Runs `section`; a switch, a throw or an await inside it is refused with
/// [`SwitchForbidden`](crate::SwitchForbidden).
///
/// For code that must not be left in the middle, because it holds a lock or a borrow that another
/// greenlet of the thread would run into. Sections nest; the error names where the outermost began.
/// Greenlets that lose their last handle inside are ended when the section is over.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, SwitchForbidden, no_switch};
///
/// let child = Greenlet::new(|(): ()| Ok(()));
/// let refused = no_switch(|| child.switch::<()>(()));
/// assert!(refused.unwrap_err().is::<SwitchForbidden>());
/// child.switch::<()>(())?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[track_caller]
pub fn no_switch<T>(section: impl FnOnce() -> T) -> T {
    let thread = ThreadState::current();
    let outer = thread.no_switch_since.get();
    if outer.is_none() {
        // What is owed at the section's end wants the thread's end to be noticed.
        thread.ensure_set_up();
        thread.no_switch_since.set(Some(Location::caller()));
        thread.raise_flag(flag::NO_SWITCH);
    }
    // Also when the section panics.
    let leave = Section {
        is_outermost: outer.is_none(),
        outer_frame: thread.no_switch_frame.get(),
    };
    thread
        .no_switch_frame
        .set(asan::on_stack((&raw const leave).cast()));
    section()
}

struct Section {
    is_outermost: bool,
    outer_frame: *const u8,
}

impl Drop for Section {
    fn drop(&mut self) {
        let thread = ThreadState::current();
        thread.no_switch_frame.set(self.outer_frame);
        if self.is_outermost {
            thread.no_switch_since.set(None);
            thread.lower_flag(flag::NO_SWITCH);
            thread.run_deferred();
        }
    }
}
