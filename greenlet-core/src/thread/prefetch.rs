//! Fetching ahead: where a crowd of greenlets takes turns, asks the processor for the memory of one that is
//! likely to run soon.
//!
//! A switch needs two places that nothing else has touched since the last turn: the record of its target, and
//! the end of the target's stack. In a crowd neither is in the caches, and which they are is known only when
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
//! would cost 1 ns: so it begins with [`CROWD`] suspended ones, behind a flag of [`slow`].
//!
//! # Invariants
//!
//! - **H1** `Ahead::recent` holds null or living nodes of this thread: `Hub::strike_off` takes out a
//!   node that goes, and nothing is left there when the flag is lowered.
//! - **H2** What [`Soon`] holds are addresses, not references. They may be stale, and are only ever fetched.

use std::cell::Cell;
use std::ptr;

use crate::backend;
use crate::node::Node;
use crate::node::record::soon_of;
use crate::thread::{Hub, slow};

/// How many switches ahead. What comes from memory takes as long as this many switches; more gained nothing.
const DISTANCE: usize = 8;

/// From how many stacks in use on. Fewer, with their records, stay in the first-level cache.
const CROWD: usize = 256;

/// Who switched last, in turn.
pub(crate) struct Ahead {
    recent: [Cell<*const Node>; DISTANCE],
    turn: Cell<usize>,
}

/// What a greenlet remembers of the one that ran [`DISTANCE`] switches after it (H2).
#[derive(Clone, Copy)]
pub(crate) struct Soon {
    record: *const u8,
    stack: *const u8,
}

impl Soon {
    pub(crate) const NOBODY: Soon = Soon {
        record: ptr::null(),
        stack: ptr::null(),
    };
}

impl Ahead {
    pub(crate) const fn new() -> Ahead {
        Ahead {
            recent: [const { Cell::new(ptr::null()) }; DISTANCE],
            turn: Cell::new(0),
        }
    }

    /// Forgets a node that is about to go.
    #[inline(never)] // who is not in a crowd does not pay for its length
    pub(crate) fn forget(&self, node: &Node) {
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
/// where there is no crowd.
///
/// # Safety
///
/// - The target lives, and the pointer comes from its `NodeRef` (K3 in `record.rs`).
#[inline]
pub(crate) unsafe fn pass(hub: &Hub, target: *const Node, to: *mut u8) {
    if !hub.has_flag(slow::CROWDED) {
        return; // it has just ended
    }
    let turn = hub.ahead.turn.get();
    hub.ahead.turn.set(turn.wrapping_add(1));
    let place = &hub.ahead.recent[turn % DISTANCE];
    let before = place.replace(target);
    if !before.is_null() {
        let soon = Soon {
            record: target.cast(),
            stack: to,
        };
        // SAFETY: H1; it was a target here.
        unsafe { soon_of(before) }.set(soon);
    }
    // SAFETY: the contract.
    let soon = unsafe { soon_of(target) }.get();
    backend::fetch(soon.record);
    backend::fetch(soon.stack);
}

/// Begins, or ends, according to how many stacks are in use. Called where that number has changed by much.
#[cold]
pub(crate) fn adapt(hub: &Hub, stacks_in_use: usize) {
    if stacks_in_use >= CROWD {
        hub.raise_flag(slow::CROWDED);
    } else if stacks_in_use < CROWD / 2 && hub.has_flag(slow::CROWDED) {
        hub.lower_flag(slow::CROWDED);
        hub.ahead.forget_all();
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

    fn is_crowded() -> bool {
        Hub::get().has_flag(slow::CROWDED)
    }

    fn noted() -> usize {
        let recent = Hub::get().ahead.recent.iter();
        recent.filter(|recent| !recent.get().is_null()).count()
    }

    /// On a thread of its own: how many stacks a thread has in use is what this is about.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_crowd_begins_and_ends() {
        on_a_thread(|| {
            let few: Vec<Greenlet> = (0..CROWD / 2).map(|_| suspended()).collect();
            assert!(!is_crowded());
            let more: Vec<Greenlet> = (0..CROWD).map(|_| suspended()).collect();
            assert!(is_crowded());
            for greenlet in few.iter().chain(&more) {
                greenlet.switch::<()>(()).unwrap();
            }
            assert_eq!(noted(), DISTANCE);
            drop(more);
            drop(few);
            assert!(!is_crowded());
            assert_eq!(noted(), 0);
        });
    }

    #[test]
    fn who_is_remembered_ran_so_many_switches_later() {
        on_a_thread(|| {
            let crowd: Vec<Greenlet> = (0..2 * CROWD).map(|_| suspended()).collect();
            for greenlet in &crowd {
                greenlet.switch::<()>(()).unwrap();
            }
            // Each switch to one is followed by one back to main.
            // SAFETY: it has a handle.
            let soon = unsafe { soon_of(crowd[10].node().as_ptr()) }.get();
            let later = crowd[10 + DISTANCE / 2].node();
            assert!(ptr::eq(soon.record, later.as_ptr().cast()));
            assert!(ptr::eq(soon.stack, later.seat.sp.get()));
        });
    }

    #[test]
    fn nobody_is_noted_who_has_ended_and_whose_record_is_spare() {
        on_a_thread(|| {
            let end = |greenlet: Greenlet| {
                let node: *const Node = greenlet.node().as_ptr();
                assert!(Hub::get().ahead.recent.iter().any(|recent| recent.get() == node));
                greenlet.switch::<()>(()).unwrap();
                assert!(greenlet.is_dead());
                drop(greenlet);
                assert!(Hub::get().ahead.recent.iter().all(|recent| recent.get() != node));
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
            let _crowd: Vec<Greenlet> = (0..2 * CROWD).map(|_| suspended()).collect();
            assert!(is_crowded());
            in_spare.switch::<()>(()).unwrap();
            end(in_spare);
        });
    }

    #[test]
    fn nobody_is_noted_who_is_gone() {
        on_a_thread(|| {
            let mut crowd: Vec<Greenlet> = (0..2 * CROWD).map(|_| suspended()).collect();
            for _ in 0..DISTANCE {
                crowd.last().unwrap().switch::<()>(()).unwrap();
                let gone: *const Node = &raw const **crowd.pop().unwrap().node();
                let hub = Hub::get();
                assert!(is_crowded());
                assert!(hub.ahead.recent.iter().all(|recent| recent.get() != gone));
            }
        });
    }
}
