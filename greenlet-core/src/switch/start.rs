//! Starting a pending greenlet: by the caller of a switch, before it switches there.

use anyhow::Error;

use crate::backend;
use crate::node::Inner;
use crate::node::closure::ClosureVTable;
use crate::payload::TypeTag;
use crate::payload::error::TypeMismatch;
use crate::payload::message::Delivery;
use crate::payload::value::Value;
use crate::stack::Stack;
use crate::stack::error::StackError;
use crate::thread::ThreadState;

/// Starts a pending target without extras. Returns `false` if the slow path is needed.
#[inline]
pub(super) fn prepare_pending(target: &Inner, carried: TypeTag) -> bool {
    let thread = ThreadState::current();
    if let Some(vtable) = target.closure.vtable() {
        // A pending greenlet is never locked. Nor are the running one and its ancestors.
        if carried.ptr_eq(vtable.takes) && target.parent.is_at(thread.current_ptr()) {
            if let Some(stack) = thread.take_last_default_stack() {
                return activate(target, vtable, stack);
            }
        }
    }
    prepare_pending_slow(target, carried)
}

/// Starts a pending target with any parent, on any stack that the thread has. Returns `false` if it
/// is not pending, or if the slow path is needed.
#[inline(never)] // keeps the frame out of `prepare_target`
pub(super) fn prepare_pending_slow(target: &Inner, carried: TypeTag) -> bool {
    let Some(vtable) = target.closure.vtable() else {
        return false;
    };
    let thread = ThreadState::current();
    carried.is(vtable.takes)
        && target.await_locked_below(thread.current_ptr()).is_none()
        && thread
            .take_cached_stack(target.stack_size())
            .is_some_and(|stack| activate(target, vtable, stack))
}

/// Makes a pending greenlet active, suspended at the start of its function, on `stack`. Returns
/// `true`.
#[inline]
fn activate(node: &Inner, vtable: &ClosureVTable, stack: Stack) -> bool {
    node.status.activate();
    // SAFETY: the stack is fresh, large enough (`stack::MIN_SIZE`) and aligned, and nobody else has
    // it.
    unsafe { backend::init(stack.entry(), vtable.entry, &node.context) };
    node.stack.set(Some(stack));
    true
}

/// Why a pending greenlet was not started. It stays pending.
pub(super) enum StartError {
    Type { expected: &'static str },
    Stack(StackError),
}

impl StartError {
    /// Returns the error for the sender of `value`. `mismatch` creates the one of a wrong type.
    pub(super) fn with(
        self,
        value: Option<Value>,
        mismatch: impl FnOnce(&'static str, Value) -> TypeMismatch,
    ) -> Error {
        match (self, value) {
            (StartError::Type { expected }, Some(value)) => mismatch(expected, value).into(),
            (StartError::Type { .. }, None) => unreachable!("only values have a wrong type"),
            (StartError::Stack(error), value) => error.carrying(value).into(),
        }
    }
}

/// Gives a pending greenlet a stack and makes it active. After an error nothing has changed.
pub(super) fn start(thread: &ThreadState, node: &Inner, delivery: &Delivery) -> Result<(), StartError> {
    let vtable = node
        .closure
        .vtable()
        .expect("a pending greenlet has its function");
    delivery
        .check_type(vtable.takes)
        .map_err(|expected| StartError::Type { expected })?;
    let stack = thread.take_stack(node.stack_size()).map_err(StartError::Stack)?;
    activate(node, vtable, stack);
    Ok(())
}
