//! Looks at greenlets: their state, their age, the stack that they use, and which a thread has.

#![forbid(unsafe_code)]

use std::panic::Location;
use std::time::Duration;

use crate::backend;
use crate::greenlet::Greenlet;
use crate::node::status::State;
use crate::stack::{self, Around};
use crate::thread::ThreadState;
use crate::thread::create::{self, track};

impl Greenlet {
    /// Returns the state: pending, active or dead.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{State, getcurrent};
    /// assert_eq!(getcurrent().state(), State::Active);
    /// ```
    #[inline]
    pub fn state(&self) -> State {
        self.inner.status.state()
    }

    /// Returns `true` if the greenlet has been started and has not ended: Python's truth value of a
    /// greenlet.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// assert!(getcurrent().is_active());
    /// assert!(!Greenlet::new(|(): ()| Ok(())).is_active());
    /// ```
    #[doc(alias = "__bool__")]
    pub fn is_active(&self) -> bool {
        self.state() == State::Active
    }

    /// Returns `true` if the greenlet has ended: Python's `dead`.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// child.switch::<()>(())?;
    /// assert!(child.is_dead());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[doc(alias = "dead")]
    pub fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    /// Returns `true` if this is the main greenlet of its thread, which exists without being
    /// created.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getcurrent};
    /// assert!(getcurrent().is_main());
    /// assert!(!Greenlet::new(|(): ()| Ok(())).is_main());
    /// ```
    pub fn is_main(&self) -> bool {
        self.inner.status.is_main()
    }

    /// Returns `true` if this greenlet is running.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getmain};
    /// assert!(getmain().is_current());
    /// assert!(!Greenlet::new(|(): ()| Ok(())).is_current());
    /// ```
    #[inline]
    pub fn is_current(&self) -> bool {
        ThreadState::current().is_current(&self.inner)
    }

    /// Returns the name that [`Builder::name`](crate::Builder::name) gave the greenlet. The main
    /// greenlet is called `main`.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getmain};
    /// assert_eq!(getmain().name(), Some("main"));
    /// assert_eq!(Greenlet::new(|(): ()| Ok(())).name(), None);
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.inner.name()
    }

    /// Returns a number that no other greenlet of the thread has.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getmain};
    /// assert_ne!(Greenlet::new(|(): ()| Ok(())).id(), getmain().id());
    /// ```
    pub fn id(&self) -> u64 {
        self.inner.id()
    }

    /// Returns the place in the source where the greenlet was created.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let (child, line) = (Greenlet::new(|(): ()| Ok(())), line!());
    /// assert_eq!((child.created_at().file(), child.created_at().line()), (file!(), line));
    /// ```
    pub fn created_at(&self) -> &'static Location<'static> {
        self.inner.created_at()
    }

    /// Returns the place of the switch in which the greenlet is suspended. `None` if it is not
    /// suspended.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getparent};
    /// let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    /// child.switch::<()>(())?;
    /// assert_eq!(child.suspended_at().unwrap().file(), file!());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn suspended_at(&self) -> Option<&'static Location<'static>> {
        if !self.is_suspended() {
            return None;
        }
        self.inner.context.suspended_at.get()
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.is_active() && !self.is_current()
    }

    /// Returns the time since the greenlet was created. `None` if ages were not tracked then: see
    /// [`track_ages`].
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, track_ages};
    /// track_ages(true);
    /// assert!(Greenlet::new(|(): ()| Ok(())).age().is_some());
    /// ```
    pub fn age(&self) -> Option<Duration> {
        Some(ThreadState::current().record_of(self.id()).created?.elapsed())
    }

    /// Returns `true` if the greenlet awaits a future, or is below one that does. A switch to it is
    /// refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::Greenlet;
    /// let child = Greenlet::new(|(): ()| Ok(()));
    /// assert!(!child.is_awaiting());
    /// ```
    pub fn is_awaiting(&self) -> bool {
        self.is_suspended() && self.inner().await_locked_ancestor().is_some()
    }

    /// Returns how much of its stack the greenlet uses. `None` if it has no stack of its own: it is
    /// pending or dead, or it is the main greenlet, which runs on the stack of its thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, StackUsage, getcurrent};
    /// let child = Greenlet::new(|(): ()| Ok(getcurrent().stack_usage().unwrap()));
    /// assert_eq!(child.stack_usage(), None);
    /// let usage = child.switch::<StackUsage>(())?;
    /// assert!(0 < usage.used && usage.used < usage.size);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn stack_usage(&self) -> Option<StackUsage> {
        self.inner().with_stack(|_| ())?;
        self.usage_of_innermost_stack()
    }

    /// Returns how much of the stack is used that the greenlet runs on, or is suspended on. `None`
    /// if it is the stack of its thread.
    pub(crate) fn usage_of_innermost_stack(&self) -> Option<StackUsage> {
        let address = if self.is_current() {
            backend::stack_pointer()
        } else {
            self.inner().resume_point()
        };
        let (used, size) = Around::of(address)?.usage(address);
        Some(StackUsage { used, size })
    }

    /// Returns an upper bound of how much of its stack the greenlet has ever used, in bytes. `None`
    /// if it has no stack of its own: see [`stack_usage`](Greenlet::stack_usage). A dead greenlet
    /// still has the number if [`track_high_water`] was on when it was created.
    ///
    /// The kernel is asked which pages have been touched, so this costs nothing until it is called.
    /// On a reused stack the number includes earlier greenlets. Call
    /// [`stack::set_idle_limit(0)`](crate::stack::set_idle_limit) first to exclude them.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getparent, stack};
    /// let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    /// child.switch::<()>(())?;
    /// assert!(child.stack_high_water().unwrap() < stack::default_size() / 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn stack_high_water(&self) -> Option<usize> {
        self.inner()
            .with_stack(stack::high_water)
            .or_else(|| ThreadState::current().record_of(self.id()).high_water)
    }
}

