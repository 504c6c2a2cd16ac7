//! Dumps show the frames of the program, and not those of the library.

use std::future::pending;
use std::hint::black_box;

use greenlet::{
    Generator, Greenlet, await_, await_nested, dump, getparent, greenlet_spawn, scope, try_await_,
};

use crate::bridge::poll;

/// Checks a dump: it names each of the `functions`, and no frame is the library's or the runtime's.
#[track_caller]
fn assert_shows_only(text: &str, functions: &[&str]) {
    for function in functions {
        assert!(text.contains(function), "{function} is missing in\n{text}");
    }
    for line in text.lines() {
        let Some((number, function)) = line.trim_start().split_once(": ") else {
            continue;
        };
        let is_frame = number.parse::<u32>().is_ok();
        let ours = [
            "greenlet_core::",
            "greenlet::",
            "<greenlet",
            "std::panic",
            "__rust_try",
        ];
        assert!(
            !is_frame || !ours.iter().any(|name| function.starts_with(name)),
            "{line} in\n{text}"
        );
    }
}

#[inline(never)]
fn waits_in_the_bridge() {
    await_(pending::<()>());
    black_box(());
}

#[inline(never)]
fn waits_and_returns_an_error() {
    let waited = try_await_(pending::<()>());
    assert!(black_box(waited).is_err());
}

#[inline(never)]
fn waits_in_a_nested_future() {
    await_nested(async { waits_in_the_bridge() });
    black_box(());
}

#[inline(never)]
fn waits_for_its_parent() {
    let back = getparent().unwrap().switch::<()>(());
    assert!(black_box(back).is_err());
}

#[inline(never)]
fn waits_in_a_scope() {
    let held = [1];
    scope(|s| {
        let child = s.greenlet(|(): ()| {
            assert_eq!(held.len(), 1);
            waits_in_the_bridge();
            Ok(())
        });
        child.switch::<()>(())
    })
    .ok();
}

#[inline(never)]
fn waits_in_a_generator() {
    let mut numbers = Generator::new(|out| {
        waits_in_the_bridge();
        out.yield_(1)
    });
    black_box(numbers.next());
}

#[test]
fn a_dump_leaves_out_the_frames_of_the_library() {
    type Case = (fn(), &'static [&'static str]);
    let functions: [Case; 5] = [
        (waits_in_the_bridge, &["waits_in_the_bridge"]),
        (waits_and_returns_an_error, &["waits_and_returns_an_error"]),
        (
            waits_in_a_nested_future,
            &["waits_in_the_bridge", "waits_in_a_nested_future"],
        ),
        (waits_in_a_scope, &["waits_in_the_bridge", "waits_in_a_scope"]),
        // With the `context` crate, a backtrace ends at the first frame of a generator.
        (
            waits_in_a_generator,
            match greenlet::BACKEND {
                "asm" => &["waits_in_the_bridge", "waits_in_a_generator"],
                _ => &["waits_in_the_bridge"],
            },
        ),
    ];
    for (function, names) in functions {
        let mut spawned = greenlet_spawn(function);
        assert!(poll(&mut spawned).is_pending());
        assert_shows_only(&dump().to_string(), names);
    }
    let child = Greenlet::new(|(): ()| {
        waits_for_its_parent();
        Ok(())
    });
    child.switch::<()>(()).unwrap();
    assert_shows_only(&dump().to_string(), &["waits_for_its_parent"]);
}
