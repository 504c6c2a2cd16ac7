//! The greenlets of a thread, and what happens to them when the thread ends.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use anyhow::Result;
use greenlet::{Greenlet, GreenletExit, TypeMismatch, end_suspended, getcurrent, greenlets, stacks_in_use};

use crate::support::{Log, ThreadEnd, on_drop, up};

thread_local! {
    static KEPT: RefCell<Vec<Greenlet>> = const { RefCell::new(Vec::new()) };
    static LATE: RefCell<Option<crate::support::OnDrop>> = const { RefCell::new(None) };
}

/// Returns a suspended greenlet that counts when its stack is unwound, and sends how it was ended.
fn counting(drops: &Arc<AtomicUsize>, reasons: Option<mpsc::Sender<String>>) -> Greenlet {
    let drops = drops.clone();
    let greenlet = Greenlet::new(move |(): ()| {
        let _counts = on_drop(move || {
            drops.fetch_add(1, Ordering::Relaxed);
        });
        let error = up::<()>(()).unwrap_err();
        if let (Some(reasons), Some(exit)) = (reasons, error.downcast_ref::<GreenletExit>()) {
            reasons.send(exit.reason().unwrap_or("none").into())?;
        }
        Err::<(), _>(error)
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// TD-1, HZ-32, HZ-39: each thread has its own main and its own tree, and many threads at once do
// not interfere with each other.
#[test]
fn each_thread_has_a_tree_of_its_own() {
    let threads: Vec<_> = (0..8_u32)
        .map(|thread| {
            std::thread::spawn(move || {
                let main = getcurrent();
                assert!(main.is_main() && main.parent().is_none());
                let mut total = 0;
                for round in 0..50_u32 {
                    let of_main = main.clone();
                    let child = Greenlet::new(move |first: u32| {
                        assert_eq!(getcurrent().parent(), Some(of_main));
                        let second: u32 = up(first + thread)?;
                        Ok(second * 2)
                    });
                    total += child.switch::<u32>(round).unwrap();
                    total += child.switch::<u32>(round).unwrap();
                }
                assert_eq!(greenlets(), [main]);
                total
            })
        })
        .collect();
    for (thread, handle) in (0..8_u32).zip(threads) {
        assert_eq!(
            handle.join().unwrap(),
            (0..50).map(|round| 3 * round + thread).sum::<u32>()
        );
    }
}

// TD-2: a blocking call in a greenlet blocks only its thread.
#[test]
fn a_blocking_call_in_a_greenlet_blocks_only_its_thread() {
    let (question, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let blocked = std::thread::spawn(move || {
        let blocks = Greenlet::new(move |(): ()| {
            question.send(())?;
            Ok(answered.recv()?)
        });
        blocks.switch::<&str>(()).unwrap()
    });
    asked.recv().unwrap();
    let other = Greenlet::new(|(): ()| Ok("the other thread's greenlets run"));
    answer.send(other.switch::<&str>(()).unwrap()).unwrap();
    assert_eq!(blocked.join().unwrap(), "the other thread's greenlets run");
}

// TD-4, TD-5: a greenlet belongs to the thread that creates it, in every state. To move work to a
// thread, send a function, which may be `Send`.
#[test]
fn a_greenlet_belongs_to_the_thread_that_creates_it() {
    let body = |first: u32| Ok(first + up::<u32>(())?);
    let here = Greenlet::new(body);
    here.switch::<()>(1_u32).unwrap();
    let there = std::thread::spawn(move || {
        let there = Greenlet::new(body);
        there.switch::<()>(10_u32).unwrap();
        there.switch::<u32>(20_u32).unwrap()
    });
    assert_eq!(there.join().unwrap(), 30);
    assert_eq!(here.switch::<u32>(2_u32).unwrap(), 3);
}

// TD-7, HZ-6: the error of a refused switch may be sent to another thread. The value inside can be
// taken only on its own thread.
#[test]
fn an_error_can_be_sent_but_its_value_is_available_only_on_its_own_thread() {
    let child = Greenlet::new(|_: u8| Ok(()));
    let log = Log::new();
    let noted = log.clone();
    let not_send = on_drop(move || noted.add("dropped"));
    let error = child.switch::<()>(not_send).unwrap_err();
    let error = std::thread::spawn(move || {
        let mismatch = error.downcast_ref::<TypeMismatch>().unwrap();
        assert!(mismatch.value().is_none());
        assert_eq!(mismatch.expected(), "u8");
        error
    });
    let error = error.join().unwrap();
    assert_eq!(log.take(), [""; 0]);
    assert!(error.downcast_ref::<TypeMismatch>().unwrap().value().is_some());
    drop(error);
    assert_eq!(log.take(), ["dropped"]);
}

// TD-8: information about a greenlet for other threads is plain data, which can be sent.
#[test]
fn plain_data_about_a_greenlet_can_be_sent() {
    let greenlet = Greenlet::builder().name("g").build(|(): ()| up::<()>(()));
    greenlet.switch::<()>(()).unwrap();
    let facts = (
        greenlet.state(),
        greenlet.name().map(String::from),
        greenlet.suspended_at(),
        format!("{greenlet:?}"),
    );
    let (state, name, suspended_at, text) = std::thread::spawn(move || facts).join().unwrap();
    assert_eq!((state, name.as_deref()), (greenlet::State::Active, Some("g")));
    assert!(suspended_at.is_some() && text.contains("suspended"), "{text}");
}

// TE-1, TE-2: the end of a thread drops its variables, which ends their greenlets. Greenlets that
// are still suspended afterwards run nothing, unless `run_to_end` ends them first.
#[test]
fn a_thread_that_returns_ends_only_the_greenlets_of_its_variables() {
    for end in ThreadEnd::BOTH {
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, reasons) = mpsc::channel();
        let counts = drops.clone();
        end.of_thread(move || {
            KEPT.with_borrow_mut(|_| ()); // before the first greenlet: on Linux destroyed after the library's own
            let _local = counting(&counts, Some(sender.clone()));
            let kept = counting(&counts, Some(sender.clone()));
            KEPT.with_borrow_mut(|greenlets| greenlets.push(kept));
            std::mem::forget(counting(&counts, Some(sender)));
            assert_eq!(counts.load(Ordering::Relaxed), 0);
        })
        .unwrap();
        let reasons: Vec<String> = reasons.try_iter().collect();
        assert_eq!(reasons.len(), drops.load(Ordering::Relaxed));
        assert_eq!(reasons[0], "the last handle of the greenlet was dropped");
        match end {
            ThreadEnd::RunToEnd => assert_eq!(reasons[1..], ["the owner of the greenlet ended it"; 2]),
            ThreadEnd::Plain if cfg!(target_os = "linux") => assert_eq!(reasons.len(), 1),
            ThreadEnd::Plain => assert!(reasons.len() <= 2, "the forgotten one runs nothing: {reasons:?}"),
        }
    }
}

// TE-1, TE-2: the same if the function of the thread panics.
#[test]
fn a_thread_that_panics_ends_only_the_greenlets_of_its_variables() {
    for (end, expected) in [(ThreadEnd::Plain, 1), (ThreadEnd::RunToEnd, 2)] {
        let drops = Arc::new(AtomicUsize::new(0));
        let counts = drops.clone();
        let panicked = end.of_thread(move || {
            let _local = counting(&counts, None);
            std::mem::forget(counting(&counts, None));
            std::panic::resume_unwind(Box::new("the panic"));
        });
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"the panic"));
        assert_eq!(drops.load(Ordering::Relaxed), expected, "{end:?}");
    }
}

// TE-3, TE-4, TE-5, TE-6, TE-9, HZ-25: after the library's part of a thread's end, only late
// destructors of that thread can reach its greenlets. Main and the suspended greenlets are dead
// then. A pending one stays pending and cannot be started. Dropping them runs nothing. There is no
// delay between the end and these states.
#[test]
fn greenlets_refuse_switches_in_late_destructors() {
    ThreadEnd::BOTH.into_iter().for_each(look_at_what_is_left);
}

fn look_at_what_is_left(end: ThreadEnd) {
    let (sender, seen) = mpsc::channel();
    end.of_thread(move || {
        // Used first, so destroyed last.
        LATE.with_borrow_mut(|late| *late = None);
        let main = getcurrent();
        let drops = Arc::new(AtomicUsize::new(0));
        let suspended = counting(&drops, None);
        let pending = Greenlet::new(|(): ()| Ok(()));
        let finished = Greenlet::new(|(): ()| Ok(()));
        finished.switch::<()>(()).unwrap();
        let look = move || {
            if !main.is_dead() {
                // This system destroys it before the library's own, so it is no late destructor.
                sender.send(None).unwrap();
                return;
            }
            let states = [&main, &suspended, &pending, &finished].map(Greenlet::state);
            let refused = [&main, &suspended, &pending, &finished].map(|target| {
                target
                    .switch::<()>(())
                    .unwrap_err()
                    .is::<greenlet::ThreadExiting>()
            });
            let thrown = suspended.throw::<()>(GreenletExit::new()).unwrap_err();
            suspended.end();
            let nothing = end_suspended().unwrap_err().is::<greenlet::ThreadExiting>();
            assert!(nothing && stacks_in_use() == 0);
            let ended = drops.load(Ordering::Relaxed);
            drop((main, suspended, pending, finished));
            let seen = (
                states,
                refused,
                thrown.to_string(),
                ended,
                drops.load(Ordering::Relaxed),
            );
            sender.send(Some(seen)).unwrap();
        };
        LATE.with_borrow_mut(|late| *late = Some(on_drop(look)));
    })
    .unwrap();
    let seen = seen.recv().unwrap();
    assert!(
        seen.is_some() || !cfg!(target_os = "linux"),
        "thread-locals are destroyed in another order"
    );
    let Some((states, refused, thrown, ended, after)) = seen else {
        return;
    };
    use greenlet::State::{Dead, Pending};
    assert_eq!(states, [Dead, Dead, Pending, Dead]);
    assert_eq!(refused, [true; 4]);
    assert!(thrown.contains("while the thread ends"), "{thrown}");
    let clean_ups = usize::from(end == ThreadEnd::RunToEnd);
    assert_eq!((ended, after), (clean_ups, clean_ups));
}

// TE-10: a leaked stack keeps every value on it, for example a handle of main.
#[test]
fn a_leaked_stack_keeps_its_handle_of_main() {
    for (end, expected) in [(ThreadEnd::Plain, 0), (ThreadEnd::RunToEnd, 1)] {
        let drops = Arc::new(AtomicUsize::new(0));
        let counts = drops.clone();
        end.of_thread(move || {
            let main = getcurrent();
            let counted = on_drop(move || {
                counts.fetch_add(1, Ordering::Relaxed);
            });
            let holds = Greenlet::new(move |(): ()| {
                let _both = (main, counted, getcurrent()); // a handle of itself too
                up::<()>(())
            });
            holds.switch::<()>(()).unwrap();
        })
        .unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), expected, "{end:?}");
    }
}

