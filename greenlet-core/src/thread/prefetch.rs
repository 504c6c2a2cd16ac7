//! Prefetches the memory of a greenlet that will probably run soon, on threads with many greenlets.
//!
//! A switch needs two pieces of memory that have not been used since the target last ran: the
//! target's slot (its counts and its node), and the end of its stack. With many greenlets, neither
//! is in the caches, and their addresses are known only once the previous greenlet has run: one
//! chain of cache misses. But most programs switch in the same order again. So each slot remembers
//! the greenlet that was switched to [`DISTANCE`] switches later, and a switch prefetches the
//! memory of that greenlet.
//!
//! ```text
//!   last round   ..  a  b  c  d  e  f  g  h  i  ..     the hint of a: slot and stack of i
//!   this round   ..  a ── prefetches for i, whose memory arrives while b to h run
//! ```
//!
//! A ring of 300 greenlets takes 3.4 ns a switch with this and 5.4 without, one of 100,000 takes 18
//! and 115 (`docs/performance.md`). With few greenlets all of this is in the caches, and recording
//! would cost 1 ns a switch. So it starts with [`MIN_STACKS`] stacks, behind the flag `PREFETCH`.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::ptr;

use crate::backend;
use crate::node::record::{InnerRc, InnerWeak};
use crate::thread::{ThreadState, flag};

/// A load from memory takes as long as this many switches. A larger distance gained nothing.
const DISTANCE: usize = 8;

/// With fewer stacks in use, their ends and the slots stay in the first-level cache.
const MIN_STACKS: usize = 256;

/// The last [`DISTANCE`] greenlets that were switched to.
pub(crate) struct Prefetcher {
    /// Weak references, so that the slots are not reused meanwhile. All `None` while `PREFETCH` is
    /// clear.
    recent: [Cell<Option<InnerWeak>>; DISTANCE],
    switches: Cell<usize>,
}

/// The memory of the greenlet that was switched to [`DISTANCE`] switches after another one.
///
/// May be stale, and is never dereferenced.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchHint {
    slot: *const u8,
    stack: *const u8,
}

impl PrefetchHint {
    pub(crate) const NONE: PrefetchHint = PrefetchHint {
        slot: ptr::null(),
        stack: ptr::null(),
    };
}

impl Prefetcher {
    pub(crate) const fn new() -> Prefetcher {
        Prefetcher {
            recent: [const { Cell::new(None) }; DISTANCE],
            switches: Cell::new(0),
        }
    }

    pub(super) fn forget_all(&self) {
        for recent in &self.recent {
            recent.set(None);
        }
    }
}

/// Records that the thread switches to `target`, and prefetches for the greenlet that its hint
/// names.
#[inline]
pub(crate) fn record_and_prefetch(thread: &ThreadState, target: &InnerRc) {
    if !thread.has_flag(flag::PREFETCH) {
        return;
    }
    let switches = thread.prefetcher.switches.get();
    thread.prefetcher.switches.set(switches.wrapping_add(1));
    let recent = &thread.prefetcher.recent[switches % DISTANCE];
    if let Some(earlier) = recent.replace(Some(target.downgrade())) {
        earlier.prefetch_hint().set(PrefetchHint {
            slot: target.as_ptr().cast(),
            stack: target.context.sp.get(),
        });
    }
    let hint = target.prefetch_hint().get();
    backend::prefetch(hint.slot);
    backend::prefetch(hint.stack);
}

/// Sets or clears `PREFETCH`. Called when the number of stacks in use has changed by much.
#[cold]
pub(crate) fn adapt(thread: &ThreadState, stacks_in_use: usize) {
    if stacks_in_use >= MIN_STACKS {
        thread.raise_flag(flag::PREFETCH);
    } else if stacks_in_use < MIN_STACKS / 2 && thread.has_flag(flag::PREFETCH) {
        thread.lower_flag(flag::PREFETCH);
        thread.prefetcher.forget_all();
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
        let is_recorded = |recent: &&Cell<Option<InnerWeak>>| {
            let weak = recent.take();
            let found = weak
                .as_ref()
                .is_some_and(|weak| greenlet.is_none_or(|slot| ptr::eq(weak.as_ptr().cast(), slot)));
            recent.set(weak);
            found
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
            let hint = many[10].inner().prefetch_hint().get();
            let later = &many[10 + DISTANCE / 2];
            assert!(ptr::eq(hint.slot, address(later)));
            assert!(ptr::eq(hint.stack, later.inner().context.sp.get()));
        });
    }

    #[test]
    fn the_slot_of_a_recorded_greenlet_is_reused_only_when_it_is_recorded_no_longer() {
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
            let many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            assert!(is_prefetching());
            let slots = pair.map(|greenlet| {
                greenlet.switch::<()>(()).unwrap();
                greenlet.switch::<()>(()).unwrap();
                assert!(greenlet.is_dead());
                let slot = address(&greenlet);
                assert!(recorded(Some(slot)) > 0);
                slot // the last handle is dropped
            });
            let create = || {
                (0..100)
                    .map(|_| Greenlet::new(|(): ()| Ok(())))
                    .collect::<Vec<_>>()
            };
            assert!(create().iter().all(|new| !slots.contains(&address(new))));
            for greenlet in &many[..DISTANCE] {
                greenlet.switch::<()>(()).unwrap();
            }
            assert!(slots.iter().all(|slot| recorded(Some(*slot)) == 0));
            let new = create();
            assert!(
                slots
                    .iter()
                    .all(|slot| new.iter().any(|new| address(new) == *slot))
            );
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
