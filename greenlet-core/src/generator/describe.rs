//! Names the greenlet and the generators that the caller runs in.

#![forbid(unsafe_code)]

use crate::generator::header::labels_of_running;
use crate::thread::ThreadState;

/// Describes where the caller runs: the generators that it is in, and the greenlet, each with the
/// place of its creation. `None` in the main greenlet, outside of every generator.
///
/// It is for panic hooks, and for loggers. It works on every thread and at any time, and does not
/// panic.
///
/// # Examples
///
/// ```
/// # extern crate greenlet_core as greenlet;
/// use greenlet::{Greenlet, describe_current};
///
/// assert_eq!(describe_current(), None);
/// let worker = Greenlet::builder().name("worker").build(|(): ()| Ok(describe_current()));
/// let text = worker.switch::<Option<String>>(())?.unwrap();
/// assert!(text.starts_with("greenlet 'worker' created at "));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn describe_current() -> Option<String> {
    let generators = labels_of_running();
    let labels: Vec<String> = generators.chain(label_of_greenlet()).collect();
    (!labels.is_empty()).then(|| labels.join(", in "))
}

/// Returns what to call the running greenlet, unless it is main. Creates no main greenlet.
fn label_of_greenlet() -> Option<String> {
    let thread = ThreadState::current();
    if thread.current_ptr().is_null() {
        return None;
    }
    let current = thread.current_inner();
    (!current.status.is_main()).then(|| current.label())
}
