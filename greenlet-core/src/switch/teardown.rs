//! Ends greenlets that have not finished: their last handle was dropped, or their owner ends them.
//!
//! An end has two stages. First a [`GreenletExit`](crate::GreenletExit) is thrown, so that the function
//! returns and its clean-up may switch. If control comes back and the greenlet has not ended, it is
//! unwound by force. A function that stops even that is reported, and its stack is never used again.
//!
//! The end of a thread ends nothing: it marks the suspended greenlets as dead (`Inner::leave`).

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};

use anyhow::Error;

use crate::node::handle::Greenlet;
use crate::node::lineage;
use crate::node::rc::InnerRc;
use crate::node::status::{Hold, State};
use crate::payload::exit::reason;
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::switch;
use crate::switch::receive;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::{self, Deferred, ThreadState, flag};

/// The last handle of an active greenlet is about to go: ends it, here and now if that is possible.
#[cold]
#[inline(never)]
pub(crate) fn last_handle_gone(greenlet: &Greenlet) {
    let thread = ThreadState::current();
    let node = greenlet.inner();
    // Main ends with its thread.
    if node.status.is_main() || node.status.is_abandoned() {
        return;
    }
    if thread.is_current(node) {
        // It ends when it switches away (rule DE-15).
        thread.raise_flag(flag::NO_HANDLES);
        return;
    }
    if !thread.can_end_greenlets() {
        thread.defer(Deferred::HandleDropped(greenlet.clone()));
        return;
    }
    let is_resurrected = || node.has_other_handles();
    end(greenlet, reason::ABANDONED, is_resurrected);
}

/// Ends a greenlet for [`Greenlet::end`]: now, or as soon as greenlets can be ended.
pub(crate) fn end_or_defer(greenlet: &Greenlet) {
    let thread = ThreadState::current();
    let node = greenlet.inner();
    match node.status.state() {
        State::Dead => {}
        State::Pending => {
            node.status.cancel();
            // CAUTION: runs arbitrary user code: the destructors of what the function captured.
            node.closure.clear();
        }
        State::Active if node.status.is_main() || thread.is_current(node) => {}
        State::Active if thread.can_end_greenlets() => {
            // CAUTION: runs arbitrary user code: the clean-up of the greenlet.
            end_owned(greenlet, reason::ENDED);
        }
        State::Active => thread.defer(Deferred::End(greenlet.clone())),
    }
}

/// Ends a greenlet in both stages, whoever has handles of it. The caller knows that it is active, not
/// current, not main, and that nothing unwinds.
pub(crate) fn end_owned(greenlet: &Greenlet, reason: &'static str) {
    if greenlet.inner().status.hold() == Hold::None {
        detach_current_branch(greenlet.inner());
    }
    end(greenlet, reason, || false);
}

/// Ends a greenlet in the context of the current one, which is its parent meanwhile (rule DE-3).
/// Between the stages, `spare` says whether it is to live on.
#[inline(always)] // a return after a switch is one that the processor does not predict
fn end(greenlet: &Greenlet, reason: &'static str, is_revived: impl Fn() -> bool) {
    let node = greenlet.inner();
    if node.status.hold() != Hold::None {
        node.status.set_hold(Hold::HeldThenEnd);
        return;
    }
    // CAUTION: a stage runs foreign code to its very end, where the old parent is set back. Only then is it
    // known who has a handle.
    let thread = ThreadState::current();
    let exit = thread.exit_cache.error(reason);
    let refusals = thread.refusals.replace(0);
    let mut is_forced = deliver_stage(greenlet, Message::Error(exit));
    if node.status.hold() != Hold::None {
        // The first stage led to somebody who keeps it suspended, and who has not let go of it yet.
        node.status.set_hold(Hold::HeldThenEnd);
    } else if node.status.is_active() && !is_revived() {
        if cfg!(panic = "unwind") {
            // Again: the clean-up may have hung the current greenlet below it.
            detach_current_branch(node);
            is_forced |= deliver_stage(greenlet, Message::ForcedUnwind);
        }
        if node.status.is_active() && !is_revived() {
            node.status.abandon();
            unraisable::call(&Unraisable::of_refusal(greenlet.clone()));
        }
    }
    thread.refusals.set(refusals);
    if is_forced {
        // While this went on, the same was done to the current greenlet.
        unwind::force();
    }
}

