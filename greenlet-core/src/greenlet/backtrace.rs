//! Backtraces of suspended greenlets: each is taken on the greenlet's own stack, by an request that
//! nobody else sees.
//!
//! ```text
//!   asker (runs)                              target (suspended in a switch)
//!     looks where the node goes on
//!     backend::switch ──── &BacktraceRequest ───────►  its switch returns a payload that is no message
//!     (suspended, in `BacktraceRequest::back`)           open -> answer: captures a backtrace
//!     goes on  ◄───────────────────────────     backend::switch: its context has a new resume point; it waits
//!                                               for a message as before
//! ```
//!
//! It is no switch for anybody but this file: no tracer is told, nothing is delivered, the greenlet's parked
//! place stays, and a closed gate is no obstacle.
//!
//! # Invariants
//!
//! - **Q1** From the asker's switch to the answer's no other switch takes place: the whole is a
//!   `no_switch` section, so what the capture runs (an allocator, say) cannot make one.
//! - **Q2** The asker's resume point is in its `BacktraceRequest` alone, and the answer uses it once. That of its node is null
//!   meanwhile, so nobody takes what is left there for one (S1).
//! - **Q3** The request stands in the asker's frame until the answer has come.

use std::backtrace::Backtrace;
use std::mem::ManuallyDrop;
use std::panic::{Location, catch_unwind};
use std::ptr;

use crate::backend::asan;
use crate::backend::{self, SavedContext};
use crate::greenlet::Greenlet;
use crate::greenlet::no_switch;
use crate::node::Inner;
use crate::node::rc::InnerRc;
use crate::node::status::State;
use crate::payload::Payload;
use crate::payload::error::NoBacktrace;
use crate::stack;
use crate::switch::unwind;
use crate::thread::ThreadState;

/// What must be left of a stack for a capture, in bytes. A test holds it against what one takes.
const ROOM: usize = 12 << 10;

impl Greenlet {
    /// Takes a backtrace of the greenlet: where it is suspended, and all calls that led there.
    ///
    /// It is taken on the greenlet's own stack, and ends at the greenlet's first frame. Nobody
    /// notices: no tracer is called, nothing is delivered, and it works in a
    /// [`no_switch`](crate::no_switch) section, during a panic, and for a greenlet that waits for a
    /// future. Of the running greenlet it is an ordinary backtrace from here. To resolve the names takes far longer
    /// than to take it, and is done when it is printed. The first frames are the library's own.
    ///
    /// # Errors
    ///
    /// [`NoBacktrace`] says why there is none: the greenlet is pending or dead, so it has no stack, or
    /// less than 12 KiB of its stack are left.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getparent};
    ///
    /// fn asks_and_waits() -> anyhow::Result<u32> {
    ///     getparent().unwrap().switch("a number, please")
    /// }
    /// let child = Greenlet::new(|(): ()| asks_and_waits());
    /// assert!(child.backtrace().unwrap_err().is_pending());
    /// child.switch::<&str>(())?;
    /// assert!(child.backtrace()?.to_string().contains("asks_and_waits"));
    /// assert_eq!(child.switch::<u32>(7_u32)?, 7);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline(never)] // a frame of its own in a backtrace of the running greenlet
    pub fn backtrace(&self) -> Result<Backtrace, NoBacktrace> {
        match self.state() {
            State::Pending => return Err(NoBacktrace::pending()),
            State::Dead => return Err(NoBacktrace::dead()),
            State::Active => {}
        }
        let usage = self.usage_of_innermost_stack();
        if usage.is_some_and(|usage| usage.size.saturating_sub(usage.used) < ROOM) {
            return Err(NoBacktrace::stack_too_full());
        }
        if self.is_current() {
            return Ok(Backtrace::force_capture());
        }
        no_switch::no_switch(|| request(ThreadState::current(), self.inner())).ok_or(NoBacktrace::failed())
    }
}

/// What the asker wants to know, in its frame (Q3).
struct BacktraceRequest {
    /// Where the asker goes on (Q2); its own switch writes it.
    back: SavedContext,
    asker: *const Inner,
    answer: Option<Backtrace>,
}

/// What arrives at the target instead of a message.
struct Ask(*mut BacktraceRequest);

