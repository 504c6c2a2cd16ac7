//! The greenlet that steps a generator, and switches inside the function.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::anyhow;

use super::{all, count, is_kind, named, note};
use crate::support::{Log, NoLeaks, name, up};
use greenlet::{
    Generator, GeneratorError, Greenlet, GreenletExit, LocalKey, State, Tracer, TypeMismatch, getcurrent,
    getparent, settrace,
};

// GN-2
#[test]
fn the_function_runs_in_the_greenlet_that_steps_it() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let shared = Rc::new(Generator::new(move |out| {
        for n in 0..5_u32 {
            let parent = getparent().map_or("none".into(), |parent| name(&parent));
            seen.add(format!("{n} in {} below {parent}", name(&getcurrent())));
            out.yield_(n)?;
        }
        Ok(())
    }));
    let consumer = |name: &str| {
        let shared = shared.clone();
        named(name, move |()| {
            loop {
                up::<()>(shared.resume(()).transpose()?)?;
            }
            #[expect(unreachable_code, reason = "it sets the return type")]
            Ok(())
        })
    };
    let (a, b) = (consumer("a"), consumer("b"));
    let step = |greenlet: &Greenlet| greenlet.switch::<Option<u32>>(()).unwrap();
    assert_eq!(shared.resume(()).unwrap().unwrap(), 0);
    assert_eq!([step(&a), step(&b), step(&a)], [Some(1), Some(2), Some(3)]);
    a.end();
    assert_eq!(
        shared.resume(()).unwrap().unwrap(),
        4,
        "suspended by a greenlet that is dead"
    );
    assert_eq!(step(&b), None, "the end goes to the greenlet that asked");
    assert_eq!(
        log.take(),
        [
            "0 in main below none",
            "1 in a below main",
            "2 in b below main",
            "3 in a below main",
            "4 in main below none"
        ]
    );
}

// GN-2
#[test]
fn greenlet_locals_are_those_of_the_consumer() {
    static DEPTH: LocalKey<u32> = LocalKey::new(|| 0);
    let mut generator = Generator::<u32>::new(|out| {
        loop {
            out.yield_(DEPTH.get())?;
        }
    });
    assert_eq!(generator.next().unwrap().unwrap(), 0);
    let inside = Greenlet::new(move |(): ()| {
        DEPTH.set(5);
        let item = generator.next().unwrap()?;
        Ok((generator, item))
    });
    let (mut generator, item) = inside.switch::<(Generator<u32>, u32)>(()).unwrap();
    assert_eq!((item, generator.next().unwrap().unwrap()), (5, 0));
}

// GN-2
#[test]
fn the_tracer_sees_no_steps() {
    let switches = Rc::new(Cell::new(0));
    let counted = switches.clone();
    let before = settrace(Some(Tracer::new(move |_| {
        counted.set(counted.get() + 1);
        Ok(())
    })));
    let items = all(count(3));
    settrace(before);
    assert_eq!((items, switches.get()), (vec![1, 2, 3], 0));
}

// GN-11
#[test]
fn a_function_may_switch_elsewhere_while_the_consumer_waits() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let other = Greenlet::new(move |mut back: Greenlet| {
        loop {
            seen.add(format!("for {}", name(&back)));
            back = back.switch::<Greenlet>(())?;
        }
        #[expect(unreachable_code, reason = "it sets the return type")]
        Ok(())
    });
    let asked = other.clone();
    let generator = Generator::new(move |out| {
        for n in 0..2 {
            asked.switch::<()>(getcurrent())?;
            out.yield_(n)?;
        }
        Ok(())
    });
    for n in generator {
        log.add(n.unwrap().to_string());
    }
    assert_eq!(log.take(), ["for main", "0", "for main", "1"]);
}

