//! Ends suspended greenlets: their last handle was dropped, or their owner ends them.
//!
//! An end has two stages. The first throws a [`GreenletExit`](crate::GreenletExit), so that the
//! function returns, and its clean-up may switch. If the greenlet is not dead after that, the
//! second stage unwinds its stack by force. A greenlet that stops even this is reported, and its
//! stack is never used again.
//!
//! Ends may meet: clean-up may end greenlets, also those that wait for it.
//!
//! ```text
//!   main ── ends ──► a ── its clean-up ends ──► b ── its clean-up ends ──► a
//!   (waits)          (waits)                    (runs)                     deferred: a waits for b
//! ```
//!
//! So an end is deferred if the greenlet waits for the end in which the running code is. And no
//! deferred end begins inside another end. Each clean-up can then run to its very end.
//!
//! A stage may unwind, by a destructor of the user. Then the next stage follows first.
//!
//! The end of a thread runs no code of its greenlets: see `thread_exit.rs`.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};

use anyhow::Error;

use crate::node::handle::Greenlet;
use crate::node::lineage;
use crate::node::rc::InnerRc;
use crate::node::status::{Hold, State};
use crate::payload::exit::{GreenletExit, reason};
use crate::payload::message::Message;
use crate::payload::value::Value;
use crate::switch;
use crate::switch::receive;
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::unwind;
use crate::thread::{self, Cause, ThreadState, flag};

impl Greenlet {
    /// Ends the greenlet if it is active and this is its last handle.
    #[inline]
    pub(crate) fn end_if_last_handle(&self) {
        if self.inner().has_one_handle() {
            // CAUTION: runs arbitrary user code.
            last_handle_gone(self);
        }
    }
}

/// Ends an active greenlet whose last handle is being dropped. If it cannot be ended now, it is
/// ended later.
fn last_handle_gone(greenlet: &Greenlet) {
    let thread = ThreadState::current();
    let node = greenlet.inner();
    // Main ends with its thread.
    if node.status.is_main() || node.status.is_abandoned() {
        return;
    }
    if thread.is_current(node) {
        // The next greenlet that it switches to ends it (rule DE-15).
        thread.raise_flag(flag::NO_HANDLES);
        return;
    }
    if thread.can_end_greenlets() {
        end(greenlet, Cause::HandleDropped);
    } else {
        thread.defer(greenlet, Cause::HandleDropped);
    }
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
            end(greenlet, Cause::Ended);
        }
        State::Active => thread.defer(greenlet, Cause::Ended),
    }
}

/// Ends a greenlet in both stages. The current greenlet is its parent meanwhile (rule DE-3). If the
/// cause is a dropped handle, and there is another one after the first stage, the greenlet stays
/// suspended.
///
/// The caller knows that it is active, neither current nor main, and that no panic unwinds.
///
/// # Panics
///
/// Continues what unwound a stage, after both stages.
fn end(greenlet: &Greenlet, cause: Cause) {
    let node = greenlet.inner();
    if node.status.hold() != Hold::None {
        node.status.set_hold(Hold::HeldThenEnd);
        return;
    }
    if waits_for_current(node) {
        ThreadState::current().defer(greenlet, cause);
        return;
    }
    for _ in 0..ROUNDS {
        end_now(greenlet, cause);
        // Those that have waited for this end. Does nothing inside another one.
        // CAUTION: runs arbitrary user code. It may drop the handle that kept the greenlet.
        ThreadState::current().run_deferred();
        let is_over = node.status.is_abandoned() || !node.status.is_active();
        if is_over || cause == Cause::Ended || node.has_other_handles() || node.status.hold() != Hold::None {
            return;
        }
    }
    abandon(greenlet).unwrap_or_else(|payload| resume_unwind(payload));
}

/// Leaves a greenlet that does not end, and reports it.
///
/// # Errors
///
/// Returns the payload of an end of the current greenlet itself.
fn abandon(greenlet: &Greenlet) -> std::thread::Result<()> {
    greenlet.inner().status.abandon();
    unraisable::call(Unraisable::of_refusal(greenlet.clone()))
}

/// Ends an active greenlet that is neither current nor main, even if it waits for the end that the
/// caller is a part of. For a caller that cannot return before. Does nothing while greenlets cannot
/// be ended.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, getparent, raw};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// raw::interrupt(&waiting);
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn interrupt(greenlet: &Greenlet) {
    let (thread, node) = (ThreadState::current(), greenlet.inner());
    let can_end = node.status.is_active() && !node.status.is_main() && !thread.is_current(node);
    if can_end && node.status.hold() == Hold::None && thread.can_end_greenlets() {
        // CAUTION: runs arbitrary user code: the clean-up of the greenlet.
        end_now(greenlet, Cause::Ended);
    }
}

