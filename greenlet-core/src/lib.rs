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

mod ahead;
mod asan;
mod backend;
mod body;
mod builder;
#[cfg(doctest)]
mod compile_fail;
mod end;
mod entry;
mod errand;
mod error;
mod exit;
mod gate;
mod generator;
mod greenlet;
mod inspect;
mod link;
mod local;
mod overflow;
mod probe;
mod receive;
mod record;
mod report;
mod section;
mod segment;
pub mod stack;
mod state;
mod switch;
#[cfg(test)]
mod tests;
mod thread;
mod thread_bound;
mod trace;
mod transfer;
mod tree;
mod unwind;
mod value;

pub use builder::Builder;
pub use end::{count_refusal, end_suspended, run_to_end};
pub use errand::{Errand, ThreadId, ask_all_threads, run_errands};
pub use error::{
    Awaiting, NoBacktrace, ParentError, StackError, SwitchForbidden, ThreadExiting, TypeMismatch, Unwinding,
};
pub use exit::GreenletExit;
pub use generator::{Generator, GeneratorBuilder, GeneratorError, Yielder, yield_};
pub use greenlet::{Greenlet, WeakGreenlet, getcurrent, getmain, getparent};
pub use inspect::{StackUsage, greenlets, keep_ages, stacks_in_use};
pub use local::{LocalKey, Locals};
pub use report::{Unraisable, set_unraisable_hook, take_unraisable_hook};
pub use section::no_switch;
pub use state::State;
pub use switch::may_switch;
pub use trace::{TraceEvent, TraceKind, Tracer, gettrace, settrace};
pub use unwind::raise;
pub use value::Value;

/// The name of the stack-switching backend that this build uses: `"asm"` or `"fcontext"`.
pub const BACKEND: &str = backend::NAME;
