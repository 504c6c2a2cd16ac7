//! The recorder: its events, comparisons and drawings; and the leak check.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};
use greenlet::testing::recorder::{EventKind, Recorder, note, record};
use greenlet::{Greenlet, GreenletExit, Tracer, assert_no_leaks, getcurrent, getparent, gettrace, settrace};

fn named(name: &str, body: impl FnOnce(()) -> Result<()> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(body)
}

fn pause() -> Result<()> {
    getparent().unwrap().switch(())
}

/// Returns the text that a closure panics with.
fn panic_text(run: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("it was to panic");
    *payload.downcast::<String>().expect("the message is formatted")
}

#[test]
fn each_kind_of_event_is_named() {
    let (_, recording) = record(|| {
        let a = named("a", |()| pause());
        a.switch::<()>(()).unwrap();
        note("half way");
        a.throw::<GreenletExit>(GreenletExit::new()).unwrap();
        let b = named("b", |()| pause());
        b.switch::<()>(()).unwrap();
        b.throw::<()>(anyhow::anyhow!("bad")).unwrap_err();
        let c = named("c", |()| Ok(()));
        c.throw::<()>(anyhow::anyhow!("bad")).unwrap_err();
        getcurrent().switch::<()>(()).unwrap();
    });
    recording.assert_eq(&[
        "start main -> a",
        "switch a -> main",
        "note main: half way",
        "throw main -> a",
        "end a -> main",
        "start main -> b",
        "switch b -> main",
        "throw main -> b",
        "end b -> main (throw)",
        "start main -> c (throw)",
        "end c -> main (throw)",
        "switch main -> main",
    ]);
    let kinds: Vec<EventKind> = recording.events().iter().map(|event| event.kind()).collect();
    assert_eq!(kinds[..3], [EventKind::Start, EventKind::Switch, EventKind::Note]);
}

#[test]
fn a_greenlet_that_started_before_is_not_started_again() {
    let a = named("a", |()| {
        pause()?;
        getcurrent().switch::<()>(())?;
        pause()
    });
    a.switch::<()>(()).unwrap();
    let ((), recording) = record(|| {
        a.switch::<()>(()).unwrap();
        a.switch::<()>(()).unwrap();
    });
    recording.assert_eq(&[
        "switch main -> a",
        "switch a -> a",
        "switch a -> main",
        "switch main -> a",
        "end a -> main",
    ]);
}

#[test]
fn an_event_has_the_place_where_the_origin_switched() {
    let mut line = 0;
    let ((), recording) = record(|| {
        let a = named("a", |()| pause());
        line = line!() + 1;
        a.switch::<()>(()).unwrap();
    });
    let place = recording.events()[0].place().unwrap();
    assert_eq!((place.file(), place.line()), (file!(), line));
    recording.assert_eq(&[
        &format!("start main -> a at recorder.rs:{line}"),
        "switch a -> main",
        "throw main -> a",
        "end a -> main",
    ]);
    let wrong = [
        &format!("start main -> a at recorder.rs:{}", line + 1),
        "switch a -> main",
        "throw main -> a",
        "end a -> main",
    ];
    assert!(recording.compare(&wrong).is_err());
    // A place must end at a directory: `corder.rs` is another file.
    let wrong = [
        &format!("start main -> a at corder.rs:{line}"),
        wrong[1],
        wrong[2],
        wrong[3],
    ];
    assert!(recording.compare(&wrong).is_err());
    assert_eq!(recording.events()[3].place(), None);
}

#[test]
fn names_do_not_depend_on_earlier_greenlets() {
    for _ in 0..2 {
        let ((), recording) = record(|| {
            for _ in 0..2 {
                Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
                named("same", |()| Ok(())).switch::<()>(()).unwrap();
            }
        });
        assert_eq!(recording.names(), ["main", "g1", "same", "g2", "same#2"]);
    }
}

#[test]
fn a_difference_shows_what_is_missing_and_what_is_new() {
    let ((), recording) = record(|| {
        for name in ["a", "b", "c"] {
            named(name, |()| Ok(())).switch::<()>(()).unwrap();
        }
    });
    let text = panic_text(|| {
        recording.assert_eq(&[
            "start main -> a",
            "end a -> main",
            "start main -> x",
            "end b -> main",
            "start main -> c",
            "end c -> main",
            "start main -> d",
        ]);
    });
    let place = recording.events()[0].place().unwrap();
    let at = format!("at {}:{}", place.file(), place.line());
    let expected = format!(
        "the greenlets did not switch as expected (- expected, + happened):

    start main -> a {at}
    end a -> main
  - start main -> x
  + start main -> b {at}
    end b -> main
    start main -> c {at}
    end c -> main
  - start main -> d
"
    );
    assert_eq!(text, expected);
}

