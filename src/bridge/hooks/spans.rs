//! Hooks that keep a spawned function's `tracing` spans to itself.

#![forbid(unsafe_code)]

use greenlet_core::Greenlet;
use tracing::span::{Id, Span};
use tracing::{Dispatch, dispatcher};

use super::SpawnHooks;

/// Leaves the spans that a spawned function has entered while it waits, and enters them again when it
/// goes on.
///
/// An entered span is kept for each thread. Without this, a span that is entered over an await would also
/// be the parent of whatever other tasks log meanwhile. The futures that are awaited are polled outside of the
/// function's spans, too; give them one of their own (`future.instrument(Span::current())`) if they should
/// be inside.
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
///         await_(async {}); // others run outside of `request` and `query` meanwhile
///         info!("inside of both again");
///     });
/// futures::executor::block_on(spawned);
/// ```
#[derive(Debug)]
pub struct SpanHooks {
    /// What the function runs in.
    span: Span,
    /// The current span of whoever polls.
    outer: Option<Id>,
    /// What the function has entered, innermost first.
    entered: Vec<Id>,
    is_started: bool,
}

impl SpanHooks {
    /// Makes hooks for one function, which runs inside of `span`. [`Span::none`] is no span; and
    /// [`Span::current`] the one around the spawn.
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
                    break; // a subscriber that knows the current span, but does not leave it
                }
            }
        });
    }
}
