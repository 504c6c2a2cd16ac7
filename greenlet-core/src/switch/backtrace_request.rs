//! Backtraces of suspended greenlets: the greenlet is resumed for a moment, and takes its own
//! backtrace.
//!
//! ```text
//!   asker (runs)                                target (suspended in a switch)
//!     request:
//!       switch_stacks ─── BacktraceRequest ───►  the switch brings no message but a request
//!       (suspended)                              serve: captures the backtrace
//!       returns it    ◄─────── Reply ──────────  switch_stacks: suspended again, as before
//! ```
//!
//! Nothing else notices: no tracer is called, nothing is delivered, `suspended_at` of the target
//! stays, and an await lock of the target does not matter.
//!
//! # Invariants
//!
//! - **[no-switch-in-request]** Between the two switches no other one takes place. The caller of
//!   [`request`] is in a `no_switch` section, so that code which the capture runs (an allocator,
//!   say) cannot switch.

use std::backtrace::Backtrace;
use std::mem::ManuallyDrop;
use std::panic::{Location, catch_unwind};
use std::ptr;

use crate::backend::abort::abort;
use crate::node::Inner;
use crate::node::rc::InnerRc;
use crate::payload::Payload;
use crate::switch::{Target, switch_stacks};
use crate::thread::{self, ThreadState};

/// The free stack that a capture needs, in bytes. A test compares it with what one uses.
pub(crate) const ROOM: usize = 12 << 10;

/// Asks a greenlet for a backtrace. Arrives in place of a message.
struct BacktraceRequest {
    asker: *const Inner,
}

/// The backtrace; `None` if the capture panicked.
struct Reply(Option<Backtrace>);

/// Has the suspended greenlet `target` take a backtrace. `None` if the capture panicked.
///
/// The caller is in a `no_switch` section: see `[no-switch-in-request]`.
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
    // SAFETY: the asker runs, so it is current and alive. The target is another greenlet, and
    // suspended: its stack pointer was just found ([suspended-sp]). The request is one word, so it
    // is in the payload itself.
    let back = unsafe { switch_stacks(Target(target.as_ptr()), payload, Location::caller()) };
    let reply = serve(back).downcast::<Reply>();
    if !hidden.is_null() {
        target.hidden_sp.set(target.context.sp.replace(ptr::null_mut()));
    }
    let Ok(Reply(backtrace)) = reply else {
        abort("a greenlet was resumed while it waited for a backtrace")
    };
    backtrace
}

/// Serves requests until `payload` is a message, and returns that. Every receiver of a payload
/// calls it.
#[inline]
pub(crate) fn serve(mut payload: Payload) -> Payload {
    loop {
        payload = match payload.downcast() {
            Ok(request) => serve_one(request),
            Err(message) => return message,
        };
    }
}

#[cold]
#[inline(never)]
fn serve_one(request: BacktraceRequest) -> Payload {
    let backtrace = match catch_unwind(Backtrace::force_capture) {
        Ok(backtrace) => Some(backtrace),
        Err(panic) => {
            // Its destructor is arbitrary user code, which would run where no greenlet expects it.
            std::mem::forget(panic);
            None
        }
    };
    let mut reply = ManuallyDrop::new(Reply(backtrace));
    // No count of this greenlet is held over the switch: it would look like a handle.
    let suspended_at = thread::with_current_inner(|inner| inner.context.suspended_at.get());
    let at = suspended_at.expect("a greenlet that receives a request has switched away");
    // SAFETY: this greenlet runs, so it is current and alive. The asker is suspended in `request`
    // ([no-switch-in-request]), so it is alive too. It takes the reply out of this frame before
    // anything else resumes this greenlet.
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
        // SAFETY: as above; every byte has been written.
        let touched = unsafe { std::slice::from_raw_parts(limit, painted) };
        let untouched = touched.iter().take_while(|&&byte| byte == PAINT).count();
        let used = suspended.addr() - limit.addr() - untouched;
        println!("used {used} of {} bytes", base.addr() - limit.addr());
        assert!(used > 500 && used < ROOM, "{used}");
    }
}