#[test]
fn every_difference_can_be_undone() {
    // Removing the marked lines from both sides leaves the same list, for random edits.
    let mut random = fastrand::Rng::with_seed(7);
    let ((), recording) = record(|| {
        for name in ["a", "b", "a", "b", "c", "a"] {
            named(name, |()| Ok(())).switch::<()>(()).unwrap();
        }
    });
    let happened: Vec<String> = recording.events().iter().map(|event| event.to_string()).collect();
    for _ in 0..200 {
        let mut expected = happened.clone();
        for _ in 0..random.usize(1..5) {
            let at = random.usize(0..expected.len());
            match random.u8(0..3) {
                0 => drop(expected.remove(at)),
                1 => expected.insert(at, "start main -> nobody".into()),
                _ => expected.swap(0, at),
            }
        }
        let Err(difference) = recording.compare(&expected) else {
            assert_eq!(happened, expected);
            continue;
        };
        let text = difference.to_string();
        let lines = |marks: [char; 2]| -> Vec<String> {
            text.lines()
                .skip(2)
                .filter(|line| line[2..].starts_with(marks))
                .map(|line| line[4..].split(" at ").next().unwrap().to_owned())
                .collect()
        };
        assert_eq!(lines([' ', '-']), expected, "{text}");
        assert_eq!(lines([' ', '+']), happened, "{text}");
    }
}

#[test]
fn the_previous_tracer_is_restored_also_after_a_panic() {
    let tracer = Tracer::new(|_| Ok(()));
    settrace(Some(tracer.clone()));
    let ((), _) = record(|| assert_ne!(gettrace(), Some(tracer.clone())));
    assert_eq!(gettrace(), Some(tracer.clone()));
    let text = panic_text(|| {
        record(|| panic!("{}", "on purpose"));
    });
    assert_eq!(text, "on purpose");
    assert_eq!(gettrace(), Some(tracer));
    settrace(None);
}

#[test]
fn recorders_nest_and_notes_go_to_the_inner_one() {
    let outer = Recorder::start();
    note("1");
    let ((), inner) = record(|| note("2"));
    note("3");
    inner.assert_eq(&["note main: 2"]);
    outer.finish().assert_eq(&["note main: 1", "note main: 3"]);
    note("to nobody");
}

#[test]
fn a_recorder_keeps_no_greenlet_alive() {
    let recorder = Recorder::start();
    let weak = {
        let a = named("a", |()| pause());
        a.switch::<()>(()).unwrap();
        a.downgrade()
    };
    assert!(weak.upgrade().is_none());
    recorder.finish().assert_eq(&[
        "start main -> a",
        "switch a -> main",
        "throw main -> a",
        "end a -> main",
    ]);
}

#[test]
fn the_text_is_a_table() {
    let ((), recording) = record(|| named("a", |()| Ok(())).switch::<()>(()).unwrap());
    let place = recording.events()[0].place().unwrap();
    assert_eq!(
        recording.to_string(),
        format!(
            "start main -> a  at {}:{}\nend a -> main\n",
            place.file(),
            place.line()
        )
    );
}

#[test]
fn a_mermaid_diagram_has_an_arrow_for_each_event() {
    let ((), recording) = record(|| {
        let a = named("a; #1 <b>", |()| {
            note("hm: ok");
            pause()
        });
        a.switch::<()>(()).unwrap();
        a.kill().unwrap();
    });
    let file = std::path::Path::new(file!())
        .file_name()
        .unwrap()
        .to_str()
        .unwrap();
    let at = |event: usize| format!("{file}:{}", recording.events()[event].place().unwrap().line());
    assert_eq!(
        recording.to_mermaid(),
        format!(
            "sequenceDiagram
    participant p0 as main
    participant p1 as a#59; #35;1 #60;b#62;
    p0->>p1: start {}
    activate p1
    Note over p1: hm: ok
    p1->>p0: switch {}
    p0--xp1: throw {}
    p1->>p0: end
    deactivate p1
",
            at(0),
            at(2),
            at(3)
        )
    );
}