/// Delivers one message, with the current greenlet as the parent meanwhile. Says whether the current
/// greenlet was itself told to unwind while that went on.
#[inline(always)] // as `end`
fn deliver_stage(greenlet: &Greenlet, stage: Message) -> bool {
    let _meanwhile = TemporaryParent::new(greenlet.inner());
    ThreadState::current().release_await_lock(greenlet.inner());
    let back = switch::deliver_stage(greenlet.inner(), stage, Location::caller());
    let message = receive::open_unless_exit(back);
    message.is_some_and(|message| report_discarded(greenlet, message))
}

/// What comes back has nowhere to go (rules DE-5, DE-6, DE-19). Says whether it was the second stage of the end of the
/// current greenlet.
#[cold]
#[inline(never)]
fn report_discarded(greenlet: &Greenlet, message: Message) -> bool {
    match message {
        Message::Value(value) => drop(value),
        Message::Error(error) => unraisable::call(&Unraisable::of_error(greenlet.clone(), error)),
        Message::Panic(payload) => unraisable::call(&Unraisable::of_panic(greenlet.clone(), payload)),
        Message::ForcedUnwind => return true,
    }
    false
}

/// Where the current greenlet is below `node`, which it is about to end: moves the branch that it stands
/// on to the parent of `node`. The current greenlet becomes the parent of `node` meanwhile, and a lineage
/// is no ring. What the branch leaves would go there anyway: the dead are transparent.
fn detach_current_branch(node: &InnerRc) {
    let current = ThreadState::current().current_inner();
    let is_child = |below: &InnerRc| {
        let parent = below.parent_greenlet();
        parent.is_some_and(|parent| parent.inner().ptr_eq(node))
    };
    let branch = lineage(&current).find(is_child);
    if let Some(branch) = branch {
        // Not the last handle: `node` is being ended by its handle.
        drop(branch.parent.replace(node.parent_greenlet()));
    }
}

/// Makes the current greenlet the parent of one that is being ended, until this is dropped.
struct TemporaryParent<'a> {
    node: &'a InnerRc,
    before: Option<Greenlet>,
}

impl<'a> TemporaryParent<'a> {
    fn new(node: &'a InnerRc) -> TemporaryParent<'a> {
        // Counted, so that the one who ends cannot itself be destroyed before this is over (rule DE-20).
        let before = node.parent.replace(Some(thread::current_greenlet()));
        node.status.set_ending(true);
        TemporaryParent { node, before }
    }
}

impl Drop for TemporaryParent<'_> {
    #[inline]
    fn drop(&mut self) {
        let node = self.node;
        node.status.set_ending(false); // where ends of one node nest, the inner one is the last
        let before = self.before.take();
        if let Some(before) = before.as_ref().filter(|_| node.has_other_handles()) {
            if before.inner().has_in_lineage(node) {
                // The clean-up hung the old parent below the greenlet. That stands, or it were a cycle.
                return;
            }
            if before.inner().await_locked_ancestor().is_some()
                && ThreadState::current().current_inner().has_in_lineage(node)
            {
                // It hung the current greenlet there, which must not run below a closed gate (G1).
                return;
            }
        }
        let meanwhile = node.parent.replace(before);
        // CAUTION: runs foreign code only if the greenlet changed its parent meanwhile and that was the
        // last handle of the new one (rules PA-14, DE-17).
        drop(meanwhile);
    }
}

/// How many refused waits the code of a greenlet that is being ended may ignore.
const REFUSALS: u32 = 100;

