//! Diesel, with its synchronous traits, on connections of diesel-async (PostgreSQL) from a pool.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use futures::future::try_join_all;
use greenlet::{await_, greenlet_spawn};
#[cfg(feature = "diesel_bench")]
use greenlet_recipes::Future;
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{checks, measured};
use tokio::time::{sleep, timeout};

use glue::{BridgedConnection, connect, transaction};

#[path = "../../glue/diesel.rs"]
mod glue;

const SERVER: &str = "127.0.0.1:5432";
/// For connecting to a server that is there: on a busy machine that takes a while.
const PATIENT: Duration = Duration::from_secs(30);
/// For a server that does not answer.
const LIMIT: Duration = Duration::from_secs(4);
/// For a function that waits for something that never comes.
const SHORT: Duration = Duration::from_millis(200);
const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

diesel::table! {
    accounts (id) {
        id -> Integer,
        name -> Text,
        cents -> BigInt,
    }
}

// ---- the program: plain Diesel ----------------------------------------------------------------

fn deposit(connection: &mut BridgedConnection, to: &str, amount: i64) -> QueryResult<i64> {
    diesel::insert_into(accounts::table)
        .values((accounts::name.eq(to), accounts::cents.eq(amount)))
        .on_conflict(accounts::name)
        .do_update()
        .set(accounts::cents.eq(accounts::cents + amount))
        .returning(accounts::cents)
        .get_result(connection)
}

fn balance(connection: &mut BridgedConnection, of: &str) -> QueryResult<Option<i64>> {
    accounts::table
        .filter(accounts::name.eq(of))
        .select(accounts::cents)
        .first(connection)
        .optional()
}

/// The number of the server's process: it tells connections apart.
fn backend(connection: &mut BridgedConnection) -> QueryResult<i32> {
    define_sql_function!(fn pg_backend_pid() -> Integer);
    diesel::select(pg_backend_pid()).get_result(connection)
}

// ---- the checks -------------------------------------------------------------------------------

/// Returns a pool in front of an empty table.
async fn pool(server: impl ToString, connections: usize, limit: Duration) -> Result<Pool<AsyncPgConnection>> {
    let schema = format!("recipe_{}", std::process::id());
    let url = format!(
        "postgres://postgres@{}/test?options=-csearch_path%3D{schema}",
        server.to_string()
    );
    let pool = Pool::builder(AsyncDieselConnectionManager::new(url))
        .max_size(connections)
        .runtime(deadpool::Runtime::Tokio1)
        .create_timeout(Some(limit))
        .recycle_timeout(Some(limit))
        .wait_timeout(Some(limit))
        .build()?;
    Ok(pool)
}

