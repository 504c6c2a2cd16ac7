//! The core of the `greenlet` crate: Python's greenlets for Rust.
//!
//! A [`Greenlet`] is a coroutine on a stack of its own. Plain synchronous code can stop in the middle of
//! any call and go on later; who runs next is said explicitly, by [`Greenlet::switch`].
//!
//! ```
//! use greenlet_core::{Greenlet, getcurrent};
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
//! # Modules, from the top down
//!
//! | module | subject |
//! | --- | --- |
//! | `greenlet`, `builder` | the handle, and how it is made |
//! | `inspect`, `probe` | looking at greenlets from outside; backtraces |
//! | `local` | variables of which each greenlet has its own value |
//! | `errand` | asking other threads |
//! | `entry`, `end` | the first frame of a greenlet; ending it from outside |
//! | `switch` | the transfer of control: the only place where greenlets are switched |
//! | `segment` | code on a stack of its own, as a part of the greenlet that steps it: generators |
//! | `trace`, `section`, `gate`, `report` | tracers, sections without switches, closed greenlets, unraisable errors |
//! | `asan` | tells AddressSanitizer of every switch (feature `asan`) |
//! | `thread` | what is kept for each thread |
//! | `record`, `link`, `body` | memory and counts of records; links to parents; functions not yet called |
//! | `tree`, `state`, `transfer`, `value`, `error`, `exit`, `unwind` | records, states, what is carried, and how it fails |
//! | `thread_bound` | a value of one thread inside an error of any |
//! | `overflow` | says which greenlet ran into its guard page |
//! | `stack` | where stacks come from |
//! | `backend` | the bare switch: assembly, or the `context` crate |

mod backend;
#[cfg(doctest)]
mod compile_fail;
mod generator;
mod greenlet;
mod node;
mod payload;
mod segment;
pub mod stack;
mod switch;
#[cfg(test)]
mod tests;
mod thread;

pub use generator::{Generator, GeneratorBuilder, GeneratorError, Yielder, yield_};
pub use greenlet::all_threads::{Broadcast, run_on_all_threads, run_pending_broadcasts};
pub use greenlet::builder::Builder;
pub use greenlet::introspect::{StackUsage, greenlets, stacks_in_use, track_ages};
pub use greenlet::local::{LocalKey, Locals};
pub use greenlet::no_switch::no_switch;
pub use greenlet::{Greenlet, WeakGreenlet, getcurrent, getmain, getparent};
pub use node::status::State;
pub use payload::error::{
    AwaitInProgress, NoBacktrace, ParentError, StackError, SwitchForbidden, ThreadExiting, TypeMismatch,
    Unwinding,
};
pub use payload::exit::GreenletExit;
pub use payload::value::Value;
pub use switch::check_switch_allowed;
pub use switch::teardown::{count_refusal, end_suspended, run_to_end};
pub use switch::trace::{gettrace, settrace};
pub use switch::unraisable::{Unraisable, set_unraisable_hook, take_unraisable_hook};
pub use switch::unwind::raise;
pub use thread::ThreadId;
pub use thread::tracer::{TraceEvent, TraceKind, Tracer};

/// The name of the stack-switching backend that this build uses: `"asm"` or `"fcontext"`.
pub const BACKEND: &str = backend::NAME;
