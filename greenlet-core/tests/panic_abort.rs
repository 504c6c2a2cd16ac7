//! Programs that are built with `panic = "abort"`: what cannot be unwound is left, and reported, and the
//! program lives.

#[path = "project/mod.rs"]
mod project;

use std::os::unix::process::ExitStatusExt;

use project::{Project, errors};

fn program() -> Project {
    let parts = format!(
        "[dependencies]\nanyhow = \"1\"\ngreenlet-core = {{ path = \"{}\", features = [{}] }}\n\
         [profile.dev]\npanic = \"abort\"\n",
        env!("CARGO_MANIFEST_DIR"),
        if cfg!(feature = "fcontext") {
            "\"fcontext\""
        } else {
            ""
        }
    );
    Project::new("panic-abort", &parts, include_str!("project/panic_abort.rs"))
}

/// Each way of leaving a suspended greenlet, with what it prints, and what is reported.
const CASES: [(&str, &str, Option<&str>); 8] = [
    ("returns drop", "dead: true, leaked: 0", None),
    ("returns end", "dead: true, leaked: 0", None),
    ("returns kill", "dead: true, leaked: 0", None),
    (
        "ignores drop",
        "dead: false, leaked: 0",
        Some("did not return its exit"),
    ),
    (
        "ignores end",
        "dead: false, leaked: 0",
        Some("did not return its exit"),
    ),
    ("raises drop", "dead: true, leaked: 1", Some("raised an error")),
    ("raises end", "dead: true, leaked: 1", Some("raised an error")),
    ("raises kill", "dead: true, leaked: 1", Some("raised an error")),
];

#[test]
fn an_end_leaves_a_stack_that_cannot_be_unwound_and_the_program_lives() {
    let program = program();
    for (case, expected, report) in CASES {
        let arguments: Vec<&str> = case.split(' ').collect();
        let output = program.run(&arguments);
        let text = errors(&output);
        assert!(output.status.success(), "{case}: {text}");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            printed.lines().collect::<Vec<_>>(),
            [expected, "goes on: 7"],
            "{case}: {text}"
        );
        let reports: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("greenlet: "))
            .collect();
        match report {
            None => assert_eq!(reports, [""; 0], "{case}"),
            Some(report) => {
                assert_eq!(reports.len(), 1, "{case}: {text}");
                for part in ["greenlet 'left'", report, "panic = \"abort\""] {
                    assert!(reports[0].contains(part), "{case}: {text}");
                }
            }
        }
    }
}

#[test]
fn an_error_that_is_raised_reaches_the_parent() {
    let output = program().run(&["error"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(output.stdout, b"disk full\n");
}

#[test]
fn where_the_greenlet_cannot_be_left_the_process_aborts_with_a_message() {
    for (case, message) in [
        ("main", "the main greenlet cannot be left"),
        ("section", "it may not switch"),
    ] {
        let output = program().run(&[case]);
        let text = errors(&output);
        assert_eq!(output.status.signal(), Some(6), "{text}");
        assert!(text.contains(message), "{text}");
    }
}
