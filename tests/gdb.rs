//! The gdb script is in the program. It lists greenlets and their backtraces, in a stopped process
//! and in a core file.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use greenlet::{Generator, Greenlet, getparent, raw};

const CHILD: &str = "GREENLET_TEST_GDB_CHILD";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/greenlet-gdb.py");
const TEST: &str = "gdb_shows_the_greenlets_of_a_process_and_of_a_core_file";

/// Runs gdb with commands, and returns its output.
fn gdb(arguments: &[&str], commands: &[&str]) -> String {
    let mut command = Command::new("gdb");
    command.args(["-q", "-nx", "-batch", "-ex", "set debuginfod enabled off"]);
    command.args(["-iex", "set auto-load safe-path /"]);
    command.args(["-ex", "set width 0"]);
    for line in commands {
        command.args(["-ex", line]);
    }
    // gcore cannot read a mapping that has guard pages of the newer kind in it.
    command.env("GREENLET_GUARD", "mprotect");
    let output = command
        .env(CHILD, "1")
        .args(arguments)
        .output()
        .expect("gdb can be run");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
#[cfg_attr(
    not(debug_assertions),
    ignore = "without debug information there is nothing to see"
)]
fn gdb_shows_the_greenlets_of_a_process_and_of_a_core_file() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    if Command::new("gdb").arg("--version").output().is_err() {
        eprintln!("SKIPPED: gdb is not installed");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let core = format!("{}/greenlet-gdb-test.core", env!("CARGO_TARGET_TMPDIR"));
    let load = format!("source {SCRIPT}");
    let save = format!("gcore {core}");
    let look = [
        "greenlets",
        "greenlet-bt",
        "greenlet-select 2",
        "bt",
        "greenlet-select none",
        "greenlet-bt 99",
    ];

    let run = [
        "--args",
        program,
        "--exact",
        TEST,
        "--nocapture",
        "--test-threads=1",
    ];
    // The script is in the program.
    let living = gdb(&run, &[&["run"], &look[..], &[&save, "kill"]].concat());
    check(&living);
    assert!(Path::new(&core).exists(), "{living}");
    // It can be loaded again from its file.
    let dead = gdb(&[program, &core], &[&[&load as &str], &look[..]].concat());
    check(&dead);
    std::fs::remove_file(core).unwrap();
}

/// Checks the output of the commands.
fn check(text: &str) {
    // The list.
    let state_of = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .split_whitespace()
            .nth(2)
            .unwrap()
            .to_owned()
    };
    assert_eq!(state_of("main"), "suspended", "{text}");
    assert_eq!(state_of("never"), "pending", "{text}");
    assert_eq!(state_of("deep"), "suspended", "{text}");
    assert_eq!(state_of("inside"), "suspended", "{text}");
    assert_eq!(state_of("locked"), "awaiting", "{text}");
    assert_eq!(state_of("aborts"), "current", "{text}");
    assert!(text.contains("suspended at tests/gdb.rs:"), "{text}");
    assert!(text.contains("created at tests/gdb.rs:"), "{text}");

    // The backtraces.
    let part = |name: &str| -> Vec<&str> {
        let header = |line: &str| {
            line.contains(&format!(" {name}, ")) && line.starts_with(|c: char| c.is_ascii_digit())
        };
        let start = text
            .lines()
            .position(header)
            .unwrap_or_else(|| panic!("no backtrace of {name} in\n{text}"));
        text.lines()
            .skip(start + 1)
            .take_while(|line| line.starts_with("  #"))
            .collect()
    };
    let deep = part("deep");
    let frames = |name: &str| deep.iter().filter(|line| line.contains(name)).count();
    assert_eq!(
        (frames("gdb::waits_deep"), frames("gdb::outer_body")),
        (4, 1),
        "{text}"
    );
    assert!(deep.last().unwrap().contains("closure"), "{text}");
    assert!(deep.len() < 12, "{text}");
    assert!(
        part("locked").iter().any(|line| line.contains("gdb::waits_deep")),
        "{text}"
    );
    // From the function of a generator into its consumer.
    let inside = part("inside");
    let place = |name: &str| inside.iter().position(|line| line.contains(name));
    assert!(place("gdb::waits_deep").is_some(), "{text}");
    if greenlet::BACKEND == "asm" {
        assert!(place("gdb::waits_deep") < place("gdb::steps"), "{text}");
    }
    assert!(
        part("main").iter().any(|line| line.contains("gdb::child")),
        "{text}"
    );
    assert!(!text.contains(" aborts, "), "{text}");

    // The selected greenlet, in gdb's own format, down to its first frame.
    let own = text
        .lines()
        .filter(|line| line.starts_with('#') && line.contains("gdb::waits_deep"));
    assert_eq!(own.count(), 4, "{text}");
    let frames = text.lines().filter(|line| line.starts_with('#'));
    assert!(frames.clone().count() > 5, "{text}");
    assert!(!frames.clone().any(|line| line.contains("gdb::child ")), "{text}");
    assert!(!text.contains("corrupt stack"), "{text}");
    assert!(text.contains("there is no greenlet 99"), "{text}");
}

#[inline(never)]
fn waits_deep(depth: u32) -> Result<u32> {
    if depth > 0 {
        return waits_deep(depth - 1);
    }
    getparent().unwrap().switch::<u32>(())
}

#[inline(never)]
fn steps(generator: &Generator<u32>) -> Result<u32> {
    generator.resume(()).unwrap()
}

#[inline(never)]
fn outer_body(depth: u32) -> Result<u32> {
    waits_deep(depth)
}

fn child() {
    let build = |name: &str| Greenlet::builder().name(name);
    let never = build("never").build(|(): ()| Ok(()));
    let deep = build("deep").build(|depth: u32| outer_body(depth));
    deep.switch::<()>(3_u32).unwrap();
    let inside = build("inside").build(|depth: u32| {
        let generator = Generator::new(move |out| out.yield_(waits_deep(depth)?));
        steps(&generator)
    });
    inside.switch::<()>(2_u32).unwrap();
    let locked = build("locked").build(|depth: u32| outer_body(depth));
    locked.switch::<()>(0_u32).unwrap();
    assert!(raw::lock_for_await(&locked));
    let aborts = build("aborts").build(|(): ()| -> Result<()> { std::process::abort() });
    aborts.switch::<()>(()).unwrap();
    drop((never, deep, inside, locked));
}