/// [`end`] of a greenlet that is not held.
fn end_now(greenlet: &Greenlet, cause: Cause) {
    let node = greenlet.inner();
    let (reason, detaches) = match cause {
        Cause::HandleDropped => (reason::ABANDONED, false),
        Cause::Ended => (reason::ENDED, true),
    };
    if detaches {
        detach_current_branch(node);
    }
    let is_revived = || cause == Cause::HandleDropped && node.has_other_handles();
    // CAUTION: `deliver_stage` runs arbitrary user code up to its last statement, so the checks
    // follow it.
    let thread = ThreadState::current();
    let exit = thread.exit_cache.error(GreenletExit::because(reason));
    let was_ender = thread::with_current_inner(|current| current.status.set_ender(true));
    let refusals = thread.refusals.replace(0);
    let mut unwound = unwind::Unwound::default();
    unwound.run(|| deliver_stage(greenlet, Message::Error(exit)));
    if node.status.hold() != Hold::None {
        // The first stage ran code that holds it suspended, and has not released it yet.
        node.status.set_hold(Hold::HeldThenEnd);
    } else if node.status.is_active() && !is_revived() {
        if cfg!(panic = "unwind") {
            // Again: the clean-up may have moved the current greenlet below it.
            detach_current_branch(node);
            unwound.run(|| deliver_stage(greenlet, Message::ForcedUnwind));
        }
        // A greenlet that ends the current one, which must unwind, does not refuse: it waits.
        let waits = || unwound.is_end() && node.status.is_ender();
        if node.status.is_active() && !is_revived() && !waits() {
            unwound.run(|| abandon(greenlet));
        }
    }
    thread.refusals.set(refusals);
    thread::with_current_inner(|current| current.status.set_ender(was_ender));
    unwound.resume();
}

/// Returns `true` if `node` waits for an end, and the running code is part of that end: the running
/// greenlet, or one above it, is being ended by `node`.
fn waits_for_current(node: &InnerRc) -> bool {
    if !node.status.is_ender() {
        return false;
    }
    let current = ThreadState::current().current_inner();
    lineage(&current).any(|ended| {
        // During a stage the parent is the greenlet that ends it.
        let ender = || ended.parent.get();
        ended.status.is_ending() && ender().is_some_and(|ender| ender.ptr_eq(node))
    })
}

/// Delivers one stage, with the current greenlet as the parent meanwhile.
///
/// # Errors
///
/// Returns the payload of an end of the current greenlet itself.
#[inline(always)] // see "Inlining" in `switch`
fn deliver_stage(greenlet: &Greenlet, stage: Message) -> std::thread::Result<()> {
    let _meanwhile = TemporaryParent::new(greenlet.inner());
    ThreadState::current().release_await_lock(greenlet.inner());
    let back = switch::deliver_stage(greenlet.inner(), stage, Location::caller());
    let message = receive::open_unless_exit(back);
    message.map_or(Ok(()), |message| report_discarded(greenlet, message))
}

/// Reports a message that nobody can receive (rules DE-5, DE-6, DE-19).
///
/// # Errors
///
/// Returns the payload of an end of the current greenlet itself.
#[cold]
#[inline(never)]
fn report_discarded(greenlet: &Greenlet, message: Message) -> std::thread::Result<()> {
    match message {
        Message::Value(value) => {
            // CAUTION: runs arbitrary user code, which may unwind.
            drop(value);
            Ok(())
        }
        // The first stage of the current greenlet's own end, which waits for this one. The second
        // stage follows.
        Message::Error(error)
            if GreenletExit::in_error(&error).is_some()
                && thread::with_current_inner(|node| node.status.is_ending()) =>
        {
            unwind::discard(error)
        }
        Message::Error(error) => unraisable::call(Unraisable::of_error(greenlet.clone(), error)),
        Message::Panic(payload) => unraisable::call(Unraisable::of_panic(greenlet.clone(), payload)),
        // The second stage of the current greenlet's own end.
        Message::ForcedUnwind => Err(unwind::forced()),
    }
}

/// Moves the branch of the current greenlet to the parent of `node`, if the current greenlet is
/// below `node`. It becomes the parent of `node` while it ends it, and a chain of parents has no
/// cycle. The branch's outcomes go to that parent in any case, once `node` is dead.
fn detach_current_branch(node: &InnerRc) {
    let current = ThreadState::current().current_inner();
    let is_child = |below: &InnerRc| {
        let parent = below.parent_greenlet();
        parent.is_some_and(|parent| parent.inner().ptr_eq(node))
    };
    let branch = lineage(&current).find(is_child);
    if let Some(branch) = branch {
        ThreadState::current().count_parent_change();
        // Not the last handle: the caller ends `node` by another one.
        drop(branch.parent.replace(node.parent_greenlet()));
    }
}

/// Makes the current greenlet the parent of one that is being ended, until this is dropped.
struct TemporaryParent<'a> {
    node: &'a InnerRc,
    before: Option<Greenlet>,
    /// `ThreadState::parent_changes` when the stage began.
    changes: u64,
}

