//! A matrix of tests: the state of a greenlet, times the way in which it ends, times the place
//! where its last handle is dropped. Each cell has its log, or the reason why it is impossible.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, GreenletExit, Value, WeakGreenlet, getcurrent, getparent};

use crate::support::{OnDrop, Reports, ThreadEnd, name, on_drop, reports, up};

/// The state of the greenlet when its last handle is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Pending,
    Suspended,
    Current,
    Dead,
    Main,
}

/// How its function ends: by itself, or (`Killed`) because it propagates an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Returns,
    Error,
    Exit,
    Panic,
    Killed,
}

/// Where its last handle is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// By the main greenlet, in an ordinary statement.
    Outside,
    /// By a greenlet: itself if it is current, otherwise another one.
    Inside,
    /// In a destructor that runs during a panic.
    Destructor,
    /// By the destructor of a thread-local that is destroyed after the library's own.
    ThreadEnd,
    /// The same, after `run_to_end` has ended what was suspended.
    RunToEnd,
}

const LIVES: [Life; 5] = [
    Life::Pending,
    Life::Suspended,
    Life::Current,
    Life::Dead,
    Life::Main,
];
const ENDINGS: [Ending; 5] = [
    Ending::Returns,
    Ending::Error,
    Ending::Exit,
    Ending::Panic,
    Ending::Killed,
];
const PLACES: [Place; 5] = [
    Place::Outside,
    Place::Inside,
    Place::Destructor,
    Place::ThreadEnd,
    Place::RunToEnd,
];

/// Returns why a cell is impossible.
fn reason_to_leave_out(life: Life, ending: Ending, place: Place) -> Option<&'static str> {
    match (life, ending, place) {
        (Life::Pending, Ending::Killed, _) | (Life::Main, Ending::Killed, _) => None,
        (Life::Pending, ..) => Some("its function does not run, so it cannot end by itself"),
        (Life::Main, ..) => Some("main has no function that could end"),
        (Life::Current, _, Place::Outside) => Some("while it is current nobody else runs"),
        (Life::Current, _, Place::ThreadEnd | Place::RunToEnd) => Some("a thread ends in main"),
        _ => None,
    }
}

/// Returns the expected log of a cell.
fn expected(life: Life, ending: Ending, place: Place) -> Vec<&'static str> {
    let deleter = if place == Place::Inside {
        "gets an exit, under other"
    } else {
        "gets an exit, under main"
    };
    let reported = match ending {
        Ending::Error => Some("g: error an error"),
        Ending::Panic => Some("g: panic a panic"),
        _ => None,
    };
    let outcome = match ending {
        Ending::Returns => "main gets a value",
        Ending::Error => "main gets the error an error",
        Ending::Panic => "main gets the panic a panic",
        Ending::Exit | Ending::Killed => "main gets an exit",
    };
    let end: Vec<&str> = [deleter, "local dropped"].into_iter().chain(reported).collect();
    let around = |inner: &[&'static str]| [&["drop begins"], inner, &["drop is over"]].concat();
    match (life, place) {
        (Life::Pending, Place::ThreadEnd | Place::RunToEnd) => {
            vec!["thread ends", "late: Pending", "captured dropped"]
        }
        (Life::Pending, _) => around(&["captured dropped"]),
        (Life::Suspended, Place::Outside | Place::Inside) => [vec!["starts"], around(&end)].concat(),
        // The next transfer ends it.
        (Life::Suspended, Place::Destructor) => [vec!["starts"], around(&[]), end].concat(),
        (Life::Suspended, Place::ThreadEnd) => {
            vec!["starts", "thread ends", "g: 1 left suspended", "late: Dead"]
        }
        (Life::Suspended, Place::RunToEnd) => {
            [vec!["starts", "thread ends"], end, vec!["late: Dead"]].concat()
        }
        // No handle exists when it switches away, so it is ended in the context of the target.
        (Life::Current, _) if ending == Ending::Killed => [
            vec!["starts"],
            around(&[]),
            vec![
                "gets an exit, under main",
                "local dropped",
                "main gets a farewell",
            ],
        ]
        .concat(),
        (Life::Current, _) => [vec!["starts"], around(&[]), vec!["local dropped", outcome]].concat(),
        (Life::Dead, _) => {
            let got = if ending == Ending::Killed {
                "gets an exit, under main"
            } else {
                "is resumed"
            };
            let drop = if matches!(place, Place::ThreadEnd | Place::RunToEnd) {
                vec!["thread ends", "late: Dead"]
            } else {
                around(&[])
            };
            [vec!["starts", got, "local dropped", outcome], drop].concat()
        }
        (Life::Main, Place::ThreadEnd | Place::RunToEnd) => {
            vec!["main gets an exit", "thread ends", "late: Dead"]
        }
        (Life::Main, _) => [vec!["main gets an exit"], around(&[]), vec!["main is active"]].concat(),
    }
}

