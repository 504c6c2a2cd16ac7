//! `test_gc.py`. Handles are counted, so a ring needs a weak handle, or an end.

use std::cell::RefCell;
use std::rc::Rc;

use greenlet::{Greenlet, getcurrent, getmain};

use crate::support::{Drops, NoLeaks};

#[test]
fn test_dead_circular_ref() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| Ok(getcurrent())); // it returns itself
    let itself: Greenlet = g.switch(()).unwrap();
    let weak = itself.downgrade();
    drop((g, itself));
    assert!(weak.upgrade().is_none());
}

#[test]
fn test_circular_greenlet() {
    let _watch = NoLeaks::watch();
    // A ring of a greenlet and what is attached to it: with a weak handle it is none.
    let g = Greenlet::new(|(): ()| Ok(()));
    g.attach(Rc::new(g.downgrade()));
    let weak = g.downgrade();
    drop(g);
    assert!(weak.upgrade().is_none());
}

#[test]
fn test_inactive_ref() {
    let _watch = NoLeaks::watch();
    let weak = Greenlet::new(|(): ()| Ok(())).downgrade();
    assert!(weak.upgrade().is_none());
}

#[test]
fn test_finalizer_crash() {
    let _watch = NoLeaks::watch();
    // A ring of an active greenlet and a list, with a value whose destructor runs at its end.
    let (drops, array) = (Drops::new(), Rc::new(RefCell::new(Vec::new())));
    let (witness, held) = (drops.witness(), array.clone());
    let g = Greenlet::new(move |(): ()| {
        let _held = (witness, held);
        getmain().switch::<()>(())
    });
    array.borrow_mut().push(g.clone());
    g.switch::<()>(()).unwrap();
    assert_eq!(drops.count(), 0);
    g.end(); // no collector finds the ring
    assert_eq!(drops.count(), 1);
    array.take();
}