/// Makes the table, by Diesel's own migrations.
async fn fresh(pool: &Pool<AsyncPgConnection>) -> Result<()> {
    let pool = pool.clone();
    measured(move || {
        let mut connection = connect(&pool)?;
        let schema = format!("recipe_{}", std::process::id());
        let commands = format!("drop schema if exists {schema} cascade; create schema {schema}");
        diesel::connection::SimpleConnection::batch_execute(&mut connection, &commands)?;
        let ran = connection
            .run_pending_migrations(MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        ensure!(ran.len() == 1, "{} migrations ran", ran.len());
        Ok(())
    })
    .await
}

/// Looks at the table on a connection of its own, and that all connections of the pool work.
async fn expect(pool: &Pool<AsyncPgConnection>, of: &'static str, cents: Option<i64>) -> Result<()> {
    let size = pool.status().max_size;
    let look = || {
        let pool = pool.clone();
        greenlet_spawn(move || -> Result<Option<i64>> {
            let mut connection = connect(&pool)?;
            await_(sleep(Duration::from_millis(5))); // so that each needs a connection of its own
            Ok(balance(&mut connection, of)?)
        })
    };
    for found in try_join_all((0..size).map(|_| look()))
        .await
        .context("a connection of the pool is lost")?
    {
        ensure!(found == cents, "{of} has {found:?} and should have {cents:?}");
    }
    Ok(())
}

async fn many_jobs_share_few_connections() -> Result<()> {
    let pool = pool(SERVER, 4, PATIENT).await?;
    fresh(&pool).await?;
    let job = |pool: Pool<AsyncPgConnection>| {
        measured(move || {
            let mut connection = connect(&pool)?;
            connection
                .transaction(|connection| deposit(connection, "ann", 1))
                .context("a deposit")
        })
    };
    try_join_all((0..40).map(|_| job(pool.clone()))).await?;
    expect(&pool, "ann", Some(40)).await
}

async fn a_nested_transaction_rolls_back_alone() -> Result<()> {
    let pool = pool(SERVER, 2, PATIENT).await?;
    fresh(&pool).await?;
    let jobs = pool.clone();
    measured(move || {
        let mut connection = connect(&jobs)?;
        connection.transaction(|connection| {
            deposit(connection, "ann", 100)?;
            let inner = connection.transaction(|connection| {
                deposit(connection, "ann", 5)?;
                Err::<(), _>(diesel::result::Error::RollbackTransaction)
            });
            ensure!(inner.is_err(), "the inner transaction was committed");
            Ok(())
        })
    })
    .await?;
    expect(&pool, "ann", Some(100)).await
}

async fn an_error_rolls_back() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    fresh(&pool).await?;
    let jobs = pool.clone();
    let error = greenlet_spawn(move || {
        let mut connection = connect(&jobs)?;
        connection.transaction::<(), anyhow::Error, _>(|connection| {
            deposit(connection, "ann", 100)?;
            diesel::sql_query("select 1 / 0").execute(connection)?;
            Ok(())
        })
    });
    let error = error.await.unwrap_err().to_string();
    ensure!(error == "division by zero", "the error is: {error}");
    expect(&pool, "ann", None).await
}

/// Deposits in a transaction, and waits there, unless it panics.
fn deposit_and_wait(pool: &Pool<AsyncPgConnection>, panics: bool) -> Result<()> {
    let mut connection = connect(pool)?;
    transaction(&mut connection, |connection| {
        deposit(connection, "ann", 100)?;
        connection.transaction(|connection| {
            deposit(connection, "bob", 100)?;
            assert!(!panics, "a panic in a transaction");
            await_(sleep(Duration::from_secs(1000)));
            Ok(())
        })
    })
}

async fn only_backend(pool: &Pool<AsyncPgConnection>) -> Result<i32> {
    let pool = pool.clone();
    greenlet_spawn(move || Ok(backend(&mut connect(&pool)?)?)).await
}

async fn a_panic_rolls_back_and_keeps_the_connection() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    fresh(&pool).await?;
    let (before, jobs) = (only_backend(&pool).await?, pool.clone());
    let spawned = tokio::task::spawn_local(greenlet_spawn(move || deposit_and_wait(&jobs, true)));
    ensure!(
        spawned.await.is_err_and(|error| error.is_panic()),
        "the panic was lost"
    );
    expect(&pool, "ann", None).await?;
    ensure!(before == only_backend(&pool).await?, "the connection was closed");
    Ok(())
}

async fn a_cancel_rolls_back_and_keeps_the_connection() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    fresh(&pool).await?;
    let (before, jobs) = (only_backend(&pool).await?, pool.clone());
    let mut spawned = greenlet_spawn(move || deposit_and_wait(&jobs, false));
    ensure!(timeout(SHORT, &mut spawned).await.is_err(), "it does not wait");
    ensure!(spawned.cancel().await.is_err(), "it was committed");
    expect(&pool, "ann", None).await?;
    ensure!(before == only_backend(&pool).await?, "the connection was closed");
    Ok(())
}

async fn a_cancel_of_a_transaction_without_the_glue_replaces_the_connection() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    fresh(&pool).await?;
    let (before, jobs) = (only_backend(&pool).await?, pool.clone());
    let mut spawned = greenlet_spawn(move || {
        connect(&jobs)?.transaction(|connection| -> Result<()> {
            deposit(connection, "ann", 100)?;
            await_(sleep(Duration::from_secs(1000)));
            Ok(())
        })
    });
    ensure!(timeout(SHORT, &mut spawned).await.is_err(), "it does not wait");
    ensure!(spawned.cancel().await.is_err(), "it was committed");
    expect(&pool, "ann", None).await?;
    ensure!(
        before != only_backend(&pool).await?,
        "a connection in a transaction was used again"
    );
    Ok(())
}

