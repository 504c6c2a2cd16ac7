//! The end of a thread: a test for each row of the table in `docs/safety.md`.
//!
//! On Linux thread-locals are destroyed newest first. `EARLY` is first used after the library, so
//! it is destroyed before the library's own. `LATE` is first used before the library, so it is
//! destroyed afterwards.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{self, Sender};

use greenlet::{
    Greenlet, ThreadExiting, ThreadId, Tracer, end_suspended, getcurrent, getmain, greenlet_local,
    run_on_all_threads, settrace,
};

use crate::support::{OnDrop, ThreadEnd, on_drop, reports, up};

thread_local! {
    static LATE: RefCell<Option<OnDrop>> = const { RefCell::new(None) };
    static EARLY: RefCell<Option<OnDrop>> = const { RefCell::new(None) };
}

greenlet_local!(static LOCAL: Option<OnDrop> = None);

/// Runs a thread with both thread-locals registered, and returns its log.
fn log_of(function: impl FnOnce(Sender<String>) + Send + 'static) -> Vec<String> {
    let (sender, log) = mpsc::channel();
    let ended = ThreadEnd::Plain.of_thread(move || {
        let reports = reports();
        LATE.set(None);
        getcurrent();
        EARLY.set(None);
        function(sender);
        reports
    });
    let reports = std::mem::take(&mut *ended.unwrap().lock().unwrap());
    log.try_iter().chain(reports).collect()
}

fn says(sender: &Sender<String>, text: &'static str) -> OnDrop {
    let sender = sender.clone();
    on_drop(move || sender.send(text.into()).unwrap())
}

/// Returns a suspended greenlet that logs when its stack is unwound.
fn suspended(name: &'static str, sender: &Sender<String>) -> Greenlet {
    let says = says(sender, name);
    let greenlet = Greenlet::builder().name(name).build(move |(): ()| {
        let _says = says;
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// TE-1
#[test]
fn dropping_a_variable_of_the_thread_ends_its_greenlet() {
    let log = log_of(|sender| {
        let _variable = suspended("variable", &sender);
    });
    assert_eq!(log, ["variable"]);
}

// TE-1, XD-7: a drop during a panic only delays the end, at most until the library's own
// thread-local is destroyed.
#[test]
fn an_end_delayed_by_a_panic_runs_when_the_thread_ends() {
    for is_early in [true, false] {
        let (sender, log) = mpsc::channel();
        let panicked = ThreadEnd::Plain.of_thread(move || {
            let key = if is_early { &EARLY } else { &LATE };
            if !is_early {
                key.set(None);
            }
            getcurrent();
            key.set(None);
            let looks = on_drop(move || sender.send(key.try_with(|_| ()).is_ok()).unwrap());
            let _variable = {
                let greenlet = Greenlet::new(move |(): ()| {
                    let _looks = looks;
                    up::<()>(())
                });
                greenlet.switch::<()>(()).unwrap();
                greenlet
            };
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        // The clean-up can use a thread-local only if that is destroyed late.
        assert_eq!(log.try_iter().collect::<Vec<_>>(), [!is_early]);
    }
}

// TE-1: the library cannot know then that the thread is ending.
#[test]
fn a_thread_local_that_is_destroyed_early_ends_its_greenlet() {
    let log = log_of(|sender| {
        let kept = suspended("kept", &sender);
        EARLY.set(Some(on_drop(move || {
            kept.end();
            sender.send(format!("{:?}", kept.state())).unwrap();
        })));
    });
    assert_eq!(log, ["kept", "Dead"]);
}

// TE-2, TE-6
#[test]
fn a_thread_local_that_is_destroyed_late_finds_its_greenlet_dead() {
    let log = log_of(|sender| {
        let kept = suspended("kept", &sender);
        let pending = says(&sender, "captured by a pending one");
        let pending = Greenlet::new(move |(): ()| {
            let _pending = pending;
            Ok(())
        });
        LATE.set(Some(on_drop(move || {
            sender.send(format!("{:?}", kept.state())).unwrap();
            kept.end();
            let refused = [
                kept.switch::<()>(()).unwrap_err(),
                kept.throw::<()>(anyhow::anyhow!("x")).unwrap_err(),
                pending.switch::<()>(()).unwrap_err(),
                end_suspended().unwrap_err(),
            ];
            assert!(refused.iter().all(|error| error.is::<ThreadExiting>()));
            drop(kept);
            Greenlet::new(|(): ()| Ok(())).end();
            drop(pending);
        })));
    });
    assert_eq!(
        log,
        ["Dead", "captured by a pending one", "kept: 1 left suspended"]
    );
}

// TE-2: one report names all of them. It omits those that were reported when they refused to end.
#[test]
fn one_report_names_all_greenlets_that_are_still_suspended() {
    let log = log_of(|sender| {
        for name in ["first", "second", "third"] {
            std::mem::forget(suspended(name, &sender));
        }
        let refuses = Greenlet::builder()
            .name("refuses")
            .build(|(): ()| -> anyhow::Result<()> {
                loop {
                    let _ = std::panic::catch_unwind(|| getmain().switch::<()>(()));
                }
            });
        refuses.switch::<()>(()).unwrap();
        refuses.end();
    });
    assert_eq!(log, ["refuses: refused to end", "first: 3 left suspended"]);
}

// TE-7, TE-10: everything that main owns is dropped. A suspended greenlet keeps the values on its
// stack, its locals and its attachment.
#[test]
fn main_is_dropped_and_suspended_greenlets_keep_what_they_own() {
    let log = log_of(|sender| {
        LOCAL.set(Some(says(&sender, "local of main")));
        getmain().attach(Rc::new(says(&sender, "attachment of main")));
        let left = Greenlet::new({
            let [stack, local] = ["value on a stack", "local"].map(|text| says(&sender, text));
            move |(): ()| {
                let _stack = stack;
                LOCAL.set(Some(local));
                getmain().switch_owned::<()>(())
            }
        });
        left.attach(Rc::new(says(&sender, "attachment")));
        left.switch::<()>(()).unwrap();
        let traces = says(&sender, "tracer");
        settrace(Some(Tracer::new(move |_| {
            let _ = &traces;
            Ok(())
        })));
        // Dropping the last handle late frees the node, but nothing that the greenlet owns.
        LATE.set(Some(on_drop(move || drop(left))));
    });
    let what_main_has = ["tracer", "local of main", "attachment of main"];
    assert_eq!(log[..3], what_main_has);
    assert_eq!(log.len(), 4, "{log:?}"); // and the report
}

#[test]
fn a_broadcast_does_not_wait_for_a_thread_that_ended() {
    let (sender, receiver) = mpsc::channel();
    log_of(move |log| {
        std::mem::forget(suspended("left", &log));
        let broadcast = run_on_all_threads(|| ());
        sender.send((broadcast, ThreadId::current())).unwrap();
    });
    let (broadcast, thread) = receiver.recv().unwrap();
    assert!(!broadcast.wait(std::time::Duration::ZERO).contains(&thread));
}

// TH-16: the error outlives its thread, without the value.
#[test]
fn the_error_of_a_late_throw_is_usable_on_another_thread() {
    let (errors, received) = mpsc::channel();
    log_of(move |_| {
        let main = getmain();
        LATE.set(Some(on_drop(move || {
            let error = main.throw::<()>(anyhow::anyhow!("too late")).unwrap_err();
            errors.send(error.downcast::<ThreadExiting>().unwrap()).unwrap();
        })));
    });
    let error = received.recv().unwrap();
    assert!(error.value().is_none(), "the value stays in its thread");
}
