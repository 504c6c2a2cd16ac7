//! The stacks of one thread, from the warmest to the coldest.
//!
//! ```text
//!   last stack   that of the greenlet that finished last   take_last_default_stack
//!   cache        free stacks of this thread                take_cached_stack: after the last stack
//!   pool         free stacks of all threads, with a lock   take_stack: after both
//! ```
//!
//! A finishing greenlet still runs on its stack when it gives it back. That stack becomes the last
//! stack, and moves to the cache when the next greenlet finishes: only then has the thread surely
//! left it.

#![forbid(unsafe_code)]

use std::ptr;

use crate::StackError;
use crate::stack::{self, Stack};
use crate::thread::{ThreadState, flag, overflow, prefetch};

impl ThreadState {
    /// Replaces the last stack, and moves the previous one to the cache.
    #[inline]
    pub(crate) fn keep_last_stack(&self, stack: Option<Stack>) {
        // First the previous one: the cache may allocate. An allocator that starts a greenlet must
        // not find the stack that the thread still runs on.
        if self.peek_last_stack(|_| ()).is_some() {
            cache_last_stack();
        }
        self.last_stack.set(stack);
    }

    /// Takes the last stack if it has the default size.
    #[inline]
    pub(crate) fn take_last_default_stack(&self) -> Option<Stack> {
        self.take_last_stack(stack::is_default)
    }

    #[inline]
    fn take_last_stack(&self, fits: impl FnOnce(&Stack) -> bool) -> Option<Stack> {
        match self.last_stack.take() {
            Some(stack) if fits(&stack) => Some(stack),
            other => {
                self.last_stack.set(other);
                None
            }
        }
    }

    /// Takes a stack that this thread has: the last stack if it has the size, or one of the cache.
    pub(crate) fn take_cached_stack(&self, size: usize) -> Option<Stack> {
        self.take_last_stack(|stack| stack.size() == size).or_else(|| {
            self.keep_last_stack(None);
            self.stacks.borrow_mut().take(size)
        })
    }

    /// Takes a stack, from the pool of all threads if this thread has none.
    ///
    /// # Errors
    ///
    /// Returns an error if the size is out of range, or if the system has no memory for a stack.
    pub(crate) fn take_stack(&self, size: usize) -> Result<Stack, StackError> {
        if let Some(stack) = self.take_cached_stack(size) {
            return Ok(stack);
        }
        self.ensure_set_up(); // so that the end of the thread releases the cache
        overflow::watch(self);
        let mut stacks = self.stacks.borrow_mut();
        prefetch::adapt(self, stacks.in_use());
        stacks.fetch(size)
    }

    /// Takes back a stack that nothing runs on, at any time: the thread may have ended.
    #[inline]
    pub(crate) fn take_back(&self, stack: Stack) {
        self.keep_last_stack(Some(stack));
        if self.has_flag(flag::EXITING) {
            self.keep_last_stack(None);
            self.stacks.borrow_mut().release();
        }
    }

    /// Returns the base of the last stack, or null. Only to be compared with.
    pub(crate) fn last_stack_base(&self) -> *mut u8 {
        self.peek_last_stack(|stack| stack.base().as_ptr())
            .unwrap_or(ptr::null_mut())
    }

    /// Returns how many stacks the greenlets of the thread have.
    pub(crate) fn stacks_in_use(&self) -> usize {
        self.stacks.borrow().in_use() - self.idle_but_counted()
    }

    /// Returns how many stacks the cache counts as in use although no greenlet has them: the last
    /// stack.
    pub(crate) fn idle_but_counted(&self) -> usize {
        usize::from(self.peek_last_stack(|_| ()).is_some())
    }

    /// Calls `look` with the last stack. The take and the set compile to one load. In the fault
    /// handler, the set is invisible: it restores what the interrupted code has there.
    #[inline]
    fn peek_last_stack<R>(&self, look: impl FnOnce(&Stack) -> R) -> Option<R> {
        let stack = self.last_stack.take();
        let found = stack.as_ref().map(look);
        self.last_stack.set(stack);
        found
    }
}

/// Moves the last stack to the cache. Looks up the thread state itself: a caller that passed it
/// would compute its address even if there is no last stack.
#[inline(never)]
fn cache_last_stack() {
    let thread = ThreadState::current();
    let Some(stack) = thread.last_stack.take() else {
        return;
    };
    let mut stacks = thread.stacks.borrow_mut();
    if stacks.give(stack) {
        prefetch::adapt(thread, stacks.in_use());
    }
}
