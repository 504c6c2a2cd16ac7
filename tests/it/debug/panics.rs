//! The messages of panics name the greenlet. Each test runs itself again as a child process, because
//! the panic hook belongs to the process.

use std::cell::RefCell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use anyhow::Result;
use greenlet::{
    Generator, Greenlet, Yielder, await_, describe_current, end_suspended, getparent, greenlet_spawn,
    install_panic_hook, set_unraisable_hook,
};

const CHILD: &str = "GREENLET_TEST_PANICS";

/// Runs `scenario` in a child process, which runs the test of this name. Returns what the child wrote
/// to standard error, and `None` in the child.
fn errors_of_child(test: &str, backtrace: &str, scenario: impl FnOnce()) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        scenario();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("debug::panics::{test}")])
        .args(["--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .env("RUST_BACKTRACE", backtrace)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    Some(errors)
}

/// Calls `f`, which panics.
fn caught<T>(f: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(f)).is_err());
}

/// Returns the lines that follow each message, up to the next one.
fn places(errors: &str) -> Vec<String> {
    let lines = errors.lines().filter(|line| line.starts_with("in "));
    // Without the columns.
    lines
        .map(|line| {
            let mut parts = Vec::new();
            for part in line.split(", ") {
                parts.push(part.rsplit_once(':').map_or(part, |(place, _)| place));
            }
            parts.join(", ")
        })
        .collect()
}

#[test]
fn a_panic_names_the_greenlet_and_where_it_was_created() {
    let test = "a_panic_names_the_greenlet_and_where_it_was_created";
    let line = line!();
    let errors = errors_of_child(test, "0", || {
        install_panic_hook();
        install_panic_hook(); // does nothing
        let named = Greenlet::builder()
            .name("worker")
            .build(|(): ()| -> Result<()> { panic!("first") });
        caught(|| named.switch::<()>(()));
        let unnamed = Greenlet::new(|(): ()| -> Result<()> { panic!("second") });
        caught(|| unnamed.switch::<()>(()));
        // The parent is named, if it panics.
        let parent = Greenlet::new(|(): ()| -> Result<()> {
            let named = Greenlet::builder().name("child").build(|(): ()| Ok(()));
            named.switch::<()>(())?;
            panic!("third")
        });
        caught(|| parent.switch::<()>(()));
    });
    let Some(errors) = errors else { return };
    let file = file!();
    assert_eq!(
        places(&errors),
        [
            format!("in greenlet 'worker' created at {file}:{}", line + 6),
            format!("in greenlet 2 created at {file}:{}", line + 8),
            format!("in greenlet 3 created at {file}:{}", line + 11),
        ],
        "{errors}"
    );
    // Each line follows its message.
    let order = ["first", "'worker'", "second", "greenlet 2", "third", "greenlet 3"];
    let found: Vec<usize> = order.iter().map(|text| errors.find(text).unwrap()).collect();
    assert!(found.is_sorted(), "{errors}");
}

#[test]
fn a_panic_in_a_generator_names_it_and_its_consumers() {
    let test = "a_panic_in_a_generator_names_it_and_its_consumers";
    let line = line!();
    let errors = errors_of_child(test, "0", || {
        install_panic_hook();
        let mut alone = Generator::<u32>::new(|_| panic!("of main"));
        caught(|| alone.next());
        let consumer = Greenlet::builder().name("consumer").build(|(): ()| {
            let mut outer = Generator::<u32>::new(|_| {
                let builder = Generator::builder().name("inner");
                let mut inner = builder.build(|_: Yielder<u32>| -> Result<()> { panic!("inside") });
                inner.next();
                Ok(())
            });
            outer.next();
            Ok(())
        });
        caught(|| consumer.switch::<()>(()));
    });
    let Some(errors) = errors else { return };
    let file = file!();
    let inner = format!("generator 'inner' created at {file}:{}", line + 8);
    let outer = format!("generator created at {file}:{}", line + 6);
    let consumer = format!("greenlet 'consumer' created at {file}:{}", line + 5);
    assert_eq!(
        places(&errors),
        [
            format!("in generator created at {file}:{}", line + 3),
            format!("in {inner}, in {outer}, in {consumer}"),
        ],
        "{errors}"
    );
}

#[test]
fn a_panic_of_a_spawned_function_names_the_place_of_the_spawn() {
    let test = "a_panic_of_a_spawned_function_names_the_place_of_the_spawn";
    let line = line!();
    let errors = errors_of_child(test, "0", || {
        install_panic_hook();
        let spawned = greenlet_spawn(|| -> u32 {
            await_(std::future::ready(()));
            panic!("spawned")
        });
        caught(|| futures::executor::block_on(spawned));
        // A future is polled by the driver, outside of the greenlet.
        let spawned = greenlet_spawn(|| await_(async { panic!("by a future") }));
        caught(|| futures::executor::block_on(spawned));
    });
    let Some(errors) = errors else { return };
    let expected = format!("in greenlet 1 created at {}:{}", file!(), line + 3);
    assert_eq!(places(&errors), [expected], "{errors}");
}

