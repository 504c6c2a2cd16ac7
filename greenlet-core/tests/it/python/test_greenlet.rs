//! `test_greenlet.py`.

use std::cell::RefCell;
use std::rc::Rc;
use std::thread;

use anyhow::{Error, Result};
use greenlet::{Greenlet, GreenletExit, TypeMismatch, getcurrent, getmain, getparent, greenlet_local};

use super::SomeError;
use crate::support::{Log, NoLeaks, catch_reports, take_reports, up};

/// Waits, notes the type of the error that ends the wait, and fails.
fn fmain(seen: &Log) -> Greenlet {
    let seen = seen.clone();
    Greenlet::new(move |(): ()| -> Result<()> {
        up::<()>(()).inspect_err(|error| {
            seen.add(match error {
                error if error.is::<SomeError>() => "SomeError",
                error if error.is::<GreenletExit>() => "GreenletExit",
                _ => "other",
            });
        })?;
        Err(SomeError.into())
    })
}

fn simple() {
    let list = Log::new();
    let inside = list.clone();
    let g = Greenlet::new(move |(): ()| {
        inside.add("1");
        up::<()>(())?;
        inside.add("3");
        Ok(())
    });
    list.add("0");
    g.switch::<()>(()).unwrap();
    list.add("2");
    g.switch::<()>(()).unwrap();
    list.add("4");
    assert_eq!(list.take(), ["0", "1", "2", "3", "4"]);
}

#[test]
fn test_simple() {
    let _watch = NoLeaks::watch();
    simple();
}

#[test]
fn test_parent_equals_none() {
    // `None` for the parent means the current greenlet, which is what leaving it out means here.
    let g = Greenlet::new(|(): ()| Ok(()));
    assert_eq!(g.parent(), Some(getcurrent()));
}

#[test]
fn test_two_children() {
    let _watch = NoLeaks::watch();
    let list = Log::new();
    let child = || {
        let list = list.clone();
        Greenlet::new(move |(): ()| {
            list.add("1");
            up::<()>(())?;
            list.add("1");
            list.add("1");
            Ok(())
        })
    };
    let (g, h) = (child(), child());
    g.switch::<()>(()).unwrap();
    assert_eq!(list.take().len(), 1);
    h.switch::<()>(()).unwrap();
    assert_eq!(list.take().len(), 1);
    h.switch::<()>(()).unwrap();
    assert_eq!((list.take().len(), h.is_dead()), (2, true));
    g.switch::<()>(()).unwrap();
    assert_eq!((list.take().len(), g.is_dead()), (2, true));
}

#[test]
fn test_two_recursive_children() {
    let _watch = NoLeaks::watch();
    let list = Log::new();
    let inside = list.clone();
    let g = Greenlet::new(move |(): ()| {
        inside.add("a");
        let innermost = inside.clone();
        let child = Greenlet::new(move |(): ()| {
            innermost.add("b");
            up::<()>(())
        });
        child.switch::<()>(())?;
        inside.add("c");
        Ok(()) // the child is dropped, and ends
    });
    g.switch::<()>(()).unwrap();
    assert_eq!(list.take(), ["a", "b", "c"]);
}

