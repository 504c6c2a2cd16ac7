//! sqlx (PostgreSQL, MariaDB), async-nats and lapin, called from plain synchronous code. There is no
//! glue.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_nats::ConnectOptions;
use futures::future::try_join_all;
use greenlet::{await_, greenlet_spawn, iter_stream, try_await_};
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{checks, measured};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe, Executor, RawSql, Row, raw_sql};
use tokio::time::timeout;

/// The time limit of each client.
const LIMIT: Duration = Duration::from_secs(2);

const POSTGRES: (&str, &str) = (
    "127.0.0.1:5432",
    "postgres://postgres@ADDRESS/test?sslmode=disable",
);
const MARIADB: (&str, &str) = (
    "127.0.0.1:3306",
    "mysql://greenlet:greenlet@ADDRESS/test?ssl-mode=disabled",
);
const NATS: &str = "127.0.0.1:4222";
const RABBITMQ: &str = "127.0.0.1:5672";

/// A name that no other run uses.
fn unique(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("greenlet_{what}_{}_{number}", std::process::id())
}

// ---- sqlx -------------------------------------------------------------------------------------------

fn connect(url: &str, address: impl ToString) -> sqlx::Result<AnyPool> {
    sqlx::any::install_default_drivers();
    let options = AnyPoolOptions::new().max_connections(3).acquire_timeout(LIMIT);
    await_(options.connect(&url.replace("ADDRESS", &address.to_string())))
}

fn sql(text: String) -> RawSql {
    raw_sql(AssertSqlSafe(text))
}

/// Adds a row, in a transaction. Fails half-way if it is told to.
fn add(db: &AnyPool, table: &str, number: i64, fails: bool) -> Result<()> {
    let mut transaction = await_(db.begin())?;
    let insert = sql(format!("insert into {table} values ({number})"));
    await_(insert.execute(&mut *transaction))?;
    ensure!(!fails, "half-way");
    Ok(await_(transaction.commit())?)
}

fn sum(db: &AnyPool, table: &str) -> Result<i64> {
    let rows = await_(sql(format!("select n from {table}")).fetch_all(db))?;
    rows.iter().map(|row| Ok(row.try_get::<i64, _>(0)?)).sum()
}

async fn transactions_of(server: (&'static str, &'static str)) -> Result<()> {
    let (address, url) = server;
    let db = greenlet_spawn(move || connect(url, address)).await?;
    let table = unique("rows");
    sql(format!("create table {table} (n bigint)"))
        .execute(&db)
        .await?;
    let run = |number: i64| {
        let (db, table) = (db.clone(), table.clone());
        measured(move || add(&db, &table, number, false))
    };
    try_join_all((1..=20).map(run)).await?; // on three connections
    let (pool, name) = (db.clone(), table.clone());
    let found = greenlet_spawn(move || {
        ensure!(add(&pool, &name, 1_000, true).is_err());
        sum(&pool, &name)
    });
    let found = found.await?;
    ensure!(found == 210, "the sum is {found}: no failed transaction counts");
    // Ended in the middle: the pool rolls back, and keeps its size.
    for step in 0..20 {
        let (pool, name) = (db.clone(), table.clone());
        let spawned = greenlet_spawn(move || add(&pool, &name, 0, false));
        let _ = timeout(step * Duration::from_micros(200), spawned).await;
    }
    let run = |number: i64| {
        let (db, table) = (db.clone(), table.clone());
        greenlet_spawn(move || add(&db, &table, -number, false))
    };
    try_join_all((1..=20).map(run)).await?;
    ensure!(db.size() <= 3, "{} connections", db.size());
    sql(format!("drop table {table}")).execute(&db).await?;
    db.close().await;
    Ok(())
}

async fn sqlx_runs_transactions_on_postgresql() -> Result<()> {
    transactions_of(POSTGRES).await
}

async fn sqlx_runs_transactions_on_mariadb() -> Result<()> {
    transactions_of(MARIADB).await
}

async fn sqlx_reports_a_server_that_fails() -> Result<()> {
    for (address, url) in [POSTGRES, MARIADB] {
        let nowhere = absent().await?;
        let error = greenlet_spawn(move || connect(url, nowhere))
            .await
            .err()
            .context("it connects")?;
        eprintln!("absent: {error}");
        for fault in FAULTS {
            let proxy = Proxy::to(address).await?;
            let connected = {
                let address = proxy.address;
                greenlet_spawn(move || connect(url, address)).await?
            };
            proxy.set(fault);
            let pool = connected.clone();
            let query = move || await_(timeout(LIMIT, pool.execute("select 1")));
            let error = match greenlet_spawn(query).await {
                Ok(Ok(_)) => bail!("{fault:?}: no error"),
                Ok(Err(error)) => error.to_string(),
                Err(elapsed) => elapsed.to_string(),
            };
            eprintln!("{fault:?}: {error}");
            proxy.set(Fault::None);
            proxy.close_all();
            let pool = connected.clone();
            greenlet_spawn(move || await_(timeout(2 * LIMIT, pool.execute("select 1")))).await??;
            ensure!(connected.size() <= 3);
            drop(connected);
        }
    }
    Ok(())
}

// ---- async-nats -------------------------------------------------------------------------------------

fn nats(address: impl ToString) -> Result<async_nats::Client> {
    let options = ConnectOptions::new()
        .connection_timeout(LIMIT)
        .request_timeout(Some(LIMIT / 4));
    Ok(await_(options.connect(address.to_string()))?)
}

