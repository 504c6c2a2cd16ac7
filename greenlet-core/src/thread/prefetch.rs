//! Prefetches the memory of a greenlet that will probably run soon, on threads with many greenlets.
//!
//! A switch needs the target's node and the end of its stack. With many greenlets, neither is in
//! the caches. But most programs switch in the same order again. So each node remembers the
//! greenlet that was switched to [`DISTANCE`] switches later, and a switch prefetches the memory of
//! that one.
//!
//! ```text
//!   last round   ..  a  b  c  d  e  f  g  h  i  ..     the hint of a: slot and stack of i
//!   this round   ..  a ── prefetches for i, whose memory arrives while b to h run
//! ```
//!
//! A ring of 300 greenlets takes 3.4 ns a switch with this and 5.4 without, one of 100,000 takes 18
//! and 115. Recording costs 1 ns, so it starts with [`MIN_STACKS`] stacks, behind the flag
//! `PREFETCH`.
//!
//! # Invariants
//!
//! - **[recent-alive]** `Prefetcher::recent` holds null, or nodes in use: [`Prefetcher::forget`]
//!   removes a node that is released.

use std::cell::Cell;
use std::ptr;

use crate::backend;
use crate::node::{Inner, PrefetchHint};
use crate::thread::{ThreadState, flag};

/// A load from memory takes as long as this many switches. A larger distance gained nothing.
const DISTANCE: usize = 8;

/// With fewer stacks in use, their ends and the slots stay in the first-level cache.
const MIN_STACKS: usize = 256;

/// The last [`DISTANCE`] greenlets that were switched to.
pub(crate) struct Prefetcher {
    /// [recent-alive]. All null while `PREFETCH` is clear. Weak references would be counted, which
    /// needs a frame on the running greenlet's stack: see `switch::prepare_target`.
    recent: [Cell<*const Inner>; DISTANCE],
    switches: Cell<usize>,
}

impl Prefetcher {
    pub(crate) const fn new() -> Prefetcher {
        Prefetcher {
            recent: [const { Cell::new(ptr::null()) }; DISTANCE],
            switches: Cell::new(0),
        }
    }

    /// Forgets a node that is being released.
    #[inline(never)] // keeps threads with few greenlets from paying for the loop
    pub(super) fn forget(&self, node: &Inner) {
        for recent in &self.recent {
            if ptr::eq(recent.get(), node) {
                recent.set(ptr::null());
            }
        }
    }
}

/// Records that the thread switches to `target`, and prefetches for the greenlet that its hint
/// names.
#[inline]
pub(crate) fn record_and_prefetch(thread: &ThreadState, target: &Inner) {
    if !thread.has_flag(flag::PREFETCH) {
        return;
    }
    let switches = thread.prefetcher.switches.get();
    thread.prefetcher.switches.set(switches.wrapping_add(1));
    target.status.set_has_extras(); // `release` forgets it
    let recent = &thread.prefetcher.recent[switches % DISTANCE];
    // SAFETY: the node is in use [recent-alive].
    if let Some(earlier) = unsafe { recent.replace(target).as_ref() } {
        earlier.prefetch_hint.set(PrefetchHint {
            node: ptr::from_ref(target).cast(),
            stack: target.context.sp.get(),
        });
    }
    let hint = target.prefetch_hint.get();
    backend::prefetch(hint.node);
    backend::prefetch(hint.stack);
}

