//! The running greenlet, its parent, and the main greenlet of the thread.

#![forbid(unsafe_code)]

use crate::greenlet::Greenlet;
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
