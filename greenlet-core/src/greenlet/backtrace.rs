//! `Greenlet::backtrace`: the checks in front of a request for a backtrace.

#![forbid(unsafe_code)]

use std::backtrace::Backtrace;

use crate::greenlet::Greenlet;
use crate::greenlet::no_switch::no_switch;
use crate::node::status::State;
use crate::payload::error::NoBacktrace;
use crate::switch::backtrace_request::{self, ROOM};

impl Greenlet {
    /// Takes a backtrace: the calls that led to the switch in which the greenlet is suspended.
    ///
    /// For the running greenlet these are the calls that led to the caller. In both cases they are
    /// the greenlet's own: the first frames are those of the library, and the last one is the
    /// greenlet's first frame. A [`Backtrace`] that the running greenlet captures itself continues in
    /// its parents. Names are resolved when the backtrace is printed, which takes far longer than
    /// taking it.
    ///
    /// The greenlet takes the backtrace on its own stack, but no tracer is called. This works in a
    /// [`no_switch`](crate::no_switch) section, during a panic, and for a greenlet that awaits.
    ///
    /// # Errors
    ///
    /// [`NoBacktrace`] if the greenlet is pending or dead, so that it has no stack, or if less than
    /// 12 KiB of its stack are free.
    ///
    /// # Examples
    ///
    /// ```
    /// # extern crate greenlet_core as greenlet;
    /// use greenlet::{Greenlet, getparent};
    /// fn asks_and_waits() -> anyhow::Result<u32> {
    ///     getparent().unwrap().switch("a number, please")
    /// }
    /// let child = Greenlet::new(|(): ()| asks_and_waits());
    /// child.switch::<&str>(())?;
    /// assert!(child.backtrace()?.to_string().contains("asks_and_waits"));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[inline(never)] // gives a backtrace of the running greenlet a first frame to start from
    pub fn backtrace(&self) -> Result<Backtrace, NoBacktrace> {
        match self.state() {
            State::Pending => return Err(NoBacktrace::PENDING),
            State::Dead => return Err(NoBacktrace::DEAD),
            State::Active => {}
        }
        let usage = self.usage_of_innermost_stack();
        if usage.is_some_and(|usage| usage.free() < ROOM) {
            return Err(NoBacktrace::STACK_TOO_FULL);
        }
        if self.is_current() {
            return Ok(backtrace_request::capture());
        }
        no_switch(|| backtrace_request::request(self.inner())).ok_or(NoBacktrace::FAILED)
    }
}
