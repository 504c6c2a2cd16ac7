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
    /// Set while the hooks have entered `span`. They do not enter a span that is current anyway.
    is_inside: bool,
    /// The spans that the function has entered, innermost first. One that it has entered twice is
    /// here twice.
    entered: Vec<Id>,
}

impl SpanHooks {
    /// Creates hooks for one function, which runs inside of `span`. Pass [`Span::none`] for no
    /// span, and [`Span::current`] for the span that is current now.
    pub fn new(span: Span) -> SpanHooks {
        SpanHooks {
            span,
            outer: None,
            is_inside: false,
            entered: Vec::new(),
        }
    }

    /// Exits what the function has entered inside of `base`, and remembers it.
    fn leave_down_to(&mut self, base: Option<&Id>, dispatch: &Dispatch) {
        while let Some(span) = current(dispatch) {
            if Some(&span) == base || Some(&span) == self.outer.as_ref() {
                return;
            }
            if !self.exit_all(&span, dispatch) {
                return;
            }
        }
    }

    /// Exits a span as often as the function has entered it in succession. Returns `false` if the
    /// subscriber knows the current span, but does not exit it.
    fn exit_all(&mut self, span: &Id, dispatch: &Dispatch) -> bool {
        for exits in 1..=MAX_ENTRIES {
            dispatch.exit(span);
            if current(dispatch).as_ref() != Some(span) {
                self.entered.extend((0..exits).map(|_| span.clone()));
                return true;
            }
        }
        self.entered.push(span.clone());
        false
    }
}

/// How often a span may be entered inside of itself.
const MAX_ENTRIES: usize = 64;

fn current(dispatch: &Dispatch) -> Option<Id> {
    dispatch.current_span().id().cloned()
}

impl SpawnHooks for SpanHooks {
    fn resume(&mut self, _: &Greenlet) {
        dispatcher::get_default(|dispatch| {
            self.outer = current(dispatch);
            self.is_inside = false;
            if let Some(span) = self.span.id().filter(|span| self.outer.as_ref() != Some(span)) {
                dispatch.enter(&span);
                self.is_inside = current(dispatch).as_ref() == Some(&span);
                if !self.is_inside {
                    // It is entered further outside already, or the subscriber has no current span.
                    dispatch.exit(&span);
                }
            }
            for span in self.entered.drain(..).rev() {
                dispatch.enter(&span);
            }
        });
    }

    fn suspend(&mut self, _: &Greenlet) {
        dispatcher::get_default(|dispatch| {
            let own = self.span.id().filter(|_| self.is_inside);
            self.leave_down_to(own.as_ref(), dispatch);
            if let Some(own) = own.filter(|own| current(dispatch).as_ref() == Some(own)) {
                // The function may have entered the same span once more: one entry is the hooks'.
                if self.exit_all(&own, dispatch) {
                    self.entered.pop();
                }
            }
        });
    }
}
