//! mlua: sync callbacks that await, also where Lua's own coroutines cannot yield.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use greenlet::greenlet_spawn;
use greenlet_recipes::backend::{self, LIMIT, ask};
use greenlet_recipes::proxy::{FAULTS, Fault, absent};
use greenlet_recipes::{checks, measured};
use tokio::time::timeout;

use glue::{awaited, new_lua};

#[path = "../../glue/mlua.rs"]
mod glue;

/// Runs a script in a `Lua` of its own.
fn run<T: mlua::FromLua>(server: SocketAddr, script: &str) -> Result<T> {
    let run = || {
        let lua = new_lua()?;
        let fetch = lua.create_function(move |_, key: String| awaited(ask(server, key)))?;
        lua.globals().set("fetch", fetch)?;
        lua.load(script).eval()
    };
    // Errors of mlua are `Send` with its feature `send` alone.
    run().map_err(|error: mlua::Error| anyhow::anyhow!("{error}"))
}

/// Awaits in a metamethod, in a comparison of `table.sort`, in an iterator, and in a coroutine.
const SCRIPT: &str = r#"
    local lazy = setmetatable({}, { __index = function(_, key) return fetch(key) end })
    local words = { "c", "a", "b" }
    table.sort(words, function(left, right) return fetch(left) < fetch(right) end)
    local resumed = coroutine.wrap(function() coroutine.yield(fetch("wait 20")) end)()
    local replaced = string.gsub("x y", "%a", fetch)
    return lazy.first .. table.concat(words) .. resumed .. replaced
"#;

async fn scripts_await_where_coroutines_cannot_yield() -> Result<()> {
    let server = backend::start().await?.address;
    let one = |_| {
        measured(move || {
            let found: String = run(server, SCRIPT)?;
            ensure!(found == "<first>abc<wait 20><x> <y>", "got {found}");
            Ok(())
        })
    };
    let start = Instant::now();
    try_join_all((0..20).map(one)).await?;
    eprintln!("20 scripts took {:?}", start.elapsed());
    Ok(())
}

async fn an_error_of_a_server_is_an_error_of_the_script() -> Result<()> {
    let proxy = backend::start().await?;
    let mut servers = vec![(Fault::None, absent().await?)];
    servers.extend(FAULTS.map(|fault| (fault, proxy.address)));
    for (fault, server) in servers {
        proxy.set(fault);
        let caught: bool = greenlet_spawn(move || run(server, "return (pcall(fetch, 'a'))")).await?;
        let error = greenlet_spawn(move || run::<String>(server, "return fetch('a')"))
            .await
            .unwrap_err();
        eprintln!(
            "{fault:?}: {}",
            error.to_string().lines().next().unwrap_or_default()
        );
        ensure!(!caught, "{fault:?}: no error");
    }
    Ok(())
}

/// Set when the values of the function are dropped.
struct Noted(std::rc::Rc<std::cell::Cell<bool>>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

async fn a_script_cannot_catch_its_end() -> Result<()> {
    let server = backend::start().await?.address;
    for script in [
        "return fetch('wait 250')",
        "while true do pcall(fetch, 'wait 250') end",
    ] {
        let noted = std::rc::Rc::default();
        let run = || {
            let noted = Noted(std::rc::Rc::clone(&noted));
            greenlet_spawn(move || run::<bool>(server, script).map(|_| drop(noted)))
        };
        let mut cancelled = run();
        ensure!(
            timeout(LIMIT / 6, &mut cancelled).await.is_err(),
            "it does not wait"
        );
        let error = cancelled.cancel().await.unwrap_err();
        ensure!(error.to_string().contains("cancelled"), "the error is: {error}");
        ensure!(noted.take(), "the destructors did not run");
        ensure!(timeout(LIMIT / 6, run()).await.is_err(), "it does not wait");
        ensure!(noted.take(), "the destructors did not run");
    }
    Ok(())
}

async fn a_panic_in_a_function_is_a_panic_of_the_spawn() -> Result<()> {
    let spawned = greenlet_spawn(|| {
        let lua = new_lua()?;
        let fails = lua.create_function(|_, ()| -> mlua::Result<()> { panic!("a panic in a function") })?;
        fails.call::<()>(())
    });
    let ended = tokio::task::spawn_local(spawned).await;
    ensure!(ended.is_err_and(|error| error.is_panic()), "the panic is lost");
    Ok(())
}

fn main() {
    let checks = checks![
        scripts_await_where_coroutines_cannot_yield,
        an_error_of_a_server_is_an_error_of_the_script,
        a_script_cannot_catch_its_end,
        a_panic_in_a_function_is_a_panic_of_the_spawn,
    ];
    greenlet_recipes::main("mlua", checks, None);
}
