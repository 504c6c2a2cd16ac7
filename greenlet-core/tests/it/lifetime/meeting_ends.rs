//! Ends that meet each other, functions that do not want to end, and destructors that panic during an
//! end. Every clean-up runs to its very end, and no end hangs.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, Value, end_suspended, getcurrent, getmain, no_switch, stacks_in_use};

use crate::support::{Drops, Log, NoLeaks, catch_reports, on_drop, take_reports, up};

/// Handles that greenlets find each other by.
type Handles = Rc<RefCell<Vec<Greenlet>>>;

/// Drops `value` while a panic unwinds, so that what it ends is deferred.
fn drop_in_a_panic<T>(value: T) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _value = value;
        resume_unwind(Box::new("a panic"));
    }));
    assert!(outcome.is_err());
}

/// Makes three switches, as a clean-up that takes some steps.
fn clean_up(name: &str, log: &Log) {
    for step in 1..=3 {
        let () = Greenlet::new(|(): ()| Ok(()))
            .switch(())
            .expect("a step is refused");
        log.add(format!("{name}: step {step}"));
    }
}

fn steps(name: &str) -> [String; 3] {
    [1, 2, 3].map(|step| format!("{name}: step {step}"))
}

/// How a greenlet asks for the end of all the others.
type Ends = fn(&Handles);

const ENDS: [Ends; 2] = [
    |handles| {
        let others = handles.borrow().clone();
        others.iter().for_each(Greenlet::end);
    },
    |_| end_suspended().unwrap(),
];

// DE-21
#[test]
fn clean_ups_that_end_each_other_run_to_their_ends() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    for count in 1..=4 {
        for ends in ENDS {
            for first in 0..count {
                let log = Log::new();
                let handles = Handles::default();
                for name in 0..count {
                    let (log, others) = (log.clone(), handles.clone());
                    let greenlet = Greenlet::new(move |(): ()| {
                        let asked = getmain().switch::<()>(());
                        ends(&others);
                        clean_up(&name.to_string(), &log);
                        ends(&others);
                        asked
                    });
                    greenlet.switch::<()>(()).unwrap();
                    handles.borrow_mut().push(greenlet);
                }
                let greenlets = handles.borrow().clone();
                greenlets[first].end();
                assert!(greenlets.iter().all(Greenlet::is_dead), "{greenlets:?}");
                assert_eq!(log.take().len(), 3 * count);
                assert_eq!(take_reports(), [""; 0]);
                handles.borrow_mut().clear();
                clean_up("main", &log); // what waited is forgotten
            }
        }
    }
}

// XS-5
#[test]
fn a_deferred_end_runs_to_its_end_before_the_next_one_begins() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    type Defers = fn(Vec<Greenlet>);
    let ways: [Defers; 3] = [
        |all| drop_in_a_panic(all),
        |all| no_switch(|| drop(all)),
        |all| no_switch(|| all.iter().for_each(Greenlet::end)),
    ];
    for defers in ways {
        let log = Log::new();
        let all = ["a", "b", "c"].map(|name| {
            let log = log.clone();
            let greenlet = Greenlet::new(move |(): ()| {
                let asked = up::<()>(());
                clean_up(name, &log);
                asked
            });
            greenlet.switch::<()>(()).unwrap();
            greenlet
        });
        defers(all.into());
        clean_up("main", &log); // its first switch runs what is deferred
        let expected = ["a", "b", "c", "main"].map(steps).concat();
        assert_eq!(log.take(), expected);
        assert_eq!(take_reports(), [""; 0]);
    }
}

// DE-21: the parent ends its child when it goes, and both ends are deferred.
#[test]
fn the_deferred_ends_of_parent_and_child_do_not_cut_each_other_off() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    for child_first in [true, false] {
        let (log, slot) = (Log::new(), Rc::new(RefCell::new(None)));
        let (inside, place) = (log.clone(), slot.clone());
        let parent = Greenlet::new(move |(): ()| {
            let log = inside.clone();
            let child = Greenlet::new(move |(): ()| {
                let asked = getmain().switch::<()>(());
                clean_up("child", &log);
                asked
            });
            let ended = child.clone();
            let _ends = on_drop(move || ended.end());
            place.replace(Some(child.clone()));
            let asked = child.switch::<()>(());
            clean_up("parent", &inside);
            asked
        });
        parent.switch::<()>(()).unwrap();
        let child = slot.take().unwrap();
        no_switch(|| {
            let (first, second) = if child_first {
                (&child, &parent)
            } else {
                (&parent, &child)
            };
            first.end();
            second.end();
        });
        assert!(child.is_dead() && parent.is_dead());
        let mut steps_done = log.take();
        steps_done.sort();
        assert_eq!(steps_done, [steps("child"), steps("parent")].concat());
        assert_eq!(take_reports(), [""; 0]);
    }
}

