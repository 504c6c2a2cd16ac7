//! The context that other libraries keep in thread-locals, around each part of a spawned function:
//! `SpawnBuilder::new().hooks(Traced::new(context))`.

use std::sync::Arc;

use greenlet::{Greenlet, SpawnHooks};
use opentelemetry::{Context, ContextGuard};
use sentry_core::{Hub, HubSwitchGuard};
use tokio::runtime::{EnterGuard, Handle};

/// Enters a runtime of tokio, for a function that another executor runs.
pub struct Entered(pub &'static Handle, Option<EnterGuard<'static>>);

/// Attaches a context of OpenTelemetry.
pub struct Traced(Context, Option<ContextGuard>);

/// Makes a hub of Sentry the current one.
pub struct Reported(Arc<Hub>, Option<HubSwitchGuard>);

impl Entered {
    pub fn new(runtime: &'static Handle) -> Entered {
        Entered(runtime, None)
    }
}

impl Traced {
    pub fn new(context: Context) -> Traced {
        Traced(context, None)
    }
}

impl Reported {
    pub fn new(hub: Arc<Hub>) -> Reported {
        Reported(hub, None)
    }
}

impl SpawnHooks for Entered {
    fn resume(&mut self, _: &Greenlet) {
        self.1 = Some(self.0.enter());
    }
    fn suspend(&mut self, _: &Greenlet) {
        self.1 = None;
    }
}

impl SpawnHooks for Traced {
    fn resume(&mut self, _: &Greenlet) {
        self.1 = Some(self.0.clone().attach());
    }
    fn suspend(&mut self, _: &Greenlet) {
        self.1 = None;
    }
}

impl SpawnHooks for Reported {
    fn resume(&mut self, _: &Greenlet) {
        self.1 = Some(HubSwitchGuard::new(Arc::clone(&self.0)));
    }
    fn suspend(&mut self, _: &Greenlet) {
        self.1 = None;
    }
}
