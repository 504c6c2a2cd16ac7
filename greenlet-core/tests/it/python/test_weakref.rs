//! `test_weakref.py`.

use greenlet::Greenlet;

use crate::support::{NoLeaks, up};

#[test]
fn test_dead_weakref() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| Ok(()));
    g.switch::<()>(()).unwrap();
    let weak = g.downgrade();
    drop(g);
    assert!(weak.upgrade().is_none());
}

#[test]
fn test_inactive_weakref() {
    let _watch = NoLeaks::watch();
    let weak = Greenlet::new(|(): ()| Ok(())).downgrade();
    assert!(weak.upgrade().is_none());
}

#[test]
fn test_dealloc_weakref() {
    let _watch = NoLeaks::watch();
    // The weak handle is asked while the greenlet ends.
    let g = Greenlet::new(|(): ()| {
        let own = greenlet::getcurrent().downgrade();
        let ended = up::<()>(());
        assert!(own.upgrade().is_some(), "it runs, so it is there");
        ended
    });
    g.switch::<()>(()).unwrap();
    let weak = g.downgrade();
    assert!(weak.upgrade().is_some());
    drop(g);
    assert!(weak.upgrade().is_none());
}
