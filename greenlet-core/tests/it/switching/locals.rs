//! Greenlet-local variables: whose values are visible, and when.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use greenlet::{Greenlet, Locals, State, getcurrent, getmain, getparent, greenlet_local};

use crate::support::{Drops, Log, Witness};

greenlet_local! {
    static NAME: String = "nobody".to_owned();
    static COUNT: Cell<u32> = Cell::new(0);
    static KEPT: Option<Rc<Witness>> = None
}

/// Returns a greenlet that sets its name to each received text, and replies with the name that it
/// found.
fn namer(builder: greenlet::Builder) -> Greenlet {
    builder.build(|mut name: String| {
        let main = getparent().unwrap();
        loop {
            if !name.is_empty() {
                NAME.set(name);
            }
            name = main.switch(NAME.get())?;
            if name == "end" {
                return Ok(NAME.get());
            }
        }
    })
}

fn ask(greenlet: &Greenlet, name: &str) -> String {
    greenlet.switch(name.to_owned()).unwrap()
}

/// Runs a test on its own thread, so that main has no locals yet.
fn alone(test: impl FnOnce() + Send + 'static) {
    if let Err(payload) = std::thread::spawn(test).join() {
        resume_unwind(payload);
    }
}

// CV-1, CV-11, HZ-31; cv::test_context_not_propagated
#[test]
fn a_new_greenlet_inherits_no_locals() {
    alone(|| {
        NAME.set("main".to_owned());
        let (a, b) = (namer(Greenlet::builder()), namer(Greenlet::builder()));
        assert_eq!(ask(&a, ""), "nobody", "nothing is inherited from the creator");
        assert_eq!(ask(&a, "a"), "a");
        assert_eq!(ask(&b, ""), "nobody");
        assert_eq!(ask(&b, "b"), "b");
        // Each read returns the value of the running greenlet, after any number of switches.
        for _ in 0..3 {
            assert_eq!(
                (ask(&a, ""), ask(&b, ""), NAME.get()),
                ("a".into(), "b".into(), "main".into())
            );
        }
    });
}

// CV-2; cv::test_context_assignment_while_running
#[test]
fn locals_are_empty_until_one_is_set_or_used() {
    let child = Greenlet::new(|(): ()| {
        let main = getparent().unwrap();
        assert!(!NAME.is_set());
        main.switch::<()>(())?;
        NAME.set("child".to_owned());
        assert_eq!(Locals::current().get(&NAME).unwrap().as_str(), "child");
        main.switch::<()>(())?;
        Ok(())
    });
    assert_eq!(child.locals(), None);
    child.switch::<()>(()).unwrap();
    assert_eq!(child.locals(), None, "to look whether it is set makes none");
    child.switch::<()>(()).unwrap();
    let locals = child.locals().unwrap();
    assert_eq!(child.locals(), Some(locals.clone()), "always the same ones");
    assert_eq!(locals.get(&NAME).unwrap().as_str(), "child");
    assert!(locals.get(&COUNT).is_none());
}

// CV-3; cv::test_context_propagated_by_setting_attribute
#[test]
fn a_greenlet_can_be_given_a_copy_of_locals() {
    alone(|| {
        NAME.set("main".to_owned());
        let heir = namer(Greenlet::builder().locals(Locals::current().copy()));
        let later = namer(Greenlet::builder());
        later.set_locals(Locals::current().copy());
        let empty = namer(Greenlet::builder().locals(Locals::current().copy()));
        empty.set_locals(None);
        NAME.set("main's next".to_owned());
        assert_eq!(ask(&heir, ""), "main", "as it was when the copy was made");
        assert_eq!(ask(&later, ""), "main");
        assert_eq!(ask(&empty, ""), "nobody");
        assert_eq!(ask(&heir, "heir"), "heir");
        assert_eq!(NAME.get(), "main's next", "the copy does not change the original");
    });
}

// CV-3: a copy does not clone the values, as in Python.
#[test]
fn copying_locals_does_not_clone_their_values() {
    alone(|| {
        COUNT.with(|count| count.set(1));
        let copy = Locals::current().copy();
        COUNT.with(|count| count.set(2));
        assert_eq!(copy.get(&COUNT).unwrap().get(), 2);
        COUNT.set(Cell::new(3));
        assert_eq!(copy.get(&COUNT).unwrap().get(), 2);
    });
}

// CV-3, CV-4; cv::test_context_shared
#[test]
fn greenlets_can_share_one_set_of_locals() {
    alone(|| {
        NAME.set("main".to_owned());
        let shared = Locals::current();
        let a = namer(Greenlet::builder().locals(shared.clone()));
        let b = namer(Greenlet::builder().locals(shared.clone()));
        assert_eq!((ask(&a, ""), ask(&b, "")), ("main".into(), "main".into()));
        assert_eq!(ask(&a, "a"), "a");
        assert_eq!((ask(&b, ""), NAME.get()), ("a".into(), "a".into()));
        // Set from outside, while both are suspended.
        shared.set(&NAME, "all".to_owned());
        assert_eq!(
            (ask(&a, ""), ask(&b, ""), NAME.get()),
            ("all".into(), "all".into(), "all".into())
        );
        assert_eq!(a.locals(), b.locals());
    });
}

