//! Ending greenlets that have not finished: because their last handle went, because their owner says so,
//! or because their thread ends.
//!
//! Two stages. First a [`GreenletExit`] is thrown, so the function ends in the ordinary way and its
//! clean-up may switch. If control comes back and it has not ended, it is unwound by force. A function
//! that stops even that is reported, and its stack is left alone for good.

#![forbid(unsafe_code)]

use std::panic::Location;

use anyhow::Error;

use crate::exit::reason;
use crate::gate;
use crate::greenlet::Greenlet;
use crate::receive;
use crate::record::NodeRef;
use crate::report::{self, Unraisable};
use crate::state::Kept;
use crate::switch::{self, Manners};
use crate::thread::{self, Debt, Hub, slow};
use crate::transfer::{Content, Message, Parcel};
use crate::tree::lineage;
use crate::unwind;

/// The last handle of an active greenlet is about to go: ends it, here and now if that is possible.
#[cold]
#[inline(never)]
pub(crate) fn last_handle_gone(greenlet: &Greenlet) {
    let hub = Hub::get();
    let node = greenlet.node();
    // Main ends with its thread.
    if node.standing.is_main() || node.standing.is_abandoned() {
        return;
    }
    if hub.is_current(node) {
        // It ends when it switches away (rule DE-15).
        hub.raise_flag(slow::UNHELD);
        return;
    }
    if !hub.can_end_greenlets() {
        hub.owe(Debt::LetGo(greenlet.clone()));
        return;
    }
    let is_resurrected = || node.count() > COUNT_OF_LAST_HANDLE;
    end(greenlet, reason::ABANDONED, is_resurrected);
}

/// The count of an active greenlet with one handle: that, and the one it has of itself.
pub(crate) const COUNT_OF_LAST_HANDLE: u32 = 2;

/// Ends a greenlet in both stages, whoever has handles of it. The caller knows that it is active, not
/// current, not main, and that nothing unwinds.
pub(crate) fn end_owned(greenlet: &Greenlet, reason: &'static str) {
    if greenlet.node().standing.kept() == Kept::No {
        step_out_of(greenlet.node());
    }
    end(greenlet, reason, || false);
}

/// Ends a greenlet in the context of the current one, which is its parent meanwhile (rule DE-3).
/// Between the stages, `spare` says whether it is to live on.
#[inline(always)] // a return after a switch is one that the processor does not predict
fn end(greenlet: &Greenlet, reason: &'static str, spare: impl Fn() -> bool) {
    let node = greenlet.node();
    if node.standing.kept() != Kept::No {
        node.standing.set_kept(Kept::YesThenEnd);
        return;
    }
    // CAUTION: a stage runs foreign code to its very end, where the old parent is set back. Only then is it
    // known who has a handle.
    let exit = Hub::get().spare_exit.error(reason);
    let mut is_forced = stage(greenlet, |at| switch::throw_at(node, exit, at, Manners::Firm));
    if node.standing.kept() != Kept::No {
        // The first stage led to somebody who keeps it suspended, and who has not let go of it yet.
        node.standing.set_kept(Kept::YesThenEnd);
    } else if node.standing.is_active() && !spare() {
        if cfg!(panic = "unwind") {
            // Again: the clean-up may have hung the current greenlet below it.
            step_out_of(node);
            let force = || Content::Message(Message::Force);
            is_forced |= stage(greenlet, |at| switch::transfer(node, force(), at, Manners::Firm));
        }
        if node.standing.is_active() && !spare() {
            node.standing.abandon();
            report::call(&Unraisable::of_refusal(greenlet.clone()));
        }
    }
    if is_forced {
        // While this went on, the same was done to the current greenlet.
        unwind::force();
    }
}

/// Delivers one message, with the current greenlet as the parent meanwhile. Says whether the current
/// greenlet was itself told to unwind while that went on.
#[inline(always)] // as `end`
fn stage(
    greenlet: &Greenlet,
    deliver: impl FnOnce(&'static Location<'static>) -> Result<Parcel, Error>,
) -> bool {
    let _meanwhile = ParentMeanwhile::new(greenlet.node());
    gate::forget(Hub::get(), greenlet.node());
    let message = match deliver(Location::caller()) {
        Ok(back) => receive::open_unless_exit(back),
        Err(refused) => Some(Message::Error(refused)),
    };
    message.is_some_and(|message| dispose(greenlet, message))
}