// DE-20: the running greenlet is asked to end by the clean-up that it waits for. It is ended after
// that, as soon as it is suspended.
#[test]
fn a_greenlet_that_waits_for_a_clean_up_is_ended_after_it() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let (log, handles) = (Log::new(), Handles::default());
    let (inside, place) = (log.clone(), handles.clone());
    let ender = Greenlet::new(move |(): ()| {
        let (log, handles) = (inside.clone(), place.clone());
        let ended = Greenlet::new(move |(): ()| {
            let asked = up::<()>(());
            handles.borrow()[0].end();
            clean_up("ended", &log);
            asked
        });
        ended.switch::<()>(())?;
        drop(ended);
        inside.add("the drop is over");
        let asked = getmain().switch::<()>("from the ender");
        clean_up("ender", &inside);
        asked
    });
    handles.borrow_mut().push(ender.clone());
    assert_eq!(ender.switch::<&str>(()).unwrap(), "from the ender");
    clean_up("main", &log);
    handles.borrow_mut().clear();
    assert!(ender.is_dead());
    let expected = [
        &steps("ended")[..],
        &["the drop is over".into()],
        &steps("ender"),
        &steps("main"),
    ];
    assert_eq!(log.take(), expected.concat());
    assert_eq!(take_reports(), [""; 0]);
}

/// What a stubborn function does in each round instead of ending.
type Round = fn() -> bool;

const ROUNDS: [Round; 4] = [
    || catch_unwind(|| up::<Value>(())).is_ok_and(|asked| asked.is_ok()),
    || no_switch(|| up::<Value>(())).is_ok(),
    || catch_unwind(|| no_switch(|| up::<Value>(()))).is_ok_and(|asked| asked.is_ok()),
    || {
        // Inside another greenlet, which is not being ended itself.
        let child = Greenlet::new(|(): ()| Ok(no_switch(|| getmain().switch::<Value>(())).is_ok()));
        catch_unwind(AssertUnwindSafe(|| child.switch::<bool>(())))
            .is_ok_and(|is_ok| matches!(is_ok, Ok(true)))
    },
];

// DE-8: the bound is the same, whatever a function does: some refusals, one unwinding, a report.
#[test]
fn no_end_hangs_in_a_function_that_tries_again() {
    catch_reports();
    let ways: [fn(Greenlet); 4] = [
        drop,
        |greenlet| greenlet.end(),
        |_forgotten| {
            std::mem::forget(_forgotten);
            end_suspended().unwrap();
        },
        |greenlet| {
            drop_in_a_panic(greenlet);
            let () = Greenlet::new(|(): ()| Ok(())).switch(()).unwrap();
        },
    ];
    for (number, round) in ROUNDS.into_iter().enumerate() {
        for ends in ways {
            let (before, rounds) = (stacks_in_use(), Rc::new(Cell::new(0)));
            let counted = rounds.clone();
            let stubborn = Greenlet::builder()
                .name("stubborn")
                .build(move |(): ()| -> Result<()> {
                    let _ = up::<()>(());
                    loop {
                        counted.set(counted.get() + 1);
                        round();
                    }
                });
            stubborn.switch::<()>(()).unwrap();
            ends(stubborn);
            assert!(rounds.get() < 1000, "round {number}: {rounds:?}");
            let reports = take_reports();
            // The child's link keeps the greenlet of the last round (rule DE-9).
            if number < 3 {
                let is_left = stacks_in_use() != before;
                assert_eq!(is_left, !reports.is_empty(), "round {number}: {reports:?}");
            }
            assert!(reports.iter().all(|report| report == "stubborn: refused to end"));
        }
    }
}

// DE-21: a stubborn function in the clean-up of another one.
#[test]
fn nested_stubborn_functions_are_left_with_a_report_each() {
    catch_reports();
    fn stubborn(inner: Option<Greenlet>) -> Greenlet {
        let greenlet = Greenlet::builder()
            .name("stubborn")
            .build(move |(): ()| -> Result<()> {
                let mut inner = inner;
                loop {
                    let asked = catch_unwind(|| up::<()>(()));
                    if !matches!(asked, Ok(Ok(()))) {
                        inner.take().as_ref().map(Greenlet::end);
                    }
                }
            });
        greenlet.switch::<()>(()).unwrap();
        greenlet
    }
    let nested = (0..5).fold(None, |inner, _| Some(stubborn(inner)));
    nested.unwrap().end();
    assert_eq!(take_reports(), ["stubborn: refused to end"; 5]);
}

/// A value that does something when it is dropped outside of a panic.
struct Acts(fn());