/// Counts a refused wait if the running code belongs to a greenlet that is being ended.
///
/// Code that waits again after each refusal would never let the end return. After 100 refusals, control
/// goes back to the code that ends the greenlet. The greenlet is then unwound by force; if it
/// waits again after that, it is reported and left suspended.
///
/// Call it, with no handle on the stack, before you return the error of a refused wait. The errors of
/// this crate are counted already.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getmain, raw};
///
/// fn wait() -> Result<(), &'static str> {
///     raw::count_refusal();
///     Err("the event loop is gone")
/// }
/// let child = Greenlet::new(|(): ()| -> anyhow::Result<()> {
///     let _exit = getmain().switch::<()>(());
///     while wait().is_err() {}
///     Ok(())
/// });
/// child.switch::<()>(())?;
/// child.end();
/// assert!(child.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[cold]
pub fn count_refusal() {
    let thread = ThreadState::current();
    let ended = lineage(&thread.current_inner()).find(|node| node.status.is_ending());
    // During a stage the parent is the greenlet that ends it.
    let Some(ender) = ended.and_then(|node| node.parent_greenlet()) else {
        return;
    };
    thread.refusals.set(thread.refusals.get().saturating_add(1));
    if thread.refusals.get() > REFUSALS && switch::check_switch_allowed().is_ok() {
        // Returns when the greenlet is resumed after all. By value: its stack may be left for good.
        drop(ender.switch_owned::<Value>(()));
    }
}

/// The suspended greenlets of the thread, without main.
pub(crate) fn suspended(thread: &'static ThreadState) -> impl Iterator<Item = Greenlet> {
    let is_suspended = |greenlet: &Greenlet| !greenlet.is_main() && greenlet.is_suspended();
    thread.all_greenlets().filter(is_suspended)
}

/// How often [`end_suspended`] looks for greenlets that clean-up has created.
const ROUNDS: u32 = 100;

/// Ends all suspended greenlets of the calling thread, except the main greenlet.
///
/// It repeats that for greenlets that clean-up creates and leaves suspended, at most 100 times. A
/// greenlet that refuses to end is reported ([`set_unraisable_hook`](crate::set_unraisable_hook)) and
/// left.
///
/// A thread does not call it when it ends: see [`run_to_end`]. In a thread that somebody else starts,
/// call it from what runs last there, such as `on_thread_stop` of tokio or `exit_handler` of rayon.
///
/// # Errors
///
/// Returns the error that a switch from here would return: [`Unwinding`](crate::Unwinding),
/// [`SwitchForbidden`](crate::SwitchForbidden) or [`ThreadExiting`](crate::ThreadExiting). Then it has
/// ended nothing.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, end_suspended, getparent};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// end_suspended()?;
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn end_suspended() -> Result<(), Error> {
    let thread = ThreadState::current();
    switch::check_switch_allowed()?;
    for _ in 0..ROUNDS {
        thread.run_deferred();
        let mut has_ended_one = false;
        for greenlet in suspended(thread).filter(|greenlet| !greenlet.inner().status.is_abandoned()) {
            end_owned(&greenlet, reason::ENDED);
            has_ended_one |= greenlet.is_dead();
        }
        if !has_ended_one {
            break;
        }
    }
    Ok(())
}

/// Runs `f`, then ends all suspended greenlets of the calling thread, also if `f` panics.
///
/// Call it at the top of `main` and of each thread's function. The end of a thread runs no code of a
/// greenlet: what is still suspended then is dead, its destructors never run, and its stack is leaked.
///
/// Where [`end_suspended`] would return an error, it ends nothing.
///
/// # Panics
///
/// Resumes a panic of `f` after that.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use std::sync::mpsc;
/// use greenlet::{Greenlet, getcurrent, getmain, run_to_end};
///
/// let (sender, received) = mpsc::channel::<()>();
/// let thread = std::thread::spawn(|| {
///     run_to_end(|| {
///         let forgotten = Greenlet::new(move |(): ()| {
///             let _kept = (sender, getcurrent()); // its own handle keeps it suspended
///             getmain().switch::<()>(())
///         });
///         forgotten.switch::<()>(())
///     })
/// });
/// thread.join().unwrap()?;
/// assert!(received.recv().is_err()); // the sender was dropped
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run_to_end<T>(f: impl FnOnce() -> T) -> T {
    let outcome = catch_unwind(AssertUnwindSafe(f));
    // CAUTION: runs arbitrary user code. Refused: the thread's end reports what stays suspended.
    let _ = end_suspended();
    outcome.unwrap_or_else(|payload| resume_unwind(payload))
}
