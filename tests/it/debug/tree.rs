//! Views of all greenlets: the tree, the graph, the dump, and broadcasts to other threads.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use greenlet::{
    Greenlet, ThreadId, dump, dump_all_threads, end_suspended, getcurrent, getparent, greenlets, no_switch,
    raw, run_on_all_threads, run_pending_broadcasts, stack, stacks_in_use, track_ages, tree,
};

fn named(name: &str) -> Greenlet {
    Greenlet::builder().name(name).build(|(): ()| pause())
}

fn pause() -> Result<()> {
    getparent().unwrap().switch(())
}

/// Returns the first words of each line: the shape, the name, and the state.
fn outline(tree: &str) -> Vec<String> {
    let line = |line: &str| {
        let does = ["pending", "current", "suspended", "awaiting", "dead"];
        let words: Vec<&str> = line.split_whitespace().collect();
        let end = words.iter().position(|word| does.contains(word)).unwrap_or(0);
        let indent: String = line
            .chars()
            .take_while(|c| !c.is_alphanumeric() && *c != '#')
            .collect();
        format!("{indent}{} {}", words[end - 1], words[end])
    };
    tree.lines().map(line).collect()
}

#[test]
fn the_tree_shows_each_greenlet_below_its_parent() {
    let _main = getcurrent();
    let a = Greenlet::builder().name("a").build(|(): ()| {
        let below = named("below");
        below.switch::<()>(())?;
        let never = named("never");
        pause()?;
        drop((below, never));
        Ok(())
    });
    a.switch::<()>(()).unwrap();
    let b = named("b");
    let awaiting = named("io");
    awaiting.switch::<()>(()).unwrap();
    assert!(raw::lock_for_await(&awaiting));
    let done = named("done");
    done.switch::<()>(()).unwrap();
    done.switch::<()>(()).unwrap();
    let text = tree().to_string();
    assert_eq!(
        outline(text.trim_end().rsplit_once('\n').unwrap().0),
        [
            "main current",
            "├─ a suspended",
            "│  ├─ below suspended",
            "│  └─ never pending",
            "├─ b pending",
            "└─ io awaiting",
        ],
        "{text}"
    );
    assert!(
        text.ends_with("\nand 1 dead greenlets that still have handles\n"),
        "{text}"
    );
    raw::unlock(&awaiting);
    drop(b);
    end_suspended().unwrap(); // `a` and `below` have handles of each other on their stacks
}

#[test]
fn a_line_shows_the_place_of_suspension_the_place_of_creation_and_the_age() {
    track_ages(true);
    let made = line!() + 1;
    let a = Greenlet::builder().name("a").build(|(): ()| {
        getparent().unwrap().switch::<()>(()) // suspended here, two lines below `line!()`
    });
    a.switch::<()>(()).unwrap();
    let text = tree().to_string();
    let line = text.lines().nth(1).unwrap();
    let (made, place) = (
        format!("created at {}:{made}", file!()),
        format!("{}:{}", file!(), made + 1),
    );
    assert!(
        line.starts_with(&format!("└─ a  suspended at {place}  stack ")),
        "{line}"
    );
    assert!(
        line.contains(&format!(" of {} KiB, ", stack::default_size() >> 10)) && line.contains("s old, "),
        "{line}"
    );
    assert!(line.ends_with(&made), "{line}");
    assert!(a.age().unwrap() < Duration::from_secs(60));
    drop(a);
    // Ages of freed greenlets are forgotten. Ages of greenlets created before tracking are unknown.
    track_ages(false);
    assert!(named("b").age().is_none());
}

#[test]
fn a_dead_parent_of_a_living_greenlet_is_shown() {
    let parent = Greenlet::builder()
        .name("parent")
        .build(|(): ()| Ok(named("child")));
    let child = parent.switch::<Greenlet>(()).unwrap();
    drop(parent);
    let text = tree().to_string();
    assert_eq!(
        outline(&text),
        ["main current", "└─ parent dead", "   └─ child pending"]
    );
    drop(child);
    assert_eq!(outline(&tree().to_string()), ["main current"]);
}

#[test]
fn the_tree_can_be_taken_inside_a_greenlet() {
    let a = Greenlet::builder()
        .name("a")
        .build(|(): ()| Ok(tree().to_string()));
    let text = a.switch::<String>(()).unwrap();
    assert_eq!(outline(&text), ["main suspended", "└─ a current"]);
    assert!(
        text.contains(&format!("main  suspended at {}:", file!())),
        "{text}"
    );
}

#[test]
fn a_very_deep_tree_is_drawn_without_recursion() {
    let mut chain = vec![getcurrent()];
    for _ in 0..20_000 {
        let parent = chain.last().unwrap();
        chain.push(Greenlet::builder().parent(parent).build(|(): ()| Ok(())));
    }
    let tree = tree();
    assert_eq!(tree.len(), 20_001);
    let text = tree.to_string();
    assert!(text.lines().nth(20_000).unwrap().contains("(20000) #"));
    assert!(text.len() < 6_000_000, "{}", text.len());
}

#[test]
fn a_snapshot_keeps_nothing_alive_and_runs_nothing() {
    let a = named("a");
    a.switch::<()>(()).unwrap();
    let weak = a.downgrade();
    no_switch(|| drop((tree(), dump())));
    assert_eq!((greenlets().len(), stacks_in_use()), (2, 1));
    drop(a);
    assert!(weak.upgrade().is_none());
    assert_eq!((greenlets().len(), stacks_in_use()), (1, 0));
}

