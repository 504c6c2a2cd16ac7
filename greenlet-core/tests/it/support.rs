//! Helpers of the tests: an event log, a counter of drops, destructors, a leak check, a switch to
//! the parent.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{getparent, greenlets, run_to_end, stacks_in_use};

/// The first line of a test. When it is dropped, it asserts that nothing is left of the greenlets
/// that the test created. It is stricter than `assert_no_leaks`: dead greenlets that are still
/// referred to count too.
pub(crate) struct NoLeaks {
    before: HashSet<u64>,
    stacks_before: usize,
}

impl NoLeaks {
    pub(crate) fn watch() -> NoLeaks {
        NoLeaks {
            before: greenlets().iter().map(|greenlet| greenlet.id()).collect(),
            stacks_before: stacks_in_use(),
        }
    }
}

impl Drop for NoLeaks {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut left = greenlets();
        left.retain(|greenlet| !greenlet.is_main() && !self.before.contains(&greenlet.id()));
        assert!(left.is_empty(), "greenlets are left: {left:#?}");
        assert_eq!(stacks_in_use(), self.stacks_before, "stacks are left");
    }
}

/// Switches to the parent of the running greenlet, with no handle of the running one on its stack.
#[track_caller]
pub(crate) fn up<R: 'static>(value: impl Sized + 'static) -> Result<R> {
    getparent().expect("not in the main greenlet").switch(value)
}

/// Runs a function when it is dropped.
pub(crate) fn on_drop(action: impl FnOnce() + 'static) -> OnDrop {
    OnDrop(Some(Box::new(action)))
}

/// See [`on_drop`].
pub(crate) struct OnDrop(Option<Box<dyn FnOnce()>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

/// A log of events that several greenlets write to.
#[derive(Clone, Default)]
pub(crate) struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub(crate) fn new() -> Log {
        Log::default()
    }

    pub(crate) fn add(&self, event: impl Into<String>) {
        self.0.borrow_mut().push(event.into());
    }

    /// Takes the events that have been written since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

/// Counts how often its witnesses were dropped. A witness that is dropped twice panics.
#[derive(Clone, Default)]
pub(crate) struct Drops(Rc<Cell<usize>>);

impl Drops {
    pub(crate) fn new() -> Drops {
        Drops::default()
    }

    pub(crate) fn witness(&self) -> Witness {
        Witness {
            drops: self.clone(),
            is_dropped: false,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.0.get()
    }
}

/// Counts its own drop: see [`Drops`].
pub(crate) struct Witness {
    drops: Drops,
    is_dropped: bool,
}

impl Drop for Witness {
    fn drop(&mut self) {
        assert!(!self.is_dropped, "dropped twice");
        self.is_dropped = true;
        self.drops.0.set(self.drops.0.get() + 1);
    }
}

/// The name of a greenlet that has one.
pub(crate) fn name(greenlet: &greenlet::Greenlet) -> String {
    greenlet.name().unwrap_or("nameless").into()
}

/// The reports of a thread. They can be read after the thread has ended.
pub(crate) type Reports = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

thread_local! {
    static REPORTS: Reports = Reports::default();
}

/// Collects the reports of the library on this thread, instead of writing them to standard error.
pub(crate) fn catch_reports() {
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        greenlet::set_unraisable_hook(|report| {
            let who = name(report.greenlet());
            let what = match (report.error(), report.take_panic()) {
                (Some(error), _) => format!("{who}: error {error}"),
                (None, Some(payload)) => format!("{who}: panic {}", payload.downcast_ref().unwrap_or(&"?")),
                (None, None) if report.left_suspended() > 0 => {
                    format!("{who}: {} left suspended", report.left_suspended())
                }
                (None, None) if report.to_string().contains("in its clean-up") => {
                    format!("{who}: left in its clean-up")
                }
                (None, None) => format!("{who}: refused to end"),
            };
            // The list is gone late in the end of a thread. Nobody reads it then.
            let _ = REPORTS.try_with(|reports| reports.lock().unwrap().push(what));
        });
    });
    take_reports();
}

/// Takes the reports that were collected since the last time.
pub(crate) fn take_reports() -> Vec<String> {
    std::mem::take(&mut *reports().lock().unwrap())
}

/// Returns the list that [`catch_reports`] fills.
pub(crate) fn reports() -> Reports {
    REPORTS.with(Reports::clone)
}

/// How a thread with suspended greenlets ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadEnd {
    /// The function of the thread returns.
    Plain,
    /// `run_to_end` ends the greenlets first.
    RunToEnd,
}

impl ThreadEnd {
    pub(crate) const BOTH: [ThreadEnd; 2] = [ThreadEnd::Plain, ThreadEnd::RunToEnd];

    /// Runs a function on a new thread.
    pub(crate) fn of_thread<T: Send + 'static>(
        self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::Result<T> {
        let thread = std::thread::spawn(move || {
            catch_reports();
            match self {
                ThreadEnd::Plain => function(),
                ThreadEnd::RunToEnd => run_to_end(function),
            }
        });
        thread.join()
    }
}