async fn a_drop_rolls_back_and_replaces_the_connection() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    fresh(&pool).await?;
    let (before, jobs) = (only_backend(&pool).await?, pool.clone());
    let spawned = greenlet_spawn(move || deposit_and_wait(&jobs, false));
    ensure!(timeout(SHORT, spawned).await.is_err(), "it does not wait");
    expect(&pool, "ann", None).await?;
    ensure!(
        before != only_backend(&pool).await?,
        "a connection in a transaction was used again"
    );
    Ok(())
}

async fn a_time_limit_at_any_moment_leaves_the_pool_whole() -> Result<()> {
    let pool = pool(SERVER, 2, PATIENT).await?;
    fresh(&pool).await?;
    for step in 0..60 {
        let jobs = pool.clone();
        let spawned = greenlet_spawn(move || deposit_and_wait(&jobs, false));
        let ended = timeout(step * Duration::from_micros(300), spawned).await;
        ensure!(ended.is_err(), "it does not wait: {ended:?}");
    }
    expect(&pool, "ann", None).await
}

async fn a_server_that_is_not_there() -> Result<()> {
    let pool = pool(absent().await?, 2, LIMIT).await?;
    for _ in 0..4 {
        let jobs = pool.clone();
        let error = greenlet_spawn(move || connect(&jobs).map(drop))
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        ensure!(
            text.contains("refused") || text.contains("error connecting"),
            "the error is: {text}"
        );
    }
    ensure!(pool.status().size == 0, "the pool has {:?}", pool.status());
    Ok(())
}

async fn a_server_that_fails_while_one_connects() -> Result<()> {
    let proxy = Proxy::to(SERVER).await?;
    for fault in FAULTS {
        let pool = pool(proxy.address, 2, LIMIT).await?;
        proxy.set(fault);
        let jobs = pool.clone();
        let error = greenlet_spawn(move || connect(&jobs).map(drop))
            .await
            .unwrap_err();
        eprintln!("{fault:?}: {error:#}");
        ensure!(
            pool.status().size == 0,
            "{fault:?}: the pool has {:?}",
            pool.status()
        );
        proxy.set(Fault::None);
        fresh(&pool).await?;
        expect(&pool, "ann", None).await?;
    }
    Ok(())
}

async fn a_server_that_fails_in_a_transaction() -> Result<()> {
    let proxy = Proxy::to(SERVER).await?;
    for fault in FAULTS {
        let pool = pool(proxy.address, 2, PATIENT).await?;
        fresh(&pool).await?;
        let (jobs, breaks) = (pool.clone(), proxy.clone());
        let spawned = greenlet_spawn(move || {
            let mut connection = connect(&jobs)?;
            transaction(&mut connection, |connection| -> Result<i64> {
                deposit(connection, "ann", 100)?;
                breaks.set(fault);
                Ok(deposit(connection, "ann", 100)?)
            })
        });
        match (fault, timeout(LIMIT, spawned).await) {
            // The time limit is the caller's: PostgreSQL's clients have none.
            (Fault::Silent, Err(_)) => {}
            (Fault::Closes | Fault::Garbage, Ok(Err(error))) => eprintln!("{fault:?}: {error:#}"),
            (_, other) => anyhow::bail!("{fault:?}: {other:?}"),
        }
        proxy.set(Fault::None);
        expect(&pool, "ann", None).await?;
    }
    Ok(())
}

async fn removes_its_tables() -> Result<()> {
    let pool = pool(SERVER, 1, PATIENT).await?;
    greenlet_spawn(move || {
        let command = format!("drop schema if exists recipe_{} cascade", std::process::id());
        diesel::sql_query(command).execute(&mut connect(&pool)?)?;
        Ok(())
    })
    .await
}