#[test]
fn panics_outside_of_greenlets_have_no_further_line() {
    let test = "panics_outside_of_greenlets_have_no_further_line";
    let errors = errors_of_child(test, "0", || {
        install_panic_hook();
        caught(|| panic!("before the first greenlet"));
        assert_eq!(describe_current(), None);
        Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
        caught(|| panic!("of main"));
        std::thread::spawn(|| panic!("of a thread without greenlets"))
            .join()
            .unwrap_err();
    });
    let Some(errors) = errors else { return };
    assert_eq!(errors.matches("panicked at").count(), 3, "{errors}");
    assert_eq!(places(&errors), [""; 0], "{errors}");
}

#[test]
fn the_hook_calls_the_previous_one_and_is_called_by_a_later_one() {
    let test = "the_hook_calls_the_previous_one_and_is_called_by_a_later_one";
    let errors = errors_of_child(test, "0", || {
        std::panic::set_hook(Box::new(|_| eprintln!("previous hook")));
        install_panic_hook();
        let ours = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            eprintln!("later hook");
            ours(info);
        }));
        let panics = Greenlet::new(|(): ()| -> Result<()> { panic!("unseen") });
        caught(|| panics.switch::<()>(()));
        // Forced unwinding is no panic.
        let stubborn = Greenlet::new(|(): ()| {
            let _exit = getparent().unwrap().switch::<()>(());
            getparent().unwrap().switch::<()>(())
        });
        stubborn.switch::<()>(()).unwrap();
        drop(stubborn);
        drop(std::panic::take_hook());
    });
    let Some(errors) = errors else { return };
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 3, "{errors}");
    assert_eq!(lines[..2], ["later hook", "previous hook"], "{errors}");
    assert!(lines[2].starts_with("in greenlet 1 created at"), "{errors}");
}

#[test]
fn a_panic_at_the_end_of_a_thread_is_described_without_a_new_one() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            caught(|| panic!("late"));
        }
    }
    thread_local! {
        static BEFORE: RefCell<Option<Panics>> = const { RefCell::new(None) };
    }
    let test = "a_panic_at_the_end_of_a_thread_is_described_without_a_new_one";
    let errors = errors_of_child(test, "0", || {
        install_panic_hook();
        let thread = std::thread::spawn(|| {
            BEFORE.set(Some(Panics)); // destroyed after the library's own
            Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
        });
        thread.join().unwrap();
    });
    let Some(errors) = errors else { return };
    assert_eq!(errors.matches("late").count(), 1, "{errors}");
    assert_eq!(places(&errors), [""; 0], "{errors}");
}

#[test]
fn the_report_of_a_panic_during_an_end_names_the_greenlet_and_the_message() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("in clean-up");
        }
    }
    let test = "the_report_of_a_panic_during_an_end_names_the_greenlet_and_the_message";
    let line = line!();
    let errors = errors_of_child(test, "0", || {
        set_unraisable_hook(|report| eprintln!("in report: {report}"));
        let worker = Greenlet::builder().name("worker").build(|(): ()| {
            let _panics = Panics;
            getparent().unwrap().switch::<()>(())
        });
        worker.switch::<()>(()).unwrap();
        end_suspended().unwrap();
    });
    let Some(errors) = errors else { return };
    let place = format!("greenlet 'worker' created at {}:{}", file!(), line + 3);
    assert!(errors.contains(&place), "{errors}");
    assert!(
        errors.contains("was ended, and a panic was ignored: in clean-up\n"),
        "{errors}"
    );
}

#[test]
fn the_backtrace_of_a_panic_reaches_the_function_that_started_the_greenlet() {
    #[inline(never)]
    fn panics_inside() -> Result<()> {
        panic!("{}", black_box("deep"))
    }
    #[inline(never)]
    fn starts_it() -> Result<()> {
        black_box(Greenlet::new(|(): ()| black_box(panics_inside())).switch(()))
    }
    let test = "the_backtrace_of_a_panic_reaches_the_function_that_started_the_greenlet";
    let errors = errors_of_child(test, "1", || caught(starts_it));
    let Some(errors) = errors else { return };
    let line_of = |name: &str| errors.lines().position(|line| line.ends_with(name));
    let inside = line_of("::panics_inside");
    assert!(inside.is_some(), "{errors}");
    if greenlet::BACKEND == "asm" && !cfg!(feature = "valgrind") {
        assert!(inside < line_of("::starts_it"), "{errors}");
    } else {
        assert_eq!(line_of("::starts_it"), None, "{errors}");
    }
}