// GN-11
#[test]
fn a_value_sent_to_the_consumer_resumes_the_switch_inside_the_function() {
    let _no_leaks = NoLeaks::watch();
    let shared = Rc::new(Generator::new(|out| {
        let got: u32 = up("from the function")?;
        out.yield_(got)?;
        out.yield_(got + 1)
    }));
    let stepped = shared.clone();
    let a = named("a", move |()| stepped.resume(()).unwrap());
    assert_eq!(a.switch::<&str>(()).unwrap(), "from the function");
    for refused in [
        shared.resume(()).unwrap().map(drop),
        shared.throw(anyhow!("early")).unwrap().map(drop),
        shared.close(),
    ] {
        let error = refused.unwrap_err();
        assert!(is_kind(&error, GeneratorError::is_busy));
        assert!(error.to_string().starts_with("generator already executing"));
    }
    assert!(!shared.is_finished());
    assert_eq!(
        a.switch::<u32>(7_u32).unwrap(),
        7,
        "what the greenlet returns is the item"
    );
    assert!(a.is_dead());
    assert_eq!(
        shared.resume(()).unwrap().unwrap(),
        8,
        "suspended by a greenlet that is dead"
    );
    assert!(shared.resume(()).is_none());
}

/// Returns a greenlet that steps a generator whose function switches away; a stubborn function does
/// so again and again.
fn suspended_in_a_function(log: &Log, is_stubborn: bool) -> Greenlet {
    let (own, inner) = (log.clone(), log.clone());
    let greenlet = named("a", move |()| {
        let _own = note(&own, "consumer");
        let mut generator = Generator::<u32>::new(move |_| {
            let _inner = note(&inner, "function");
            loop {
                let got = up::<()>(());
                if !is_stubborn {
                    got?;
                }
            }
        });
        generator.next().unwrap().map(drop)
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

// GN-11, GN-9
#[test]
fn ending_the_consumer_unwinds_the_function_first() {
    for is_stubborn in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let log = Log::new();
        let greenlet = suspended_in_a_function(&log, is_stubborn);
        drop(greenlet);
        assert_eq!(log.take(), ["function in a", "consumer in a"], "{is_stubborn}");
        let greenlet = suspended_in_a_function(&log, is_stubborn);
        greenlet.end();
        assert!(greenlet.is_dead());
        assert_eq!(log.take(), ["function in a", "consumer in a"], "{is_stubborn}");
    }
}

// GN-11, GN-9
#[test]
fn an_error_thrown_at_the_consumer_propagates_through_the_function() {
    let log = Log::new();
    let greenlet = suspended_in_a_function(&log, false);
    let error = greenlet.throw::<()>(anyhow!("thrown")).unwrap_err();
    assert_eq!(error.to_string(), "thrown");
    let greenlet = suspended_in_a_function(&log, false);
    let exit = greenlet
        .throw::<GreenletExit>(GreenletExit::with_reason("why"))
        .unwrap();
    assert_eq!(exit.reason(), Some("why"));
    assert!(greenlet.is_dead());
    assert_eq!(
        log.take(),
        ["function in a", "consumer in a", "function in a", "consumer in a"]
    );
}

// GN-11
#[test]
fn a_generator_can_outlive_its_consumer() {
    let _no_leaks = NoLeaks::watch();
    let mut generator = count(3);
    let a = Greenlet::new(move |(): ()| {
        generator.next().unwrap()?;
        Ok(generator)
    });
    let generator = a.switch::<Generator<u32>>(()).unwrap();
    assert!(a.is_dead());
    assert_eq!(all(generator), [2, 3]);
}

// GN-11
#[test]
fn a_greenlet_created_in_the_function_is_a_child_of_the_consumer() {
    let _no_leaks = NoLeaks::watch();
    let mut generator = Generator::new(|out| {
        let child = named("child", |()| Ok(name(&getparent().unwrap())));
        out.yield_(child.switch::<String>(())?)?;
        out.yield_("made".into())?;
        drop(child);
        Ok(())
    });
    assert_eq!(generator.next().unwrap().unwrap(), "main");
    let inside = named("a", move |()| Ok(all(generator)));
    assert_eq!(inside.switch::<Vec<String>>(()).unwrap(), ["made"]);
}

/// Code that reads the state of a greenlet works while the greenlet is suspended inside a
/// generator.
#[test]
fn a_greenlet_suspended_inside_a_generator_looks_suspended() {
    let greenlet = Greenlet::new(|(): ()| {
        let generator = Generator::new(|out| {
            up::<()>(())?;
            out.yield_(1)
        });
        generator.resume(()).unwrap()
    });
    greenlet.switch::<()>(()).unwrap();
    assert_eq!(greenlet.state(), State::Active);
    assert!(!greenlet.is_current());
    assert_eq!(greenlet.suspended_at().unwrap().file(), file!());
    let error = greenlet.switch::<String>(()).unwrap_err();
    assert!(error.is::<TypeMismatch>(), "{error}");
}
