//! rusqlite: an SQL function that awaits, below SQLite's own C frames.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use greenlet::greenlet_spawn;
use greenlet_recipes::backend::{self, LIMIT, ask};
use greenlet_recipes::proxy::{FAULTS, Fault, absent};
use greenlet_recipes::{checks, measured};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use tokio::time::timeout;

use glue::awaited;

#[path = "../../glue/rusqlite.rs"]
mod glue;

const QUERY: &str = "select group_concat(fetch(name), ' ') from names where fetch(name) like '<%'";

/// Opens a database of its own, with three names, and with the function `fetch`.
fn open(server: SocketAddr, names: [&str; 3]) -> rusqlite::Result<Connection> {
    let db = Connection::open_in_memory()?;
    db.execute("create table names (name text)", ())?;
    for name in names {
        db.execute("insert into names values (?)", [name])?;
    }
    db.create_scalar_function("fetch", 1, FunctionFlags::SQLITE_UTF8, move |context| {
        awaited(ask(server, context.get::<String>(0)?))
    })?;
    Ok(db)
}

fn query(db: &Connection) -> rusqlite::Result<String> {
    db.query_row(QUERY, (), |row| row.get(0))
}

async fn queries_of_many_greenlets_wait_at_once() -> Result<()> {
    let server = backend::start().await?.address;
    let run = |number: usize| {
        measured(move || {
            let name = format!("name {number}");
            let db = open(server, [&name, "wait 20", "b"])?;
            let found = query(&db)?;
            ensure!(found == format!("<{name}> <wait 20> <b>"), "got {found}");
            Ok(())
        })
    };
    let start = Instant::now();
    try_join_all((0..20).map(run)).await?;
    ensure!(
        start.elapsed() < Duration::from_millis(20 * 40),
        "they ran one after the other"
    );
    Ok(())
}

async fn a_cancel_or_drop_makes_the_query_fail() -> Result<()> {
    let server = backend::start().await?.address;
    let (seen, sees) = std::sync::mpsc::channel();
    let run = || {
        let seen = seen.clone();
        greenlet_spawn(move || {
            let db = open(server, ["a", "wait 250", "b"])?;
            db.execute_batch("begin; insert into names values ('open')")?;
            let error = query(&db).unwrap_err();
            // The connection still works: the statement has ended.
            db.execute_batch("rollback")?;
            let count: i64 = db.query_row("select count(*) from names", (), |row| row.get(0))?;
            seen.send((error.to_string(), count))?;
            anyhow::Ok(())
        })
    };
    let mut cancelled = run();
    ensure!(
        timeout(LIMIT / 4, &mut cancelled).await.is_err(),
        "it does not wait"
    );
    cancelled.cancel().await??;
    ensure!(timeout(LIMIT / 4, run()).await.is_err(), "it does not wait");
    for why in ["the spawn was cancelled", "the owner of the greenlet ended it"] {
        let (error, count) = sees.try_recv()?;
        eprintln!("{why}: {error}");
        ensure!(error.contains(why) && count == 3, "{why}: {error}, {count} rows");
    }
    Ok(())
}

async fn a_panic_in_the_function_makes_the_query_fail() -> Result<()> {
    greenlet_spawn(|| {
        let db = Connection::open_in_memory()?;
        db.create_scalar_function(
            "fails",
            0,
            FunctionFlags::SQLITE_UTF8,
            |_| -> rusqlite::Result<i64> { panic!("a panic in a function") },
        )?;
        let error = db
            .query_row("select fails()", (), |row| row.get::<_, i64>(0))
            .unwrap_err();
        eprintln!("a panic: {error}");
        Ok(())
    })
    .await
}

async fn a_server_that_is_not_there_or_fails_makes_the_query_fail() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || query(&open(nowhere, ["a", "b", "c"])?))
        .await
        .unwrap_err();
    ensure!(error.to_string().contains("refused"), "the error is: {error}");
    let proxy = backend::start().await?;
    for fault in FAULTS {
        let (server, breaks) = (proxy.address, proxy.clone());
        breaks.set(fault);
        greenlet_spawn(move || {
            let db = open(server, ["a", "b", "c"])?;
            let error = query(&db).unwrap_err();
            eprintln!("{fault:?}: {error}");
            breaks.set(Fault::None);
            let found = query(&db)?;
            ensure!(found == "<a> <b> <c>", "{fault:?}: then {found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn main() {
    let checks = checks![
        queries_of_many_greenlets_wait_at_once,
        a_cancel_or_drop_makes_the_query_fail,
        a_panic_in_the_function_makes_the_query_fail,
        a_server_that_is_not_there_or_fails_makes_the_query_fail,
    ];
    greenlet_recipes::main("rusqlite", checks, None);
}
