//! The last handle of a greenlet is dropped while the greenlet runs, or while another one ends.

use anyhow::Result;
use greenlet::{Greenlet, WeakGreenlet, getcurrent, getparent};

use crate::lifetime::last_handle::waiting;
use crate::support::{Drops, Log, name, up};

/// Starts a greenlet that runs `body` while no handle of it exists.
fn run_without_handle<R: 'static>(name: &str, body: impl FnOnce() -> Result<()> + 'static) -> Result<R> {
    let body = |starter: WeakGreenlet| {
        // The greenlet that started it had the last handle.
        starter.upgrade().unwrap().end();
        body()
    };
    let greenlet = Greenlet::builder().name(name).build(body);
    let starter = Greenlet::new(|(greenlet, own): (Greenlet, WeakGreenlet)| greenlet.switch::<()>(own));
    starter.switch((greenlet, starter.downgrade()))
}

// DE-15, DE-16: a running greenlet without handles ends when it switches away, in the context of
// the target, before the target receives the value. The value is not lost.
#[test]
fn a_running_greenlet_without_handles_ends_when_it_switches_away() {
    let log = Log::new();
    let inside = log.clone();
    let target = Greenlet::builder()
        .name("target")
        .build(move |text: &'static str| {
            inside.add(format!("target starts: {text}"));
            let text = up::<&str>("started")?;
            inside.add(format!("target gets: {text}"));
            Ok("ended")
        });
    for text in ["first", "second"] {
        let inside = log.clone();
        let to = target.clone();
        let back: &str = run_without_handle("leaving", move || {
            inside.add("leaving runs on");
            let error = to.switch::<()>(text).unwrap_err();
            let parent = name(&getparent().unwrap());
            inside.add(format!("leaving ends under {parent}: {error}"));
            Ok(())
        })
        .unwrap();
        log.add(format!("main gets: {back}"));
    }
    let ends = "leaving ends under target: greenlet exit: the last handle of the greenlet was dropped";
    assert_eq!(
        log.take(),
        [
            "leaving runs on",
            ends,
            "target starts: first",
            "main gets: started",
            "leaving runs on",
            ends,
            "target gets: second",
            "main gets: ended"
        ]
    );
}

// DE-16: the value survives even if the clean-up switches elsewhere. The value that resumes the
// target is lost instead.
#[test]
fn a_sent_value_survives_a_clean_up_that_switches_elsewhere() {
    let log = Log::new();
    let inside = log.clone();
    let main = getcurrent();
    let target = Greenlet::new(move |text: &'static str| {
        inside.add(format!("target gets: {text}"));
        Ok("ended")
    });
    let drops = Drops::new();
    let (to, witness) = (target.clone(), drops.witness());
    let back: &str = run_without_handle("leaving", move || {
        let _witness = witness;
        let _ = to.switch::<()>("sent");
        main.switch("elsewhere")
    })
    .unwrap();
    assert_eq!((back, drops.count()), ("elsewhere", 0));
    assert_eq!(log.take(), [""; 0]);
    let back: &str = target.switch("lost").unwrap();
    assert_eq!((back, drops.count()), ("ended", 1));
    assert_eq!(log.take(), ["target gets: sent"]);
}

// DE-17: a greenlet that changes its parent during its end ends into that parent. The dropping
// greenlet stays suspended until a greenlet transfers to it.
#[test]
fn a_greenlet_that_changes_its_parent_during_its_end_ends_into_the_new_one() {
    let log = Log::new();
    let heir = Greenlet::builder().name("heir").build({
        let log = log.clone();
        move |text: &'static str| {
            log.add(format!("heir gets: {text}"));
            up::<()>(())
        }
    });
    let new_parent = heir.clone();
    let dying = Greenlet::builder().name("dying").build(move |(): ()| {
        let _ = up::<()>(());
        getcurrent().set_parent(&new_parent)?;
        Ok("the estate")
    });
    dying.switch::<()>(()).unwrap();
    let weak = dying.downgrade();
    let deleter = Greenlet::builder().name("deleter").build({
        let log = log.clone();
        move |dying: Greenlet| {
            drop(dying);
            log.add("dropped");
            Ok(())
        }
    });
    deleter.switch::<()>(dying).unwrap();
    log.add("main has control, the drop is not over");
    assert!(weak.upgrade().is_some_and(|dying| dying.is_dead()));
    deleter.switch::<()>(()).unwrap();
    assert_eq!(
        log.take(),
        [
            "heir gets: the estate",
            "main has control, the drop is not over",
            "dropped"
        ]
    );
    assert!(weak.upgrade().is_none());
}