// XD-4, XD-5, XD-6, UD-5, UD-10: other threads drop no handles. Only a panic or a `no_switch`
// section defers ends. They run in the current greenlet, before the operation that runs them has
// changed anything. They change neither its value nor its error.
#[test]
fn deferred_ends_do_not_disturb_the_operation_that_runs_them() {
    let log = Log::new();
    let defer_one = || {
        let log = log.clone();
        let greenlet = Greenlet::builder()
            .name("deferred")
            .build(move |(): ()| -> Result<&str> {
                let _ = up::<()>(());
                let parent = greenlet::getparent().unwrap();
                log.add(format!("ended under {}", parent.name().unwrap_or("?")));
                Ok("a value of its own, which nobody gets")
            });
        greenlet.switch::<()>(()).unwrap();
        struct DropsWhileUnwinding(Option<Greenlet>);
        impl Drop for DropsWhileUnwinding {
            fn drop(&mut self) {
                self.0 = None;
            }
        }
        let holds = DropsWhileUnwinding(Some(greenlet));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _holds = holds;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(unwound.is_err());
    };
    // A switch, a switch to itself, a switch to a dead greenlet, throws.
    let child = Greenlet::builder().name("child").build(|n: u32| Ok(n + 1));
    defer_one();
    assert_eq!(child.switch::<u32>(1_u32).unwrap(), 2);
    defer_one();
    assert_eq!(getcurrent().switch::<u32>(5_u32).unwrap(), 5);
    defer_one();
    assert_eq!(child.switch::<u32>(6_u32).unwrap(), 6);
    defer_one();
    assert_eq!(
        child
            .throw::<u32>(anyhow::anyhow!("kept"))
            .unwrap_err()
            .to_string(),
        "kept"
    );
    assert_eq!(log.take(), ["ended under main"; 4]);
    // A greenlet that finishes, with a value and with an error.
    for fails in [false, true] {
        let defer_one = {
            let log = log.clone();
            move || {
                let greenlet = Greenlet::new(move |(): ()| {
                    let _ = up::<()>(());
                    log.add(format!(
                        "ended under {}",
                        greenlet::getparent().unwrap().name().unwrap_or("?")
                    ));
                    Ok("a value of its own")
                });
                greenlet.switch::<()>(()).unwrap();
                let holds = on_drop(move || drop(greenlet));
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _holds = holds;
                    std::panic::resume_unwind(Box::new(()));
                }));
            }
        };
        let finishing = Greenlet::builder().name("finishing").build(move |(): ()| {
            defer_one();
            if fails {
                Err(anyhow::anyhow!("outcome"))
            } else {
                Ok("outcome")
            }
        });
        let got = finishing.switch::<&str>(());
        assert_eq!(
            got.map_or_else(|error| error.to_string(), String::from),
            "outcome"
        );
    }
    assert_eq!(log.take(), ["ended under finishing"; 2]);
}

