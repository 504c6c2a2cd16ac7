//! Switching: which greenlet runs next, what the switch returns, and targets that are dead or
//! pending.

use std::cell::RefCell;
use std::rc::Rc;

use greenlet::{
    Greenlet, GreenletExit, StackError, State, TraceKind, Tracer, WeakGreenlet, getcurrent, getparent, raw,
    settrace,
};

use crate::support::{Drops, Log, NoLeaks, on_drop, up};

// SW-1
#[test]
fn control_moves_only_where_it_is_sent() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let worker = |name: &'static str| {
        let log = log.clone();
        Greenlet::new(move |(): ()| {
            for step in 0..2 {
                log.add(format!("{name}{step}"));
                up::<()>(())?;
            }
            Ok(())
        })
    };
    let (a, b) = (worker("a"), worker("b"));
    for greenlet in [&a, &b, &b, &a] {
        log.add("main");
        greenlet.switch::<()>(()).unwrap();
    }
    assert_eq!(
        log.take(),
        ["main", "a0", "main", "b0", "main", "b1", "main", "a1"]
    );
}

// SW-2, SW-3, SW-4
#[test]
fn a_switch_returns_the_next_value_that_any_greenlet_sends_to_its_caller() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let main = getcurrent();
    let (inside_a, inside_b) = (log.clone(), log.clone());
    let b = Greenlet::new(move |first: &str| {
        inside_b.add(format!("b started with {first}"));
        let second: &str = main.switch("from b")?;
        inside_b.add(format!("b resumed with {second}"));
        Ok("b's result")
    });
    let b_inside = b.clone();
    let a = Greenlet::new(move |first: &str| {
        inside_a.add(format!("a started with {first}"));
        let answer: &str = b_inside.switch("from a")?;
        inside_a.add(format!("a resumed with {answer}"));
        Ok("a's result")
    });
    // The value is sent to `a`; `b` answers.
    log.add(a.switch::<&str>("1").unwrap());
    log.add(a.switch::<&str>("2").unwrap());
    log.add(b.switch::<&str>("3").unwrap());
    assert_eq!(
        log.take(),
        [
            "a started with 1",
            "b started with from a",
            "from b",
            "a resumed with 2",
            "a's result",
            "b resumed with 3",
            "b's result"
        ]
    );
}

// SW-5, SW-7
#[test]
fn any_greenlet_switches_to_any_other() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let main = getcurrent();
    // main -> grandparent -> parent -> child, then child -> main directly, main -> child directly,
    // child -> grandparent directly.
    let inside = log.clone();
    let grandparent = Greenlet::new(move |(): ()| {
        let log = inside.clone();
        let weak = getcurrent().downgrade();
        let parent = Greenlet::new(move |(): ()| {
            let log = inside.clone();
            let child = Greenlet::new(move |(): ()| {
                let sent: &str = main.switch(getcurrent().downgrade())?;
                inside.add(format!("child got {sent}"));
                weak.upgrade().unwrap().switch::<()>("child to grandparent")
            });
            let answer = child.switch::<()>(());
            log.add("parent resumed");
            answer
        });
        let sent: &str = parent.switch(())?;
        log.add(format!("grandparent got {sent}"));
        parent.end();
        Ok(())
    });
    let child: WeakGreenlet = grandparent.switch(()).unwrap();
    child.upgrade().unwrap().switch::<()>("main to child").unwrap();
    assert_eq!(
        log.take(),
        [
            "child got main to child",
            "grandparent got child to grandparent",
            "parent resumed"
        ]
    );
    assert!(grandparent.is_dead());
}

// SW-6, RT-2
#[test]
fn in_a_ring_each_greenlet_ends_into_its_own_parent() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let ring: Rc<RefCell<Vec<WeakGreenlet>>> = Rc::default();
    let members: Vec<Greenlet> = (0..3)
        .map(|me| {
            let (log, ring) = (log.clone(), Rc::clone(&ring));
            Greenlet::new(move |lap: u32| {
                log.add(format!("{me} lap {lap}"));
                let next = |lap: u32| {
                    let next = ring.borrow()[(me + 1) % 3].upgrade().unwrap();
                    next.switch::<u32>(lap + u32::from(me == 2))
                };
                let lap = next(lap)?;
                log.add(format!("{me} lap {lap}"));
                if me == 1 {
                    return Ok("1 reports to main");
                }
                next(lap)?;
                Ok("0 or 2")
            })
        })
        .collect();
    ring.borrow_mut().extend(members.iter().map(Greenlet::downgrade));
    log.add(members[0].switch::<&str>(0_u32).unwrap());
    assert_eq!(
        log.take(),
        [
            "0 lap 0",
            "1 lap 0",
            "2 lap 0",
            "0 lap 1",
            "1 lap 1",
            "1 reports to main"
        ]
    );
    let states: Vec<State> = members.iter().map(Greenlet::state).collect();
    assert_eq!(states, [State::Active, State::Dead, State::Active]);
    ring.borrow_mut().clear();
}