/// Sets or clears `PREFETCH`. Called when the number of stacks in use has changed by much.
#[cold]
pub(crate) fn adapt(thread: &ThreadState, stacks_in_use: usize) {
    if stacks_in_use >= MIN_STACKS {
        thread.raise_flag(flag::PREFETCH);
    } else if stacks_in_use < MIN_STACKS / 2 && thread.has_flag(flag::PREFETCH) {
        thread.lower_flag(flag::PREFETCH);
        thread
            .prefetcher
            .recent
            .iter()
            .for_each(|recent| recent.set(ptr::null()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{Greenlet, getparent};

    fn switch_forever((): ()) -> anyhow::Result<()> {
        loop {
            getparent().unwrap().switch::<()>(())?;
        }
    }

    fn suspended() -> Greenlet {
        let greenlet = Greenlet::new(switch_forever);
        greenlet.switch::<()>(()).unwrap();
        greenlet
    }

    fn is_prefetching() -> bool {
        ThreadState::current().has_flag(flag::PREFETCH)
    }

    /// The number of recorded switches to `greenlet`, or to any if it is `None`.
    fn recorded(greenlet: Option<*const u8>) -> usize {
        let is_recorded = |recent: &&Cell<*const Inner>| match greenlet {
            Some(greenlet) => ptr::eq(recent.get().cast(), greenlet),
            None => !recent.get().is_null(),
        };
        ThreadState::current()
            .prefetcher
            .recent
            .iter()
            .filter(is_recorded)
            .count()
    }

    fn address(greenlet: &Greenlet) -> *const u8 {
        greenlet.inner().as_ptr().cast()
    }

    /// On its own thread: the tests depend on how many stacks the thread has in use.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn prefetching_starts_with_many_stacks_and_stops_with_few() {
        on_a_thread(|| {
            let few: Vec<Greenlet> = (0..MIN_STACKS / 2).map(|_| suspended()).collect();
            assert!(!is_prefetching());
            let more: Vec<Greenlet> = (0..MIN_STACKS).map(|_| suspended()).collect();
            assert!(is_prefetching());
            for greenlet in few.iter().chain(&more) {
                greenlet.switch::<()>(()).unwrap();
            }
            assert_eq!(recorded(None), DISTANCE);
            drop(more);
            drop(few);
            assert!(!is_prefetching());
            assert_eq!(recorded(None), 0);
        });
    }

    #[test]
    fn the_hint_names_the_greenlet_that_ran_eight_switches_later() {
        on_a_thread(|| {
            let many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            for greenlet in &many {
                greenlet.switch::<()>(()).unwrap();
            }
            // Each switch to a greenlet is followed by one back to main.
            let hint = many[10].inner().prefetch_hint.get();
            let later = &many[10 + DISTANCE / 2];
            assert!(ptr::eq(hint.node, address(later)));
            assert!(ptr::eq(hint.stack, later.inner().context.sp.get()));
        });
    }

    #[test]
    fn releasing_a_greenlet_removes_it_from_the_recorded_switches() {
        on_a_thread(|| {
            let make = || {
                let greenlet = Greenlet::new(|(): ()| {
                    getparent().unwrap().switch::<()>(())?;
                    getparent().unwrap().switch::<()>(())
                });
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            // One in the slot that is reused first, and one in another slot.
            drop(Greenlet::new(|(): ()| Ok(())));
            let pair = [make(), make()];
            let _many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            assert!(is_prefetching());
            for greenlet in pair {
                greenlet.switch::<()>(()).unwrap();
                greenlet.switch::<()>(()).unwrap();
                assert!(greenlet.is_dead());
                let address = address(&greenlet);
                assert!(recorded(Some(address)) > 0);
                drop(greenlet);
                assert_eq!(recorded(Some(address)), 0);
            }
        });
    }

    #[test]
    fn a_thread_that_ends_while_prefetching_keeps_no_slot() {
        /// Reports what is recorded after the thread's greenlets are gone.
        struct Report(mpsc::Sender<(bool, usize)>);

        impl Drop for Report {
            fn drop(&mut self) {
                self.0.send((is_prefetching(), recorded(None))).unwrap();
            }
        }

        thread_local! {
            static REPORT: Cell<Option<Report>> = const { Cell::new(None) };
        }

        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            REPORT.set(Some(Report(sender))); // before the first greenlet, so dropped after the last
            // Of eight sizes: the cache of each has room for its stacks, so that nothing clears the
            // flag.
            let suspended = |number: usize| {
                let builder = Greenlet::builder().stack_size(16 << (10 + number % 8));
                let greenlet = builder.build(switch_forever);
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            let _many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(suspended).collect();
            assert_eq!(recorded(None), DISTANCE);
        })
        .join()
        .unwrap();
        assert_eq!(receiver.recv().unwrap(), (true, 0));
    }
}
