//! The bridge over a real PostgreSQL server: concurrent transactions, rollbacks, lost connections,
//! timeouts. They need the feature `postgres`. Without `DATABASE_URL` they print that they were
//! skipped; `sqlite.rs` needs no server.

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use futures::future::join_all;
use greenlet::{GreenletExit, await_, greenlet_spawn, try_await_};
use sqlx::{Connection, Executor, PgConnection, Row};

/// Prints on the terminal that a test was skipped, with a running number.
fn left_out<T>(_: &T) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let nth = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let all = include_str!("postgres.rs").matches("\n#[test]\n").count();
    // The type name of a closure contains the name of its test.
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    let line = format!("left out, {nth} of {all}: {name}, which wants a PostgreSQL DATABASE_URL\n");
    // Not `eprintln!`: the harness hides its output when a test passes.
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Runs a test with the URL, on a current-thread runtime, with a table of its own.
fn with_database<F: Future<Output = ()>>(table: &str, test: impl FnOnce(Rc<str>) -> F) {
    let url = match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => Rc::<str>::from(url),
        _ => return left_out(&test),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let mut conn = PgConnection::connect(&url).await.unwrap();
        let make = format!("drop table if exists {table}; create table {table} (id int primary key, n int)");
        conn.execute(make.as_str()).await.unwrap();
        test(url).await;
        conn.execute(format!("drop table {table}").as_str())
            .await
            .unwrap();
    }));
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn count(url: &str, table: &str) -> i64 {
    let mut conn = connect(url).await;
    let row = conn
        .fetch_one(format!("select count(*) from {table}").as_str())
        .await;
    row.unwrap().get(0)
}

/// Synchronous: increments a counter, in a transaction that reads before it writes.
fn increment(conn: &mut PgConnection) -> Result<()> {
    let mut transaction = try_await_(conn.begin())??;
    let select = "select n from bridge_counter where id = 1 for update";
    let n: i32 = try_await_(transaction.fetch_one(select))??.get(0);
    let update = sqlx::query("update bridge_counter set n = $1 where id = 1").bind(n + 1);
    try_await_(update.execute(&mut *transaction))??;
    try_await_(transaction.commit())??;
    Ok(())
}

#[test]
fn concurrent_transactions_wait_for_each_other() {
    with_database("bridge_counter", async |url| {
        connect(&url)
            .await
            .execute("insert into bridge_counter values (1, 0)")
            .await
            .unwrap();
        let tasks = (0..10).map(|_| {
            let url = url.clone();
            tokio::task::spawn_local(async move {
                let mut conn = connect(&url).await;
                greenlet_spawn(move || (0..20).try_for_each(|_| increment(&mut conn))).await
            })
        });
        for task in join_all(tasks).await {
            task.unwrap().unwrap();
        }
        let mut conn = connect(&url).await;
        let n: i32 = conn
            .fetch_one("select n from bridge_counter")
            .await
            .unwrap()
            .get(0);
        assert_eq!(n, 200);
    });
}

#[test]
fn a_cancel_returns_after_the_rollback() {
    /// Awaits a rollback when it is dropped.
    struct Rollback<'a>(&'a mut PgConnection);
    impl Drop for Rollback<'_> {
        fn drop(&mut self) {
            try_await_(self.0.execute("rollback")).unwrap().unwrap();
        }
    }
    with_database("bridge_rollback", async |url| {
        let mut conn = connect(&url).await;
        let mut spawned = greenlet_spawn(move || -> Result<PgConnection> {
            await_(conn.execute("begin"))?;
            let rollback = Rollback(&mut conn);
            try_await_(rollback.0.execute("insert into bridge_rollback values (1, 1)"))??;
            let waited = try_await_(std::future::pending::<()>());
            drop(rollback);
            assert!(waited.unwrap_err().is::<GreenletExit>());
            Ok(conn)
        });
        // Lets the function run until it waits for ever.
        let waited = tokio::time::timeout(std::time::Duration::from_millis(200), &mut spawned).await;
        assert!(waited.is_err());
        let mut conn = spawned.cancel().await.unwrap().unwrap();
        // The same connection still works, and is outside of any transaction.
        conn.execute("insert into bridge_rollback values (2, 2)")
            .await
            .unwrap();
        assert_eq!(count(&url, "bridge_rollback").await, 1);
    });
}

#[test]
fn a_connection_that_the_server_kills_is_an_error_where_it_is_awaited() {
    with_database("bridge_killed", async |url| {
        let mut victim = connect(&url).await;
        let pid: i32 = victim.fetch_one("select pg_backend_pid()").await.unwrap().get(0);
        let waits = greenlet_spawn(move || {
            await_(victim.execute("begin; insert into bridge_killed values (1, 1)")).unwrap();
            let error = await_(victim.execute("select pg_sleep(60)")).unwrap_err();
            (error, await_(victim.ping()).is_err())
        });
        let kills = async {
            let mut conn = connect(&url).await;
            let is_asleep =
                "select count(*) from pg_stat_activity where pid = $1 and query like '%pg_sleep%'";
            while sqlx::query(is_asleep)
                .bind(pid)
                .fetch_one(&mut conn)
                .await
                .unwrap()
                .get::<i64, _>(0)
                == 0
            {
                tokio::task::yield_now().await;
            }
            sqlx::query("select pg_terminate_backend($1)")
                .bind(pid)
                .execute(&mut conn)
                .await
                .unwrap();
        };
        let ((error, is_dead), ()) = futures::join!(waits, kills);
        assert!(!matches!(error, sqlx::Error::RowNotFound), "{error}");
        assert!(is_dead);
        assert_eq!(count(&url, "bridge_killed").await, 0);
    });
}

#[test]
fn a_statement_timeout_is_an_error_and_the_connection_stays_usable() {
    with_database("bridge_timeout", async |url| {
        let mut conn = connect(&url).await;
        let (code, after) = greenlet_spawn(move || {
            await_(conn.execute("set statement_timeout = 20")).unwrap();
            let error = await_(conn.execute("select pg_sleep(60)")).unwrap_err();
            let code = error
                .as_database_error()
                .and_then(|error| error.code().map(String::from));
            let after: i32 = await_(conn.fetch_one("select 1")).unwrap().get(0);
            (code, after)
        })
        .await;
        assert_eq!((code.as_deref(), after), (Some("57014"), 1));
    });
}

#[test]
fn a_spawn_dropped_in_the_middle_of_a_query_leaves_no_row() {
    with_database("bridge_dropped", async |url| {
        let mut conn = connect(&url).await;
        let spawned = greenlet_spawn(move || -> Result<()> {
            let mut transaction = try_await_(conn.begin())??;
            try_await_(transaction.execute("insert into bridge_dropped values (1, 1)"))??;
            try_await_(transaction.execute("select pg_sleep(1)"))??;
            Ok(())
        });
        let waited = tokio::time::timeout(std::time::Duration::from_millis(100), spawned).await;
        assert!(waited.is_err());
        assert_eq!(count(&url, "bridge_dropped").await, 0);
    });
}
