//! Backtraces of suspended greenlets: each is taken on the greenlet's own stack, by an inquiry that
//! nobody else sees.
//!
//! ```text
//!   asker (runs)                              target (suspended in a switch)
//!     looks where the node goes on
//!     backend::switch ──── &Inquiry ───────►  its switch returns a parcel that is no message
//!     (suspended, in `Inquiry::back`)           open -> answer: captures a backtrace
//!     goes on  ◄───────────────────────────     backend::switch: its seat has a new resume point; it waits
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
//! - **Q2** The asker's resume point is in its `Inquiry` alone, and the answer uses it once. That of its node is null
//!   meanwhile, so nobody takes what is left there for one (S1).
//! - **Q3** The inquiry stands in the asker's frame until the answer has come.

use std::backtrace::Backtrace;
use std::mem::ManuallyDrop;
use std::panic::{Location, catch_unwind};
use std::ptr;

use crate::backend::asan;
use crate::backend::{self, Seat};
use crate::greenlet::Greenlet;
use crate::greenlet::no_switch;
use crate::node::Node;
use crate::node::record::NodeRef;
use crate::node::status::State;
use crate::payload::Parcel;
use crate::payload::error::NoBacktrace;
use crate::switch::unwind;
use crate::thread::Hub;

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
        no_switch::no_switch(|| ask(Hub::get(), self.node())).ok_or(NoBacktrace::failed())
    }
}

/// What the asker wants to know, in its frame (Q3).
struct Inquiry {
    /// Where the asker goes on (Q2); its own switch writes it.
    back: Seat,
    asker: *const Node,
    answer: Option<Backtrace>,
}

/// What arrives at the target instead of a message.
struct Ask(*mut Inquiry);

/// Has the suspended greenlet `node` take a backtrace. The caller sees to Q1.
fn ask(hub: &Hub, node: &NodeRef) -> Option<Backtrace> {
    // Where its gate is closed, its resume point is held back elsewhere (G2): it is in the seat meanwhile.
    let held = node.held.replace(ptr::null_mut());
    if !held.is_null() {
        node.seat.sp.set(held);
    }
    if node.seat.sp.get().is_null() {
        unwind::abort("an active greenlet neither runs nor is suspended");
    }
    let mut inquiry = Inquiry {
        back: Seat::new(),
        asker: hub.current(),
        answer: None,
    };
    // One pointer, from which all others come: both sides write.
    let inquiry = &raw mut inquiry;
    let mut ask = ManuallyDrop::new(Ask(inquiry));
    let (word, data) = Parcel::new(&mut ask).into_words();
    // SAFETY: T1: the asker lives.
    unsafe { (*hub.current()).seat.sp.set(ptr::null_mut()) }; // Q2
    // SAFETY: B1: the target is suspended, and of this thread. It is current until it has written a new resume point, so
    // that this one is not used again.
    // B2: this stack is left until the answer comes back. The words are those of a parcel, which is
    // what every suspended greenlet waits for; what comes back are no words of a parcel, and not looked at.
    unsafe {
        let to = &raw const (*node.as_ptr()).seat;
        let left = asan::leave((*to).sp.get());
        backend::switch(&raw const (*inquiry).back, Location::caller(), to, word, data);
        asan::arrive(left);
        hub.set_current((*inquiry).asker);
    }
    if !held.is_null() {
        node.held.set(node.seat.sp.replace(ptr::null_mut()));
    }
    // SAFETY: Q3; the answer was written, and control is back, so nobody else looks at it.
    unsafe { (*inquiry).answer.take() }
}

/// Answers inquiries until a message comes, and returns that. For whoever receives a parcel.
#[inline]
pub(crate) fn answer(mut parcel: Parcel) -> Parcel {
    while parcel.is::<Ask>() {
        // SAFETY: just looked.
        let Ask(inquiry) = unsafe { parcel.take() };
        parcel = answer_one(inquiry);
    }
    parcel
}

#[cold]
#[inline(never)]
fn answer_one(inquiry: *mut Inquiry) -> Parcel {
    let answer = match catch_unwind(Backtrace::force_capture) {
        Ok(backtrace) => Some(backtrace),
        Err(payload) => {
            // Its destructor is foreign code, which had better not run here.
            std::mem::forget(payload);
            None
        }
    };
    // SAFETY: Q3: the asker is suspended until the switch below. Q1, Q2: `back` is where it left, and is
    // used here alone. The seat is that of the current greenlet's node, which lives (T1). What comes back is
    // the next switch to this greenlet, which carries a parcel.
    unsafe {
        (*inquiry).answer = answer;
        let back = &raw const (*inquiry).back;
        let own = &raw const (*Hub::get().current()).seat;
        let parked_at = (*own).note.get().expect("a suspended greenlet has switched away");
        let left = asan::leave((*back).sp.get());
        let (own, word, data) = backend::switch(own, parked_at, back, ptr::null(), backend::Word::uninit());
        asan::arrive(left);
        Hub::get().set_current(own.cast());
        Parcel::from_words(word, data)
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
        let stack = child.node().stack.take().unwrap();
        let (limit, base) = (stack.limit(), stack.base().as_ptr());
        child.node().stack.set(Some(stack));
        let parked = child.node().resume_point();
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