/// 1,000 transactions of three queries, 100 at once, on 10 connections.
#[cfg(feature = "diesel_bench")]
async fn compare() -> Result<()> {
    use diesel::RunQueryDsl as Blocking;
    use diesel::r2d2::{ConnectionManager, Pool as BlockingPool};
    use diesel_async::RunQueryDsl as Awaiting;
    use futures::stream::{StreamExt, TryStreamExt, iter};

    const JOBS: i64 = 1000;
    let pool = pool(SERVER, 10, PATIENT).await?;
    fresh(&pool).await?;
    let url = format!(
        "postgres://postgres@{SERVER}/test?options=-csearch_path%3Drecipe_{}",
        std::process::id()
    );
    let blocking = BlockingPool::builder()
        .max_size(10)
        .build(ConnectionManager::<PgConnection>::new(url))?;
    /// Runs the jobs, 100 at once.
    async fn all<F: std::future::Future<Output = Result<()>>>(job: impl FnMut(i64) -> F) -> Result<()> {
        iter((0..JOBS).map(job)).buffer_unordered(100).try_collect().await
    }
    macro_rules! job {
        ($run:ident, $connection:ident, $id:ident $(, $await:tt)?) => {{
            let name = format!("account {}", $id);
            let insert = diesel::insert_into(accounts::table)
                .values((accounts::name.eq(&name), accounts::cents.eq(1)))
                .on_conflict(accounts::name)
                .do_update()
                .set(accounts::cents.eq(1));
            $run::execute(insert, $connection)$(.$await)??;
            let update = diesel::update(accounts::table.filter(accounts::name.eq(&name)));
            $run::execute(update.set(accounts::cents.eq(accounts::cents + 1)), $connection)$(.$await)??;
            let select = accounts::table.filter(accounts::name.eq(&name)).select(accounts::cents);
            let cents: i64 = $run::first(select, $connection)$(.$await)??;
            ensure!(cents == 2, "an account has {cents}");
            Ok(())
        }};
    }
    let bridged = || -> Future {
        let pool = pool.clone();
        Box::pin(all(move |id| {
            let pool = pool.clone();
            greenlet_spawn(move || connect(&pool)?.transaction(|connection| job!(Blocking, connection, id)))
        }))
    };
    let native = || -> Future {
        let pool = pool.clone();
        Box::pin(all(move |id| {
            let pool = pool.clone();
            async move {
                let connection = &mut *pool.get().await?;
                let job = async |connection: &mut AsyncPgConnection| job!(Awaiting, connection, id, await);
                diesel_async::AsyncConnection::transaction(connection, job).await
            }
        }))
    };
    let threads = || -> Future {
        let pool = blocking.clone();
        Box::pin(all(move |id| {
            let pool = pool.clone();
            async move {
                let job = move || {
                    pool.get()?
                        .transaction(|connection| job!(Blocking, connection, id))
                };
                tokio::task::spawn_blocking(job).await?
            }
        }))
    };
    println!("{JOBS} transactions of three queries, 100 at once, on 10 connections:");
    let variants: [(&str, &dyn Fn() -> Future); 3] = [
        ("diesel-async", &native),
        ("Diesel, greenlet_spawn", &bridged),
        ("Diesel, spawn_blocking", &threads),
    ];
    greenlet_recipes::bench::compare(9, &variants).await?;
    removes_its_tables().await
}

fn main() {
    let checks = checks![
        many_jobs_share_few_connections,
        a_nested_transaction_rolls_back_alone,
        an_error_rolls_back,
        a_panic_rolls_back_and_keeps_the_connection,
        a_cancel_rolls_back_and_keeps_the_connection,
        a_cancel_of_a_transaction_without_the_glue_replaces_the_connection,
        a_drop_rolls_back_and_replaces_the_connection,
        a_time_limit_at_any_moment_leaves_the_pool_whole,
        a_server_that_is_not_there,
        a_server_that_fails_while_one_connects,
        a_server_that_fails_in_a_transaction,
        removes_its_tables,
    ];
    #[cfg(feature = "diesel_bench")]
    let compare: Option<fn() -> Future> = Some(|| Box::pin(compare()));
    #[cfg(not(feature = "diesel_bench"))]
    let compare = None;
    greenlet_recipes::main("diesel", checks, compare);
}