#[test]
fn test_threads() {
    let threads: Vec<_> = (0..10).map(|_| thread::spawn(simple)).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn test_exception() {
    let _watch = NoLeaks::watch();
    let seen = Log::new();
    let (g1, g2) = (fmain(&seen), fmain(&seen));
    g1.switch::<()>(()).unwrap();
    g2.switch::<()>(()).unwrap();
    g2.set_parent(&g1).unwrap();
    assert_eq!(seen.take(), [""; 0]);
    // g2 fails into g1, which fails into main.
    assert!(g2.switch::<()>(()).unwrap_err().is::<SomeError>());
    assert_eq!(seen.take(), ["SomeError"]);
    // Both are dead, so what is sent arrives at main.
    g2.switch::<()>(()).unwrap();
    assert_eq!(g2.switch::<i32>(25).unwrap(), 25);
    assert_eq!(seen.take(), [""; 0]);
}

#[test]
fn test_send_exception() {
    let _watch = NoLeaks::watch();
    let seen = Log::new();
    let g1 = fmain(&seen);
    g1.switch::<()>(()).unwrap();
    let crasher = Greenlet::builder()
        .parent(&g1)
        .build(|error: Error| Err::<(), _>(error));
    let error = crasher.switch::<()>(Error::from(std::fmt::Error)).unwrap_err();
    assert!(error.is::<std::fmt::Error>());
    assert_eq!(seen.take(), ["other"]);
}

#[test]
fn test_dealloc() {
    let _watch = NoLeaks::watch();
    catch_reports();
    let seen = Log::new();
    let (g1, g2) = (fmain(&seen), fmain(&seen));
    g1.switch::<()>(()).unwrap();
    g2.switch::<()>(()).unwrap();
    assert_eq!(seen.take(), [""; 0]);
    drop(g1);
    assert_eq!(seen.take(), ["GreenletExit"]);
    drop(g2);
    assert_eq!(seen.take(), ["GreenletExit"]);
}

#[test]
fn test_dealloc_catches_greenlet_exit_throws_other() {
    let _watch = NoLeaks::watch();
    catch_reports();
    let g = Greenlet::builder().name("g").build(|(): ()| -> Result<()> {
        assert!(up::<()>(()).unwrap_err().is::<GreenletExit>());
        Err(SomeError.into())
    });
    g.switch::<()>(()).unwrap();
    drop(g);
    assert_eq!(take_reports(), ["g: error some error"]);
}

#[test]
fn test_frame() {
    let g = Greenlet::new(|(): ()| {
        up::<()>(())?;
        Ok("meaning of life")
    });
    assert!(g.suspended_at().is_none());
    g.switch::<()>(()).unwrap();
    assert!(g.is_active() && g.suspended_at().is_some_and(|place| place.file() == file!()));
    assert_eq!(g.switch::<&str>(()).unwrap(), "meaning of life");
    assert!(!g.is_active() && g.suspended_at().is_none());
}

#[test]
fn test_thread_bug() {
    let runner = |milliseconds| {
        move || {
            let sleep = move |(): ()| {
                thread::sleep(std::time::Duration::from_millis(milliseconds));
                Ok(())
            };
            Greenlet::new(sleep).switch::<()>(()).unwrap();
        }
    };
    let threads = [2, 3].map(|milliseconds| thread::spawn(runner(milliseconds)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn test_switch_kwargs() {
    // Several arguments are a struct or a tuple.
    let g = Greenlet::new(|(a, b): (i32, i32)| {
        assert_eq!((a, b), (4, 2));
        Ok(42)
    });
    assert_eq!(g.switch::<i32>((4, 2)).unwrap(), 42);
}

#[test]
fn test_switch_kwargs_to_parent() {
    let g = Greenlet::new(|x: i32| {
        up::<()>(x)?;
        up::<()>((2, x))?;
        Ok((x, x.pow(2)))
    });
    assert_eq!(g.switch::<i32>(3).unwrap(), 3);
    assert_eq!(g.switch::<(i32, i32)>(()).unwrap(), (2, 3));
    assert_eq!(g.switch::<(i32, i32)>(()).unwrap(), (3, 9));
}

#[test]
fn test_exc_state() {
    // A panic that a greenlet has caught is not seen by another one that it starts.
    let f = Greenlet::new(|(): ()| {
        let caught = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new("fun")));
        let h = Greenlet::new(|(): ()| Ok(thread::panicking()));
        assert!(!h.switch::<bool>(())?);
        Ok(*caught.unwrap_err().downcast::<&str>().unwrap())
    });
    assert_eq!(f.switch::<&str>(()).unwrap(), "fun");
}

#[test]
fn test_instance_dict() {
    let g = Greenlet::new(|(): ()| Ok(getcurrent().attach(Rc::new(42))));
    assert!(g.attached::<i32>().is_none());
    assert!(g.switch::<bool>(()).unwrap());
    assert_eq!(g.attached::<i32>().as_deref(), Some(&42));
    assert!(!g.attach(Rc::new(43)), "it stays");
}

#[test]
fn test_parent_restored_on_kill() {
    let hub = Greenlet::builder().name("hub").build(|(): ()| Ok(()));
    let result = Rc::new(RefCell::new(Vec::new()));
    let (kept, to) = (result.clone(), hub.clone());
    let g = Greenlet::builder()
        .parent(&hub)
        .build(move |(): ()| -> Result<()> {
            assert!(getmain().switch::<()>(()).is_err());
            kept.borrow_mut().extend([getparent().unwrap(), getcurrent()]);
            to.switch::<()>(()) // the hub ends, and main goes on
        });
    g.switch::<()>(()).unwrap();
    drop(g);
    let [parent_then, g]: [Greenlet; 2] = result.take().try_into().unwrap();
    assert_eq!(
        parent_then,
        getmain(),
        "meanwhile the greenlet that dropped it was its parent"
    );
    assert_eq!(g.parent(), Some(hub));
    g.end();
}

#[test]
fn test_parent_return_failure() {
    let _watch = NoLeaks::watch();
    // The parent cannot be started with what the child returns.
    let g1 = Greenlet::new(|_: String| Ok(()));
    let g2 = Greenlet::builder().parent(&g1).build(|(): ()| Ok(()));
    assert!(g2.switch::<()>(()).unwrap_err().is::<TypeMismatch>());
    assert!(g1.is_dead() && g2.is_dead());
}

#[test]
fn test_throw_exception_not_lost() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| Ok(()));
    assert!(g.throw::<()>(SomeError).unwrap_err().is::<SomeError>());
    assert!(g.is_dead());
}

