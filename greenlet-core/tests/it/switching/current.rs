//! The current greenlet, and the rules of Python's C interface that apply to any interface.

use std::rc::Rc;

use anyhow::anyhow;
use greenlet::{Greenlet, GreenletExit, getcurrent, getparent};

use crate::support::{Drops, Log, on_drop, up};

// FR-1, CA-5, HZ-3: `getcurrent` always works, on any thread and as the first use of greenlets. It
// creates the main greenlet, which is active.
#[test]
fn getcurrent_works_everywhere() {
    let seen = std::thread::spawn(|| {
        let first = getcurrent();
        (
            first.is_main(),
            first.is_active(),
            first.is_current(),
            first == getcurrent(),
        )
    });
    assert_eq!(seen.join().unwrap(), (true, true, true, true));
    let child = Greenlet::new(|(): ()| Ok((getcurrent().is_main(), getcurrent().is_active())));
    assert_eq!(child.switch::<(bool, bool)>(()).unwrap(), (false, true));
}

// FR-2: `getcurrent` is right even if destructors run, and greenlets end, in the middle of an
// operation.
#[test]
fn getcurrent_is_right_during_the_end_of_other_greenlets() {
    let log = Log::new();
    let make = |name: &'static str| {
        let log = log.clone();
        let greenlet = Greenlet::builder().name(name).build(move |(): ()| {
            let outer = log.clone();
            let _looks =
                on_drop(move || outer.add(format!("{name}: {}", getcurrent().name().unwrap_or("?"))));
            up::<()>(())
        });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let (a, b) = (make("a"), make("b"));
    let child = Greenlet::builder().name("child").build(move |(): ()| {
        drop(a);
        let during = getcurrent();
        drop(b);
        Ok((during == getcurrent(), getcurrent().name().map(String::from)))
    });
    let seen: (bool, Option<String>) = child.switch(()).unwrap();
    assert_eq!(seen, (true, Some("child".into())));
    assert_eq!(log.take(), ["a: a", "b: b"]);
    assert!(getcurrent().is_main());
}

// FR-3, FR-7: in place of a frame and a saved stack's size, a suspended greenlet has the place of
// its suspension and its stack usage. Other greenlets have neither.
#[test]
fn only_a_suspended_greenlet_has_a_place_and_a_stack_usage() {
    let greenlet = Greenlet::new(|(): ()| {
        assert!(getcurrent().suspended_at().is_none());
        up::<()>(())
    });
    assert!(greenlet.suspended_at().is_none() && greenlet.stack_usage().is_none());
    greenlet.switch::<()>(()).unwrap();
    assert!(greenlet.suspended_at().unwrap().file().ends_with(".rs"));
    assert!(greenlet.stack_usage().unwrap().used > 0);
    greenlet.switch::<()>(()).unwrap();
    assert!(greenlet.suspended_at().is_none() && greenlet.stack_usage().is_none());
}

// CA-6: a greenlet that is reparented to the running one, and switched to, returns there when it
// switches to its parent.
#[test]
fn a_greenlet_reparented_to_the_running_one_ends_into_it() {
    let wanderer = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>("to my parent"));
    let adopts = Greenlet::new(|wanderer: Greenlet| {
        assert_ne!(wanderer.parent(), Some(getcurrent()));
        wanderer.set_parent(&getcurrent())?;
        let text: &str = wanderer.switch(())?;
        wanderer.set_parent(&getparent().unwrap())?;
        Ok(text)
    });
    assert_eq!(adopts.switch::<&str>(wanderer).unwrap(), "to my parent");
}

// CA-7: the parent is an owned handle; main has none.
#[test]
fn the_parent_is_an_owned_handle() {
    let child = {
        let parent = Greenlet::builder().name("parent").build(|(): ()| Ok(()));
        Greenlet::builder().parent(&parent).build(|(): ()| Ok(()))
    };
    let parent = child.parent().unwrap();
    drop(child);
    assert_eq!(parent.name(), Some("parent"));
    assert_eq!(getcurrent().parent(), None);
}

// CA-8, DE-28: switching neither creates nor loses a handle. After a thousand switches, the only
// handle is still the last one.
#[test]
fn switching_keeps_the_number_of_handles() {
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |mut shared: Rc<()>| {
        let _witness = witness;
        loop {
            shared = up(shared)?;
        }
        #[expect(unreachable_code, reason = "names the type of the outcome")]
        Ok(())
    });
    let mut shared = Rc::new(());
    for _ in 0..1000 {
        shared = greenlet.switch(shared).unwrap();
        assert_eq!(Rc::strong_count(&shared), 1);
    }
    drop(greenlet);
    assert_eq!(drops.count(), 1);
}

// CA-9: outside any greenlet's function an exit, or an error of the library, is an ordinary error.
#[test]
fn an_exit_outside_a_greenlet_is_an_ordinary_error() {
    let fails = || -> anyhow::Result<()> { Err(GreenletExit::with_reason("done").into()) };
    let error = fails().unwrap_err();
    assert_eq!(
        error.downcast_ref::<GreenletExit>().unwrap().reason(),
        Some("done")
    );
    let refused = getcurrent()
        .set_parent(&getcurrent())
        .map_err(anyhow::Error::from)
        .unwrap_err();
    assert!(refused.is::<greenlet::ParentError>());
    let thrown = getcurrent()
        .throw::<()>(anyhow!("ordinary").context("GreenletExit"))
        .unwrap_err();
    assert!(!thrown.is::<GreenletExit>());
}
