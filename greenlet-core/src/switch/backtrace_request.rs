//! Backtraces of suspended greenlets: each is resumed for a moment, and takes its own backtrace.
//!
//! ```text
//!   asker (runs)                                target (suspended in a switch)
//!     request:
//!       switch_stacks ─── BacktraceRequest ───►  its switch_stacks returns the request
//!       (suspended)                              serve: captures the backtrace
//!       returns it    ◄─────── Reply ──────────  switch_stacks: suspended again, as before
//! ```
//!
//! No tracer is called, the target's `switch` does not return, its `suspended_at` does not change,
//! and its await lock does not matter.
//!
//! # Invariants
//!
//! - **[no-switch-in-request]** There is no other switch between the two. The caller of [`request`]
//!   is in a `no_switch` section, so the code that the capture runs (an allocator) cannot switch.

use std::backtrace::Backtrace;
use std::mem::ManuallyDrop;
use std::panic::{Location, catch_unwind};
use std::ptr;

use crate::backend;
use crate::backend::abort::abort;
use crate::node::Inner;
use crate::node::rc::InnerRc;
use crate::payload::Payload;
use crate::switch::{Arrival, Target, switch_stacks};
use crate::thread::{self, ThreadState};

/// The free stack that a capture needs, in bytes. A test measures it.
pub(crate) const ROOM: usize = 12 << 10;

/// The payload that asks a greenlet for a backtrace.
struct BacktraceRequest {
    asker: *const Inner,
}

/// The backtrace; `None` if the capture panicked.
struct Reply(Option<Backtrace>);

/// Returns the backtrace of the suspended greenlet `target`. `None` if the capture panicked.
///
/// The caller is in a `no_switch` section [no-switch-in-request].
pub(crate) fn request(target: &InnerRc) -> Option<Backtrace> {
    let asker = ThreadState::current().current_ptr();
    // The stack pointer of a locked or held target is hidden: see `[hidden-sp]`.
    let hidden = target.hidden_sp.replace(ptr::null_mut());
    if !hidden.is_null() {
        target.context.sp.set(hidden);
    }
    if target.context.sp.get().is_null() {
        abort("an active greenlet is neither running nor suspended");
    }
    let payload = Payload::new(&mut ManuallyDrop::new(BacktraceRequest { asker }));
    // SAFETY: the target has a resume point, so it is suspended [suspended-sp], and nothing ran
    // since. The request is one word, so it is in the payload itself.
    let back = unsafe { switch_stacks(Target(target.as_ptr()), payload, Location::caller()) };
    let reply = serve(back).settle().downcast::<Reply>();
    if !hidden.is_null() {
        target.hidden_sp.set(target.context.sp.replace(ptr::null_mut()));
    }
    let Ok(Reply(backtrace)) = reply else {
        abort("a greenlet was resumed while it waited for a backtrace")
    };
    backtrace
}

/// Takes a backtrace of the running greenlet, up to its first frame: without its ancestors.
#[inline(never)] // gives the backtrace a first frame to start from
pub(crate) fn capture() -> Backtrace {
    match thread::with_current_inner(Inner::first_frame) {
        // SAFETY: the greenlet runs, so its entry has been called and has not ended.
        Some(base) => unsafe { backend::unlinked(base, Backtrace::force_capture) },
        None => Backtrace::force_capture(), // main
    }
}

/// Serves requests until what arrives is none, and returns that. Every receiver calls it.
#[inline]
pub(crate) fn serve(mut arrival: Arrival) -> Arrival {
    loop {
        let Arrival { payload, own } = arrival;
        arrival = match payload.downcast() {
            Ok(request) => {
                ThreadState::current().set_current(own);
                serve_one(request)
            }
            Err(payload) => return Arrival { payload, own },
        };
    }
}

#[cold]
#[inline(never)]
fn serve_one(request: BacktraceRequest) -> Arrival {
    let backtrace = match catch_unwind(capture) {
        Ok(backtrace) => Some(backtrace),
        Err(panic) => {
            // Its destructor is arbitrary user code, which must not run here.
            std::mem::forget(panic);
            None
        }
    };
    let mut reply = ManuallyDrop::new(Reply(backtrace));
    // Without a reference to the node: during the switch it would look like a handle.
    let suspended_at = thread::with_current_inner(|inner| inner.context.suspended_at.get());
    let at = suspended_at.expect("a greenlet that receives a request has switched away");
    // SAFETY: the asker is suspended in `request` [no-switch-in-request], so it is alive and has a
    // resume point. It takes the reply out of this frame before anything resumes this greenlet.
    unsafe { switch_stacks(Target(request.asker), Payload::new(&mut reply), at) }
}

#[cfg(test)]
mod tests {
    use super::ROOM;
    use crate::{Greenlet, getparent};

    #[test]
    fn a_capture_needs_less_stack_than_the_check_demands() {
        const PAINT: u8 = 0xA5;
        let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
        child.switch::<()>(()).unwrap();
        let stack = child.inner().stack.take().unwrap();
        let (limit, base) = (stack.limit(), stack.base().as_ptr());
        child.inner().stack.set(Some(stack));
        let suspended = child.inner().resume_point();
        // The greenlet uses nothing below its stack pointer, except perhaps a red zone.
        let painted = suspended.addr() - limit.addr() - 256;
        // SAFETY: the range is the unused part of the stack, which is mapped.
        unsafe { limit.write_bytes(PAINT, painted) };
        drop(child.backtrace().unwrap());
        // SAFETY: the range is a part of the stack, whose bytes have been written above.
        let touched = unsafe { std::slice::from_raw_parts(limit, painted) };
        let untouched = touched.iter().take_while(|&&byte| byte == PAINT).count();
        let used = suspended.addr() - limit.addr() - untouched;
        println!("used {used} of {} bytes", base.addr() - limit.addr());
        assert!(used > 500 && used < ROOM, "{used}");
    }
}