/// What comes back has nowhere to go (rules DE-5, DE-6, DE-19). Says whether it was the second stage of the end of the
/// current greenlet.
#[cold]
#[inline(never)]
fn dispose(greenlet: &Greenlet, message: Message) -> bool {
    match message {
        Message::Value(value) => drop(value),
        Message::Error(error) => report::call(&Unraisable::of_error(greenlet.clone(), error)),
        Message::Panic(payload) => report::call(&Unraisable::of_panic(greenlet.clone(), payload)),
        Message::Force => return true,
    }
    false
}

/// Where the current greenlet is below `node`, which it is about to end: moves the branch that it stands
/// on to the parent of `node`. The current greenlet becomes the parent of `node` meanwhile, and a lineage
/// is no ring. What the branch leaves would go there anyway: the dead are transparent.
fn step_out_of(node: &NodeRef) {
    let current = Hub::get().current_node();
    let is_child = |below: &NodeRef| {
        let parent = below.parent_greenlet();
        parent.is_some_and(|parent| parent.node().is(node))
    };
    let branch = lineage(&current).find(is_child);
    if let Some(branch) = branch {
        // Not the last handle: `node` is being ended by its handle.
        drop(branch.parent.replace(node.parent_greenlet()));
    }
}

/// Makes the current greenlet the parent of one that is being ended, until this is dropped.
struct ParentMeanwhile<'a> {
    node: &'a NodeRef,
    before: Option<Greenlet>,
}

impl<'a> ParentMeanwhile<'a> {
    fn new(node: &'a NodeRef) -> ParentMeanwhile<'a> {
        // Counted, so that the one who ends cannot itself be destroyed before this is over (rule DE-20).
        let before = node.parent.replace(Some(thread::current_greenlet()));
        ParentMeanwhile { node, before }
    }
}

impl Drop for ParentMeanwhile<'_> {
    #[inline]
    fn drop(&mut self) {
        let node = self.node;
        let before = self.before.take();
        let has_other_handles =
            node.count() > COUNT_OF_LAST_HANDLE || node.standing.is_dead() && node.count() > 1;
        if let Some(before) = before.as_ref().filter(|_| has_other_handles) {
            if before.node().has_in_lineage(node) {
                // The clean-up hung the old parent below the greenlet. That stands, or it were a cycle.
                return;
            }
            if before.node().closed_gate().is_some() && Hub::get().current_node().has_in_lineage(node) {
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

/// How many switches a greenlet may try in vain while it is ended with its thread; then it is unwound.
const VAIN_SWITCHES: u32 = 1000;

/// Ends all greenlets of a thread that is about to go. The main greenlet is current.
pub(crate) fn end_all(hub: &Hub) {
    hub.settle_debts();
    loop {
        let mut has_ended_one = false;
        for greenlet in hub.all_greenlets() {
            let node = greenlet.node();
            // One that is kept suspended is left so: the process is being ended from below its keeper.
            let can_end =
                !node.standing.is_main() && !node.standing.is_abandoned() && node.standing.kept() == Kept::No;
            if node.standing.is_active() && can_end {
                hub.patience.set(VAIN_SWITCHES);
                end_owned(&greenlet, reason::THREAD_ENDED);
                has_ended_one = true;
            }
        }
        // Clean-up may have let go of others, or made new ones (which cannot start any more).
        hub.settle_debts();
        if !has_ended_one {
            break;
        }
    }
}

/// Ends all greenlets of the calling thread that are suspended, but for the main greenlet and for the
/// running one.
///
/// A thread does the same when it ends. Do it yourself, as the last thing that the thread's function
/// does, when suspended greenlets hold references into thread-locals (see the guarantees in
/// `docs/safety.md`), or where the order of clean-up matters.
///
/// # Errors
///
/// Returns what a switch from here would: [`Unwinding`](crate::Unwinding),
/// [`SwitchForbidden`](crate::SwitchForbidden) or [`ThreadExiting`](crate::ThreadExiting). Nothing has
/// been ended then.
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, end_suspended, getparent};
///
/// let waiting = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
/// waiting.switch::<()>(())?;
/// end_suspended()?;
/// assert!(waiting.is_dead());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn end_suspended() -> Result<(), Error> {
    let hub = Hub::get();
    switch::may_switch()?;
    hub.settle_debts();
    for greenlet in hub.all_greenlets() {
        let node = greenlet.node();
        let is_suspended = node.standing.is_active() && !hub.is_current(node);
        if is_suspended && !node.standing.is_main() && !node.standing.is_abandoned() {
            end_owned(&greenlet, reason::ENDED);
        }
    }
    Ok(())
}
