//! What the `greenlet` crate needs of this one beyond its public API. Not for anybody else: the
//! items here may change in any release.
//!
//! [`switch_in`], [`switch_either`] and [`is_running`] are on the path of an await, and count no
//! reference.
//! [`discard`] drops a value where nothing may unwind. [`interrupt`] ends a greenlet for a scope that
//! ends.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::Location;

use anyhow::Result;

use crate::backend;
use crate::greenlet::Greenlet;
pub use crate::greenlet::await_lock::{Held, keep_suspended, lock_for_await, unlock};
use crate::greenlet::introspect::StackUsage;
use crate::payload::{Payload, TypeTag};
use crate::stack;
pub use crate::switch::receive::Either;
pub use crate::switch::teardown::{count_refusal, interrupt};
pub use crate::switch::unwind::{Unwound, discard};
use crate::switch::{self, Arrival, receive};
use crate::thread::{Cause, ThreadState};

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

/// Returns `true` if the greenlet with this [id](Greenlet::id) runs. Counts no reference.
#[inline]
pub fn is_running(id: u64) -> bool {
    ThreadState::current().current_id() == Some(id)
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

/// A place for a handle: see [`switch_in`].
pub struct Place(Cell<Greenlet>);

impl Place {
    /// Creates a place with a handle.
    #[inline]
    pub fn new(greenlet: Greenlet) -> Place {
        Place(Cell::new(greenlet))
    }

    /// Replaces the handle.
    pub fn replace(&self, greenlet: Greenlet) -> Greenlet {
        self.0.replace(greenlet)
    }

    /// Returns the greenlet.
    pub fn get(&self) -> Greenlet {
        self.look(Greenlet::clone)
    }

    /// Returns `true` if the greenlet is the running one.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.look(Greenlet::is_current)
    }

    /// Returns `true` if the greenlet is a main greenlet.
    #[inline]
    pub fn is_main(&self) -> bool {
        self.look(Greenlet::is_main)
    }

    #[inline]
    fn look<R>(&self, look: fn(&Greenlet) -> R) -> R {
        // SAFETY: the functions above, which `look` is one of, change no place.
        look(unsafe { &*self.0.as_ptr() })
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.get()).finish()
    }
}

/// Switches to the greenlet in `place` as [`Greenlet::switch`] does, without a handle of its own.
///
/// During the switch, the handle may be replaced, and the greenlet may end, before
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
/// Panics as [`Greenlet::switch`] does.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::panic::Location;
/// use greenlet::{Greenlet, raw};
/// let place = raw::Place::new(Greenlet::new(|n: u32| Ok(n + 1)));
/// assert_eq!(raw::switch_in::<u32>(&place, 1_u32, Location::caller())??, 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline(always)] // the processor mispredicts a return that follows a switch
pub fn switch_in<R: 'static>(
    place: &Place,
    value: impl Sized + 'static,
    at: &'static Location<'static>,
) -> Result<Result<R>> {
    let mut value = ManuallyDrop::new(value);
    match switch::try_switch_in(&place.0, Payload::new(&mut value), at) {
        Ok(back) => Ok(receive::receive(back)),
        Err(unsent) => Ok(switch_in_slow(place, unsent, at, TypeTag::of::<R>())?.and_then(receive::receive)),
    }
}

#[cold]
#[inline(never)]
fn switch_in_slow(
    place: &Place,
    unsent: Payload,
    at: &'static Location<'static>,
    wanted: TypeTag,
) -> Result<Result<Arrival>> {
    if let Err(refused) = switch::check_switch_allowed() {
        // CAUTION: runs arbitrary user code: the destructor of the value.
        drop(unsent.into_value());
        return Err(refused);
    }
    Ok(switch::switch_to_owned(place.get(), unsent, at, wanted))
}

/// Switches to `greenlet` as [`Greenlet::switch`] does, and receives an `A` or a `B`.
///
/// # Errors
///
/// Those of [`Greenlet::switch`].
///
/// # Panics
///
/// Panics as [`Greenlet::switch`] does.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, raw};
/// let child = Greenlet::new(|(): ()| {
///     getparent().unwrap().switch::<()>("text")?;
///     Ok(7)
/// });
/// let first = raw::switch_either::<&str, i32>(&child, ())?;
/// assert!(matches!(first, raw::Either::First("text")));
/// let second = raw::switch_either::<&str, i32>(&child, ())?;
/// assert!(matches!(second, raw::Either::Second(7)));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[track_caller]
#[inline(always)] // the processor mispredicts a return that follows a switch
pub fn switch_either<A: 'static, B: 'static>(
    greenlet: &Greenlet,
    value: impl Sized + 'static,
) -> Result<Either<A, B>> {
    let mut value = ManuallyDrop::new(value);
    let at = Location::caller();
    receive::receive_either(switch::switch_to(
        greenlet.inner(),
        Payload::new(&mut value),
        at,
        TypeTag::of::<B>(),
    )?)
}

/// Switches as [`Greenlet::switch_owned`] does, and receives an `A` or a `B`.
///
/// # Errors
///
/// Those of [`Greenlet::switch`].
///
/// # Panics
///
/// Panics as [`Greenlet::switch`] does.
#[track_caller]
pub fn switch_owned_either<A: 'static, B: 'static>(
    greenlet: Greenlet,
    value: impl Sized + 'static,
) -> Result<Either<A, B>> {
    let mut value = ManuallyDrop::new(value);
    let at = Location::caller();
    receive::receive_either(switch::switch_to_owned(
        greenlet,
        Payload::new(&mut value),
        at,
        TypeTag::of::<B>(),
    )?)
}