impl Drop for Acts {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            (self.0)();
        }
    }
}

/// Returns a greenlet that sends `value` in place of ending, and a counter of its destructor.
fn sends(value: impl Sized + 'static) -> (Greenlet, Drops) {
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |(): ()| {
        let _witness = witness;
        let _ = getmain().switch::<()>(());
        let _ = getmain().switch::<()>(value);
        getmain().switch::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    (greenlet, drops)
}

// DE-5: the second stage follows, then the panic.
#[test]
fn a_value_whose_destructor_panics_between_the_stages_does_not_stop_the_end() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let ways: [fn(Greenlet); 2] = [drop, |greenlet| greenlet.end()];
    for ends in ways {
        let (greenlet, drops) = sends(Acts(|| panic!("of the value")));
        let panic = catch_unwind(AssertUnwindSafe(|| ends(greenlet))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"of the value"));
        assert_eq!(drops.count(), 1);
        assert_eq!(take_reports(), [""; 0]);
    }
}

// DE-5: both stages bring a value whose destructor panics with a payload whose destructor panics.
#[test]
fn the_payloads_of_two_stages_that_unwind_are_dropped_quietly() {
    catch_reports();
    fn bomb() {
        panic_any(Acts(|| panic!("of the payload")));
    }
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |(): ()| -> Result<()> {
        let _witness = witness;
        let _ = up::<()>(());
        let _ = catch_unwind(|| up::<()>(Acts(bomb)));
        let _ = catch_unwind(|| up::<()>(Acts(bomb)));
        let _ = up::<()>(Acts(bomb));
        Ok(())
    });
    greenlet.switch::<()>(()).unwrap();
    let first = catch_unwind(AssertUnwindSafe(|| greenlet.end())).unwrap_err();
    assert!(first.is::<Acts>());
    std::mem::forget(first);
    assert_eq!(take_reports(), ["nameless: refused to end"]);
    assert_eq!(drops.count(), 0, "it stopped its unwinding, and is suspended");
}

// RT-6: the payload of a panic that no ancestor can be entered for is carried by the error. It is not
// dropped in the greenlet, which is dead.
#[test]
fn a_payload_is_never_dropped_in_a_dead_greenlet() {
    let _no_leaks = NoLeaks::watch();
    struct Looks(Log);
    impl Drop for Looks {
        fn drop(&mut self) {
            let current = getcurrent();
            self.0.add(format!(
                "main: {}, alive: {}",
                current.is_main(),
                current.is_active()
            ));
            let _ = Greenlet::new(|(): ()| Ok(())).switch::<()>(());
        }
    }
    // Only a payload that is `Send` can be thrown.
    struct Payload(#[expect(dead_code, reason = "it is dropped")] Looks);
    // SAFETY: no other thread gets it.
    unsafe impl Send for Payload {}
    let log = Log::new();
    let no_stack = Greenlet::builder().stack_size(1).build(|(): ()| Ok(()));
    let looks = Payload(Looks(log.clone()));
    let panics = Greenlet::builder()
        .parent(&no_stack)
        .build(move |(): ()| -> Result<()> {
            let looks = looks;
            resume_unwind(Box::new(looks))
        });
    let error = panics.switch::<()>(()).unwrap_err();
    assert!(panics.is_dead());
    assert_eq!(log.take(), [""; 0]);
    drop(error);
    assert_eq!(log.take(), ["main: true, alive: true"]);
}

/// A payload or value whose destructor panics, also during an unwinding.
struct AlwaysPanics;

impl Drop for AlwaysPanics {
    fn drop(&mut self) {
        panic!("always");
    }
}

// What is in transit is dropped where a second panic is caught: when the origin's end unwinds, when a
// deferred end unwinds, and when the tracer's destructor unwinds.
#[test]
fn a_value_in_transit_whose_destructor_panics_does_not_abort() {
    catch_reports();
    // The greenlet that switches has lost its last handle, and its end unwinds.
    let receives = Greenlet::new(|(): ()| -> Result<()> {
        let (origin, _drops) = sends(Acts(|| panic!("of the origin")));
        let own = getcurrent();
        let last = Greenlet::new(move |(): ()| {
            let _origin = origin;
            let _ = own.switch::<()>(AlwaysPanics);
            getmain().switch::<()>(Acts(|| panic!("of the end")))
        });
        let weak = last.downgrade();
        let running = weak.upgrade().unwrap();
        drop(last);
        let _ = running.switch_owned::<()>(());
        Ok(())
    });
    let _ = catch_unwind(AssertUnwindSafe(|| receives.switch::<Value>(())));
    // A deferred end unwinds before the switch, which had a value.
    let (greenlet, _drops) = sends(Acts(|| panic!("of the deferred end")));
    drop_in_a_panic(greenlet);
    let target = Greenlet::new(|_: AlwaysPanics| Ok(()));
    let panic = catch_unwind(AssertUnwindSafe(|| target.switch::<()>(AlwaysPanics))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"of the deferred end"));
    // The tracer fails, and its destructor panics. So does that of the value.
    let bad = AlwaysPanics;
    greenlet::settrace(Some(greenlet::Tracer::new(move |_| {
        let _ = &bad;
        panic!("of the tracer")
    })));
    let sends = Greenlet::new(|(): ()| Ok(AlwaysPanics));
    let failed = catch_unwind(AssertUnwindSafe(|| sends.switch::<AlwaysPanics>(())));
    assert!(failed.is_err());
    drop(greenlet::settrace(None));
    take_reports();
}