#[test]
fn test_throw_to_dead_thread_doesnt_crash() {
    // A handle cannot reach another thread, so the thread that ends has the last one.
    let ended = thread::spawn(|| {
        catch_reports();
        let g = Greenlet::new(|(): ()| up::<()>(()));
        g.switch::<()>(()).unwrap();
        assert!(g.throw::<()>(SomeError).unwrap_err().is::<SomeError>());
    });
    ended.join().unwrap();
}

#[test]
fn test_recursive_startup() {
    // The function cannot be looked up a second time: the second start is a switch.
    let g = Greenlet::new(|value: i32| {
        let mut value = value;
        loop {
            value = up(value)?;
        }
        #[allow(unreachable_code)]
        Ok(())
    });
    assert_eq!(g.switch::<i32>(43).unwrap(), 43);
    assert_eq!(g.switch::<i32>(42).unwrap(), 42);
}

#[test]
fn test_dealloc_switch_args_not_lost() {
    let seen = Log::new();
    let (own, log) = (Rc::new(RefCell::new(None::<Greenlet>)), seen.clone());
    let (handle, initiator) = (own.clone(), Rc::new(RefCell::new(None::<Greenlet>)));
    let inside = initiator.clone();
    let worker = Greenlet::new(move |(): ()| -> Result<()> {
        let value: i32 = up(())?;
        drop(handle.take());
        inside.take().unwrap().set_parent(&getmain())?;
        let left = up::<()>(value); // the value arrives, and this greenlet loses its last handle
        log.add(if left.is_err() { "ended" } else { "resumed" });
        left
    });
    worker.switch::<()>(()).unwrap();
    let first = Greenlet::builder().parent(&worker).build(|(): ()| Ok(42));
    own.replace(Some(worker));
    initiator.replace(Some(first.clone()));
    assert_eq!(first.switch::<i32>(()).unwrap(), 42);
    assert_eq!(seen.take(), ["ended"]);
}

#[test]
fn test_tuple_subclass() {
    // A value keeps its type, whatever it derefs to.
    struct MyTuple((i32, i32));
    let g = Greenlet::new(|MyTuple(args): MyTuple| Ok(args.0 + args.1));
    assert_eq!(g.switch::<i32>(MyTuple((1, 2))).unwrap(), 3);
    let g = Greenlet::new(|MyTuple(_): MyTuple| Ok(()));
    assert!(g.switch::<()>((1, 2)).unwrap_err().is::<TypeMismatch>());
}

