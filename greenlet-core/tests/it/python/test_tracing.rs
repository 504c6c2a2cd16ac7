//! `test_tracing.py`.

use greenlet::{Greenlet, TraceEvent, TraceKind, Tracer, getmain, gettrace, settrace};

use super::SomeError;
use crate::support::{Log, NoLeaks, name, up};

fn tracer(log: &Log) -> Tracer {
    let log = log.clone();
    Tracer::new(move |event| {
        log.add(text(event));
        Ok(())
    })
}

fn text(event: &TraceEvent) -> String {
    let kind = if event.kind == TraceKind::Throw {
        "throw"
    } else {
        "switch"
    };
    format!("{kind} {} {}", name(&event.origin), name(&event.target))
}

fn named(name: &str, run: impl FnOnce() -> anyhow::Result<()> + 'static) -> Greenlet {
    Greenlet::builder().name(name).build(|(): ()| run())
}

#[test]
fn test_a_greenlet_tracing() {
    let _watch = NoLeaks::watch();
    let actions = Log::new();
    let before = settrace(Some(tracer(&actions)));
    let g1 = named("g1", || Ok(()));
    g1.switch::<()>(()).unwrap();
    let g2 = named("g2", || Err(SomeError.into()));
    assert!(g2.switch::<()>(()).is_err());
    settrace(before);
    let main = name(&getmain());
    let expected = [
        ("switch", main.as_str(), "g1"),
        ("switch", "g1", &main),
        ("switch", &main, "g2"),
        ("throw", "g2", &main),
    ];
    let expected = expected.map(|(kind, origin, target)| format!("{kind} {origin} {target}"));
    assert_eq!(actions.take(), expected);
}

#[test]
fn test_b_exception_disables_tracing() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| up::<()>(()));
    g.switch::<()>(()).unwrap();
    let actions = Log::new();
    let seen = actions.clone();
    settrace(Some(Tracer::new(move |event| {
        seen.add(text(event));
        Err(SomeError.into())
    })));
    assert!(g.switch::<()>(()).unwrap_err().is::<SomeError>());
    assert!(gettrace().is_none());
    assert_eq!(actions.take().len(), 1);
}

#[test]
fn test_set_same_tracer_twice() {
    let tracer = tracer(&Log::new());
    assert!(settrace(Some(tracer.clone())).is_none());
    assert_eq!(settrace(Some(tracer.clone())), Some(tracer.clone()));
    assert_eq!(settrace(None), Some(tracer));
}

#[test]
fn test_trace_events_multiple_greenlets_switching() {
    let _watch = NoLeaks::watch();
    let actions = Log::new();
    let g1 = named("g1", || up::<()>(()));
    let before = settrace(Some(tracer(&actions)));
    g1.switch::<()>(()).unwrap();
    g1.switch::<()>(()).unwrap();
    settrace(before);
    assert_eq!(actions.take().len(), 4);
}

#[test]
fn test_trace_events_multiple_greenlets_switching_siblings() {
    let _watch = NoLeaks::watch();
    let actions = Log::new();
    let g2 = named("g2", || up::<()>(()));
    let sibling = g2.clone();
    let g1 = named("g1", move || sibling.switch::<()>(()));
    let before = settrace(Some(tracer(&actions)));
    g1.switch::<()>(()).unwrap(); // to g2, which switches to main, its parent
    settrace(before);
    let main = name(&getmain());
    assert_eq!(
        actions.take(),
        [
            format!("switch {main} g1"),
            "switch g1 g2".into(),
            format!("switch g2 {main}")
        ]
    );
}