#[derive(Clone)]
struct Journal(Reports);

impl Journal {
    fn add(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    fn on_drop(&self, event: &'static str) -> OnDrop {
        let journal = self.clone();
        on_drop(move || journal.add(event))
    }

    /// Drops the handle, and logs when.
    fn drop_here(&self, handle: Greenlet) {
        self.add("drop begins");
        drop(handle);
        self.add("drop is over");
    }

    /// Drops the handle while a panic unwinds.
    fn drop_in_destructor(&self, handle: Greenlet) {
        let journal = self.clone();
        let drops = on_drop(move || journal.drop_here(handle));
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _drops = drops;
            resume_unwind(Box::new(()))
        }));
        assert!(unwound.is_err());
    }

    /// Logs the result of an operation in main.
    fn outcome(&self, operation: impl FnOnce() -> Result<Value>) {
        self.add(match catch_unwind(AssertUnwindSafe(operation)) {
            Ok(Ok(value)) if value.is_exit() => String::from("main gets an exit"),
            Ok(Ok(value)) => format!("main gets {}", value.downcast::<&str>().unwrap()),
            Ok(Err(error)) if error.is::<GreenletExit>() => String::from("main gets an exit"),
            Ok(Err(error)) => format!("main gets the error {error}"),
            Err(payload) => format!("main gets the panic {}", payload.downcast_ref::<&str>().unwrap()),
        });
    }

    /// How the function of every cell ends.
    fn end(&self, ending: Ending, exit: Option<anyhow::Error>) -> Result<&'static str> {
        match ending {
            Ending::Returns => Ok("a value"),
            Ending::Error => Err(anyhow!("an error")),
            Ending::Exit => Err(GreenletExit::new().into()),
            Ending::Panic => resume_unwind(Box::new("a panic")),
            Ending::Killed => Err(exit.expect("it was killed")),
        }
    }

    /// Logs what resumed the greenlet, and returns it if it was an error.
    fn resumed(&self, got: Result<()>) -> Option<anyhow::Error> {
        let exit = got.err();
        self.add(match &exit {
            Some(exit) if exit.is::<GreenletExit>() => {
                format!("gets an exit, under {}", name(&getparent().unwrap()))
            }
            Some(error) => format!("gets {error}"),
            None => "is resumed".into(),
        });
        exit
    }
}

/// Logs the state of a greenlet when this is dropped.
struct Late(Option<(Greenlet, Journal)>);

impl Drop for Late {
    fn drop(&mut self) {
        if let Some((greenlet, journal)) = self.0.take() {
            journal.add(format!("late: {:?}", greenlet.state()));
        }
    }
}

thread_local! {
    static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
}

fn make(journal: &Journal, ending: Ending) -> Greenlet {
    let (journal, captured) = (journal.clone(), journal.on_drop("captured dropped"));
    Greenlet::builder().name("g").build(move |(): ()| {
        std::mem::forget(captured); // only a function that never runs shows the drop
        let _local = journal.on_drop("local dropped");
        journal.add("starts");
        let exit = journal.resumed(up::<()>("suspended"));
        journal.end(ending, exit)
    })
}

