//! The running greenlet, its parent, and the main greenlet of the thread.

#![forbid(unsafe_code)]

use std::mem::ManuallyDrop;
use std::panic::Location;

use anyhow::Result;

use crate::greenlet::Greenlet;
use crate::payload::error::ParentError;
use crate::payload::{Payload, TypeTag};
use crate::switch::{self, Arrival, receive};
use crate::thread::{self, ThreadState};

/// Returns the running greenlet. In a thread that has created none, that is its main greenlet.
///
/// Do not keep the handle over a switch. A suspended greenlet whose own stack holds a handle of it
/// is not ended when all other handles are dropped. Temporaries live to the end of their statement:
/// write `getparent()`, not `getcurrent().parent()`, in front of `switch`. Keep a
/// [`WeakGreenlet`](crate::WeakGreenlet) if you need a handle for long.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getcurrent};
/// let child = Greenlet::new(|(): ()| Ok(getcurrent()));
/// assert_eq!(child.switch::<Greenlet>(())?, child);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[doc(alias = "current")]
#[doc(alias = "this")]
#[inline]
pub fn getcurrent() -> Greenlet {
    thread::current_greenlet()
}

/// Returns the main greenlet of the thread.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{getcurrent, getmain};
/// assert_eq!(getmain(), getcurrent());
/// ```
#[doc(alias = "main")]
#[doc(alias = "root")]
pub fn getmain() -> Greenlet {
    Greenlet::from_inner(ThreadState::current().main_inner())
}

/// Returns the parent of the running greenlet. `None` in the main greenlet.
///
/// Unlike `getcurrent().parent()`, this creates no handle of the running greenlet, which a switch
/// in the same statement would keep.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent};
/// let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<u32>("give me a number"));
/// assert_eq!(child.switch::<&str>(())?, "give me a number");
/// assert_eq!(child.switch::<u32>(7_u32)?, 7);
/// assert!(getparent().is_none());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[inline]
pub fn getparent() -> Option<Greenlet> {
    ThreadState::current().current_inner().parent_greenlet()
}

/// Switches to the parent of the running greenlet with a value, and returns what is next sent to the
/// caller.
///
/// The same as `getparent().unwrap().switch(value)`, but while the greenlet is suspended, its stack
/// holds no handle: a handle of itself would keep it alive forever, and one of the parent would keep
/// the parent alive after [`set_parent`](Greenlet::set_parent).
///
/// # Errors
///
/// As [`Greenlet::switch`]. [`ParentError`] in the main greenlet, which has no parent; the value is
/// dropped then.
///
/// # Panics
///
/// As [`Greenlet::switch`].
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, switch_to_parent};
/// let child = Greenlet::new(|(): ()| switch_to_parent::<u32>("a number, please"));
/// assert_eq!(child.switch::<&str>(())?, "a number, please");
/// assert_eq!(child.switch::<u32>(5_u32)?, 5);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[doc(alias = "suspend")]
#[doc(alias = "yield")]
#[track_caller]
#[inline(always)] // the processor mispredicts a return that follows a switch
pub fn switch_to_parent<R: 'static>(value: impl Sized + 'static) -> Result<R> {
    const { receive::assert_has_values::<R>() }
    let mut value = ManuallyDrop::new(value);
    let at = Location::caller();
    match switch::try_switch_to_parent(Payload::new(&mut value), at) {
        Ok(back) => receive::receive(back),
        Err(unsent) => receive::receive(switch_to_parent_slow(unsent, at, TypeTag::of::<R>())?),
    }
}

#[cold]
#[inline(never)]
fn switch_to_parent_slow(
    unsent: Payload,
    at: &'static Location<'static>,
    wanted: TypeTag,
) -> Result<Arrival> {
    match getparent() {
        Some(parent) => switch::switch_to_owned(parent, unsent, at, wanted),
        None => {
            // CAUTION: runs arbitrary user code: the destructor of the value.
            drop(unsent.into_value());
            Err(ParentError::MAIN.into())
        }
    }
}
