//! Keeps the panics of explored runs quiet: a search runs many orders that fail.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::Once;
use std::thread;

thread_local! {
    /// The text of the last panic, while an exploration runs on this thread.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a closure, during which the panics of this thread print nothing.
pub(super) fn quietly<T>(run: impl FnOnce() -> T) -> T {
    install();
    let _restored = Restored(IS_QUIET.replace(true));
    run()
}

struct Restored(bool);

impl Drop for Restored {
    fn drop(&mut self) {
        IS_QUIET.set(self.0);
    }
}

/// Returns the text and the place of the last panic, and forgets it.
pub(super) fn take_last_panic() -> Option<String> {
    LAST.take()
}

fn install() {
    static INSTALLED: Once = Once::new();
    if thread::panicking() {
        return; // a hook cannot be installed; the panics print
    }
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.try_with(|is_quiet| is_quiet.get()).unwrap_or(false) {
                // CAUTION: runs arbitrary user code.
                return previous(info);
            }
            let payload = info.payload();
            let text = match payload.downcast_ref::<String>() {
                Some(text) => text.as_str(),
                None => payload
                    .downcast_ref::<&str>()
                    .unwrap_or(&"a payload that is no text"),
            };
            let place = info.location().map(|place| format!(", at {place}"));
            let panic = format!("{text}{}", place.unwrap_or_default());
            let _ = LAST.try_with(|last| last.replace(Some(panic)));
        }));
    });
}
