//! The end of a thread: what happens to its greenlets, and the order in which its state is released.
//!
//! - **[thread-exit]** `ExitGuard` raises `EXITING` and marks all suspended greenlets as dead before arbitrary user
//!   code can run. From then on no code of them runs. Their stacks, and what these own, stay in place.

use crate::greenlet::Greenlet;
use crate::node::record::{self, InnerRc};
use crate::switch::teardown;
use crate::switch::unraisable::{self, Unraisable};
use crate::thread::id::is_first_of_process;
use crate::thread::{ThreadState, flag, inbox};

thread_local! {
    /// Releases what the thread state owns when the thread ends.
    static EXIT_GUARD: ExitGuard = const { ExitGuard };
}

/// Arranges that [`ExitGuard`] is dropped when the calling thread ends. Returns `false` if that has happened.
pub(crate) fn install_guard() -> bool {
    EXIT_GUARD.try_with(|_| ()).is_ok()
}

struct ExitGuard;

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let thread = ThreadState::current();
        // Otherwise `std::process::exit` was called in a greenlet, or in a destructor during a panic.
        let is_thread_end = thread.current_ptr() == thread.main_ptr() && !std::thread::panicking();
        if is_thread_end {
            // These were ended while a panic unwound, which only delayed their ends.
            // CAUTION: runs arbitrary user code.
            thread.run_deferred();
        }
        thread.raise_flag(flag::EXITING);
        let left: Vec<Greenlet> = teardown::suspended(thread).collect();
        let report = Unraisable::of_left(&left); // before they are dead, since it prints their states
        left.iter().for_each(|greenlet| greenlet.inner().leave(thread));
        inbox::unregister(thread);
        if !is_thread_end {
            std::mem::forget((left, report)); // dropping handles may run user code
            return;
        }
        // CAUTION: runs arbitrary user code: the hook, and destructors of what pending parents captured.
        if let Some(report) = report.filter(|_| !is_first_of_process()) {
            unraisable::call(&report);
        }
        left.into_iter().for_each(record::release_left);
        thread.keep_last_stack(None);
        thread.fibers.release_finished();
        thread.exit_cache.forget();
        let tracer = thread.tracer.borrow_mut().take();
        drop(tracer);
        thread.stacks.borrow_mut().release();
        thread.signal_stack.withdraw();
        let main = thread.main_ptr();
        // SAFETY: `set_up` gave two references away. This is the first.
        let first = unsafe { InnerRc::from_raw(main) };
        // SAFETY: this is the second.
        let second = unsafe { InnerRc::from_raw(main) };
        // CAUTION: runs arbitrary user code: destructors of main's greenlet-locals.
        drop(first.replace_locals(None));
        first.finish();
        drop(first);
        drop(second);
        drop(thread.creation_times.take()); // the map may have memory when it is empty
        thread.pool.close();
    }
}