#[test]
fn the_bar_of_a_greenlet_that_has_not_ended_ends_with_the_diagram() {
    let (a, recording) = record(|| {
        let a = named("a", |()| pause());
        a.switch::<()>(()).unwrap();
        a
    });
    assert!(recording.to_mermaid().ends_with("\n    deactivate p1\n"));
    drop(a);
}

#[test]
fn a_chrome_trace_is_json_and_its_blocks_fill_the_time() {
    let ((), recording) = record(|| {
        let a = named("a \"quoted\" \\ \n", |()| {
            note("here");
            pause()
        });
        a.switch::<()>(()).unwrap();
        a.switch::<()>(()).unwrap();
    });
    let json: serde_json::Value = serde_json::from_str(&recording.to_chrome_trace()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let of = |phase: &str| -> Vec<&serde_json::Value> {
        events.iter().filter(|event| event["ph"] == phase).collect()
    };
    assert_eq!(of("M")[0]["args"]["name"], "greenlets");
    assert_eq!(of("M")[3]["args"]["name"], "a \"quoted\" \\ \n");
    assert_eq!(of("i")[0]["name"], "here");
    assert_eq!((of("s").len(), of("f").len()), (4, 4));

    // Each arrow begins in a block of its row, and ends where a block begins.
    let blocks = of("X");
    for (begins, ends) in of("s").into_iter().zip(of("f")) {
        let number = |event: &serde_json::Value, field: &str| event[field].as_f64().unwrap();
        assert!(blocks.iter().any(|block| {
            let from = number(block, "ts");
            let is_inside =
                from <= number(begins, "ts") && number(begins, "ts") <= from + number(block, "dur");
            block["tid"] == begins["tid"] && is_inside
        }));
        assert!(
            blocks
                .iter()
                .any(|block| block["tid"] == ends["tid"] && block["ts"] == ends["ts"])
        );
    }

    let rows: Vec<u64> = blocks
        .iter()
        .map(|block| block["tid"].as_u64().unwrap())
        .collect();
    assert_eq!(rows, [1, 2, 1, 2, 1]);
    let mut end = 0.0;
    for block in blocks {
        let from = block["ts"].as_f64().unwrap();
        assert!((from - end).abs() < 0.002, "a gap before {block}");
        end = from + block["dur"].as_f64().unwrap();
    }
    let length = recording.length().as_nanos() as f64 / 1000.0;
    assert!((end - length).abs() < 0.01, "{end} of {length}");
}

/// Imports a trace like Perfetto: whole nanoseconds, rounded down, sorted by time and then by
/// position in the file. An arrow joins the topmost blocks of its rows. A block that has ended is
/// removed only when another one begins. Returns the number of blocks, and the arrows between them.
fn perfetto(json: &str) -> (usize, Vec<(usize, usize)>) {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let nanoseconds = |value: &serde_json::Value| (value.as_f64().unwrap() * 1000.0) as u64;
    let events = json["traceEvents"].as_array().unwrap().iter();
    let mut events: Vec<_> = events.filter(|event| event["ph"] != "M").collect();
    events.sort_by_key(|event| nanoseconds(&event["ts"]));
    let mut rows: HashMap<u64, Vec<(Option<usize>, u64)>> = HashMap::new();
    let (mut blocks, mut begun, mut arrows) = (0, HashMap::new(), Vec::new());
    for event in events {
        let row = rows.entry(event["tid"].as_u64().unwrap()).or_default();
        let now = nanoseconds(&event["ts"]);
        let phase = event["ph"].as_str().unwrap();
        if phase == "X" || phase == "i" {
            row.retain(|(_, end)| now < *end);
        }
        let topmost = row.last().and_then(|(block, _)| *block);
        match phase {
            "X" => {
                assert!(row.is_empty(), "two blocks at a time in a row: {event}");
                row.push((Some(blocks), now + nanoseconds(&event["dur"])));
                blocks += 1;
            }
            "i" => {
                assert_eq!(event["s"], "t");
                row.push((None, now));
            }
            "s" => {
                let from = topmost.expect("an arrow begins in a block");
                assert_eq!(begun.insert(event["id"].as_u64().unwrap(), from), None);
            }
            "f" => {
                assert_eq!(event["bp"], "e");
                let from = begun.remove(&event["id"].as_u64().unwrap());
                let to = topmost.expect("an arrow ends in a block");
                arrows.push((from.expect("an arrow has a beginning"), to));
            }
            other => panic!("it does not know {other}"),
        }
    }
    assert!(begun.is_empty(), "arrows without an end");
    (blocks, arrows)
}

#[test]
fn in_perfetto_an_arrow_leads_from_each_block_to_the_next() {
    let ((), recording) = record(|| {
        let a = named("a", |()| {
            loop {
                pause()?;
                if false {
                    return Ok(());
                }
            }
        });
        for n in 0..500 {
            a.switch::<()>(()).unwrap();
            if n % 100 == 0 {
                note("a hundred");
                getcurrent().switch::<()>(()).unwrap(); // two blocks of one row
            }
        }
    });
    let (blocks, arrows) = perfetto(&recording.to_chrome_trace());
    assert_eq!(blocks, 1 + 2 * 500 + 5 + 2, "the last two: how `a` is ended");
    let expected: Vec<(usize, usize)> = (1..blocks).map(|n| (n - 1, n)).collect();
    assert_eq!(arrows, expected);
}

#[test]
fn a_greenlet_that_ends_inside_is_no_leak() {
    let old = named("old", |()| pause());
    old.switch::<()>(()).unwrap();
    let value = assert_no_leaks(|| {
        let a = named("a", |()| pause());
        a.switch::<()>(()).unwrap();
        7
    });
    assert_eq!(value, 7);
}

#[test]
fn a_leaked_greenlet_is_named() {
    let text = panic_text(|| {
        assert_no_leaks(|| {
            // Dropping handles cannot end a greenlet whose own stack has a handle of it.
            let a = named("knot", |()| {
                let _myself = getcurrent();
                pause()
            });
            a.switch::<()>(()).unwrap();
            let pending = named("never run", |()| bail!("it was"));
            std::mem::forget(pending);
        });
    });
    assert!(
        text.starts_with("2 greenlets have not ended:\n  <Greenlet 'knot', suspended at "),
        "{text}"
    );
    let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
    assert!(
        line("knot").ends_with("; 1 handle is left: does its own stack hold one?"),
        "{text}"
    );
    let pending = line("never run");
    assert!(
        pending.starts_with("  <Greenlet 'never run', pending>, created at "),
        "{text}"
    );
    assert!(pending.ends_with("; 1 handle is left"), "{text}");
    greenlet::end_suspended().unwrap();
    let kept = panic_text(|| std::mem::forget(assert_no_leaks(|| named("kept", |()| Ok(())))));
    assert!(kept.starts_with("1 greenlet has not ended:\n"), "{kept}");
}

#[test]
fn recorders_finish_in_any_order() {
    let switch = || {
        let child = Greenlet::new(|(): ()| Ok(()));
        child.switch::<()>(()).unwrap();
    };
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert!(greenlet::gettrace().is_none());
        let mut recorders = [(); 3].map(|()| Some(Recorder::start()));
        let mut events = [0; 3];
        for (round, index) in order.into_iter().enumerate() {
            switch();
            note("a note");
            // The one that was started last, of those that are left, gets the events.
            let last = recorders.iter().rposition(Option::is_some).unwrap();
            let recording = recorders[index].take().unwrap().finish();
            events[index] = recording.events().len();
            if index == last {
                assert!(events[index] >= 3, "{order:?}, round {round}");
            }
        }
        assert_eq!(events.iter().sum::<usize>(), 9, "{order:?}: {events:?}");
        assert!(greenlet::gettrace().is_none(), "{order:?}");
    }
}

