//! The end of a greenlet, on its own stack: delivers the outcome to the parent, or to the nearest
//! ancestor that is alive.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Error;

use crate::node::Inner;
use crate::node::handle::Greenlet;
use crate::node::rc::InnerRc;
use crate::payload::Payload;
use crate::payload::message::{Delivery, Message};
use crate::payload::value::Value;
use crate::switch::envelope::Envelope;
use crate::switch::start::{StartError, start};
use crate::switch::unraisable::{self, Unraisable};
use crate::switch::{self, Target, exit_to, into_target, mismatch, unsent, unwind};
use crate::thread::unwinding::abort_without_unwinding;
use crate::thread::{ThreadState, flag};

/// Ends the running greenlet with a value for its parent.
#[inline(always)] // a call costs 3 of the 207 instructions of create, run, end
pub(crate) fn finish_with_value(payload: Payload) -> ! {
    let thread = ThreadState::current();
    // SAFETY: the running greenlet is active, so its node is in use [active-kept].
    let node = unsafe { &*thread.current_ptr() };
    if node.status.is_measured() {
        finish(Delivery::Payload(payload));
    }
    let Some(parent) = suspended_parent(thread, node) else {
        finish(Delivery::Payload(payload));
    };
    debug_assert!(node.has_handles()); // [active-kept]: `NO_HANDLES` is clear
    node.finish();
    thread.keep_last_stack(node.stack.take());
    // SAFETY: the greenlet has ended, and its stack is the last stack. The parent was just found
    // suspended, and nothing ran since [ready-now].
    unsafe { exit_to(parent, payload) }
}

/// Ends the running greenlet with an error, of which its parent receives an exit as a value (rule
/// EX-2).
#[inline(never)] // the same for all types
pub(crate) fn finish_with_error(error: Error) -> ! {
    match unwind::exit_of(error) {
        Ok(exit) => {
            let mut exit = ManuallyDrop::new(exit); // [nothing-to-drop]
            finish_with_value(Payload::new(&mut exit))
        }
        Err(message) => finish(Delivery::Message(message)),
    }
}

/// Returns the parent of the running greenlet `node` if a bare stack switch can deliver a value to
/// it: the parent is suspended, and the thread has no flag.
#[inline]
fn suspended_parent(thread: &ThreadState, node: &Inner) -> Option<Target> {
    debug_assert!(!node.status.is_main());
    // SAFETY: the greenlet is active, and is not main, which has no first frame. Nothing changes
    // the parent before the switch.
    let parent = unsafe { node.parent.get_unchecked() };
    let sp = parent.context.sp.get();
    let is_ready = thread.flags.allows(sp) || thread.allows_switch() && !sp.is_null();
    is_ready.then_some(Target(parent))
}

/// Ends the running greenlet: delivers its outcome to the nearest ancestor that lives, which may
/// have to be started.
#[cold]
#[inline(never)]
pub(crate) fn finish(delivery: Delivery) -> ! {
    let thread = ThreadState::current();
    // Now, because no user code may run between the greenlet's end and the delivery (rule UD-5).
    run_deferred_quietly(thread);
    let node = thread.current_inner();
    if node.status.is_measured() {
        thread.record_high_water(&node);
    }
    node.finish();
    let mut delivery = delivery;
    let mut target = nearest_live_ancestor(&node);
    while target.status.is_pending() {
        let Err(error) = start(thread, &target, &delivery) else {
            break;
        };
        let has_stack = matches!(error, StartError::Type { .. });
        // A value of the wrong type: the ancestor is started with the error and ends with it, as a
        // Python function of wrong arguments does (rule RT-5).
        let error = error.with(unsent(delivery), |expected, value| {
            mismatch::of_pending_ancestor(&target, &node, expected, value)
        });
        delivery = Delivery::Message(Message::Error(error));
        // Without a stack the ancestor stays pending, and the next one gets the error (rule RT-6).
        if !has_stack {
            target = nearest_live_ancestor(&target);
        }
    }
    thread.keep_last_stack(node.stack.take());
    let mut envelope = ManuallyDrop::new(Envelope {
        delivery,
        origin: Some(Greenlet::from_inner(node)),
        traced: thread.has_flag(flag::TRACED),
    });
    let target = into_target(thread, target);
    // SAFETY: the greenlet has ended, and its stack is the last stack. `into_target` checks that
    // the target is suspended, and nothing runs in between [ready-now].
    unsafe { exit_to(target, Payload::new(&mut envelope)) }
}

/// Ends the running greenlet with an error, and leaves its stack for good: with `panic = "abort"` it
/// cannot be unwound.
#[cold]
pub(crate) fn leave_with_error(error: Error) -> ! {
    let thread = ThreadState::current();
    let node = thread.current_inner();
    if node.status.is_main() {
        abort_without_unwinding("the main greenlet cannot be left");
    }
    if switch::check_switch_allowed().is_err() {
        abort_without_unwinding("the greenlet cannot be left here, because it may not switch");
    }
    let _ = unraisable::call(Unraisable::of_left_stack(Greenlet::from_inner(node.clone())));
    let message = match unwind::exit_of(error) {
        Ok(exit) => Message::Value(Value::new(exit)),
        Err(message) => message,
    };
    leave_stack(thread, &node);
    drop(node);
    finish(Delivery::Message(message))
}

/// Leaves the stack of a greenlet that never runs again as it is.
pub(crate) fn leave_stack(thread: &ThreadState, node: &Inner) {
    // Values on the stack may borrow from these, so one count of each is leaked.
    std::mem::forget(node.locals());
    std::mem::forget(node.attachment().cloned());
    std::mem::forget(thread.later_attachments.borrow().get(&node.id()).cloned());
    node.stack.take(); // it has no destructor: the memory stays
    thread.stacks.borrow().leak();
}

/// Runs deferred ends where nothing may unwind: in the last frames of a greenlet, and at the end of a
/// thread.
pub(crate) fn run_deferred_quietly(thread: &ThreadState) {
    // Each round takes at least one end, and one that unwinds stops the others.
    while let Err(payload) = catch_unwind(AssertUnwindSafe(|| thread.run_deferred())) {
        let greenlet = Greenlet::from_inner(thread.current_inner());
        let report = match unwind::own_message(payload) {
            Message::Panic(payload) => Unraisable::of_panic(greenlet, payload),
            Message::Error(error) => Unraisable::of_error(greenlet, error),
            Message::ForcedUnwind | Message::Value(_) => continue,
        };
        // The greenlet ends anyway, so an order to unwind changes nothing.
        let _ = unraisable::call(report);
    }
}

fn nearest_live_ancestor(node: &InnerRc) -> InnerRc {
    let parent = node.parent.get();
    parent
        .and_then(|parent| parent.nearest_living())
        .expect("while a greenlet runs, the main greenlet of its thread is active")
}