#[test]
fn test_falling_off_end_switches_to_unstarted_parent_raises_error() {
    let parent = Greenlet::new(|(): ()| Ok(13)); // takes no number
    let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok(42));
    assert!(child.switch::<i32>(()).unwrap_err().is::<TypeMismatch>());
}

#[test]
fn test_falling_off_end_switches_to_unstarted_parent_works() {
    let parent = Greenlet::new(|x: i32| Ok((x, 24)));
    let child = Greenlet::builder().parent(&parent).build(|(): ()| Ok(42));
    assert_eq!(child.switch::<(i32, i32)>(()).unwrap(), (42, 24));
}

#[test]
fn test_switch_to_dead_greenlet_reparent() {
    let seen = Log::new();
    let note = |text| {
        let seen = seen.clone();
        Greenlet::new(move |(): ()| {
            seen.add(text);
            Ok(())
        })
    };
    let (parent, child) = (note("24"), note("42"));
    child.switch::<()>(()).unwrap();
    assert_eq!(seen.take(), ["42"]);
    child.set_parent(&parent).unwrap();
    child.switch::<()>(()).unwrap(); // the same as a switch to the parent
    assert_eq!(seen.take(), ["24"]);
}

#[test]
fn test_main_greenlet_parent_is_none() {
    assert!(getmain().parent().is_none());
    assert!(getmain().is_main());
}

#[test]
fn test_cannot_delete_parent_of_main() {
    let error = getmain().set_parent(&getmain()).unwrap_err();
    assert!(error.is_main());
}

#[test]
fn test_trivial_cycle() {
    let glet = Greenlet::new(|(): ()| Ok(()));
    assert!(glet.set_parent(&glet).unwrap_err().is_cycle());
}

#[test]
fn test_trivial_cycle_main() {
    assert!(getcurrent().set_parent(&getcurrent()).is_err());
}

#[test]
fn test_deeper_cycle() {
    let [g1, g2, g3] = [(); 3].map(|()| Greenlet::new(|(): ()| Ok(())));
    g1.set_parent(&g2).unwrap();
    g2.set_parent(&g3).unwrap();
    assert!(g3.set_parent(&g1).unwrap_err().is_cycle());
}

// `TestRepr`.
#[test]
fn test_main_while_running() {
    let text = format!("{:?}", getmain());
    assert!(text.contains("main") && text.contains("current"), "{text}");
}

#[test]
fn test_main_in_background() {
    let main = Greenlet::new(|(): ()| Ok(format!("{:?}", getmain())));
    let text: String = main.switch(()).unwrap();
    assert!(text.contains("main") && !text.contains("current"), "{text}");
}

#[test]
fn test_initial() {
    let text = format!("{:?}", Greenlet::new(|(): ()| Ok(())));
    assert!(text.contains("pending"), "{text}");
}

#[test]
fn test_dead() {
    let g = Greenlet::new(|(): ()| Ok(()));
    g.switch::<()>(()).unwrap();
    let text = format!("{g:?}");
    assert!(text.contains("dead"), "{text}");
}

// `TestBrokenGreenlets`: a switch from the destructor of the function that starts.
#[test]
fn test_reentrant_switch_run_callable_has_del() {
    let log = Log::new();
    let callable = crate::support::on_drop(|| getmain().switch("from the destructor").unwrap());
    let seen = log.clone();
    let g = Greenlet::new(move |(): ()| {
        seen.add("enter");
        drop(callable);
        seen.add("leave");
        Ok(())
    });
    assert_eq!(g.switch::<&str>(()).unwrap(), "from the destructor");
    assert_eq!(log.take(), ["enter"]);
    g.switch::<()>(()).unwrap();
    assert_eq!(log.take(), ["leave"]);
}

greenlet_local! {
    static DEPTH: u32 = 0;
}

// A counterpart of `test_running_greenlet_has_no_run`: what is asked inside belongs to the running one.
#[test]
fn test_greenlet_run() {
    let g = Greenlet::new(|(): ()| {
        DEPTH.set(1);
        Ok((getcurrent().is_current(), DEPTH.get()))
    });
    assert_eq!(g.switch::<(bool, u32)>(()).unwrap(), (true, 1));
    assert_eq!(DEPTH.get(), 0);
}
