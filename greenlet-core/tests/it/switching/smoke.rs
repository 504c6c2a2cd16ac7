//! The smallest tests of switching and of ending.

use greenlet::{Greenlet, GreenletExit, getparent};

use crate::support::{Drops, Log};

#[test]
fn two_greenlets_take_turns() {
    let log = Log::new();
    let inside = log.clone();
    let child = Greenlet::new(move |first: i32| {
        inside.add(format!("child:{first}"));
        let second: i32 = getparent().unwrap().switch(first + 1)?;
        inside.add(format!("child:{second}"));
        Ok(second + 1)
    });
    log.add(format!("main:{}", child.switch::<i32>(1).unwrap()));
    log.add(format!("main:{}", child.switch::<i32>(10).unwrap()));
    assert_eq!(log.take(), ["child:1", "main:2", "child:10", "main:11"]);
    assert!(child.is_dead());
}

#[test]
fn dropping_the_last_handle_ends_a_suspended_greenlet() {
    let drops = Drops::new();
    let witness = drops.witness();
    let child = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let error = getparent().unwrap().switch::<()>(()).unwrap_err();
        assert!(error.is::<GreenletExit>());
        Err::<(), _>(error)
    });
    child.switch::<()>(()).unwrap();
    assert_eq!(drops.count(), 0);
    drop(child);
    assert_eq!(drops.count(), 1);
}