#[test]
fn a_note_in_a_destructor_at_the_end_of_a_thread_does_nothing() {
    struct Notes;
    impl Drop for Notes {
        fn drop(&mut self) {
            note("dropped");
        }
    }
    thread_local!(static LATE: std::cell::RefCell<Option<Notes>> = const { std::cell::RefCell::new(None) });
    for first in [true, false] {
        let thread = std::thread::spawn(move || {
            // Thread-locals are destroyed newest first: once before the recorder's own, once after.
            if first {
                LATE.with_borrow_mut(|late| *late = Some(Notes));
            }
            drop(Recorder::start().finish());
            note("without a recording");
            LATE.with_borrow_mut(|late| *late = Some(Notes));
        });
        assert!(thread.join().is_ok());
    }
}

#[test]
fn any_name_fits_into_one_line_of_each_view() {
    let names = [
        "new\nline",
        "carriage\rreturn",
        "nul\0",
        "\u{1b}[31m",
        "\u{2028}",
        "\u{202e}",
        "\u{85}",
        "end",
        "",
    ];
    let (_, recording) = record(|| {
        for name in names {
            let child = Greenlet::builder().name(name).build(|(): ()| Ok(()));
            child.switch::<()>(()).unwrap();
            note(name);
        }
    });
    let has_control = |text: &str| text.lines().any(|line| line.contains(char::is_control));
    let text = recording.to_string();
    assert_eq!(text.lines().count(), recording.events().len());
    assert!(!has_control(&text), "{text}");
    let diagram = recording.to_mermaid();
    assert!(!has_control(&diagram), "{diagram}");
    let participants: Vec<&str> = diagram
        .lines()
        .filter_map(|line| line.trim().strip_prefix("participant "))
        .collect();
    assert_eq!(participants.len(), names.len() + 1);
    for participant in participants {
        let (_, name) = participant.split_once(" as ").unwrap();
        assert!(!name.is_empty() && name != "end", "{participant:?}");
    }
    // The trace keeps the names, in its own escapes.
    let trace: serde_json::Value = serde_json::from_str(&recording.to_chrome_trace()).unwrap();
    assert!(names.iter().all(|name| {
        trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["name"] == "thread_name" && event["args"]["name"] == *name)
    }));
    assert_eq!(recording.names()[1], names[0]);
    // A tree has a line for each greenlet.
    let kept: Vec<Greenlet> = names
        .iter()
        .map(|name| Greenlet::builder().name(*name).build(|(): ()| Ok(())))
        .collect();
    let tree = greenlet::tree();
    assert_eq!(tree.to_string().lines().count(), kept.len() + 1);
    assert!(!has_control(&tree.to_string()));
    assert!(!has_control(&tree.to_dot()));
}

