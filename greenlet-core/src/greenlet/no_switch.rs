//! Sections in which the running greenlet must not switch.

#![forbid(unsafe_code)]

use std::panic::Location;

use crate::backend::asan;
use crate::switch::teardown;
use crate::thread::{ThreadState, flag};

/// Runs `section`, inside which the running greenlet cannot switch.
///
/// Use it around code that holds a lock or a borrow which another greenlet of the thread would run
/// into. A switch, a throw or an await inside is refused with
/// [`SwitchForbidden`](crate::SwitchForbidden). Sections nest; the error names the place where the
/// outermost one began. Greenlets that lose their last handle inside are ended when the outermost
/// section is left.
///
/// # Panics
///
/// Propagates a panic of `section`. The section is left first.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, SwitchForbidden, no_switch};
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
    let is_outermost = thread.no_switch_since.get().is_none();
    if is_outermost {
        // Installs the exit guard of the thread, which runs what the section may defer.
        thread.ensure_set_up();
        thread.no_switch_since.set(Some(Location::caller()));
        thread.raise_flag(flag::NO_SWITCH);
    }
    let leave = Section {
        is_outermost,
        outer_frame: thread.no_switch_frame.get(),
    };
    thread
        .no_switch_frame
        .set(asan::on_stack((&raw const leave).cast()));
    // CAUTION: runs arbitrary user code, which may panic.
    section()
}

/// Leaves a section when it is dropped, also after a panic.
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
            // CAUTION: runs arbitrary user code: the ends that the section deferred.
            thread.run_deferred();
            // Clean-up that waits in a section again and again would never end.
            teardown::leave_if_exhausted(thread);
        }
    }
}
