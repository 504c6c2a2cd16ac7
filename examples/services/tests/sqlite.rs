//! The bridge over SQLite, which needs no server: concurrent transactions, rollbacks, errors in the
//! middle, a spawn that is dropped in the middle of a query. `postgres.rs` has the same shapes.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use greenlet::{Greenlet, GreenletExit, await_, greenlet_spawn, try_await_};
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor, Row, SqliteConnection};

/// A database file that is deleted at the end of the test.
struct Database(PathBuf);

impl Drop for Database {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // a file left over in the temporary folder does no harm
    }
}

/// Runs a test with a database of its own, on a current-thread runtime. It has a table `t`.
fn with_database<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Rc<Path>) -> F) {
    let file = format!("greenlet-{name}-{}.sqlite", std::process::id());
    let database = Database(std::env::temp_dir().join(file));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let mut conn = connect(&database.0).await;
        conn.execute("create table t (id int primary key, n int)")
            .await
            .unwrap();
        test(Rc::from(database.0.as_path())).await;
    }));
}

fn options(file: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    options
        .synchronous(SqliteSynchronous::Off)
        .busy_timeout(Duration::from_secs(60))
}

async fn connect(file: &Path) -> SqliteConnection {
    options(file).connect().await.unwrap()
}

async fn number(file: &Path, query: &str) -> i64 {
    connect(file).await.fetch_one(query).await.unwrap().get(0)
}

const COUNT: &str = "select count(*) from t";

/// Synchronous: increments a counter, in a transaction that reads before it writes.
fn increment(conn: &mut SqliteConnection) -> Result<()> {
    let mut transaction = try_await_(conn.begin_with("begin immediate"))??;
    let n: i64 = try_await_(transaction.fetch_one("select n from t where id = 1"))??.get(0);
    let update = sqlx::query("update t set n = $1 where id = 1").bind(n + 1);
    try_await_(update.execute(&mut *transaction))??;
    try_await_(transaction.commit())??;
    Ok(())
}

#[test]
fn concurrent_transactions_wait_for_each_other() {
    with_database("counter", async |file| {
        let insert = "insert into t values (1, 0)";
        connect(&file).await.execute(insert).await.unwrap();
        let tasks = (0..6).map(|_| {
            let file = file.clone();
            tokio::task::spawn_local(async move {
                let mut conn = connect(&file).await;
                greenlet_spawn(move || (0..10).try_for_each(|_| increment(&mut conn))).await
            })
        });
        for task in join_all(tasks).await {
            task.unwrap().unwrap();
        }
        assert_eq!(number(&file, "select n from t").await, 60);
    });
}

#[test]
fn a_cancel_returns_after_the_rollback() {
    /// Awaits a rollback when it is dropped.
    struct Rollback<'a>(&'a mut SqliteConnection);
    impl Drop for Rollback<'_> {
        fn drop(&mut self) {
            try_await_(self.0.execute("rollback")).unwrap().unwrap();
        }
    }
    with_database("rollback", async |file| {
        let mut conn = connect(&file).await;
        let (inserted, is_inserted) = tokio::sync::oneshot::channel();
        let mut spawned = greenlet_spawn(move || -> Result<SqliteConnection> {
            await_(conn.execute("begin"))?;
            let rollback = Rollback(&mut conn);
            try_await_(rollback.0.execute("insert into t values (1, 1)"))??;
            inserted.send(()).unwrap();
            let waited = try_await_(std::future::pending::<()>());
            drop(rollback);
            assert!(waited.unwrap_err().is::<GreenletExit>());
            Ok(conn)
        });
        tokio::select! {
            _ = &mut spawned => unreachable!("it waits for ever"),
            sent = is_inserted => sent.unwrap(),
        }
        let mut conn = spawned.cancel().await.unwrap().unwrap();
        // The same connection still works, and is outside of any transaction.
        conn.execute("insert into t values (2, 2)").await.unwrap();
        assert_eq!(number(&file, COUNT).await, 1);
    });
}

#[test]
fn an_error_half_way_rolls_back_and_the_connection_stays_usable() {
    /// Synchronous: the second row is refused.
    fn two_rows(conn: &mut SqliteConnection, second: i64) -> Result<()> {
        let mut transaction = try_await_(conn.begin())??;
        for id in [1, second] {
            let insert = sqlx::query("insert into t values ($1, 0)").bind(id);
            try_await_(insert.execute(&mut *transaction))??;
        }
        try_await_(transaction.commit())??;
        Ok(())
    }
    with_database("half_way", async |file| {
        let mut conn = connect(&file).await;
        let error = greenlet_spawn(move || {
            let error = two_rows(&mut conn, 1).unwrap_err();
            let rows: i64 = await_(conn.fetch_one(COUNT)).unwrap().get(0);
            assert_eq!(rows, 0);
            two_rows(&mut conn, 2).unwrap();
            error
        })
        .await;
        let error: sqlx::Error = error.downcast().unwrap();
        assert!(error.as_database_error().unwrap().is_unique_violation());
        assert_eq!(number(&file, COUNT).await, 2);
    });
}

#[test]
fn a_locked_database_is_an_error_after_its_timeout_and_the_connection_stays_usable() {
    with_database("locked", async |file| {
        let mut holds = connect(&file).await;
        holds.execute("begin immediate").await.unwrap();
        let impatient = options(&file).busy_timeout(Duration::from_millis(20));
        let mut conn = impatient.connect().await.unwrap();
        let insert = "insert into t values (1, 1)";
        let code = greenlet_spawn(move || {
            let error = await_(conn.execute(insert)).unwrap_err();
            let code = error
                .as_database_error()
                .and_then(|error| error.code().map(String::from));
            await_(holds.execute("commit")).unwrap();
            await_(conn.execute(insert)).unwrap();
            code
        })
        .await;
        assert_eq!(code.as_deref(), Some("5")); // SQLITE_BUSY
        assert_eq!(number(&file, COUNT).await, 1);
    });
}

#[test]
fn a_spawn_dropped_in_the_middle_of_a_query_leaves_no_row() {
    with_database("dropped", async |file| {
        let mut conn = connect(&file).await;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let mut spawned = greenlet_spawn(move || -> Result<()> {
            let mut transaction = try_await_(conn.begin())??;
            try_await_(transaction.execute("insert into t values (1, 1)"))??;
            begun.send(()).unwrap();
            let long = "with recursive n(i) as (select 1 union all select i + 1 from n limit 3000000)
                select count(*) from n";
            try_await_(transaction.fetch_one(long))??;
            unreachable!("it is dropped before")
        });
        tokio::select! {
            _ = &mut spawned => unreachable!("the query takes longer"),
            sent = has_begun => sent.unwrap(),
        }
        drop(spawned);
        assert_eq!(number(&file, COUNT).await, 0);
    });
}

/// A synchronous parser that pulls rows, in a greenlet of its own: the await is served below the
/// function.
#[test]
fn a_query_in_a_greenlet_below_is_served_by_the_same_driver() {
    with_database("below", async |file| {
        let mut conn = connect(&file).await;
        let sum = greenlet_spawn(move || -> Result<i64> {
            let rows = Greenlet::new(move |(): ()| -> Result<i64> {
                for id in 1..=10 {
                    let insert = sqlx::query("insert into t values ($1, $1 * $1)").bind(id);
                    try_await_(insert.execute(&mut conn))??;
                }
                Ok(try_await_(conn.fetch_one("select sum(n) from t"))??.get(0))
            });
            rows.switch::<i64>(())
        })
        .await;
        assert_eq!(sum.unwrap(), 385);
    });
}