#[test]
fn diagrams_take_linear_time() {
    let of = |greenlets: usize| {
        let (_, recording) = record(|| {
            for _ in 0..greenlets {
                let child = Greenlet::new(|(): ()| Ok(()));
                child.switch::<()>(()).unwrap();
            }
        });
        // The best of some runs: other work on the machine only adds to one.
        (0..3)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box((recording.to_mermaid(), recording.to_chrome_trace()));
                start.elapsed()
            })
            .min()
            .unwrap()
    };
    let (few, many) = (of(500), of(8_000));
    assert!(
        many < few * 16 * 5,
        "{few:?} for 500 greenlets, {many:?} for 8,000"
    );
}

#[test]
fn a_snapshot_has_no_lines_and_no_numbers_of_greenlets_without_names() {
    let run = |extra: bool| {
        let (_, recording) = record(|| {
            if extra {
                Greenlet::new(|(): ()| Ok(())).end();
            }
            let first = Greenlet::new(|(): ()| Ok(()));
            let named = Greenlet::builder()
                .name("named")
                .build(|(): ()| -> anyhow::Result<()> { anyhow::bail!("no") });
            first.switch::<()>(()).unwrap();
            named.switch::<()>(()).unwrap_err();
        });
        recording
    };
    let expected =
        "start main -> unnamed\nend unnamed -> main\nstart main -> named\nend named -> main (throw)\n";
    assert_eq!(run(false).to_snapshot(), expected);
    assert_eq!(run(true).to_snapshot(), expected);
}

#[test]
fn a_snapshot_in_a_file_is_compared() {
    let path = std::env::temp_dir().join(format!("greenlet-snapshot-{}", std::process::id()));
    let (_, recording) = record(|| note("one"));
    let failure = |recording: &greenlet::testing::recorder::Recording| {
        let caught = std::panic::catch_unwind(|| recording.assert_snapshot(&path)).unwrap_err();
        *caught.downcast::<String>().unwrap()
    };
    assert!(failure(&recording).contains("GREENLET_SNAPSHOTS=write"));
    std::fs::write(&path, recording.to_snapshot()).unwrap();
    recording.assert_snapshot(&path);
    let (_, other) = record(|| note("two"));
    let message = failure(&other);
    std::fs::remove_file(&path).unwrap();
    assert!(
        message.contains("- note main: one") && message.contains("+ note main: two"),
        "{message}"
    );
}
