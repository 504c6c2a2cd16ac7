//! Looking at the greenlets of a thread from outside: which there are, and what stack they use.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::backend;
use crate::greenlet::Greenlet;
use crate::stack::{self, Around};
use crate::thread::{ThreadState, ages};

/// All greenlets of the calling thread, in the order in which they were made. The main greenlet is the first.
///
/// Dead ones are among them as long as there are handles of them. A thread that has not used greenlets
/// has none. The list holds handles: while it lives, no greenlet in it is ended for want of one.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, State, getcurrent, greenlets};
///
/// let main = getcurrent();
/// let child = Greenlet::builder().name("child").build(|(): ()| Ok(()));
/// assert_eq!(greenlets(), [main, child]);
/// ```
pub fn greenlets() -> Vec<Greenlet> {
    ThreadState::current().all_greenlets().collect()
}

/// How many stacks the greenlets of the calling thread have at the moment, and the generators. A greenlet has one from its
/// first switch until it ends. A counter is read; [`stack::stats`] knows more, of all threads, and asks the kernel.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, stacks_in_use};
///
/// let child = Greenlet::new(|(): ()| Ok(stacks_in_use()));
/// assert_eq!(stacks_in_use(), 0);
/// assert_eq!(child.switch::<usize>(())?, 1);
/// assert_eq!(stacks_in_use(), 0);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn stacks_in_use() -> usize {
    ThreadState::current().stacks_in_use()
}

/// How much of its stack a greenlet uses: see [`Greenlet::stack_usage`].
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, StackUsage, getcurrent};
///
/// let child = Greenlet::new(|(): ()| Ok(getcurrent().stack_usage().unwrap()));
/// let usage = child.switch::<StackUsage>(())?;
/// assert!(usage.used < usage.size);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StackUsage {
    /// From the base to where the greenlet is parked, or runs, in bytes. It may have been deeper before. In the
    /// function of a generator, this is about the stack of the generator.
    pub used: usize,
    /// What it may use, in bytes.
    pub size: usize,
}

/// Says whether the library notes, from now on, when each greenlet is made, in all threads: for
/// [`Greenlet::age`].
///
/// Off at first: to read the clock and to note the time takes nearly as long as to make a greenlet.
pub fn track_ages(keep: bool) {
    ages::track_ages(keep);
}

impl Greenlet {
    /// How long ago the greenlet was made, if it was made while ages were kept: see [`track_ages`].
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, track_ages};
    ///
    /// let unknown = Greenlet::new(|(): ()| Ok(()));
    /// track_ages(true);
    /// let young = Greenlet::new(|(): ()| Ok(()));
    /// assert!(unknown.age().is_none() && young.age().is_some());
    /// # track_ages(false);
    /// ```
    pub fn age(&self) -> Option<Duration> {
        Some(ThreadState::current().creation_time(self.inner())?.elapsed())
    }

    /// Says whether the greenlet waits for a future, or is below one that does: a gate is closed, and a
    /// switch to it would be refused.
    pub fn is_awaiting(&self) -> bool {
        self.is_active() && !self.is_current() && self.inner().await_locked_ancestor().is_some()
    }

    /// How much of its stack the greenlet uses. `None` if it has none: it is pending or dead, or
    /// the main greenlet, which has the stack of its thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getparent};
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     let deep = [1_u8; 5000];
    ///     getparent().unwrap().switch::<()>(())?;
    ///     Ok(deep.iter().map(|&byte| u32::from(byte)).sum::<u32>())
    /// });
    /// assert_eq!(child.stack_usage(), None);
    /// child.switch::<()>(())?;
    /// let usage = child.stack_usage().unwrap();
    /// assert!(usage.used > 5000 && usage.used < usage.size);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn stack_usage(&self) -> Option<StackUsage> {
        let node = self.inner();
        let stack = node.stack.take()?;
        node.stack.set(Some(stack));
        self.usage_of_innermost_stack()
    }

    /// How much is used of the stack that the greenlet runs on, or is parked on. `None` if it is the stack of its thread.
    pub(crate) fn usage_of_innermost_stack(&self) -> Option<StackUsage> {
        let place = if self.is_current() {
            backend::stack_pointer()
        } else {
            self.inner().resume_point()
        };
        let (used, size) = Around::of(place)?.usage(place);
        Some(StackUsage { used, size })
    }

    /// How deep the greenlet's stack has been, in bytes; `None` if it has none of ours: before it was
    /// started, after it has ended, and for the main greenlet.
    ///
    /// It is what the kernel knows, which costs nothing until it is asked: whole pages that have been
    /// touched since the stack was last given back to the system. So greenlets that had the stack before
    /// count too, unless [`stack::set_idle_limit`](crate::stack::set_idle_limit) lets none keep its memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getparent, stack};
    ///
    /// let shallow = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    /// assert_eq!(shallow.stack_high_water(), None);
    /// shallow.switch::<()>(())?;
    /// let deep = shallow.stack_high_water().unwrap();
    /// assert!(0 < deep && deep < stack::DEFAULT_SIZE / 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn stack_high_water(&self) -> Option<usize> {
        let node = self.inner();
        let stack = node.stack.take()?;
        let deep = stack::high_water(&stack);
        node.stack.set(Some(stack));
        Some(deep)
    }
}
