//! The end of a thread: marks its suspended greenlets as dead, and releases its state.
//!
//! - **[thread-exit]** `ExitGuard` raises `EXITING` and marks all suspended greenlets as dead
//!   before arbitrary user code can run. From then on no code of them runs. Their stacks, and what
//!   these own, stay in place.

use std::ptr;

use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::switch::finish;
use crate::switch::teardown;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::exit_guard::ExitGuard;
use crate::thread::id::is_first_of_process;
use crate::thread::{ThreadState, flag, inbox};

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let thread = ThreadState::current();
        // Otherwise a greenlet, or a destructor during a panic, has called `std::process::exit`.
        let is_thread_end = thread.current_ptr() == thread.main_ptr() && !std::thread::panicking();
        if is_thread_end {
            // CAUTION: runs arbitrary user code, of greenlets whose ends a panic has deferred.
            finish::run_deferred_quietly(thread);
        }
        thread.raise_flag(flag::EXITING);
        let left: Vec<Greenlet> = teardown::suspended(thread).collect();
        let report = Unraisable::of_left(&left); // first, because it contains their states
        left.iter()
            .for_each(|greenlet| mark_dead(thread, greenlet.inner()));
        let requests = inbox::unregister(thread);
        if !is_thread_end {
            std::mem::forget((left, report, requests)); // dropping them may run user code
            return;
        }
        // From here on a panic of user code is caught: a thread-local's destructor that unwinds
        // aborts the process. No greenlet can be resumed any more, so no end is lost.
        // CAUTION: runs arbitrary user code: destructors of what tasks captured.
        requests
            .into_iter()
            .for_each(|request| _ = unwind::discard(request));
        // CAUTION: runs arbitrary user code: the hook, and destructors of what pending parents
        // captured.
        if let Some(report) = report.filter(|_| !is_first_of_process()) {
            let _ = unraisable::call(report);
        }
        // CAUTION: runs arbitrary user code if one of these is the last handle, and owns the last
        // handle of its parent.
        left.into_iter()
            .for_each(|greenlet| _ = unwind::discard(greenlet));
        thread.keep_last_stack(None);
        thread.fibers.release_finished();
        thread.exit_cache.clear();
        let tracer = thread.tracer.borrow_mut().take();
        // CAUTION: runs arbitrary user code.
        let _ = unwind::discard(tracer);
        thread.stacks.borrow_mut().release();
        thread.signal_stack.withdraw();
        let main = thread.main_ptr();
        // SAFETY: it is the reference of the thread state [main-alive], which `set_up` gave up.
        let main = unsafe { InnerRc::from_raw(main) };
        // CAUTION: runs arbitrary user code: destructors of main's greenlet-locals.
        let _ = unwind::discard(main.replace_locals(None));
        main.finish();
        // CAUTION: runs arbitrary user code: the destructor of main's attachment.
        let _ = unwind::discard(main);
        drop(thread.records.take()); // an empty map may own memory
        if thread.later_attachments.borrow().is_empty() {
            drop(thread.later_attachments.take());
        }
        thread.pool.close();
    }
}

/// Marks a suspended greenlet as dead, without running any of its code [thread-exit].
fn mark_dead(thread: &ThreadState, node: &Inner) {
    thread.release_await_lock(node);
    finish::leave_stack(thread, node);
    node.hidden_sp.set(ptr::null_mut());
    node.finish();
}
