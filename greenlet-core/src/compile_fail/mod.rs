//! Programs that must not compile: the mistakes with threads and lifetimes that the types rule out.
//!
//! Each module is a doctest with the compiler's error code pinned, so that it cannot fail for another
//! reason. (Released compilers do not compare the codes unless `RUSTC_BOOTSTRAP=1` is set.) Where it helps,
//! the smallest change that makes it right stands beside it, and does compile.

mod dead_is_read_only;
mod function_borrows;
mod greenlet_is_not_send;
mod greenlet_is_not_sync;
mod handle_into_thread;
mod main_handle_into_thread;
mod no_function;
mod no_parent_removed;
mod no_type_received;
mod parent_is_a_greenlet;
mod parent_of_another_thread;
mod thrown_is_an_error;
mod tracer_is_not_send;
mod value_borrows;
mod weak_is_not_send;
mod weak_is_not_sync;
