//! What the `greenlet` crate needs of this one beyond its public API. Not for anybody else: the
//! items here may change in any release.
//!
//! [`switch_in`] and [`with_attached`] save a reference count on the path of an await.
//! [`discard`] drops a value where nothing may unwind. [`interrupt`] ends a greenlet for a scope that
//! ends.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::rc::Rc;

use anyhow::Result;

use crate::backend;
use crate::greenlet::Greenlet;
pub use crate::greenlet::await_lock::{hold, keep_suspended, lock_for_await, unlock};
use crate::greenlet::introspect::StackUsage;
use crate::payload::{Payload, TypeTag};
use crate::stack;
pub use crate::switch::teardown::{count_refusal, interrupt};
pub use crate::switch::unwind::{Unwound, discard};
use crate::switch::{self, Arrival, receive};
use crate::thread::{self, Cause, ThreadState};

/// Returns how many handles `greenlet` has besides this one. The link of each child is one.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, raw};
/// let child = Greenlet::new(|(): ()| Ok(()));
/// let _other = child.clone();
/// assert_eq!(raw::other_handles(&child), 1);
/// ```
pub fn other_handles(greenlet: &Greenlet) -> usize {
    greenlet.inner().strong_count().saturating_sub(1) as usize
}

/// Returns `true` if the running greenlet is the parent of `greenlet`. Counts no reference.
#[inline]
pub fn is_child_of_current(greenlet: &Greenlet) -> bool {
    let current = ThreadState::current().current_ptr();
    greenlet.inner().parent.is_at(current)
}

/// Returns how much of the running stack is used: a greenlet's, a generator's, or the thread's own.
/// `None` if it is another library's, or if the system does not say (Linux with glibc does).
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, raw, stack};
/// let child = Greenlet::new(|(): ()| Ok(raw::running_stack().unwrap().size));
/// assert_eq!(child.switch::<usize>(())?, stack::default_size());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn running_stack() -> Option<StackUsage> {
    let (used, size) = stack::usage_at(backend::stack_pointer())?;
    Some(StackUsage { used, size })
}

/// Calls `end`, which ends `greenlet`: now, or as soon as greenlets can be ended.
///
/// `Greenlet::end` waits in the same way while a panic unwinds, and in a `no_switch` section. Use
/// this for an end with code around it.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, no_switch, raw};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// let ended = waiting.clone();
/// no_switch(|| raw::end_or_defer(&waiting, move || ended.end()));
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn end_or_defer(greenlet: &Greenlet, end: impl FnOnce() + 'static) {
    let thread = ThreadState::current();
    if thread.can_end_greenlets() {
        // CAUTION: runs arbitrary user code.
        end();
    } else {
        thread.defer_by(greenlet, Cause::Ended, Some(Box::new(end)));
    }
}

/// Switches to the greenlet in `place` as [`Greenlet::switch`] does, without a handle of its own.
///
/// `place` is not borrowed during the switch: it may be emptied, and the greenlet may end, before
/// control comes back. `at` is the place that [`Greenlet::suspended_at`] shows for the caller.
///
/// # Errors
///
/// The outer error says why the running greenlet may not switch: see
/// [`check_switch_allowed`](crate::check_switch_allowed). Nothing has changed then, and the value
/// is dropped. The inner errors are those of [`Greenlet::switch`].
///
/// # Panics
///
/// Panics as [`Greenlet::switch`] does, and if `place` is empty or mutably borrowed.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::cell::RefCell;
/// use std::panic::Location;
/// use greenlet::{Greenlet, raw};
/// let place = RefCell::new(Some(Greenlet::new(|n: u32| Ok(n + 1))));
/// assert_eq!(raw::switch_in::<u32>(&place, 1_u32, Location::caller())??, 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline(always)] // the processor mispredicts a return that follows a switch
pub fn switch_in<R: 'static>(
    place: &RefCell<Option<Greenlet>>,
    value: impl Sized + 'static,
    at: &'static Location<'static>,
) -> Result<Result<R>> {
    let mut value = ManuallyDrop::new(value);
    match switch::try_switch_in(place, Payload::new(&mut value), at) {
        Ok(back) => Ok(receive::receive(back)),
        Err(unsent) => Ok(switch_in_slow(place, unsent, at, TypeTag::of::<R>())?.and_then(receive::receive)),
    }
}

#[cold]
#[inline(never)]
fn switch_in_slow(
    place: &RefCell<Option<Greenlet>>,
    unsent: Payload,
    at: &'static Location<'static>,
    wanted: TypeTag,
) -> Result<Result<Arrival>> {
    if let Err(refused) = switch::check_switch_allowed() {
        // CAUTION: runs arbitrary user code: the destructor of the value.
        drop(unsent.into_value());
        return Err(refused);
    }
    let target = place
        .borrow()
        .clone()
        .expect("`place` has the greenlet to switch to");
    Ok(switch::switch_to_owned(target, unsent, at, wanted))
}

/// Calls `look` with what was attached first to the running greenlet, if that is a `T`, and with the
/// greenlet's id.
///
/// Counts no reference to the greenlet or to the attachment, so that none is on the stack while
/// `look` switches.
///
/// # Safety
///
/// - `look` returns, or unwinds, before the running greenlet ends. It may switch greenlets, which
///   keeps this greenlet active. It must not run user code that may leave `look` suspended in
///   another way: a coroutine of another library that runs on the stack of this greenlet can be
///   suspended and outlive it. Clone the `Rc` and return it, to use it with such code.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::rc::Rc;
/// use greenlet::{Greenlet, raw};
/// let child = Greenlet::new(|(): ()| {
///     // SAFETY: the closure only clones an `Rc`.
///     Ok(unsafe { raw::with_attached(|text: Option<&Rc<String>>, _| text.cloned()) })
/// });
/// child.attach(Rc::new(String::from("attached")));
/// assert_eq!(*child.switch::<Option<Rc<String>>>(())?.unwrap(), "attached");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline(always)] // the processor mispredicts a return that follows a switch; `look` makes one
pub unsafe fn with_attached<T: 'static, R>(look: impl FnOnce(Option<&Rc<T>>, u64) -> R) -> R {
    thread::with_current_inner(|inner| {
        let attached = inner.attachment().filter(|attached| attached.is::<T>());
        let attached = attached.map(|attached| {
            let value: *const T = Rc::as_ptr(attached).cast();
            // SAFETY: the value is a `T`, as just checked, and the pointer comes from an `Rc` of
            // it. This one borrows the count of that, so it is not dropped.
            ManuallyDrop::new(unsafe { Rc::from_raw(value) })
        });
        look(attached.as_deref(), inner.id())
    })
}
