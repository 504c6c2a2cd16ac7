//! Sizes and auto traits. Programs that must not compile are in `greenlet-core/src/compile_fail`.

use std::mem::size_of;
use std::panic::{RefUnwindSafe, UnwindSafe};

use greenlet::{
    AwaitInProgress, Greenlet, GreenletExit, ParentError, StackError, State, SwitchForbidden, ThreadExiting,
    Tracer, TypeMismatch, Unwinding, Value, WeakGreenlet,
};

#[test]
fn a_handle_and_an_optional_handle_are_one_word() {
    assert_eq!(size_of::<Greenlet>(), size_of::<usize>());
    assert_eq!(size_of::<Option<Greenlet>>(), size_of::<usize>());
    assert_eq!(size_of::<Option<WeakGreenlet>>(), size_of::<usize>());
}

#[test]
fn a_value_is_four_words() {
    assert_eq!(size_of::<Value>(), 4 * size_of::<usize>());
    assert_eq!(size_of::<Option<Value>>(), size_of::<Value>());
}

#[test]
fn a_result_of_a_switch_needs_no_room_for_its_error() {
    assert_eq!(size_of::<anyhow::Result<()>>(), size_of::<usize>());
    assert_eq!(size_of::<anyhow::Result<Box<u8>>>(), 2 * size_of::<usize>());
    assert_eq!(size_of::<State>(), 1);
}

#[test]
fn errors_are_send_and_sync() {
    fn is_error<T: std::error::Error + Send + Sync + 'static>() {}
    is_error::<AwaitInProgress>();
    is_error::<GreenletExit>();
    is_error::<ParentError>();
    is_error::<StackError>();
    is_error::<SwitchForbidden>();
    is_error::<ThreadExiting>();
    is_error::<TypeMismatch>();
    is_error::<Unwinding>();
}

#[test]
fn handles_are_unpin_and_unwind_safe() {
    fn is_plain<T: Unpin + UnwindSafe + RefUnwindSafe>() {}
    is_plain::<Greenlet>();
    is_plain::<WeakGreenlet>();
    fn is_debug<T: std::fmt::Debug + Clone>() {}
    is_debug::<Tracer>();
    is_debug::<WeakGreenlet>();
}
