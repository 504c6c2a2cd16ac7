//! Hooks for context in thread-locals: tokio's runtime, OpenTelemetry, Sentry.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, ensure};
use futures::future::join;
use greenlet::{SpawnBuilder, await_};
use greenlet_recipes::checks;
use opentelemetry::Context;
use sentry_core::Hub;
use tokio::runtime::Handle;
use tokio::task::yield_now;

use glue::{Entered, Reported, Traced};

#[path = "../../glue/hooks.rs"]
mod glue;

/// What is put into a context.
struct User(&'static str);

fn traced_user() -> &'static str {
    Context::current().get::<User>().map_or("nobody", |user| user.0)
}

async fn each_function_has_its_own_context_of_opentelemetry() -> Result<()> {
    let run = |name| {
        let hooks = Traced::new(Context::current_with_value(User(name)));
        SpawnBuilder::new().hooks(hooks).spawn(move || {
            (0..3).all(|_| {
                let before = traced_user() == name;
                // Awaited futures are polled outside of the hooks.
                before
                    && await_(async {
                        yield_now().await;
                        traced_user()
                    }) == "nobody"
                    && traced_user() == name
            })
        })
    };
    ensure!(join(run("ann"), run("bob")).await == (true, true));
    ensure!(traced_user() == "nobody");
    Ok(())
}

async fn each_function_has_its_own_hub_of_sentry() -> Result<()> {
    let outside = Hub::current();
    let run = || {
        let hub = Arc::new(Hub::new_from_top(Hub::current()));
        let hooks = Reported::new(Arc::clone(&hub));
        SpawnBuilder::new().hooks(hooks).spawn(move || {
            (0..3).all(|_| {
                let before = Arc::ptr_eq(&Hub::current(), &hub);
                await_(yield_now());
                before && Arc::ptr_eq(&Hub::current(), &hub)
            })
        })
    };
    ensure!(join(run(), run()).await == (true, true));
    ensure!(Arc::ptr_eq(&Hub::current(), &outside));
    Ok(())
}

async fn a_function_of_another_executor_finds_the_runtime() -> Result<()> {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(Handle::current);
    let found = tokio::task::spawn_blocking(|| {
        let elsewhere = std::thread::spawn(|| {
            let spawned = SpawnBuilder::new().hooks(Entered::new(runtime)).spawn(|| {
                let before = Handle::try_current().is_ok();
                let meanwhile = await_(async { Handle::try_current().is_ok() });
                (before, meanwhile, Handle::try_current().is_ok())
            });
            futures::executor::block_on(spawned)
        });
        elsewhere.join().expect("it does not panic")
    });
    ensure!(found.await? == (true, false, true));
    Ok(())
}

fn main() {
    let checks = checks![
        each_function_has_its_own_context_of_opentelemetry,
        each_function_has_its_own_hub_of_sentry,
        a_function_of_another_executor_finds_the_runtime,
    ];
    greenlet_recipes::main("hooks", checks, None);
}
