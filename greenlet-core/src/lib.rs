//! The core of the `greenlet` crate: Python's greenlets for Rust.
//!
//! A [`Greenlet`] is a coroutine with its own stack. Plain synchronous code can be suspended inside
//! any call and resumed later. [`Greenlet::switch`] names the greenlet that runs next. The
//! `greenlet` crate re-exports everything here; use that crate.
//!
//! ```
//! # extern crate greenlet_core as greenlet;
//! use greenlet::{Greenlet, getcurrent};
//!
//! let main = getcurrent();
//! let child = Greenlet::new(move |greeting: &str| {
//!     println!("child: {greeting}");
//!     let number: i32 = main.switch("what number?")?;
//!     Ok(number * 2)
//! });
//! let question: &str = child.switch("hello")?;
//! assert_eq!(question, "what number?");
//! let answer: i32 = child.switch(21)?;
//! assert_eq!(answer, 42);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! # Modules
//!
//! From the top down: a module uses only modules below it. `.ci/check-layers` checks that.
//!
//! | module | subject |
//! | --- | --- |
//! | `generator/` | generators: functions that yield values to the greenlet that asks for them |
//! | `greenlet/` | what users call: the methods of `Greenlet`, local variables, functions for all threads |
//! | `switch/` | moving control from one greenlet to another: start, switch, end, tracing |
//! | `thread/` | the state that each thread keeps |
//! | `node/` | one greenlet: its memory, its reference counts, its parent, its state |
//! | `stack/` | the memory of stacks, and the report of an overflow |
//! | `payload/` | what a switch carries: values, errors, exits |
//! | `backend/` | the bare switch, in assembly or by the `context` crate |

mod backend;
#[cfg(doctest)]
#[path = "tests/compile_fail/mod.rs"]
mod compile_fail;
mod generator;
mod greenlet;
mod node;
mod payload;
pub mod stack;
mod switch;
#[cfg(test)]
mod tests;
mod thread;

pub use generator::describe::describe_current;
pub use generator::{Generator, GeneratorBuilder, GeneratorError, Yielder, yield_};
pub use greenlet::all_threads::{Broadcast, run_on_all_threads, run_pending_broadcasts};
pub use greenlet::builder::Builder;
pub use greenlet::current::{getcurrent, getmain, getparent, switch_to_parent};
pub use greenlet::introspect::{StackUsage, greenlets, stacks_in_use, track_ages, track_high_water};
pub use greenlet::local::LocalKey;
pub use greenlet::locals::Locals;
pub use greenlet::no_switch::no_switch;
#[doc(hidden)]
pub use greenlet::raw;
pub use greenlet::{Greenlet, WeakGreenlet};
pub use node::status::State;
pub use payload::error::{
    AwaitInProgress, NoBacktrace, ParentError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
pub use payload::exit::{GreenletExit, into_io_error, pass_exit};
pub use payload::value::Value;
pub use stack::error::StackError;
pub use switch::check_switch_allowed;
pub use switch::teardown::{end_suspended, run_to_end};
pub use switch::trace::{gettrace, settrace};
pub use switch::unraisable::{Unraisable, set_unraisable_hook, take_unraisable_hook};
pub use switch::unwind::{Caught, catch, is_end, raise};
pub use thread::ThreadId;
pub use thread::tracer::{TraceEvent, TraceKind, Tracer};

/// Names the stack-switching backend of this build: `"asm"` or `"fcontext"`.
pub const BACKEND: &str = backend::NAME;