// SW-8
#[test]
fn a_switch_to_itself_returns_at_once_and_is_traced() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let traced = log.clone();
    settrace(Some(Tracer::new(move |event| {
        assert_eq!(event.kind, TraceKind::Switch);
        traced.add(if event.origin == event.target {
            "to itself"
        } else {
            "away"
        });
        Ok(())
    })));
    assert_eq!(getcurrent().switch::<i32>(5).unwrap(), 5);
    let child = Greenlet::new(|(): ()| getcurrent().switch::<i32>(6));
    assert_eq!(child.switch::<i32>(()).unwrap(), 6);
    settrace(None);
    assert_eq!(log.take(), ["to itself", "away", "to itself", "away"]);
    // The same without a tracer.
    assert_eq!(getcurrent().switch::<i32>(7).unwrap(), 7);
}

// SW-9
#[test]
fn a_value_is_moved_and_not_copied() {
    let _no_leaks = NoLeaks::watch();
    let shared = Rc::new(0);
    let echo = Greenlet::new(|mut value: Rc<i32>| {
        loop {
            value = up(value)?;
        }
        #[expect(unreachable_code)]
        Ok(())
    });
    for _ in 0..100 {
        let back: Rc<i32> = echo.switch(Rc::clone(&shared)).unwrap();
        assert!(Rc::ptr_eq(&back, &shared));
    }
    assert_eq!(Rc::strong_count(&shared), 1);
    let boxed = Box::new(7);
    let address = &raw const *boxed;
    let boxes = Greenlet::new(|value: Box<i32>| Ok(value));
    assert_eq!(&raw const *boxes.switch::<Box<i32>>(boxed).unwrap(), address);
}

// SW-10
#[test]
fn each_greenlet_keeps_its_own_call_depth() {
    let _no_leaks = NoLeaks::watch();
    fn dive(depth: usize, log: &Log) -> anyhow::Result<usize> {
        if depth == 0 {
            log.add(format!("at the bottom with {}", up::<&str>(())?));
            return Ok(0);
        }
        Ok(dive(depth - 1, log)? + 1)
    }
    let log = Log::new();
    let divers: Vec<Greenlet> = [1, 40, 7, 200]
        .into_iter()
        .map(|depth| {
            let log = log.clone();
            Greenlet::new(move |(): ()| dive(depth, &log))
        })
        .collect();
    for diver in &divers {
        diver.switch::<()>(()).unwrap();
    }
    let depths: Vec<usize> = divers
        .iter()
        .map(|diver| diver.switch("breath").unwrap())
        .collect();
    assert_eq!(depths, [1, 40, 7, 200]);
    assert_eq!(log.take(), ["at the bottom with breath"; 4]);
}

// SW-11
#[test]
fn switching_works_in_destructors_comparisons_and_callbacks() {
    let _no_leaks = NoLeaks::watch();
    struct Link(#[expect(dead_code)] Option<Box<Link>>);
    impl Drop for Link {
        fn drop(&mut self) {
            up::<()>("link").unwrap();
        }
    }
    let child = Greenlet::new(|(): ()| {
        let mut numbers = vec![3, 1, 2];
        numbers.sort_by(|a, b| {
            up::<()>("comparison").unwrap();
            a.cmp(b)
        });
        let doubled: Vec<i32> = numbers
            .into_iter()
            .inspect(|_| up::<()>("callback").unwrap())
            .collect();
        drop((0..3).fold(None, |next, _| Some(Box::new(Link(next)))));
        Ok(if doubled == [1, 2, 3] { "sorted" } else { "wrong" })
    });
    let mut seen = Vec::new();
    while !child.is_dead() {
        seen.push(child.switch::<&str>(()).unwrap());
    }
    seen.dedup();
    assert_eq!(seen, ["comparison", "callback", "link", "sorted"]);
}

// SW-12
#[test]
fn the_running_greenlet_may_drop_all_other_handles_of_itself() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let witness = drops.witness();
    let main = getcurrent();
    let parent = Greenlet::new(move |child: WeakGreenlet| {
        let _witness = witness;
        let weak = getcurrent().downgrade();
        // The link from the child was the last handle.
        child.upgrade().unwrap().set_parent(&main)?;
        assert!(weak.upgrade().unwrap().is_current());
        Ok("still running")
    });
    let weak = parent.downgrade();
    let child = Greenlet::builder()
        .parent(&parent)
        .build(|(): ()| Ok(getcurrent().downgrade()));
    drop(parent);
    assert_eq!(child.switch::<&str>(()).unwrap(), "still running");
    assert_eq!(drops.count(), 1);
    assert!(weak.upgrade().is_none());
}