#[test]
fn the_graph_has_a_node_for_each_greenlet_and_an_arrow_to_its_parent() {
    let a = named("a \"quoted\" \\");
    a.switch::<()>(()).unwrap();
    let b = Greenlet::builder().name("b").parent(&a).build(|(): ()| Ok(()));
    let dot = tree().to_dot();
    let (main, a, b) = (getcurrent().id(), a.id(), b.id());
    assert!(
        dot.contains(&format!("    g{main} [label=\"main\\ncurrent\", fillcolor=")),
        "{dot}"
    );
    assert!(
        dot.contains(&format!(
            "    g{a} [label=\"a \\\"quoted\\\" \\\\\\nsuspended at {}:",
            file!()
        )),
        "{dot}"
    );
    assert!(
        dot.contains(&format!(
            "    g{b} [label=\"b\\npending\\ncreated at {}:",
            file!()
        )),
        "{dot}"
    );
    assert!(
        dot.contains(&format!("    g{a} -> g{main};\n    g{b} -> g{a};\n}}\n")),
        "{dot}"
    );
}

#[inline(never)]
fn waits_for_news() -> Result<()> {
    std::hint::black_box(pause()) // no tail call, which would leave no frame
}

#[test]
#[inline(never)] // the test looks for its name
fn a_dump_has_the_tree_and_the_users_part_of_each_backtrace() {
    let reader = Greenlet::builder()
        .name("reader")
        .build(|(): ()| waits_for_news());
    reader.switch::<()>(()).unwrap();
    let text = dump().to_string();
    let (tree, traces) = text.split_once("\nreader, suspended at ").unwrap();
    assert!(tree.contains("main       current"), "{tree}");
    assert!(traces.contains("tree::waits_for_news"), "{traces}");
    assert!(!traces.contains("greenlet_core::"), "{traces}");
    assert!(
        tree.contains("main, current\n") && tree.contains("a_dump_has_the_tree"),
        "{tree}"
    );
    assert!(!tree.contains("greenlet::debug::"), "{tree}");
    assert!(traces.lines().count() < 12, "{traces}");
    // The backtrace of main begins where it waits.
    let inside = Greenlet::new(|(): ()| Ok(dump().to_string()));
    let text = inside.switch::<String>(()).unwrap();
    assert!(
        text.contains("main, suspended at ") && text.contains("a_dump_has_the_tree"),
        "{text}"
    );
}

#[test]
fn other_threads_answer_at_their_next_switch() {
    let (tell, told) = mpsc::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let switching = thread::Builder::new().name("switching".into()).spawn(move || {
        let spins = Greenlet::builder().name("spins").build(|(): ()| -> Result<()> {
            loop {
                pause()?;
            }
        });
        spins.switch::<()>(()).unwrap();
        ready.send(()).unwrap();
        while told.try_recv() == Err(mpsc::TryRecvError::Empty) {
            spins.switch::<()>(()).unwrap();
        }
        drop(spins);
        greenlets().len()
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let (blocked_ready, blocked_is_ready) = mpsc::channel();
    let blocked = thread::spawn(move || {
        let _main = getcurrent();
        blocked_ready.send(()).unwrap();
        stopped.recv().unwrap_err();
        // The broadcast is still in the inbox, and does no harm now.
        named("late").switch::<()>(()).unwrap();
    });
    is_ready.recv().unwrap();
    blocked_is_ready.recv().unwrap();

    // Other tests have threads with greenlets meanwhile, so check only those of this test.
    let text = dump_all_threads(Duration::from_millis(300));
    assert!(text.contains("greenlets of thread 'switching' ("), "{text}");
    assert!(text.contains("└─ spins  "), "{text}");
    assert!(
        text.contains("has greenlets, and has not switched for 300ms"),
        "{text}"
    );
    drop(stop);
    blocked.join().unwrap();
    tell.send(()).unwrap();
    assert_eq!(switching.unwrap().join().unwrap(), 1);
}

#[test]
fn a_broadcast_cannot_switch_and_its_panic_is_contained() {
    let _main = getcurrent();
    let me = thread::current().id();
    let (send, receive) = mpsc::channel();
    let refused = run_on_all_threads(move || {
        if thread::current().id() == me {
            send.send(getcurrent().switch::<()>(()).is_err()).unwrap();
            std::panic::resume_unwind(Box::new("gone"));
        }
    });
    named("asked").switch::<()>(()).unwrap();
    assert_eq!(receive.try_recv(), Ok(true));
    run_pending_broadcasts();
    assert!(receive.try_recv().is_err(), "it ran twice");
    drop(refused);
    end_suspended().unwrap();
}

#[test]
fn a_broadcast_does_not_wait_for_a_thread_that_ends() {
    let (stop, stopped) = mpsc::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let ends = thread::spawn(move || {
        let _main = getcurrent();
        ready.send(ThreadId::current()).unwrap();
        stopped.recv().unwrap_err();
    });
    let id = is_ready.recv().unwrap();
    let broadcast = run_on_all_threads(|| ());
    assert!(broadcast.wait(Duration::from_millis(10)).contains(&id));
    drop(stop);
    ends.join().unwrap();
    assert!(!broadcast.wait(Duration::ZERO).contains(&id));
}
