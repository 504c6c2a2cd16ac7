//! Two mistakes abort the process: a scope whose greenlets cannot be ended, and an await in a
//! destructor that cannot return. Each case runs in a child process.

use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{Command, Output};
use std::task::{Context, Waker};

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getparent, scope};

const CASE: &str = "GREENLET_TEST_CASE";
const CANNOT_RETURN: &str = "a scope cannot return";

/// Runs the test of this name again, alone, in a child process, which then runs `case`.
fn in_child(test: &str, case: fn()) -> Option<Output> {
    if std::env::var_os(CASE).is_some() {
        case();
        println!("the case has returned");
        return None;
    }
    let this = std::env::current_exe().unwrap();
    let child = Command::new(this)
        .args(["--exact", test, "--nocapture"])
        .env(CASE, test)
        .output();
    Some(child.unwrap())
}

fn assert_aborts(output: Option<Output>, messages: [&str; 2]) {
    let Some(output) = output else { return };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{stderr}");
    for message in messages {
        assert!(stderr.contains(message), "{stderr}");
    }
    assert!(!String::from_utf8_lossy(&output.stdout).contains("has returned"));
}

/// Switches to main for ever, and catches every unwinding.
fn swallow() -> Result<()> {
    loop {
        let main = getparent().unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| main.switch::<()>(())));
    }
}

#[test]
fn a_scope_aborts_if_a_greenlet_stops_its_own_end() {
    let output = in_child("a_scope_aborts_if_a_greenlet_stops_its_own_end", || {
        let text = String::from("borrowed");
        scope(|s| {
            let child = s.greenlet(|(): ()| {
                let _borrowed = &text;
                swallow()
            });
            child.switch::<()>(()).unwrap();
            mem::forget(child);
        });
    });
    assert_aborts(output, [CANNOT_RETURN, "could not be ended"]);
}

#[test]
fn a_scope_aborts_if_a_greenlet_has_stopped_its_end_before() {
    let output = in_child("a_scope_aborts_if_a_greenlet_has_stopped_its_end_before", || {
        let text = String::from("borrowed");
        scope(|s| {
            let child = s.greenlet(|(): ()| {
                let _borrowed = &text;
                swallow()
            });
            child.switch::<()>(()).unwrap();
            drop(child); // reported and leaked
        });
    });
    assert_aborts(output, [CANNOT_RETURN, "could not be ended"]);
}

struct SwitchesAway(Greenlet);

impl Drop for SwitchesAway {
    fn drop(&mut self) {
        let _ = self.0.switch::<()>(());
    }
}

/// The greenlet is dead, but an interrupted drop of its captures is still running.
fn end_and_switch_away(end: fn(Greenlet)) {
    let text = String::from("borrowed");
    let main = getcurrent();
    scope(|s| {
        let first = SwitchesAway(main.clone());
        let borrowed = &text;
        let pending = s.greenlet(move |(): ()| {
            let _first = first;
            let _second = borrowed;
            Ok(())
        });
        let ender = Greenlet::new(move |pending: Greenlet| {
            end(pending);
            Ok(())
        });
        ender.switch::<()>(pending).unwrap();
        mem::forget(ender);
    });
}

#[test]
fn a_scope_aborts_while_an_ender_that_switched_away_drops_captures() {
    let test = "a_scope_aborts_while_an_ender_that_switched_away_drops_captures";
    let output = in_child(test, || end_and_switch_away(|pending| pending.end()));
    assert_aborts(output, [CANNOT_RETURN, "captures are being dropped"]);
}

#[test]
fn a_scope_aborts_while_a_last_handle_drops_captures_and_has_switched_away() {
    let test = "a_scope_aborts_while_a_last_handle_drops_captures_and_has_switched_away";
    let output = in_child(test, || end_and_switch_away(drop));
    assert_aborts(output, [CANNOT_RETURN, "captures are being dropped"]);
}

// While the drop of the spawn unwinds the function, the await in the destructor can neither wait
// nor return an error.
#[test]
fn an_await_in_a_destructor_that_cannot_return_prints_a_message_and_aborts() {
    struct Rollback;
    impl Drop for Rollback {
        fn drop(&mut self) {
            greenlet::await_(async {});
        }
    }
    let test = "an_await_in_a_destructor_that_cannot_return_prints_a_message_and_aborts";
    let output = in_child(test, || {
        let mut spawned = greenlet::greenlet_spawn(|| {
            let _rollback = Rollback;
            greenlet::await_(std::future::pending::<()>());
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut spawned).poll(&mut cx).is_pending());
        drop(spawned);
    });
    assert_aborts(output, ["only `try_await_` can return that", "tests/aborts.rs"]);
}
