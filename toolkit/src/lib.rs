//! Events, queues, semaphores and timeouts for tasks that are greenlets, over any scheduler that
//! implements [`greenlet::Scheduler`].
//!
//! Names and meaning are gevent's. This package is not published.
//!
//! ```
//! use std::time::Duration;
//! use greenlet_toolkit::{Kit, Queue, VirtualTime};
//!
//! fn main() -> anyhow::Result<()> {
//!     let scheduler = VirtualTime::default();
//!     let kit = Kit::new(&scheduler);
//!     let bread = Queue::bounded(&kit, 2);
//!     let (shelf, inside) = (bread.clone(), kit.clone());
//!     let baker = kit.spawn("baker", move || {
//!         for loaf in 1.. {
//!             inside.sleep(Duration::from_secs(60))?;
//!             shelf.put(loaf, None)?; // waits while the shelf is full
//!         }
//!         Ok(())
//!     });
//!     kit.spawn("guest", move || {
//!         let loaf = bread.get(Some(Duration::from_secs(3600)))?;
//!         assert_eq!(loaf, Some(1));
//!         baker.kill() // waits until the baker has ended
//!     });
//!     kit.run(|| scheduler.run())
//! }
//! ```
//!
//! # Differences from gevent
//!
//! | gevent | here |
//! | --- | --- |
//! | one hub in each thread, found implicitly | a [`Kit`], from which all else is created |
//! | `gevent.spawn(f)`, `Greenlet` | [`Kit::spawn`], [`Task`] |
//! | `get()` of a killed greenlet returns the `GreenletExit` | [`Task::get`] returns it as an error |
//! | an error of a greenlet is printed | it is kept for [`Task::get`] and [`Task::error`], and not printed |
//! | `get(timeout)` and `put(timeout)` raise `Timeout`, `Empty` or `Full` | they return `None`, or the item |
//! | a `Timeout` or a kill is thrown by the hub, at a switch | the wait returns it as its error; a kill wins against a value that has come |
//! | `event.wait()` returns what `is_set()` is then | returns `true` if it was set, even if it was cleared since |
//! | a killed getter may lose its item | the item returns to the front of the queue |
//! | `Semaphore.wait`, `rawlink`, `iwait`, `Pool`, `JoinableQueue`, `RLock` | are not there |
//! | a lost loop raises `LoopExit` | [`Kit::run`] returns a report: who waits for what, who holds it, and where |

#![forbid(unsafe_code)]

mod event;
mod kit;
mod parts;
mod queue;
mod semaphore;
mod task;
mod thread;
mod timeout;
mod virtual_time;
mod wait;

pub use event::{AsyncResult, Event};
pub use kit::Kit;
pub use parts::{Tickets, Timers};
pub use queue::Queue;
pub use semaphore::{Permit, Semaphore};
pub use task::{Failed, Task};
pub use timeout::{TimedOut, Timeout};
pub use virtual_time::VirtualTime;