// TE-1: the end of a thread catches what unwinds there.
#[test]
fn the_end_of_a_thread_survives_destructors_that_panic() {
    for place in 0..4 {
        let thread = std::thread::spawn(move || {
            catch_reports();
            let main = getcurrent();
            match place {
                0 => assert!(main.attach(Rc::new(AlwaysPanics))),
                1 => {
                    greenlet::greenlet_local!(static LOCAL: Option<AlwaysPanics> = None);
                    LOCAL.set(Some(AlwaysPanics));
                }
                2 => {
                    let bad = AlwaysPanics;
                    greenlet::settrace(Some(greenlet::Tracer::new(move |_| {
                        let _ = &bad;
                        Ok(())
                    })));
                }
                _ => {
                    let two = [1, 2].map(|_| sends(Acts(|| panic!("of a deferred end"))).0);
                    drop_in_a_panic(two);
                }
            }
        });
        thread.join().unwrap();
    }
}

/// A deferred end may end the greenlet that runs the deferred ends. The next ones then wait for that.
#[test]
fn a_deferred_end_that_ends_the_running_greenlet_stops_the_others() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let log = Log::new();
    let handles = Handles::default();
    // Ends `running` when it is resumed, and waits for that.
    let (found, written) = (handles.clone(), log.clone());
    let ends = Greenlet::new(move |(): ()| {
        let asked = getmain().switch::<()>(());
        let running = found.borrow()[0].clone();
        running.end();
        clean_up("ends", &written);
        asked
    });
    ends.switch::<()>(()).unwrap();
    // Resumes `ends` in its clean-up.
    let (resumed, written) = (ends.clone(), log.clone());
    let resumes = Greenlet::new(move |(): ()| {
        let asked = getmain().switch::<()>(());
        drop(resumed.switch::<Value>(()));
        clean_up("resumes", &written);
        asked
    });
    resumes.switch::<()>(()).unwrap();
    let (first, second, written) = (resumes.clone(), ends.clone(), log.clone());
    let running = Greenlet::new(move |(): ()| {
        no_switch(|| {
            first.end();
            second.end();
        });
        clean_up("running", &written);
        getmain().switch::<()>(())
    });
    handles.borrow_mut().push(running.clone());
    drop(running.switch::<Value>(()));
    end_suspended().unwrap();
    assert!(
        [&ends, &resumes, &running]
            .iter()
            .all(|greenlet| greenlet.is_dead())
    );
    let all = log.take();
    // `resumes` has switched away in its clean-up, so it was unwound.
    for name in ["ends", "running"] {
        let of_one = all.iter().filter(|line| line.starts_with(name));
        assert_eq!(of_one.count(), 3, "{name}: {all:?}");
    }
    handles.borrow_mut().clear();
    assert_eq!(take_reports(), [""; 0]);
}

/// A clean-up that ends another greenlet, which switches to main instead: both stages of the outer end
/// have come, and it cannot go on. The report says so.
#[test]
fn a_clean_up_that_is_left_in_the_middle_is_reported() {
    catch_reports();
    let inner = Greenlet::new(|(): ()| {
        let asked = getmain().switch::<()>(());
        let _ = getmain().switch::<()>(()); // in the clean-up
        asked
    });
    inner.switch::<()>(()).unwrap();
    let ended = inner.clone();
    let outer = Greenlet::builder().name("outer").build(move |(): ()| {
        let _ = getmain().switch::<()>(());
        let unwound = catch_unwind(|| getmain().switch::<()>(())); // in the first stage
        ended.end();
        resume_unwind(unwound.unwrap_err());
        #[expect(unreachable_code, reason = "the type of the function")]
        Ok(())
    });
    outer.switch::<()>(()).unwrap();
    outer.end();
    assert_eq!(take_reports(), ["outer: left in its clean-up"]);
    assert!(outer.is_active() && inner.is_active());
    inner.end();
    assert!(inner.is_dead());
}