// CV-5; cv::test_context_assignment_while_running
#[test]
fn locals_can_be_read_and_replaced_in_every_state() {
    let named = |name: &str| {
        let locals = Locals::new();
        locals.set(&NAME, name.to_owned());
        locals
    };
    let greenlet = namer(Greenlet::builder());
    assert_eq!(greenlet.state(), State::Pending);
    greenlet.set_locals(named("while pending"));
    assert_eq!(ask(&greenlet, ""), "while pending");
    greenlet.set_locals(named("while suspended"));
    assert_eq!(ask(&greenlet, ""), "while suspended", "at its next resume");
    assert_eq!(ask(&greenlet, "end"), "while suspended");
    assert!(greenlet.is_dead());
    greenlet.set_locals(named("while dead"));
    assert_eq!(
        greenlet.locals().unwrap().get(&NAME).unwrap().as_str(),
        "while dead"
    );

    let current = Greenlet::new(move |(): ()| {
        getcurrent().set_locals(named("while current"));
        let name = NAME.get();
        getcurrent().set_locals(None);
        Ok((name, NAME.get()))
    });
    let (at_once, without) = current.switch::<(String, String)>(()).unwrap();
    assert_eq!((at_once.as_str(), without.as_str()), ("while current", "nobody"));
}

// CV-6: values of another thread cannot be named here, because neither `Greenlet` nor `Locals` is
// `Send`.
#[test]
fn locals_do_not_leave_their_thread() {
    trait AmbiguousIfSend<A> {
        fn check() {}
    }
    impl<T: ?Sized> AmbiguousIfSend<()> for T {}
    // If the type were `Send`, two candidates would apply below, and the call would not compile.
    struct Invalid;
    impl<T: ?Sized + Send> AmbiguousIfSend<Invalid> for T {}
    <Locals as AmbiguousIfSend<_>>::check();
}

// CV-7, CV-8; cv::test_context_propagated_by_context_run
#[test]
fn a_greenlet_can_run_a_closure_with_other_locals() {
    let entered = Locals::new();
    entered.set(&NAME, "entered".to_owned());
    let inside = entered.clone();
    let child = Greenlet::new(move |(): ()| {
        let main = getparent().unwrap();
        inside.run(|| {
            main.switch::<()>(NAME.get())?;
            NAME.set("set inside".to_owned());
            main.switch::<()>(())
        })?;
        let after = NAME.is_set();
        main.switch::<()>(after)?;
        Ok(())
    });
    assert_eq!(child.switch::<String>(()).unwrap(), "entered");
    assert_eq!(
        child.locals(),
        Some(entered.clone()),
        "what it would have if it went on now"
    );
    child.switch::<()>(()).unwrap();
    assert_eq!(entered.get(&NAME).unwrap().as_str(), "set inside");
    assert!(!child.switch::<bool>(()).unwrap());
    child.switch::<()>(()).unwrap();
    assert!(child.is_dead());
    assert_eq!(child.locals(), None, "it had left them when it ended");
}

// CV-8
#[test]
fn dead_greenlets_keep_their_values_until_their_last_handle_is_dropped() {
    let drops = Drops::new();
    let witness = Rc::new(drops.witness());
    let child = Greenlet::new(|witness: Rc<Witness>| {
        KEPT.set(Some(witness));
        Ok(())
    });
    child.switch::<()>(witness).unwrap();
    assert!(child.is_dead());
    assert_eq!(drops.count(), 0);
    assert!(child.locals().unwrap().get(&KEPT).unwrap().is_some());
    drop(child);
    assert_eq!(drops.count(), 1);
}

// CV-10: entered locals need not be left in reverse order; cv::test_break_ctxvars
#[test]
fn two_greenlets_can_be_inside_the_same_locals_at_once() {
    let shared = Locals::new();
    let enter = || {
        let shared = shared.clone();
        Greenlet::new(move |name: &'static str| {
            let main = getparent().unwrap();
            shared.run(|| {
                NAME.set(name.to_owned());
                main.switch::<()>(())
            })?;
            main.switch::<()>(NAME.is_set())
        })
    };
    let (first, second) = (enter(), enter());
    first.switch::<()>("first").unwrap();
    second.switch::<()>("second").unwrap();
    // The first greenlet leaves the locals before the second one does.
    assert!(!first.switch::<bool>(()).unwrap());
    assert!(!second.switch::<bool>(()).unwrap());
    assert_eq!(shared.get(&NAME).unwrap().as_str(), "second");
}

