//! rhai: scripts call functions that await, and share one engine.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use greenlet::greenlet_spawn;
use greenlet_recipes::backend::{self, LIMIT, ask};
use greenlet_recipes::proxy::{FAULTS, absent};
use greenlet_recipes::{checks, measured};
use rhai::{Engine, EvalAltResult, Scope};
use tokio::time::timeout;

use glue::awaited;

#[path = "../../glue/rhai.rs"]
mod glue;

fn engine(server: SocketAddr) -> Rc<Engine> {
    let mut engine = Engine::new();
    engine.register_fn("fetch", move |key: &str| awaited(ask(server, key)));
    Rc::new(engine)
}

/// Errors of rhai are `Send` with its feature `sync` alone.
fn sendable<T>(result: Result<T, Box<EvalAltResult>>) -> Result<T> {
    result.map_err(|error| anyhow::anyhow!("{error}"))
}

const SCRIPT: &str = r#"
    fn twice(key) { fetch(key) + fetch("wait 20") }
    let parts = ["a", name].map(|key| twice(key));
    parts[0] + parts[1]
"#;

async fn scripts_share_an_engine_and_wait_at_once() -> Result<()> {
    let engine = engine(backend::start().await?.address);
    let script = Rc::new(engine.compile(SCRIPT)?);
    let run = |number: usize| {
        let (engine, script) = (engine.clone(), script.clone());
        measured(move || {
            let mut scope = Scope::new();
            scope.push("name", format!("script {number}"));
            let found: String = sendable(engine.eval_ast_with_scope(&mut scope, &script))?;
            ensure!(
                found == format!("<a><wait 20><script {number}><wait 20>"),
                "got {found}"
            );
            Ok(())
        })
    };
    let start = Instant::now();
    try_join_all((0..30).map(run)).await?;
    ensure!(
        start.elapsed() < Duration::from_millis(30 * 40),
        "they ran one after the other"
    );
    Ok(())
}

async fn a_script_catches_the_error_of_a_server() -> Result<()> {
    let proxy = backend::start().await?;
    let mut servers = vec![(None, absent().await?)];
    servers.extend(FAULTS.map(|fault| (Some(fault), proxy.address)));
    for (fault, server) in servers {
        fault.inspect(|fault| proxy.set(*fault));
        let engine = engine(server);
        let uncaught = engine.clone();
        let script =
            r#"let found = ""; try { found = fetch("a") } catch(error) { found = "caught: " + error } found"#;
        let found: String = greenlet_spawn(move || sendable(engine.eval(script))).await?;
        let error = greenlet_spawn(move || uncaught.eval::<String>(r#"fetch("a")"#))
            .await
            .unwrap_err();
        eprintln!("{fault:?}: {found}; {error}");
        ensure!(found.starts_with("caught: "), "{fault:?}: got {found}");
        ensure!(
            matches!(*error, EvalAltResult::ErrorRuntime(..)),
            "{fault:?}: {error:?}"
        );
    }
    Ok(())
}

async fn a_script_cannot_catch_its_end() -> Result<()> {
    let engine = engine(backend::start().await?.address);
    let script = r#"loop { try { fetch("wait 250") } catch { } }"#;
    let run = || {
        let engine = engine.clone();
        greenlet_spawn(move || engine.eval::<()>(script))
    };
    let mut cancelled = run();
    ensure!(
        timeout(LIMIT / 6, &mut cancelled).await.is_err(),
        "it does not wait"
    );
    let error = cancelled.cancel().await?.unwrap_err();
    ensure!(
        matches!(*error, EvalAltResult::ErrorTerminated(..)),
        "the error is: {error:?}"
    );
    ensure!(timeout(LIMIT / 6, run()).await.is_err(), "it does not wait");
    Ok(())
}

async fn a_panic_in_a_function_is_a_panic_of_the_spawn() -> Result<()> {
    let mut engine = Engine::new();
    engine.register_fn("fails", || -> i64 { panic!("a panic in a function") });
    let spawned = greenlet_spawn(move || engine.eval::<i64>("fails()").unwrap_or(0));
    let ended = tokio::task::spawn_local(spawned).await;
    ensure!(ended.is_err_and(|error| error.is_panic()), "the panic is lost");
    Ok(())
}

async fn a_deep_recursion_is_an_error_of_rhai() -> Result<()> {
    let engine = Engine::new();
    let error = measured(move || {
        engine
            .eval::<i64>("fn deep(n) { 1 + deep(n + 1) } deep(0)")
            .unwrap_err()
    });
    let error = error.await;
    ensure!(
        error.to_string().contains("Stack overflow"),
        "the error is: {error}"
    );
    Ok(())
}

fn main() {
    let checks = checks![
        scripts_share_an_engine_and_wait_at_once,
        a_script_catches_the_error_of_a_server,
        a_script_cannot_catch_its_end,
        a_panic_in_a_function_is_a_panic_of_the_spawn,
        a_deep_recursion_is_an_error_of_rhai,
    ];
    greenlet_recipes::main("rhai", checks, None);
}
