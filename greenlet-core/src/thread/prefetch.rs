//! Fetching prefetcher: where a many of greenlets takes turns, asks the processor for the memory of one that is
//! likely to run soon.
//!
//! A switch needs two places that nothing else has touched since the last turn: the record of its target, and
//! the end of the target's stack. In a many neither is in the caches, and which they are is known only when
//! the greenlet before has run: one chain of misses, hop after hop. But turns repeat. So each greenlet
//! remembers who ran [`DISTANCE`] switches after it the last time, and as it is switched to, that one's memory
//! is asked for.
//!
//! ```text
//!   the last lap    ..  a  b  c  d  e  f  g  h  i  ..     a.soon = i
//!   this lap        ..  a ── fetches what i needs, which comes while b to h run
//! ```
//!
//! A ring of 300 greenlets takes 3.4 ns a hop with this and 5.4 without, one of 100,000 takes 18 and 115
//! (`docs/performance.md`). Where only a few greenlets switch, everything is in the caches anyway, and this
//! would cost 1 ns: so it begins with [`MIN_STACKS`] suspended ones, behind a flag of `flag`.
//!
//! # Invariants
//!
//! - **H1** `Prefetcher::recent` holds null or living nodes of this thread: `ThreadState::forget_node` takes out a
//!   node that goes, and nothing is left there when the flag is lowered.
//! - **H2** What [`PrefetchHint`] holds are addresses, not references. They may be stale, and are only ever fetched.

use std::cell::Cell;
use std::ptr;

use crate::backend;
use crate::node::Inner;
use crate::node::record::prefetch_hint_of;
use crate::thread::{ThreadState, flag};

/// How many switches prefetcher. What comes from memory takes as long as this many switches; more gained nothing.
const DISTANCE: usize = 8;

/// From how many stacks in use on. Fewer, with their pool, stay in the first-level cache.
const MIN_STACKS: usize = 256;

/// Who switched last, in turn.
pub(crate) struct Prefetcher {
    recent: [Cell<*const Inner>; DISTANCE],
    turn: Cell<usize>,
}

/// What a greenlet remembers of the one that ran [`DISTANCE`] switches after it (H2).
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
            recent: [const { Cell::new(ptr::null()) }; DISTANCE],
            turn: Cell::new(0),
        }
    }

    /// Forgets a node that is about to go.
    #[inline(never)] // who is not in a many does not pay for its length
    pub(crate) fn forget(&self, node: &Inner) {
        for recent in &self.recent {
            if ptr::eq(recent.get(), node) {
                recent.set(ptr::null());
            }
        }
    }

    fn forget_all(&self) {
        for recent in &self.recent {
            recent.set(ptr::null());
        }
    }
}

/// Notes that control goes to `target`, which is suspended at `to`, and fetches what it foretells. Does nothing
/// where there is no many.
///
/// # Safety
///
/// - The target lives, and the pointer comes from its `InnerRc` (K3 in `record.rs`).
#[inline]
pub(crate) unsafe fn record_and_prefetch(thread: &ThreadState, target: *const Inner, to: *mut u8) {
    if !thread.has_flag(flag::PREFETCH) {
        return; // it has just ended
    }
    let turn = thread.prefetcher.turn.get();
    thread.prefetcher.turn.set(turn.wrapping_add(1));
    let place = &thread.prefetcher.recent[turn % DISTANCE];
    let before = place.replace(target);
    if !before.is_null() {
        let prefetch_hint = PrefetchHint {
            slot: target.cast(),
            stack: to,
        };
        // SAFETY: H1; it was a target here.
        unsafe { prefetch_hint_of(before) }.set(prefetch_hint);
    }
    // SAFETY: the contract.
    let prefetch_hint = unsafe { prefetch_hint_of(target) }.get();
    backend::prefetch(prefetch_hint.slot);
    backend::prefetch(prefetch_hint.stack);
}

/// Begins, or ends, according to how many stacks are in use. Called where that number has changed by much.
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
    use super::*;
    use crate::{Greenlet, getparent};

    fn turns((): ()) -> anyhow::Result<()> {
        loop {
            getparent().unwrap().switch::<()>(())?;
        }
    }

    fn suspended() -> Greenlet {
        let greenlet = Greenlet::new(turns);
        greenlet.switch::<()>(()).unwrap();
        greenlet
    }

    fn is_prefetching() -> bool {
        ThreadState::current().has_flag(flag::PREFETCH)
    }

    fn noted() -> usize {
        let recent = ThreadState::current().prefetcher.recent.iter();
        recent.filter(|recent| !recent.get().is_null()).count()
    }

    /// On a thread of its own: how many stacks a thread has in use is what this is about.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_crowd_begins_and_ends() {
        on_a_thread(|| {
            let few: Vec<Greenlet> = (0..MIN_STACKS / 2).map(|_| suspended()).collect();
            assert!(!is_prefetching());
            let more: Vec<Greenlet> = (0..MIN_STACKS).map(|_| suspended()).collect();
            assert!(is_prefetching());
            for greenlet in few.iter().chain(&more) {
                greenlet.switch::<()>(()).unwrap();
            }
            assert_eq!(noted(), DISTANCE);
            drop(more);
            drop(few);
            assert!(!is_prefetching());
            assert_eq!(noted(), 0);
        });
    }

    #[test]
    fn who_is_remembered_ran_so_many_switches_later() {
        on_a_thread(|| {
            let many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            for greenlet in &many {
                greenlet.switch::<()>(()).unwrap();
            }
            // Each switch to one is followed by one back to main.
            // SAFETY: it has a handle.
            let prefetch_hint = unsafe { prefetch_hint_of(many[10].inner().as_ptr()) }.get();
            let later = many[10 + DISTANCE / 2].inner();
            assert!(ptr::eq(prefetch_hint.slot, later.as_ptr().cast()));
            assert!(ptr::eq(prefetch_hint.stack, later.context.sp.get()));
        });
    }

    #[test]
    fn nobody_is_noted_who_has_ended_and_whose_record_is_spare() {
        on_a_thread(|| {
            let end = |greenlet: Greenlet| {
                let node: *const Inner = greenlet.inner().as_ptr();
                assert!(
                    ThreadState::current()
                        .prefetcher
                        .recent
                        .iter()
                        .any(|recent| recent.get() == node)
                );
                greenlet.switch::<()>(()).unwrap();
                assert!(greenlet.is_dead());
                drop(greenlet);
                assert!(
                    ThreadState::current()
                        .prefetcher
                        .recent
                        .iter()
                        .all(|recent| recent.get() != node)
                );
            };
            let ends = || {
                let greenlet = Greenlet::new(|(): ()| {
                    getparent().unwrap().switch::<()>(())?;
                    getparent().unwrap().switch::<()>(())
                });
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            drop(Greenlet::new(|(): ()| Ok(()))); // its record is spare from now on, so the next one's
            let in_spare = ends();
            let _crowd: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            assert!(is_prefetching());
            in_spare.switch::<()>(()).unwrap();
            end(in_spare);
        });
    }

    #[test]
    fn nobody_is_noted_who_is_gone() {
        on_a_thread(|| {
            let mut many: Vec<Greenlet> = (0..2 * MIN_STACKS).map(|_| suspended()).collect();
            for _ in 0..DISTANCE {
                many.last().unwrap().switch::<()>(()).unwrap();
                let gone: *const Inner = &raw const **many.pop().unwrap().inner();
                let thread = ThreadState::current();
                assert!(is_prefetching());
                assert!(thread.prefetcher.recent.iter().all(|recent| recent.get() != gone));
            }
        });
    }
}