impl<'a> TemporaryParent<'a> {
    fn new(node: &'a InnerRc) -> TemporaryParent<'a> {
        // The handle keeps the current greenlet from being ended during the stage (rule DE-20).
        let before = node.parent.replace(Some(thread::current_greenlet()));
        node.status.set_ending(true);
        let changes = ThreadState::current().count_parent_change();
        TemporaryParent {
            node,
            before,
            changes,
        }
    }
}

impl Drop for TemporaryParent<'_> {
    #[inline]
    fn drop(&mut self) {
        let node = self.node;
        node.status.set_ending(false); // of nested ends of one node, the inner one is the last
        let before = self.before.take();
        let thread = ThreadState::current();
        // Otherwise no lineage has changed, which saves two searches: the end of 20,000 nested
        // greenlets would take quadratic time.
        let may_have_moved = thread.count_parent_change() != self.changes + 1;
        let moved = |_: &&Greenlet| may_have_moved && node.has_other_handles();
        if let Some(before) = before.as_ref().filter(moved) {
            if before.inner().has_in_lineage(node) {
                // The clean-up moved the old parent below the greenlet. Restoring it would make a
                // cycle.
                return;
            }
            if before.inner().await_locked_ancestor().is_some() && thread.current_inner().has_in_lineage(node)
            {
                // The clean-up moved the current greenlet below the node. It must not run below an
                // await lock [locked-branch].
                return;
            }
        }
        let meanwhile = node.parent.replace(before);
        // CAUTION: runs arbitrary user code if the clean-up set another parent and this is its last
        // handle (rules PA-14, DE-17).
        drop(meanwhile);
    }
}

/// How many refused waits a greenlet that is being ended may ignore.
const REFUSALS: u32 = 100;

/// Counts a refused wait if the running code belongs to a greenlet that is being ended.
///
/// Code that waits again after each refusal would never end. After 100 refusals, this function
/// switches to the greenlet that ends it, which then unwinds it by force. If it waits again after
/// that, it is reported and left suspended.
///
/// Call it before you return the error of a refused wait. Own no handle then, because it may not
/// return. The crate counts its own errors.
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
    if note_refusal(thread) {
        leave_if_exhausted(thread);
    }
}

/// Counts a refused switch, and returns `true`, if the running code belongs to a greenlet that is
/// being ended.
pub(crate) fn note_refusal(thread: &ThreadState) -> bool {
    let is_counted = thread.current_inner().is_in_an_end();
    if is_counted {
        thread.refusals.set(thread.refusals.get().saturating_add(1));
    }
    is_counted
}

/// Switches to the greenlet that ends the running code, if that has ignored too many refusals. It
/// may not return. The caller owns no handle.
pub(crate) fn leave_if_exhausted(thread: &ThreadState) {
    if thread.refusals.get() <= REFUSALS || switch::check_switch_allowed().is_err() {
        return;
    }
    let ended = lineage(&thread.current_inner()).find(|node| node.status.is_ending());
    // During a stage the parent is the greenlet that ends it.
    if let Some(ender) = ended.and_then(|node| node.parent_greenlet()) {
        // `switch_owned` drops the handle before the switch, which may not return.
        drop(ender.switch_owned::<Value>(()));
    }
}

/// Returns the suspended greenlets of the thread, except main.
pub(crate) fn suspended(thread: &'static ThreadState) -> impl Iterator<Item = Greenlet> {
    let is_suspended = |greenlet: &Greenlet| !greenlet.is_main() && greenlet.is_suspended();
    thread.all_greenlets().filter(is_suspended)
}

/// How often [`end_suspended`] looks for greenlets that clean-up has created.
const ROUNDS: u32 = 100;

/// Ends all suspended greenlets of the calling thread, except the main greenlet.
///
/// Clean-up may create greenlets and leave them suspended, so this is repeated at most 100 times. A
/// greenlet that refuses to end is reported ([`set_unraisable_hook`](crate::set_unraisable_hook))
/// and stays suspended.
///
/// The end of a thread does not call it: see [`run_to_end`]. On a runtime's threads, call it from
/// the hook that runs last, such as `on_thread_stop` of tokio or `exit_handler` of rayon.
///
/// # Errors
///
/// Returns the error that a switch would return, and ends nothing: [`Unwinding`](crate::Unwinding),
/// [`SwitchForbidden`](crate::SwitchForbidden) or [`ThreadExiting`](crate::ThreadExiting).
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
            end_or_defer(&greenlet);
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
/// Call it at the top of `main` and of each thread's function. The end of a thread runs no code of
/// a greenlet. A greenlet that is still suspended then is dead: its destructors never run, and its
/// stack is leaked.
///
/// If [`end_suspended`] would return an error, it ends nothing.
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
    // CAUTION: runs arbitrary user code. After an error, the thread's end reports the suspended
    // greenlets.
    let _ = end_suspended();
    outcome.unwrap_or_else(|payload| resume_unwind(payload))
}