/// Answers requests until it has answered so many.
fn serve(client: &async_nats::Client, subject: String, count: usize) -> Result<()> {
    let requests = await_(client.subscribe(subject))?;
    for request in iter_stream(requests).take(count) {
        let reply = request.reply.context("a request wants an answer")?;
        let answer = [b"<", &*request.payload, b">"].concat();
        await_(client.publish(reply, answer.into()))?;
    }
    Ok(await_(client.flush())?)
}

async fn async_nats_asks_and_answers() -> Result<()> {
    const COUNT: usize = 20;
    let client = greenlet_spawn(|| nats(NATS)).await?;
    let subject = unique("subject");
    let server = {
        let (client, subject) = (client.clone(), subject.clone());
        measured(move || serve(&client, subject, COUNT))
    };
    let server = tokio::task::spawn_local(server);
    tokio::time::sleep(Duration::from_millis(50)).await; // until it has subscribed
    let ask = |n: usize| {
        let (client, subject) = (client.clone(), subject.clone());
        greenlet_spawn(move || {
            let answer = await_(client.request(subject, n.to_string().into()))?;
            ensure!(*answer.payload == *format!("<{n}>").as_bytes());
            Ok(())
        })
    };
    try_join_all((0..COUNT).map(ask)).await?;
    server.await?
}

async fn async_nats_reports_a_server_that_fails() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || nats(nowhere))
        .await
        .err()
        .context("it connects")?;
    eprintln!("absent: {error:#}");
    for fault in FAULTS {
        let proxy = Proxy::to(NATS).await?;
        let address = proxy.address;
        let client = greenlet_spawn(move || nats(address)).await?;
        proxy.set(fault);
        let (asks, subject) = (client.clone(), unique("subject"));
        let ask = move || await_(asks.request(subject, "question".into()));
        let error = greenlet_spawn(ask).await.err().context("nobody answers")?;
        eprintln!("{fault:?}: {error}");
        proxy.set(Fault::None);
        proxy.close_all();
        // It connects again by itself.
        let again = client.clone();
        timeout(2 * LIMIT, greenlet_spawn(move || await_(again.flush()))).await??;
    }
    Ok(())
}

// ---- lapin ------------------------------------------------------------------------------------------

fn rabbitmq(address: impl ToString) -> Result<Connection> {
    let uri = format!("amqp://guest:guest@{}/%2f", address.to_string());
    Ok(await_(timeout(
        LIMIT,
        Connection::connect(&uri, ConnectionProperties::default()),
    ))??)
}

/// Publishes messages to a queue, and takes them out of it.
fn send_and_receive(connection: &Connection, queue: &str, count: usize) -> Result<()> {
    let channel = await_(connection.create_channel())?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    await_(channel.queue_declare(queue.into(), options, FieldTable::default()))?;
    for n in 0..count {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let text = n.to_string();
        await_(channel.basic_publish("".into(), queue.into(), options, text.as_bytes(), properties))?;
    }
    let options = BasicConsumeOptions::default();
    let consumer = await_(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()))?;
    for (n, delivery) in iter_stream(consumer).take(count).enumerate() {
        let delivery = delivery?;
        ensure!(delivery.data == n.to_string().as_bytes());
        await_(delivery.ack(BasicAckOptions::default()))?;
    }
    await_(channel.queue_delete(queue.into(), QueueDeleteOptions::default()))?;
    Ok(await_(channel.close(200, "done".into()))?)
}

async fn lapin_sends_and_receives() -> Result<()> {
    let connection = greenlet_spawn(|| rabbitmq(RABBITMQ)).await?;
    let connection = std::rc::Rc::new(connection);
    let run = |_| {
        let connection = std::rc::Rc::clone(&connection);
        measured(move || send_and_receive(&connection, &unique("queue"), 20))
    };
    try_join_all((0..5).map(run)).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

async fn lapin_reports_a_server_that_fails() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || rabbitmq(nowhere))
        .await
        .err()
        .context("it connects")?;
    eprintln!("absent: {error:#}");
    for fault in FAULTS {
        let proxy = Proxy::to(RABBITMQ).await?;
        let address = proxy.address;
        let breaks = proxy.clone();
        let run = greenlet_spawn(move || {
            let connection = rabbitmq(address)?;
            breaks.set(fault);
            match try_await_(timeout(LIMIT, connection.create_channel()))? {
                Ok(Ok(_)) => bail!("{fault:?}: no error"),
                Ok(Err(error)) => eprintln!("{fault:?}: {error}"),
                Err(elapsed) => eprintln!("{fault:?}: {elapsed}"),
            }
            Ok(())
        });
        run.await?;
        proxy.set(Fault::None);
        greenlet_spawn(move || send_and_receive(&rabbitmq(address)?, &unique("queue"), 1)).await?;
    }
    Ok(())
}

fn main() {
    let checks = checks![
        sqlx_runs_transactions_on_postgresql,
        sqlx_runs_transactions_on_mariadb,
        sqlx_reports_a_server_that_fails,
        async_nats_asks_and_answers,
        async_nats_reports_a_server_that_fails,
        lapin_sends_and_receives,
        lapin_reports_a_server_that_fails,
    ];
    greenlet_recipes::main("clients", checks, None);
}