/// Has the suspended greenlet `node` take a backtrace. The caller sees to Q1.
fn request(thread: &ThreadState, node: &InnerRc) -> Option<Backtrace> {
    // Where its gate is closed, its resume point is held back elsewhere (G2): it is in the context meanwhile.
    let held = node.hidden_sp.replace(ptr::null_mut());
    if !held.is_null() {
        node.context.sp.set(held);
    }
    if node.context.sp.get().is_null() {
        unwind::abort("an active greenlet neither runs nor is suspended");
    }
    let mut request = BacktraceRequest {
        back: SavedContext::new(),
        asker: thread.current_ptr(),
        answer: None,
    };
    // One pointer, from which all others come: both sides write.
    let request = &raw mut request;
    let mut ask = ManuallyDrop::new(Ask(request));
    let (word, data) = Payload::new(&mut ask).into_words();
    // SAFETY: T1: the asker lives.
    unsafe { (*thread.current_ptr()).context.sp.set(ptr::null_mut()) }; // Q2
    // SAFETY: B1: the target is suspended, and of this thread. It is current until it has written a new resume point, so
    // that this one is not used again.
    // B2: this stack is left until the answer comes back. The words are those of a payload, which is
    // what every suspended greenlet waits for; what comes back are no words of a payload, and not looked at.
    unsafe {
        let to = &raw const (*node.as_ptr()).context;
        let left = asan::leave(&thread.fibers, || stack::bounds_at((*to).sp.get()));
        backend::switch(&raw const (*request).back, Location::caller(), to, word, data);
        asan::arrive(left);
        thread.set_current((*request).asker);
    }
    if !held.is_null() {
        node.hidden_sp.set(node.context.sp.replace(ptr::null_mut()));
    }
    // SAFETY: Q3; the answer was written, and control is back, so nobody else looks at it.
    unsafe { (*request).answer.take() }
}

/// Answers inquiries until a message comes, and returns that. For whoever receives a payload.
#[inline]
pub(crate) fn serve(mut payload: Payload) -> Payload {
    loop {
        match payload.downcast::<Ask>() {
            Ok(Ask(request)) => payload = serve_one(request),
            Err(message) => return message,
        }
    }
}

#[cold]
#[inline(never)]
fn serve_one(request: *mut BacktraceRequest) -> Payload {
    let answer = match catch_unwind(Backtrace::force_capture) {
        Ok(backtrace) => Some(backtrace),
        Err(payload) => {
            // Its destructor is foreign code, which had better not run here.
            std::mem::forget(payload);
            None
        }
    };
    // SAFETY: Q3: the asker is suspended until the switch below. Q1, Q2: `back` is where it left, and is
    // used here alone. The context is that of the current greenlet's node, which lives (T1). What comes back is
    // the next switch to this greenlet, which carries a payload.
    unsafe {
        (*request).answer = answer;
        let back = &raw const (*request).back;
        let own = &raw const (*ThreadState::current().current_ptr()).context;
        let suspended_at = (*own)
            .suspended_at
            .get()
            .expect("a suspended greenlet has switched away");
        let left = asan::leave(&ThreadState::current().fibers, || {
            stack::bounds_at((*back).sp.get())
        });
        let (own, word, data) =
            backend::switch(own, suspended_at, back, ptr::null(), backend::Word::uninit());
        asan::arrive(left);
        ThreadState::current().set_current(own.cast());
        Payload::from_words(word, data)
    }
}

#[cfg(test)]
mod tests {
    use super::ROOM;
    use crate::{Greenlet, getparent};

    #[test]
    fn a_capture_needs_less_than_the_room_that_is_asked_for() {
        const PAINT: u8 = 0xA5;
        let child = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
        child.switch::<()>(()).unwrap();
        let stack = child.inner().stack.take().unwrap();
        let (limit, base) = (stack.limit(), stack.base().as_ptr());
        child.inner().stack.set(Some(stack));
        let parked = child.inner().resume_point();
        // Below it nothing of the suspended greenlet stands, but for a red zone that is not used.
        let painted = parked.addr() - limit.addr() - 256;
        // SAFETY: the range is the lower part of the stack, which is mapped, and nothing runs there.
        unsafe { limit.write_bytes(PAINT, painted) };
        drop(child.backtrace().unwrap());
        // SAFETY: as above; every byte has been written.
        let touched = unsafe { std::slice::from_raw_parts(limit, painted) };
        let untouched = touched.iter().take_while(|&&byte| byte == PAINT).count();
        let used = parked.addr() - limit.addr() - untouched;
        println!("used {used} of {} bytes", base.addr() - limit.addr());
        assert!(used > 500 && used < ROOM, "{used}");
    }
}
