//! A backtrace that is captured in a spawned function continues in the code that polled it.

use std::backtrace::Backtrace;
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet::{Greenlet, await_, greenlet_spawn};

/// `false` if a backtrace ends at the first frame of a greenlet.
fn is_linked() -> bool {
    greenlet::BACKEND == "asm" && !cfg!(feature = "valgrind")
}

#[inline(never)]
fn captures() -> String {
    black_box(Backtrace::force_capture().to_string())
}

/// Checks that a backtrace has the `own` functions of the greenlet, and then those of its `callers`.
#[track_caller]
fn assert_shows(text: &str, own: &[&'static str], callers: &[&'static str]) {
    let names = [own, callers].concat();
    let named = |line: &str| {
        let function = line.rsplit([':', ' ']).next()?;
        names.iter().copied().find(|name| function == *name)
    };
    let mut found: Vec<_> = text.lines().filter_map(named).collect();
    found.dedup();
    let expected = if is_linked() { &names[..] } else { own };
    assert_eq!(found, expected, "{text}");
}

/// A future that is ready when it is polled for the second time.
struct Second(bool);

impl Future for Second {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[inline(never)]
fn first_poll<F: Future>(future: Pin<&mut F>) {
    let polled = black_box(future.poll(&mut Context::from_waker(Waker::noop())));
    assert!(polled.is_pending());
}

#[inline(never)]
fn second_poll<F: Future>(future: Pin<&mut F>) -> F::Output {
    match black_box(future.poll(&mut Context::from_waker(Waker::noop()))) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it is ready"),
    }
}

#[test]
#[inline(never)] // has a name of its own in optimised builds
fn a_spawned_function_shows_each_poll_that_runs_it() {
    let mut spawned = pin!(greenlet_spawn(|| {
        let first = captures();
        await_(Second(false));
        (first, captures())
    }));
    first_poll(spawned.as_mut());
    let (first, second) = second_poll(spawned);
    // Functions of a type have their type in the name.
    let this = "a_spawned_function_shows_each_poll_that_runs_it";
    assert_shows(&first, &["captures"], &[this]);
    assert_shows(&second, &["captures"], &[this]);
    if is_linked() {
        assert!(
            first.contains("first_poll") && !first.contains("second_poll"),
            "{first}"
        );
        assert!(
            second.contains("second_poll") && !second.contains("first_poll"),
            "{second}"
        );
    }
}

#[test]
#[inline(never)] // has a name of its own in optimised builds
fn a_greenlet_below_a_spawned_function_shows_it_and_the_executor() {
    #[inline(never)]
    fn in_the_function() -> Result<String> {
        let child = Greenlet::new(|(): ()| {
            await_(Second(false));
            Ok(black_box(captures()))
        });
        black_box(child.switch(()))
    }
    let mut spawned = pin!(greenlet_spawn(in_the_function));
    first_poll(spawned.as_mut());
    let text = second_poll(spawned).unwrap();
    let this = "a_greenlet_below_a_spawned_function_shows_it_and_the_executor";
    assert_shows(&text, &["captures"], &["in_the_function", this]);
    // From one greenlet of another executor.
    #[inline(never)]
    fn in_the_poller() -> Result<String> {
        let mut spawned = pin!(greenlet_spawn(|| {
            await_(Second(false));
            captures()
        }));
        first_poll(spawned.as_mut());
        Ok(black_box(second_poll(spawned)))
    }
    let poller = Greenlet::new(|(): ()| black_box(in_the_poller()));
    let text = poller.switch::<String>(()).unwrap();
    assert_shows(&text, &["captures"], &["in_the_poller", this]);
}

#[test]
fn a_dump_shows_the_frames_of_each_greenlet_alone() {
    #[inline(never)]
    fn in_inner() -> Result<()> {
        black_box(greenlet::getmain().switch(()))
    }
    #[inline(never)]
    fn in_outer() -> Result<()> {
        let inner = Greenlet::builder()
            .name("inner")
            .build(|(): ()| black_box(in_inner()));
        black_box(inner.switch(()))
    }
    let outer = Greenlet::builder()
        .name("outer")
        .build(|(): ()| black_box(in_outer()));
    outer.switch::<()>(()).unwrap();
    let text = greenlet::dump().to_string();
    assert_eq!(text.matches("::in_inner\n").count(), 1, "{text}");
    assert_eq!(text.matches("::in_outer\n").count(), 1, "{text}");
    // The running greenlet is no exception.
    let dumps = Greenlet::new(|(): ()| Ok(greenlet::dump().to_string()));
    #[inline(never)]
    fn starts(dumps: &Greenlet) -> String {
        black_box(dumps.switch(()).unwrap())
    }
    let text = starts(&dumps);
    // In the backtrace of main.
    assert_eq!(text.matches("::starts\n").count(), 1, "{text}");
    outer.end();
}
