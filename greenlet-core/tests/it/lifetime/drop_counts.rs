//! Everything is dropped exactly once, in every way in which a greenlet can end.

use anyhow::Result;
use greenlet::{Greenlet, GreenletExit, TypeMismatch, Value, getcurrent};

use crate::support::{Drops, ThreadEnd, Witness, catch_reports, take_reports, up};

/// How a greenlet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Returns,
    ReturnsAnError,
    Exits,
    IsKilled,
    LosesItsLastHandle,
    IsForced,
    Panics,
    ThreadEnds,
}

const WAYS: [Way; 8] = [
    Way::Returns,
    Way::ReturnsAnError,
    Way::Exits,
    Way::IsKilled,
    Way::LosesItsLastHandle,
    Way::IsForced,
    Way::Panics,
    Way::ThreadEnds,
];

/// An error that counts its drop.
struct Counted(#[expect(dead_code, reason = "its drop is what counts")] SendWitness);

/// A witness in an error. The tests never send it to another thread.
struct SendWitness(std::sync::Mutex<Option<std::sync::mpsc::Sender<()>>>);

impl Drop for SendWitness {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap()
            .take()
            .expect("dropped twice")
            .send(())
            .unwrap();
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counted")
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("counted")
    }
}

impl std::error::Error for Counted {}

/// Counts drops of values that must be `Send`: errors and panic payloads.
struct SentDrops(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);

impl SentDrops {
    fn new() -> SentDrops {
        let (sender, receiver) = std::sync::mpsc::channel();
        SentDrops(sender, receiver)
    }

    fn error(&self) -> Counted {
        Counted(SendWitness(std::sync::Mutex::new(Some(self.0.clone()))))
    }

    /// Returns the number of drops since the last call.
    fn take(&self) -> usize {
        self.1.try_iter().count()
    }
}

/// The witnesses of one greenlet: a capture, the argument, a local variable, a value that was sent
/// to it.
struct Case {
    captured: Drops,
    argument: Drops,
    local: Drops,
    sent: Drops,
    outcome: Drops,
    raised: SentDrops,
}

impl Case {
    fn new() -> Case {
        let drops = Drops::new;
        Case {
            captured: drops(),
            argument: drops(),
            local: drops(),
            sent: drops(),
            outcome: drops(),
            raised: SentDrops::new(),
        }
    }

    /// Returns a greenlet that holds all of them and is suspended before its end.
    fn make(&self, way: Way) -> Greenlet {
        let (captured, local, outcome) = (
            self.captured.witness(),
            self.local.witness(),
            self.outcome.witness(),
        );
        let raised = self.raised.error();
        let greenlet = Greenlet::new(move |_argument: Witness| {
            let _captured = &captured;
            let _local = local;
            let _sent = up::<Witness>(())?;
            let first = up::<()>(());
            match way {
                Way::Returns => Ok(outcome),
                Way::ReturnsAnError => Err(raised.into()),
                Way::Exits => Err(GreenletExit::new().into()),
                Way::Panics => std::panic::resume_unwind(Box::new(raised)),
                Way::IsForced => loop {
                    let _ = up::<()>(());
                },
                Way::IsKilled | Way::LosesItsLastHandle | Way::ThreadEnds => {
                    first?;
                    unreachable!("an exit was thrown")
                }
            }
        });
        greenlet.switch::<()>(self.argument.witness()).unwrap();
        greenlet.switch::<()>(self.sent.witness()).unwrap();
        greenlet
    }

    fn on_its_stack(&self) -> [usize; 4] {
        [&self.captured, &self.argument, &self.local, &self.sent].map(Drops::count)
    }
}

// DE-29, LK-1, LK-5
#[test]
fn each_way_to_end_drops_everything_once() {
    for way in WAYS {
        {
            catch_reports();
            let case = Case::new();
            let greenlet = case.make(way);
            assert_eq!(case.on_its_stack(), [0; 4], "{way:?}");
            assert_eq!((case.outcome.count(), case.raised.take()), (0, 0));
            match way {
                Way::Returns => {
                    let outcome: Witness = greenlet.switch(()).unwrap();
                    assert_eq!((case.on_its_stack(), case.outcome.count()), ([1; 4], 0));
                    drop(outcome);
                }
                Way::ReturnsAnError => {
                    let error = greenlet.switch::<()>(()).unwrap_err();
                    assert_eq!((case.on_its_stack(), case.raised.take()), ([1; 4], 0));
                    drop(error);
                    assert_eq!(case.raised.take(), 1);
                }
                Way::Panics => {
                    let switch = std::panic::AssertUnwindSafe(|| greenlet.switch::<()>(()));
                    let payload = std::panic::catch_unwind(switch).unwrap_err();
                    assert_eq!((case.on_its_stack(), case.raised.take()), ([1; 4], 0));
                    drop(payload);
                    assert_eq!(case.raised.take(), 1);
                }
                Way::Exits => assert!(greenlet.switch::<Value>(()).unwrap().is_exit()),
                Way::IsKilled => assert!(greenlet.kill().unwrap().is_exit()),
                Way::LosesItsLastHandle | Way::IsForced => drop(greenlet),
                Way::ThreadEnds => greenlet::end_suspended().unwrap(),
            }
            assert_eq!(case.on_its_stack(), [1; 4], "{way:?}");
            assert_eq!(
                case.outcome.count(),
                1,
                "{way:?}: taken, or dropped with the function"
            );
            let left = usize::from(!matches!(way, Way::ReturnsAnError | Way::Panics));
            assert_eq!(case.raised.take(), left, "{way:?}: dropped with the function");
            assert_eq!(take_reports(), [""; 0], "{way:?}");
        }
    }
}