// CV-10; cv::test_not_broken_if_using_attribute_instead_of_context_run
#[test]
fn two_greenlets_created_with_the_same_locals_share_them() {
    let shared = Locals::new();
    shared.set(&NAME, "shared".to_owned());
    let make = || namer(Greenlet::builder().locals(shared.clone()));
    let (first, second) = (make(), make());
    assert_eq!(
        (ask(&first, ""), ask(&second, "")),
        ("shared".into(), "shared".into())
    );
    assert_eq!(
        (ask(&first, "end"), ask(&second, "end")),
        ("shared".into(), "shared".into())
    );
}

// CV-10: other greenlets that run in between do not see a temporary value.
#[test]
fn a_temporary_value_stays_with_its_greenlet_over_switches() {
    let log = Log::new();
    let make = |name: &'static str| {
        let log = log.clone();
        Greenlet::new(move |(): ()| {
            let main = getparent().unwrap();
            NAME.with_value(name.to_owned(), || {
                log.add(NAME.get());
                main.switch::<()>(())?;
                log.add(NAME.get());
                anyhow::Ok(())
            })?;
            log.add(NAME.get());
            Ok(())
        })
    };
    let (a, b) = (make("a"), make("b"));
    for greenlet in [&a, &b, &a, &b] {
        greenlet.switch::<()>(()).unwrap();
    }
    assert_eq!(log.take(), ["a", "b", "a", "nobody", "b", "nobody"]);
}

#[test]
fn a_temporary_value_is_removed_by_a_panic_and_by_an_end() {
    alone(|| {
        let panics = || NAME.with_value("short".to_owned(), || resume_unwind(Box::new(())));
        let _: Result<(), _> = catch_unwind(AssertUnwindSafe(panics));
        assert!(!NAME.is_set());

        let child = Greenlet::new(|(): ()| {
            let main = getparent().unwrap();
            NAME.with_value("short".to_owned(), || main.switch::<()>(()))
        });
        child.switch::<()>(()).unwrap();
        assert_eq!(child.locals().unwrap().get(&NAME).unwrap().as_str(), "short");
        child.kill().unwrap();
        assert!(child.locals().unwrap().get(&NAME).is_none());
    });
}

// CV-12
#[test]
fn nothing_is_leaked_by_setting_replacing_unsetting_and_death() {
    let drops = Drops::new();
    let fresh = {
        let drops = drops.clone();
        move || Some(Rc::new(drops.witness()))
    };
    let make = fresh.clone();
    let child = Greenlet::new(move |(): ()| {
        KEPT.set(make());
        KEPT.set(make());
        KEPT.with_value(make(), || ());
        KEPT.unset();
        KEPT.set(make());
        Ok(())
    });
    child.switch::<()>(()).unwrap();
    assert_eq!(drops.count(), 3);
    child.set_locals(Locals::new());
    assert_eq!(drops.count(), 4);
    child.locals().unwrap().set(&KEPT, fresh());
    drop(child);
    assert_eq!(drops.count(), 5);
}

// CV-12: the values of main are dropped with its thread, while their destructors can still use the
// library.
#[test]
fn the_values_of_main_are_dropped_with_its_thread() {
    struct AtTheEnd(std::sync::mpsc::Sender<bool>);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            let _ = self.0.send(getmain().is_current());
        }
    }
    greenlet_local!(static LAST: RefCell<Option<AtTheEnd>> = RefCell::new(None));

    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || LAST.with(|last| last.replace(Some(AtTheEnd(sender))).is_none()));
    assert!(thread.join().unwrap());
    assert!(receiver.recv().unwrap());
}

// CV-13
#[test]
fn true_thread_locals_are_shared_by_all_greenlets_of_a_thread() {
    thread_local!(static SHARED: Cell<u32> = const { Cell::new(0) });

    let child = Greenlet::new(|(): ()| {
        SHARED.set(SHARED.get() + 1);
        COUNT.with(|count| count.set(count.get() + 1));
        getparent().unwrap().switch::<()>(())
    });
    SHARED.set(10);
    child.switch::<()>(()).unwrap();
    assert_eq!(SHARED.get(), 11);
    assert!(!COUNT.is_set());
}

#[test]
fn the_initial_value_is_computed_in_each_greenlet_and_may_switch() {
    greenlet_local! {
        static ASKED: u32 = getparent().unwrap().switch("which number?").unwrap();
    }
    let make = || Greenlet::new(|(): ()| Ok(ASKED.get() + ASKED.get()));
    let (a, b) = (make(), make());
    for greenlet in [&a, &b] {
        assert_eq!(greenlet.switch::<&str>(()).unwrap(), "which number?");
    }
    assert_eq!(a.switch::<u32>(1_u32).unwrap(), 2);
    assert_eq!(b.switch::<u32>(2_u32).unwrap(), 4);
}

#[test]
fn a_value_may_be_replaced_while_it_is_used() {
    alone(|| {
        NAME.set("old".to_owned());
        let seen = NAME.with(|name| {
            NAME.set("new".to_owned());
            name.clone()
        });
        assert_eq!((seen.as_str(), NAME.get().as_str()), ("old", "new"));
    });
}