// DE-20: the dropping greenlet is not itself ended before the end that it started is over.
#[test]
fn the_greenlet_that_drops_the_last_handle_lives_until_the_end_is_over() {
    let log = Log::new();
    let main = getcurrent();
    let dying = Greenlet::builder().name("dying").build(move |(): ()| {
        let _ = up::<()>(());
        let _ = main.switch::<()>("in between");
        Ok(())
    });
    dying.switch::<()>(()).unwrap();
    let deleter = Greenlet::builder().name("deleter").build({
        let log = log.clone();
        move |dying: Greenlet| {
            drop(dying);
            log.add("dropped");
            Ok("deleter ended")
        }
    });
    let back: &str = deleter.switch(dying).unwrap();
    assert_eq!(back, "in between");
    let weak = deleter.downgrade();
    drop(deleter);
    log.add("the deleter has no handle of its own");
    let deleter = weak
        .upgrade()
        .expect("the dying one's link to its parent holds it");
    assert!(deleter.is_active());
    assert_eq!(deleter.switch::<&str>(()).unwrap(), "deleter ended");
    assert_eq!(log.take(), ["the deleter has no handle of its own", "dropped"]);
}

// DE-21: handles that the clean-up drops end their greenlets inside the clean-up.
#[test]
fn ends_nest() {
    let log = Log::new();
    let mut outer: Option<Greenlet> = None;
    for name_here in ["inner", "middle", "outer"] {
        let (held, log) = (outer.take(), log.clone());
        let greenlet = Greenlet::builder().name(name_here).build(move |(): ()| {
            let _ = up::<()>(());
            log.add(format!("{name_here} ends under {}", name(&getparent().unwrap())));
            drop(held);
            log.add(format!("{name_here} ended"));
            Ok(())
        });
        greenlet.switch::<()>(()).unwrap();
        outer = Some(greenlet);
    }
    drop(outer);
    assert_eq!(
        log.take(),
        [
            "outer ends under main",
            "middle ends under outer",
            "inner ends under middle",
            "inner ended",
            "middle ended",
            "outer ended"
        ]
    );
}

// DE-22: the greenlets of a container are ended one after the other, each completely, in the order
// of the container.
#[test]
fn a_container_ends_its_greenlets_in_order() {
    let log = Log::new();
    let greenlets: Vec<Greenlet> = (0..3)
        .map(|number| {
            let log = log.clone();
            let greenlet = Greenlet::new(move |(): ()| {
                let _ = up::<()>(());
                log.add(format!("{number} begins to end"));
                drop(waiting("inside", Drops::new().witness()));
                log.add(format!("{number} ended"));
                Ok(())
            });
            greenlet.switch::<()>(()).unwrap();
            greenlet
        })
        .collect();
    drop(greenlets);
    let expected: Vec<String> = (0..3)
        .flat_map(|n| [format!("{n} begins to end"), format!("{n} ended")])
        .collect();
    assert_eq!(log.take(), expected);
}

// DE-24: a long chain of suspended greenlets, each held only by the link of its child, is ended
// without recursion.
#[test]
fn a_long_chain_of_suspended_greenlets_ends_without_recursion() {
    const COUNT: usize = 4000;
    let end_chain = || {
        let drops = Drops::new();
        let mut last = getcurrent();
        for _ in 0..COUNT {
            let witness = drops.witness();
            let next = waiting("link", witness);
            next.set_parent(&last).unwrap();
            last = next;
        }
        assert_eq!(drops.count(), 0);
        drop(last);
        assert_eq!(drops.count(), COUNT);
    };
    // 64 bytes of stack for each greenlet: recursion would overflow it.
    let small = std::thread::Builder::new().stack_size(64 * COUNT);
    small.spawn(end_chain).unwrap().join().unwrap();
}
