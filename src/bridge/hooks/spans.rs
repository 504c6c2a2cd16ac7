//! Hooks that confine a spawned function's `tracing` spans to that function.

#![forbid(unsafe_code)]

use greenlet_core::Greenlet;
use tracing::span::{Id, Span};
use tracing::{Dispatch, dispatcher};

use super::SpawnHooks;

/// Exits the spans of a spawned function while it waits, and enters them again when it is resumed.
///
/// `tracing` keeps the entered spans per thread. Without these hooks, a span that is entered across
/// an await would also be the parent of events that other tasks log meanwhile. Awaited futures are
/// polled outside of the function's spans as well. Use `future.instrument(Span::current())` to poll
/// a future inside.
///
/// # Examples
///
/// ```
/// use greenlet::{SpanHooks, SpawnBuilder, await_};
/// use tracing::{Span, info, info_span};
///
/// let spawned = SpawnBuilder::new()
///     .hooks(SpanHooks::new(info_span!("request", id = 7)))
///     .spawn(|| {
///         let _query = info_span!("query").entered();
///         await_(async {}); // other tasks run outside of `request` and `query`
///         info!("inside of both again");
///     });
/// futures::executor::block_on(spawned);
/// ```
#[derive(Debug)]
pub struct SpanHooks {
    /// The span around the function.
    span: Span,
    /// The current span of the task that polls.
    outer: Option<Id>,
    /// The spans that the function has entered, innermost first.
    entered: Vec<Id>,
    is_started: bool,
}

impl SpanHooks {
    /// Creates hooks for one function, which runs inside of `span`. Pass [`Span::none`] for no
    /// span, and [`Span::current`] for the span that is current now.
    pub fn new(span: Span) -> SpanHooks {
        SpanHooks {
            span,
            outer: None,
            entered: Vec::new(),
            is_started: false,
        }
    }
}

fn current(dispatch: &Dispatch) -> Option<Id> {
    dispatch.current_span().id().cloned()
}

impl SpawnHooks for SpanHooks {
    fn resume(&mut self, _: &Greenlet) {
        dispatcher::get_default(|dispatch| {
            self.outer = current(dispatch);
            if !std::mem::replace(&mut self.is_started, true) {
                self.entered.extend(self.span.id());
            }
            for span in self.entered.drain(..).rev() {
                dispatch.enter(&span);
            }
        });
    }

    fn suspend(&mut self, _: &Greenlet) {
        dispatcher::get_default(|dispatch| {
            let mut innermost = current(dispatch);
            while innermost != self.outer {
                let Some(span) = innermost else { break };
                dispatch.exit(&span);
                innermost = current(dispatch);
                let is_left = innermost.as_ref() != Some(&span);
                self.entered.push(span);
                if !is_left {
                    break; // this subscriber knows the current span, but does not exit it
                }
            }
        });
    }
}
