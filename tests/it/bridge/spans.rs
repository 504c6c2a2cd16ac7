//! Hooks that confine `tracing` spans to a spawned function.

use greenlet::{SpanHooks, Spawn, SpawnBuilder, await_};
use tracing::{Instrument, Span, info_span};
use tracing_subscriber::Registry;

use crate::bridge::{Handle, poll, ready};
use crate::support::{Log, NoLeaks};

/// Returns the name of the current span.
fn current() -> String {
    let name = Span::current().metadata().map(|span| span.name());
    name.unwrap_or("none").to_owned()
}

#[test]
fn spans_are_left_while_the_function_waits_and_entered_again() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let spawn = |name: &'static str, handle: &Handle| {
        let (log, future) = (log.clone(), handle.future());
        SpawnBuilder::new()
            .hooks(SpanHooks::new(info_span!("spawn")))
            .spawn(move || {
                let outer = info_span!("outer").entered();
                let inner = info_span!("inner").entered();
                await_(async { log.add(format!("{name} polls in {}", current())) });
                await_(future);
                log.add(format!("{name} in {}", current()));
                drop(inner);
                log.add(format!("{name} in {}", current()));
                drop(outer);
                log.add(format!("{name} in {}", current()));
            })
    };
    let (first, second) = (Handle::default(), Handle::default());
    let mut a = spawn("a", &first);
    let mut b = spawn("b", &second);
    let _around = info_span!("around").entered();
    assert!(poll(&mut a).is_pending());
    assert_eq!(current(), "around");
    assert!(poll(&mut b).is_pending());
    assert_eq!(log.take(), ["a polls in around", "b polls in around"]);
    first.ready.set(true);
    ready(poll(&mut a));
    assert_eq!(log.take(), ["a in inner", "a in outer", "a in spawn"]);
    drop(b); // ends it inside its spans
    assert_eq!(current(), "around");
}

/// A function that waits once inside of `span`. It returns the names of its current spans.
fn waits_in(span: Span) -> Spawn<Vec<String>> {
    SpawnBuilder::new().hooks(SpanHooks::new(span)).spawn(|| {
        let before = current();
        await_(tokio::task::yield_now());
        vec![before, current()]
    })
}

#[test]
fn the_current_span_of_an_instrumented_task_is_not_entered_again() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let _no_leaks = NoLeaks::watch();
    // The registry panics if a span is exited too often, and so closed too early.
    for _ in 0..2 {
        let task = async { waits_in(Span::current()).await };
        let mut task = Box::pin(task.instrument(info_span!("request")));
        assert!(poll(&mut task).is_pending());
        assert_eq!(current(), "none");
        assert_eq!(ready(poll(&mut task)), ["request", "request"]);
        assert_eq!(current(), "none");
    }
}

#[test]
fn a_span_that_is_entered_further_outside_is_left_to_its_owner() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let _no_leaks = NoLeaks::watch();
    let outer = info_span!("outer");
    let entered = outer.clone().entered();
    let inner = info_span!("inner").entered();
    let mut spawned = waits_in(outer.clone());
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(current(), "inner");
    ready(poll(&mut spawned));
    assert_eq!(current(), "inner");
    drop(inner);
    assert_eq!(current(), "outer");
    drop(entered);
    assert_eq!(current(), "none");
}

#[test]
fn a_span_that_the_function_enters_twice_is_left_twice() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let _no_leaks = NoLeaks::watch();
    let span = info_span!("twice");
    for hooks in [SpanHooks::new(Span::none()), SpanHooks::new(span.clone())] {
        let is_own = !format!("{hooks:?}").contains("none");
        let span = span.clone();
        let mut spawned = SpawnBuilder::new().hooks(hooks).spawn(move || {
            let entries = [span.enter(), span.enter()];
            await_(tokio::task::yield_now());
            let mut names = vec![current()];
            for entry in entries {
                drop(entry);
                names.push(current());
            }
            names
        });
        assert!(poll(&mut spawned).is_pending());
        assert_eq!(current(), "none");
        let names = ready(poll(&mut spawned));
        assert_eq!(names[..2], ["twice", "twice"], "{is_own}");
        assert_eq!(current(), "none");
    }
}

#[test]
fn spans_of_nested_functions_stay_apart() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    for in_place in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let builder = SpawnBuilder::new()
            .poll_in_place(in_place)
            .hooks(SpanHooks::new(info_span!("outer")));
        let mut spawned = builder.spawn(|| {
            let inner = await_(waits_in(Span::current()));
            assert_eq!(inner, ["outer", "outer"]);
            // Polled by hand, inside of the outer function's span.
            let mut inner = waits_in(Span::current());
            assert!(poll(&mut inner).is_pending());
            await_(tokio::task::yield_now());
            assert_eq!(ready(poll(&mut inner)), ["outer", "outer"]);
            current()
        });
        let mut polls = 0;
        let last = loop {
            polls += 1;
            match poll(&mut spawned) {
                std::task::Poll::Ready(last) => break last,
                std::task::Poll::Pending => assert_eq!(current(), "none"),
            }
        };
        assert_eq!((last.as_str(), polls), ("outer", 3));
        assert_eq!(current(), "none");
    }
}

#[test]
fn spans_that_are_left_out_of_order_are_entered_again() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let mut spawned = SpawnBuilder::new().hooks(SpanHooks::new(Span::none())).spawn(|| {
        let first = info_span!("first").entered();
        let second = info_span!("second").entered();
        drop(first);
        await_(tokio::task::yield_now());
        let name = current();
        drop(second);
        (name, current())
    });
    assert!(poll(&mut spawned).is_pending());
    assert_eq!(current(), "none");
    assert_eq!(ready(poll(&mut spawned)), ("second".into(), "none".into()));
}