/// Returns a greenlet that drops its own last handle while it runs.
fn run_current(journal: &Journal, ending: Ending, place: Place) {
    let inside = journal.clone();
    let greenlet = Greenlet::builder()
        .name("g")
        .build(move |(own, starter): (Own, WeakGreenlet)| {
            let _local = inside.on_drop("local dropped");
            inside.add("starts");
            starter.upgrade().unwrap().end(); // its frames held a handle
            let own = own.take().unwrap();
            match place {
                Place::Destructor => inside.drop_in_destructor(own),
                _ => inside.drop_here(own),
            }
            let exit = (ending == Ending::Killed)
                .then(|| inside.resumed(up::<()>("a farewell")))
                .flatten();
            inside.end(ending, exit)
        });
    let own = Own::default();
    own.set(Some(greenlet.clone()));
    let starter = Greenlet::new(|(greenlet, own, weak): (Greenlet, Own, WeakGreenlet)| {
        greenlet.switch::<()>((own, weak))
    });
    journal.outcome(|| starter.switch((greenlet, own, starter.downgrade())));
}

type Own = std::rc::Rc<std::cell::Cell<Option<Greenlet>>>;

/// Runs a cell on a new thread.
fn run(life: Life, ending: Ending, place: Place) -> Vec<String> {
    let end = match place {
        Place::RunToEnd => ThreadEnd::RunToEnd,
        _ => ThreadEnd::Plain,
    };
    let journal = end.of_thread(move || {
        // Registered before the library's own thread-local, so destroyed after it, like the
        // reports.
        LATE.with(|_| ());
        let journal = Journal(reports());
        if life == Life::Current {
            run_current(&journal, ending, place);
            return journal.0;
        }
        let handle = if life == Life::Main {
            getcurrent()
        } else {
            make(&journal, ending)
        };
        match life {
            Life::Suspended | Life::Dead => assert_eq!(handle.switch::<&str>(()).unwrap(), "suspended"),
            Life::Main => journal.outcome(|| handle.kill()),
            Life::Pending | Life::Current => {}
        }
        if life == Life::Dead {
            journal.outcome(|| {
                if ending == Ending::Killed {
                    handle.kill()
                } else {
                    handle.switch(())
                }
            });
        }
        match place {
            Place::Outside => journal.drop_here(handle),
            Place::Inside => {
                let inside = journal.clone();
                let other = Greenlet::builder().name("other").build(move |handle: Greenlet| {
                    inside.drop_here(handle);
                    Ok(())
                });
                other.switch::<()>(handle).unwrap();
            }
            Place::Destructor => journal.drop_in_destructor(handle),
            Place::ThreadEnd | Place::RunToEnd => {
                LATE.with_borrow_mut(|late| late.0 = Some((handle, journal.clone())));
                journal.add("thread ends");
                return journal.0;
            }
        }
        // The next transfer runs the deferred ends.
        getcurrent().switch::<()>(()).unwrap();
        if life == Life::Main {
            journal.add(if getcurrent().is_active() {
                "main is active"
            } else {
                "main is not active"
            });
        }
        journal.0
    });
    std::mem::take(&mut *journal.unwrap().lock().unwrap())
}

// ST-5, EX-4, DE-1, TE-1
#[test]
fn every_possible_cell_of_the_matrix_has_the_expected_log() {
    let (mut shown, mut left_out) = (0, 0);
    let mut differences = Vec::new();
    for life in LIVES {
        for ending in ENDINGS {
            for place in PLACES {
                if let Some(reason) = reason_to_leave_out(life, ending, place) {
                    println!("{life:?} {ending:?} {place:?}: left out, {reason}");
                    left_out += 1;
                    continue;
                }
                let (log, expected) = (run(life, ending, place), expected(life, ending, place));
                println!("{life:?} {ending:?} {place:?}: {log:?}");
                shown += 1;
                if log != expected {
                    differences.push(format!(
                        "{life:?} {ending:?} {place:?}:\n  {log:?}\n  {expected:?}"
                    ));
                }
            }
        }
    }
    assert!(
        differences.is_empty(),
        "got, expected:\n{}",
        differences.join("\n")
    );
    assert_eq!((shown, left_out), (70, 55));
}
