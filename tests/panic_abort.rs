//! A program that is built with `panic = "abort"`: a spawned function that cannot be unwound is left
//! for good, and reported, and the program lives.

#[path = "../greenlet-core/tests/project/mod.rs"]
mod project;

use project::{Project, errors};

/// Runs the program. Returns what it printed, and the reports.
fn run(function: &str, way: &str) -> (Vec<String>, Vec<String>) {
    let parts = format!(
        "[dependencies]\ngreenlet = {{ path = \"{}\", features = [{}] }}\n\
         tokio = {{ version = \"1\", features = [\"rt\", \"time\"] }}\n[profile.dev]\npanic = \"abort\"\n",
        env!("CARGO_MANIFEST_DIR"),
        if cfg!(feature = "fcontext") {
            "\"fcontext\""
        } else {
            ""
        }
    );
    let program = Project::new(
        "spawn-panic-abort",
        &parts,
        include_str!("project/panic_abort.rs"),
    );
    let output = program.run(&[function, way]);
    let text = errors(&output);
    assert!(output.status.success(), "{function} {way}: {text}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let reports = text.lines().filter(|line| line.starts_with("greenlet: "));
    (
        printed.lines().map(str::to_owned).collect(),
        reports.map(str::to_owned).collect(),
    )
}

#[test]
fn a_spawn_that_ends_early_leaves_a_stack_that_cannot_be_unwound_and_the_program_lives() {
    for way in ["drop", "timeout", "cancel"] {
        let (printed, reports) = run("awaits", way);
        let (cancelled, last) = printed.split_at(printed.len() - 2);
        assert_eq!(last, ["dead: true, leaked: 1", "goes on: 7"], "{way}");
        if way == "cancel" {
            assert!(cancelled[0].contains("the spawn was cancelled"), "{cancelled:?}");
        }
        assert_eq!(reports.len(), 1, "{way}: {reports:?}");
        for part in ["main.rs:", "panic = \"abort\""] {
            assert!(reports[0].contains(part), "{way}: {reports:?}");
        }
    }
}

#[test]
fn a_spawn_that_returns_its_exit_leaves_nothing_behind() {
    for (way, cancelled) in [
        ("drop", None),
        ("timeout", None),
        ("cancel", Some("cancelled: Ok(())")),
    ] {
        let (printed, reports) = run("returns", way);
        let expected: Vec<&str> = cancelled
            .into_iter()
            .chain(["dead: true, leaked: 0", "goes on: 7"])
            .collect();
        assert_eq!(printed, expected, "{way}");
        assert_eq!(reports, [""; 0], "{way}");
    }
}
