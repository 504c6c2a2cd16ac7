//! Python's greenlets for Rust, and a bridge that lets synchronous code await.
//!
//! A [`Greenlet`] is a coroutine on a stack of its own: plain synchronous code that can stop in the middle
//! of any call and resume later. [`Greenlet::switch`] names the greenlet that runs next.
//!
//! ```
//! use greenlet::{Greenlet, switch_to_parent};
//!
//! let child = Greenlet::new(|greeting: &str| {
//!     println!("child: {greeting}");
//!     let number: i32 = switch_to_parent(1)?; // suspended here until somebody switches back
//!     println!("child: {number}");
//!     Ok("done")
//! });
//! let number: i32 = child.switch("starting")?;
//! println!("main: {number}");
//! let text: &str = child.switch(2)?;
//! println!("main: {text}");
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! The [`bridge`] runs synchronous code in a greenlet, as a future; inside, [`await_`] waits for other
//! futures, and the executor runs its other tasks.
//!
//! ```
//! use greenlet::{await_, greenlet_spawn};
//!
//! let total = greenlet_spawn(|| await_(async { 20 }) + await_(async { 22 }));
//! assert_eq!(futures::executor::block_on(total), 42);
//! ```
//!
//! The guides are in the folder `docs` of the package ([on docs.rs](https://docs.rs/crate/greenlet/latest/source/docs/)):
//! `bridge.md` for synchronous code that awaits, `schedulers.md`, `porting.md` from Python, `errors.md` and
//! `ownership.md` for writing it well, `testing.md` and `debugging.md`.
//!
//! # Python's names
//!
//! | Python | here |
//! | --- | --- |
//! | `greenlet(run, parent)` | [`Greenlet::new`], [`Greenlet::builder`]; [`scope`] for one that borrows |
//! | `g.switch(args)` | [`Greenlet::switch`], with one value |
//! | `g.throw(error)`, `g.throw()` | [`Greenlet::throw`], [`Greenlet::kill`] |
//! | `g.parent` | [`Greenlet::parent`], [`Greenlet::set_parent`] |
//! | `g.dead`, `bool(g)` | [`Greenlet::is_dead`], [`Greenlet::is_active`] |
//! | `getcurrent()` | [`getcurrent`]; [`getparent`] for `getcurrent().parent` |
//! | `getcurrent().parent.switch(args)` | [`switch_to_parent`] |
//! | `g.gr_frame` | [`Greenlet::suspended_at`], [`Greenlet::backtrace`]; [`tree`] and [`dump`] for all |
//! | `g.gr_context`, `ContextVar` | [`Greenlet::locals`], [`greenlet_local!`] |
//! | `g.__dict__` | [`Greenlet::attach`], [`Greenlet::attached`] |
//! | `weakref.ref(g)` | [`Greenlet::downgrade`] |
//! | `GreenletExit` | [`GreenletExit`], an error of the suspended switch |
//! | `settrace`, `gettrace` | [`settrace`], [`gettrace`]; [`testing::recorder`] for tests |
//! | `yield`, a generator over a greenlet | [`yield_`], [`Generator`] |
//! | SQLAlchemy's `greenlet_spawn`, `await_only` | [`greenlet_spawn`], [`await_`] |
//! | SQLAlchemy's `await_fallback` | [`block_on_greenlet`] around the synchronous code |
//!
//! Around the bridge: [`iter_stream`] and [`stream_from`] for streams, `TokioIo` and `FuturesIo` for [`std::io`],
//! `PinnedPool` for runtimes with many threads (each with its feature, see below), [`Watchdog`] for functions that
//! block their thread, [`testing::explore`] and [`bridge::testing`] for tests in every order.
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | what it does |
//! | --- | --- |
//! | `fcontext` | switches with the `context` crate also where there is assembly |
//! | `tokio` | `TokioIo`: [`std::io`] over tokio's I/O; `PinnedPool` |
//! | `futures-io` | `FuturesIo`: [`std::io`] over the I/O of `futures-io` |
//! | `tracing` | `SpanHooks`: leaves and re-enters `tracing` spans around each await |
//! | `signal` | `dump_on_signal`: a signal prints the greenlets of all threads |
//! | `valgrind` | tells Valgrind of every stack |
//! | `asan` | tells AddressSanitizer of every switch |

// Docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Programs with debug information contain the script, so gdb loads it by itself.
#![debugger_visualizer(gdb_script_file = "../tools/greenlet-gdb.py")]

// The modules, checked by `.ci/check-layers`:
//
// | module | subject |
// | --- | --- |
// | `bridge/` | synchronous code that awaits: `greenlet_spawn`, `await_`, and what is built on them |
// | `debug/` | trees and dumps of greenlets, and panic messages that name one |
// | `scheduler` | what a toolkit of events and queues needs of a scheduler |
// | `scope` | greenlets that borrow |
// | `testing/` | the search through all orders, the recorder of switches, and a check for leaks |
// | `text` | text that people read in one line |

pub mod bridge;
mod debug;
mod scheduler;
mod scope;
pub mod testing;
mod text;

pub use bridge::*;
#[cfg(all(unix, feature = "signal"))]
pub use debug::dump_on_signal;
pub use debug::{Dump, Tree, dump, dump_all_threads, install_panic_hook, tree};
pub use greenlet_core::*;
pub use scheduler::{Scheduler, Ticket};
pub use scope::{Scope, ScopedGenerator, scope};
pub use testing::assert_no_leaks;
pub use testing::recorder::record;

/// Runs the code of the README and of the pages under `docs/`.
#[cfg(doctest)]
#[cfg_attr(feature = "tokio", doc = include_str!("../README.md"))] // it shows `PinnedPool`
#[doc = include_str!("../docs/bridge.md")]
#[doc = include_str!("../docs/semantics.md")]
#[doc = include_str!("../docs/porting.md")]
#[doc = include_str!("../docs/schedulers.md")]
#[doc = include_str!("../docs/debugging.md")]
#[doc = include_str!("../docs/testing.md")]
#[doc = include_str!("../docs/safety.md")]
#[doc = include_str!("../docs/stacks.md")]
#[doc = include_str!("../docs/errors.md")]
#[doc = include_str!("../docs/ownership.md")]
#[doc = include_str!("../docs/ends.md")]
#[doc = include_str!("../docs/tools.md")]
#[doc = include_str!("../docs/coming-from.md")]
struct Pages;
