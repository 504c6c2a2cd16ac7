//! The bridge: calls async code from synchronous code.
//!
//! [`greenlet_spawn`] runs a synchronous function in a greenlet and returns a future. Inside the
//! function, at any call depth, [`await_`] suspends the function until another future is ready, and
//! returns its output. Meanwhile the executor's thread runs other tasks.
//!
//! ```text
//!   executor's stack                         the greenlet's stack
//!   ┌──────────────────────┐                 ┌──────────────────────────┐
//!   │ executor             │                 │ your function            │
//!   │  └ task              │                 │  └ a parser, an ORM, ... │
//!   │     └ Spawn::poll    │── 1 resume ────►│     └ await_(future)     │
//!   │        │             │◄─ 2 "poll it" ──│        ▲ pinned here     │
//!   │        └ future.poll │─── 3 polls ─────┼────────┘                 │
//!   │ pending: return      │                 │                          │
//!   │ ready:               │── 4 resume ────►│ await_ returns           │
//!   └──────────────────────┘                 └──────────────────────────┘
//! ```
//!
//! The driver (the [`Spawn`]) polls the future, on the executor's own stack and with the task's own
//! context. So wakers, timers, budgets and task-locals work as in any other future, and a
//! greenlet's stack need not be large enough for them. An option polls on the greenlet's stack
//! first: [`SpawnBuilder::poll_in_place`]. Each await resumes the greenlet once, when the future is
//! ready, and allocates nothing.
//!
//! # Examples
//!
//! ```
//! use greenlet::{await_, greenlet_spawn};
//!
//! /// A synchronous function, such as a callback or a method of a trait.
//! fn fetch_twice() -> u32 {
//!     let first = await_(async { 20 });
//!     let second = await_(async { 22 });
//!     first + second
//! }
//!
//! let total = futures::executor::block_on(async { greenlet_spawn(fetch_twice).await });
//! assert_eq!(total, 42);
//! ```

mod await_;
mod block_on;
mod driver;
mod error;
mod hooks;
mod io;
mod nested;
mod nested_polls;
mod park;
#[cfg(feature = "tokio")]
mod pool;
mod spawn;
mod stream;
pub mod testing;
mod yield_now;

pub use await_::{await_, try_await_};
pub use block_on::{await_or_block, block_on_greenlet, in_greenlet, with_blocking_awaits};
pub use error::{NoDriver, StrayMessage};
#[cfg(feature = "tracing")]
pub use hooks::SpanHooks;
pub use hooks::{SpawnHooks, watchdog, watchdog::Watchdog};
pub use io::AwaitFailed;
#[cfg(feature = "futures-io")]
pub use io::FuturesIo;
#[cfg(feature = "tokio")]
pub use io::TokioIo;
pub use nested::{await_nested, try_await_nested};
#[cfg(feature = "tokio")]
pub use pool::{PinnedPool, PoolBuilder, PoolError, PoolResult, PoolStream, Pooled};
pub use spawn::{CancelWhen, Spawn, SpawnBuilder, SpawnResult, UseLocalSetOrPinnedPool, greenlet_spawn};
pub use stream::{Items, SpawnStream, StreamIter, iter_stream, stream_from};
pub use yield_now::yield_now;