/// Returns a dead greenlet whose parent is `parent`.
fn dead_below(parent: &Greenlet) -> Greenlet {
    let dead = Greenlet::new(|(): ()| Ok(()));
    dead.switch::<()>(()).unwrap();
    dead.set_parent(parent).unwrap();
    dead
}

// SW-20, SW-21
#[test]
fn a_switch_to_a_dead_child_returns_the_value_to_the_caller() {
    let _no_leaks = NoLeaks::watch();
    let dead = dead_below(&getcurrent());
    assert_eq!(dead.switch::<i32>(5).unwrap(), 5);
    let deeper = dead_below(&dead_below(&dead));
    assert_eq!(deeper.switch::<(i32, &str)>((5, "six")).unwrap(), (5, "six"));
    assert_eq!(getcurrent().switch::<&str>("self").unwrap(), "self");
}

// SW-20, SW-22
#[test]
fn a_value_for_a_dead_greenlet_resumes_its_suspended_ancestor_and_the_caller_waits() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let ancestor = Greenlet::new(move |(): ()| {
        let got: &str = up("ancestor waits")?;
        inside.add(format!("ancestor got {got}"));
        up::<()>("ancestor to main")
    });
    log.add(ancestor.switch::<&str>(()).unwrap());
    let dead = dead_below(&dead_below(&ancestor));
    let caller_log = log.clone();
    let caller = Greenlet::new(move |(): ()| {
        let answer: &str = dead.switch("for the dead")?;
        caller_log.add(format!("caller got {answer}"));
        Ok(())
    });
    log.add(caller.switch::<&str>(()).unwrap());
    assert!(caller.is_active(), "the caller is suspended in its switch");
    caller.switch::<()>("at last").unwrap();
    assert_eq!(
        log.take(),
        [
            "ancestor waits",
            "ancestor got for the dead",
            "ancestor to main",
            "caller got at last"
        ]
    );
}

// SW-20, SW-23
#[test]
fn a_value_for_a_dead_greenlet_starts_its_pending_ancestor() {
    let _no_leaks = NoLeaks::watch();
    let pending = Greenlet::new(|(number, text): (i32, &str)| Ok(format!("started with {number}, {text}")));
    let dead = dead_below(&pending);
    assert_eq!(dead.switch::<String>((1, "one")).unwrap(), "started with 1, one");
    assert!(pending.is_dead());
    assert_eq!(dead.switch::<i32>(2).unwrap(), 2, "and then goes past it");
}

// SW-24
#[test]
fn a_pending_ancestor_that_cannot_start_is_reported_to_the_caller() {
    let _no_leaks = NoLeaks::watch();
    let huge = Greenlet::builder()
        .stack_size(usize::MAX)
        .build(|value: i32| Ok(value));
    let choosy = Greenlet::new(|value: i32| Ok(value + 1));
    let (below_huge, below_choosy) = (dead_below(&huge), dead_below(&choosy));
    for _ in 0..2 {
        let error = below_huge
            .switch::<i32>(5)
            .unwrap_err()
            .downcast::<StackError>()
            .unwrap();
        assert_eq!(error.into_value().unwrap().downcast::<i32>().unwrap(), 5);
        let error = below_choosy.switch::<i32>("five").unwrap_err();
        assert!(error.is::<greenlet::TypeMismatch>());
    }
    assert_eq!((huge.state(), choosy.state()), (State::Pending, State::Pending));
    assert_eq!(below_choosy.switch::<i32>(5).unwrap(), 6);
}