// XD-7, XD-8, HZ-29: deferred ends run when the thread ends, and nothing of the greenlets is left.
#[test]
fn deferred_ends_run_before_the_thread_ends() {
    let drops = Arc::new(AtomicUsize::new(0));
    let counts = drops.clone();
    let panicked = std::thread::spawn(move || {
        let _hundred: Vec<Greenlet> = (0..100).map(|_| counting(&counts, None)).collect();
        std::panic::resume_unwind(Box::new(())); // drops all handles while it unwinds
    });
    assert!(panicked.join().is_err());
    assert_eq!(drops.load(Ordering::Relaxed), 100);
}

// TE-7, LK-3, LK-4: a thread whose greenlets have all ended has only main, and no stack in use.
#[test]
fn a_thread_whose_greenlets_have_ended_has_only_main() {
    let drops = Arc::new(AtomicUsize::new(0));
    let counts = drops.clone();
    std::thread::spawn(move || {
        let suspended: Vec<Greenlet> = (0..50).map(|_| counting(&counts, None)).collect();
        let dead = Greenlet::new(|(): ()| Ok(()));
        dead.switch::<()>(()).unwrap();
        assert_eq!((greenlets().len(), stacks_in_use()), (52, 50));
        end_suspended().unwrap();
        assert_eq!(stacks_in_use(), 0);
        drop((suspended, dead));
        assert_eq!(greenlets(), [getcurrent()]);
    })
    .join()
    .unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 50);
}
