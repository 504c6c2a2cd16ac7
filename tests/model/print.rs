//! The printed form of programs: one line for each step.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use crate::program::{Await, Awaited, Body, Op, Options, Program, Step};

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}, the thread ends {:?}", self.seed, self.end)?;
        f.write_str(&show(&self.body, &self.skips, 1))
    }
}

/// One line for each step, indented.
fn show(body: &Body, skips: &BTreeSet<u32>, depth: usize) -> String {
    let mut text = String::new();
    for Step { number, op } in body.iter().filter(|step| !skips.contains(&step.number)) {
        let (line, bodies) = describe(op);
        writeln!(text, "{number:5}{:width$}{line}", "", width = depth * 2).expect("a String");
        for (label, body) in bodies {
            let inner = show(body, skips, depth + 1 + usize::from(!label.is_empty()));
            if !label.is_empty() && !inner.is_empty() {
                writeln!(text, "{:5}{:width$}  {label}:", "", "", width = depth * 2).expect("a String");
            }
            text += &inner;
        }
    }
    text
}

/// A line for the op, and its bodies.
fn describe(op: &Op) -> (String, Vec<(&'static str, &Body)>) {
    let inside = |line: String, body| (line, vec![("", body)]);
    match op {
        Op::New {
            slot,
            parent,
            body,
            drop,
        } => {
            let parent = parent.map_or(String::new(), |parent| format!(", parent g{parent}"));
            (
                format!("g{slot} = greenlet{parent}"),
                vec![("", body), ("drop of its capture", drop)],
            )
        }
        Op::Hold { slot, body } => inside(format!("with a handle of g{slot} on the stack"), body),
        Op::Local { body, drop } => (
            "with a local".into(),
            vec![("", body), ("drop of the local", drop)],
        ),
        Op::Catch(body) => inside("catch panics".into(), body),
        Op::Swallow(body) => inside("catch every unwinding".into(), body),
        Op::NoSwitch(body) => inside("no_switch".into(), body),
        Op::Repeat(times, body) => inside(format!("{times} times"), body),
        Op::NewGenerator { slot, body, drop } => (
            format!("y{slot} = generator"),
            vec![("", body), ("drop of its capture", drop)],
        ),
        Op::Scope(body) => inside("scope".into(), body),
        Op::Member { slot, body } => inside(format!("g{slot} = greenlet of the scope"), body),
        Op::MemberGenerator { body, steps } => inside(format!("generator of the scope, {steps} steps"), body),
        Op::Spawn { slot, body, options } => spawned(format!("t{slot} = spawn"), body, options),
        Op::Stream { slot, body, options } => spawned(format!("t{slot} = stream"), body, options),
        Op::Await(Await {
            awaited,
            unwinds,
            on_error,
            panics_at,
            poll,
            drop,
        }) => {
            let how = if *unwinds { "await_" } else { "try_await_" };
            let (what, mut bodies) = match awaited {
                Awaited::Ready => ("ready".into(), vec![]),
                Awaited::Later => ("later".into(), vec![]),
                Awaited::Gate(gate) => (format!("gate {gate}"), vec![]),
                Awaited::Spawn(body, options) => spawned("spawn".into(), body, options),
                Awaited::Task(slot) => (format!("t{slot}"), vec![]),
                Awaited::Stream(body, items) => inside(format!("{items} items of a stream"), body),
            };
            bodies.extend([("first poll", poll), ("drop of the future", drop)]);
            let panics = panics_at.map_or(String::new(), |poll| format!(", panics in poll {poll}"));
            (format!("{how} {what}{panics}, {on_error:?}"), bodies)
        }
        Op::BlockOn(body) => inside("block_on_greenlet".into(), body),
        Op::Thread { body, end } => inside(format!("thread, ends {end:?}"), body),
        Op::Trace { body, fails } => inside(format!("tracer for one event, fails: {fails}"), body),
        Op::Span(body) => inside("in a span".into(), body),
        other => (format!("{other:?}"), vec![]),
    }
}

fn spawned<'a>(
    what: String,
    body: &'a Body,
    options: &'a Options,
) -> (String, Vec<(&'static str, &'a Body)>) {
    let mut line = what;
    let flags = [
        (options.in_place, ", in place"),
        (options.require_await, ", require_await"),
        (options.has_hooks, ", hooks"),
        (options.has_spans, ", spans"),
    ];
    flags
        .iter()
        .filter(|(is_set, _)| *is_set)
        .for_each(|(_, flag)| line += flag);
    if let Some(call) = options.hook_panics_at {
        line += &format!(", hook call {call} panics");
    }
    (
        line,
        vec![
            ("", body),
            ("first call of a hook", &options.hook),
            ("wake", &options.waker),
        ],
    )
}