// SW-25
#[test]
fn a_dead_greenlet_leads_to_the_parent_it_has_now() {
    let _no_leaks = NoLeaks::watch();
    let listener = |name: &'static str| {
        let listener = Greenlet::new(move |(): ()| {
            let got: i32 = up(())?;
            Ok(format!("{name} got {got}"))
        });
        listener.switch::<()>(()).unwrap();
        listener
    };
    let (first, second) = (listener("first"), listener("second"));
    let dead = dead_below(&first);
    assert_eq!(dead.switch::<String>(1).unwrap(), "first got 1");
    dead.set_parent(&second).unwrap();
    assert_eq!(dead.switch::<String>(2).unwrap(), "second got 2");
}

// SW-26
#[test]
fn a_dead_parent_is_no_obstacle_to_a_start() {
    let _no_leaks = NoLeaks::watch();
    let dead = dead_below(&getcurrent());
    let child = Greenlet::builder().parent(&dead).build(|(): ()| {
        assert!(getparent().unwrap().is_dead());
        Ok("ran")
    });
    assert_eq!(child.switch::<&str>(()).unwrap(), "ran");
}

// SW-11
#[test]
fn a_destructor_that_runs_because_of_an_exit_may_switch() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let other = Greenlet::new(|(): ()| up::<()>("other to main"));
    let child = Greenlet::new(move |(): ()| {
        let _clean_up = on_drop(move || {
            let answer: &str = other.switch(()).unwrap();
            inside.add(format!("clean-up got {answer}"));
        });
        up::<()>(())
    });
    child.switch::<()>(()).unwrap();
    log.add(child.throw::<&str>(GreenletExit::new()).unwrap());
    assert!(child.is_active(), "in its destructor");
    let exit: GreenletExit = child.switch("answer").unwrap();
    assert_eq!(exit, GreenletExit::new());
    assert_eq!(log.take(), ["other to main", "clean-up got answer"]);
}

/// The saved resume point of a greenlet must not be used while the greenlet runs.
#[test]
fn a_greenlet_that_was_resumed_before_can_switch_to_itself() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| {
        for n in 0..3 {
            up::<()>(())?; // away, and resumed
            let me = getcurrent();
            assert_eq!(me.switch::<u32>(n)?, n);
            assert_eq!(getcurrent().switch_owned::<u32>(n + 10)?, n + 10);
            let place = raw::Place::new(getcurrent());
            assert_eq!(
                raw::switch_in::<u32>(&place, n + 20, std::panic::Location::caller())??,
                n + 20
            );
            let thrown = me.throw::<u32>(anyhow::anyhow!("at myself")).unwrap_err();
            assert_eq!(thrown.to_string(), "at myself");
            me.set_parent(&me).unwrap_err();
            me.lock_is_refused();
            me.end(); // the greenlet runs, so this does nothing
        }
        Ok(())
    });
    for _ in 0..4 {
        child.switch::<()>(()).unwrap();
        // The same for the main greenlet, which runs now.
        assert_eq!(getcurrent().switch::<u8>(1_u8).unwrap(), 1);
    }
    assert!(child.is_dead());
}

#[test]
fn a_running_greenlet_without_other_handles_cannot_be_locked() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|(): ()| {
        up::<()>(())?;
        getcurrent().lock_is_refused();
        Ok(())
    });
    child.switch::<()>(()).unwrap();
    child.switch_owned::<()>(()).unwrap();
}

trait Refused {
    fn lock_is_refused(&self);
}

impl Refused for Greenlet {
    /// A running greenlet can be neither locked nor kept suspended.
    fn lock_is_refused(&self) {
        let refused = |act: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err();
        assert!(!raw::lock_for_await(self));
        assert!(refused(&|| raw::keep_suspended(self, || ())));
    }
}

/// `suspended_at` is the place of the last switch: from two places in turn, and from a
/// `#[track_caller]` function.
#[test]
fn suspended_at_is_the_place_of_the_last_switch() {
    #[track_caller]
    #[inline(never)]
    fn pause() -> anyhow::Result<()> {
        getparent().unwrap().switch::<()>(())
    }
    let _no_leaks = NoLeaks::watch();
    let first = line!() + 3;
    let child = Greenlet::new(|(): ()| {
        loop {
            getparent().unwrap().switch::<()>(())?;
            getparent().unwrap().switch::<()>(())?;
            pause()?;
            pause()?;
            pause()?;
        }
        #[allow(unreachable_code)]
        Ok(())
    });
    let mut lines = Vec::new();
    for _ in 0..11 {
        child.switch::<()>(()).unwrap();
        lines.push(child.suspended_at().unwrap().line() - first);
    }
    assert_eq!(lines, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]);
}