/// How much of its stack a greenlet uses: see [`Greenlet::stack_usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StackUsage {
    /// The bytes between the base of the stack and the innermost frame. It may have been more
    /// before.
    pub used: usize,
    /// The usable size of the stack, in bytes.
    pub size: usize,
}

impl StackUsage {
    /// Returns how many bytes are free.
    pub(crate) fn free(&self) -> usize {
        self.size.saturating_sub(self.used)
    }
}

/// Returns all greenlets of the calling thread, in the order of their creation. The main greenlet
/// is the first.
///
/// Dead greenlets are included as long as they have handles. A thread that has not used greenlets
/// has none. The list holds handles, so no greenlet in it can lose its last one while the list
/// exists.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getcurrent, greenlets};
/// let main = getcurrent();
/// let child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
/// assert_eq!(greenlets(), [main, child]);
/// ```
#[doc(alias = "enumerate")]
pub fn greenlets() -> Vec<Greenlet> {
    ThreadState::current().all_greenlets().collect()
}

/// Returns how many stacks the greenlets of the calling thread have now.
///
/// A greenlet has a stack from its first switch until it ends. This reads a counter;
/// [`stack::stats`] reports more, about all threads, and asks the kernel.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, stacks_in_use};
/// let child = Greenlet::new(|(): ()| Ok(stacks_in_use()));
/// assert_eq!(stacks_in_use(), 0);
/// assert_eq!(child.switch::<usize>(())?, 1);
/// assert_eq!(stacks_in_use(), 0);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn stacks_in_use() -> usize {
    ThreadState::current().stacks_in_use()
}

/// Starts or stops recording when each greenlet is created, in all threads, for [`Greenlet::age`].
/// It is off by default, because reading the clock nearly doubles the time that a creation takes.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, track_ages};
/// track_ages(true);
/// assert!(Greenlet::new(|(): ()| Ok(())).age().is_some());
/// ```
pub fn track_ages(track: bool) {
    create::set_tracked(track::AGES, track);
}

/// Starts or stops recording how much of its stack each greenlet has used when it ends, in all
/// threads, for [`Greenlet::stack_high_water`]. It is off by default, because it asks the kernel at
/// each end. Only greenlets that are created while it is on are recorded.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, track_high_water};
/// track_high_water(true);
/// let parser = Greenlet::new(|text: &str| Ok(text.len()));
/// parser.switch::<usize>("(((())))")?;
/// println!("the parser has used {} bytes of stack", parser.stack_high_water().unwrap());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn track_high_water(track: bool) {
    create::set_tracked(track::HIGH_WATER, track);
}