// TE-2: the end of a thread drops nothing of its suspended greenlets. `run_to_end` drops everything
// once.
#[test]
fn a_thread_end_drops_nothing_and_run_to_end_drops_everything_once() {
    for (end, expected) in [(ThreadEnd::Plain, 0), (ThreadEnd::RunToEnd, 2)] {
        let raised = SentDrops::new();
        let (first, second) = (raised.error(), raised.error());
        end.of_thread(move || {
            let greenlet = Greenlet::new(move |argument: Counted| {
                let _both = (argument, first);
                up::<()>(())
            });
            greenlet.switch::<()>(second).unwrap();
            std::mem::forget(greenlet);
        })
        .unwrap();
        assert_eq!(raised.take(), expected, "{end:?}");
    }
}

#[test]
fn a_pending_greenlet_drops_its_function_once() {
    let ends: [fn(Greenlet); 4] = [
        drop,
        |greenlet| assert!(greenlet.kill().unwrap().is_exit()),
        |greenlet| assert!(greenlet.throw::<()>(anyhow::anyhow!("x")).is_err()),
        |greenlet| greenlet.end(),
    ];
    for end in ends {
        let drops = Drops::new();
        let witness = drops.witness();
        let greenlet = Greenlet::new(move |(): ()| -> Result<()> {
            let _witness = witness;
            unreachable!("it never runs")
        });
        assert_eq!(drops.count(), 0);
        end(greenlet);
        assert_eq!(drops.count(), 1);
    }
}

// DE-5, DE-19
#[test]
fn values_and_errors_that_nobody_takes_are_dropped_once() {
    // The value that an ending greenlet returns.
    let drops = Drops::new();
    let witness = drops.witness();
    let greenlet = Greenlet::new(move |(): ()| {
        let _ = up::<()>(());
        Ok(witness)
    });
    greenlet.switch::<()>(()).unwrap();
    drop(greenlet);
    assert_eq!(drops.count(), 1);

    // The error that it ends with, and its panic. Both are dropped with the report.
    catch_reports();
    let raised = SentDrops::new();
    for panics in [false, true] {
        let error = raised.error();
        let greenlet = Greenlet::new(move |(): ()| -> Result<()> {
            let _ = up::<()>(());
            if panics {
                std::panic::resume_unwind(Box::new(error))
            } else {
                Err(error.into())
            }
        });
        greenlet.switch::<()>(()).unwrap();
        drop(greenlet);
        assert_eq!(raised.take(), 1);
    }
    assert_eq!(take_reports().len(), 2);

    // An error thrown at a pending greenlet goes to its parent. An error thrown at a dead one comes
    // back.
    let greenlet = Greenlet::new(|(): ()| Ok(()));
    for _ in 0..2 {
        let error = greenlet.throw::<()>(raised.error()).unwrap_err();
        assert_eq!(raised.take(), 0);
        drop(error);
        assert_eq!(raised.take(), 1);
    }

    // A value of a type that the receiver does not take is dropped with the error.
    let takes_text = Greenlet::new(|_: &'static str| Ok(()));
    let drops = Drops::new();
    let error = takes_text.switch::<()>(drops.witness()).unwrap_err();
    assert_eq!(drops.count(), 0);
    drop(error.downcast::<TypeMismatch>().unwrap().into_value());
    assert_eq!(drops.count(), 1);
    drop(takes_text.switch::<()>(drops.witness()));
    assert_eq!(drops.count(), 2);

    // A value inside a `Value`: taken by its type, taken as a `Value`, and not taken at all.
    let echo = || Greenlet::new(|value: Value| Ok(value));
    drop(echo().switch::<Witness>(drops.witness()).unwrap());
    drop(echo().switch::<Value>(Value::new(drops.witness())).unwrap());
    drop(echo().switch::<u8>(drops.witness()).unwrap_err());
    assert_eq!(drops.count(), 5);
}

// DE-23, LK-2: a chain of parents of any length is dropped in a loop, even pending and dead ones.
#[test]
fn each_pending_greenlet_of_a_long_chain_is_dropped_once() {
    const COUNT: usize = 100_000;
    let drop_chain = || {
        for finishes in [false, true] {
            let drops = Drops::new();
            let mut last = getcurrent();
            for _ in 0..COUNT {
                let witness = drops.witness();
                let next = Greenlet::builder().parent(&last).build(move |(): ()| {
                    drop(witness);
                    Ok(())
                });
                if finishes {
                    next.end();
                }
                last = next;
            }
            assert_eq!(drops.count(), if finishes { COUNT } else { 0 });
            drop(last);
            assert_eq!(drops.count(), COUNT);
        }
    };
    // Less than three bytes of stack for each greenlet: recursion would overflow it.
    let small = std::thread::Builder::new().stack_size(256 << 10);
    small.spawn(drop_chain).unwrap().join().unwrap();
}

// DE-21, DE-24: a chain in which each suspended greenlet holds the next on its own stack.
#[test]
fn each_suspended_greenlet_of_a_chain_is_dropped_once() {
    let drops = Drops::new();
    let mut held: Option<Greenlet> = None;
    for _ in 0..500 {
        let (witness, holds) = (drops.witness(), held.take());
        let next = Greenlet::new(move |(): ()| {
            let _both = (witness, holds);
            up::<()>(())
        });
        next.switch::<()>(()).unwrap();
        held = Some(next);
    }
    assert_eq!(drops.count(), 0);
    drop(held);
    assert_eq!(drops.count(), 500);
}
