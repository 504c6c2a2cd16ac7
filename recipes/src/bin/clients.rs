//! sqlx, async-nats and lapin: asynchronous clients, called from synchronous code. There is no glue.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::ConnectOptions;
use futures::future::try_join_all;
use greenlet::{await_, greenlet_spawn, iter_stream};
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{checks, measured};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ConnectionProperties};
use tokio::time::{sleep, timeout};

const POSTGRES: &str = "127.0.0.1:5432";
const MARIADB: &str = "127.0.0.1:3306";
const NATS: &str = "127.0.0.1:4222";
const RABBITMQ: &str = "127.0.0.1:5672";

const LIMIT: Duration = Duration::from_secs(2);
/// For what waits for ever.
const SHORT: Duration = Duration::from_millis(200);

// ---- sqlx --------------------------------------------------------------------------------------

fn table() -> String {
    format!("recipe_{}", std::process::id())
}

/// The program and the checks for one database: sqlx has types of its own for each.
macro_rules! database {
    ($name:ident, $database:ty, $server:ident, $url:literal) => {
        mod $name {
            use super::*;

            type Pool = sqlx::Pool<$database>;

            fn open(server: String) -> Result<Pool> {
                let url = format!($url, server);
                let options = sqlx::pool::PoolOptions::new()
                    .max_connections(2)
                    .acquire_timeout(LIMIT);
                Ok(await_(options.connect(&url))?)
            }

            /// Plain synchronous code: a transaction of several statements.
            fn add(pool: &Pool, numbers: impl Iterator<Item = i64>) -> Result<()> {
                let mut transaction = await_(pool.begin())?;
                for number in numbers {
                    let insert = format!("insert into {} values ({number})", table());
                    await_(sqlx::query(&insert).execute(&mut *transaction))?;
                }
                Ok(await_(transaction.commit())?)
            }

            fn fresh(pool: &Pool) -> Result<()> {
                await_(sqlx::query(&format!("drop table if exists {}", table())).execute(pool))?;
                await_(sqlx::query(&format!("create table {} (number bigint)", table())).execute(pool))?;
                Ok(())
            }

            /// Uses all connections of the pool at once, and counts.
            async fn expect(pool: &Pool, rows: i64) -> Result<()> {
                let look = |_| {
                    let pool = pool.clone();
                    greenlet_spawn(move || {
                        let mut connection = await_(pool.acquire())?;
                        await_(sleep(Duration::from_millis(10)));
                        let count = format!("select count(*) from {}", table());
                        anyhow::Ok(await_(
                            sqlx::query_scalar::<_, i64>(&count).fetch_one(&mut *connection),
                        )?)
                    })
                };
                let found = try_join_all((0..2).map(look))
                    .await
                    .context("a connection is lost")?;
                ensure!(found == [rows, rows], "{found:?} rows, not {rows}");
                Ok(())
            }

            pub async fn sqlx_commits_and_rolls_back() -> Result<()> {
                let pool = measured(|| open($server.into())).await?;
                let jobs = pool.clone();
                measured(move || fresh(&jobs).and_then(|()| add(&jobs, 0..3))).await?;
                expect(&pool, 3).await?;
                // A drop or a cancel drops the transaction, and sqlx rolls back.
                let waits = || {
                    let pool = pool.clone();
                    let wait = |number: &i64| {
                        if *number == 2 {
                            await_(sleep(100 * LIMIT))
                        }
                    };
                    greenlet_spawn(move || add(&pool, (0..3).inspect(wait)))
                };
                ensure!(timeout(SHORT, waits()).await.is_err(), "it does not wait");
                expect(&pool, 3).await?;
                let mut cancelled = waits();
                ensure!(
                    timeout(SHORT, &mut cancelled).await.is_err(),
                    "it does not wait"
                );
                ensure!(cancelled.cancel().await.is_err(), "it was committed");
                expect(&pool, 3).await?;
                greenlet_spawn(move || {
                    await_(sqlx::query(&format!("drop table {}", table())).execute(&pool))
                })
                .await?;
                Ok(())
            }

            pub async fn sqlx_with_a_server_that_is_not_there_or_fails() -> Result<()> {
                let nowhere = absent().await?.to_string();
                let error = greenlet_spawn(move || open(nowhere).map(drop))
                    .await
                    .unwrap_err();
                ensure!(
                    format!("{error:#}").contains("refused"),
                    "the error is: {error:#}"
                );
                let proxy = Proxy::to($server).await?;
                for fault in FAULTS {
                    let address = proxy.address.to_string();
                    let pool = greenlet_spawn(move || open(address)).await?;
                    let (jobs, breaks) = (pool.clone(), proxy.clone());
                    let spawned = greenlet_spawn(move || {
                        fresh(&jobs)?;
                        add(
                            &jobs,
                            (0..3).inspect(|number| {
                                if *number == 2 {
                                    breaks.set(fault)
                                }
                            }),
                        )
                    });
                    match (fault, timeout(LIMIT, spawned).await) {
                        // sqlx has no time limit for a statement: it is the caller's.
                        (Fault::Silent, Err(_)) => {}
                        (Fault::Closes | Fault::Garbage, Ok(Err(error))) => eprintln!("{fault:?}: {error:#}"),
                        (_, other) => anyhow::bail!("{fault:?}: {other:?}"),
                    }
                    proxy.set(Fault::None);
                    proxy.close_all();
                    expect(&pool, 0)
                        .await
                        .with_context(|| format!("after {fault:?}"))?;
                }
                let pool = greenlet_spawn(|| open($server.into())).await?;
                greenlet_spawn(move || {
                    await_(sqlx::query(&format!("drop table {}", table())).execute(&pool))
                })
                .await?;
                Ok(())
            }
        }
    };
}

database!(postgres, sqlx::Postgres, POSTGRES, "postgres://postgres@{}/test");
database!(
    mariadb,
    sqlx::MySql,
    MARIADB,
    "mysql://root@{}/test?ssl-mode=disabled"
);

// ---- NATS --------------------------------------------------------------------------------------

fn nats(server: impl ToString) -> Result<async_nats::Client> {
    let options = ConnectOptions::new()
        .connection_timeout(SHORT)
        .request_timeout(Some(SHORT));
    Ok(await_(options.connect(server.to_string()))?)
}

async fn nats_delivers_to_an_iterator() -> Result<()> {
    let sum = measured(|| {
        let client = nats(NATS)?;
        let subject = format!("{}.numbers", table());
        let messages = await_(client.subscribe(subject.clone()))?;
        for number in 1..=10 {
            await_(client.publish(subject.clone(), number.to_string().into()))?;
        }
        await_(client.flush())?;
        let numbers = iter_stream(messages).take(10).map(|message| {
            str::from_utf8(&message.payload)?
                .parse::<u32>()
                .map_err(anyhow::Error::from)
        });
        numbers.sum::<Result<u32>>()
    });
    ensure!(sum.await? == 55, "messages are lost");
    let mut cancelled = greenlet_spawn(|| -> Result<usize> {
        Ok(iter_stream(await_(nats(NATS)?.subscribe("never"))?).count())
    });
    ensure!(timeout(SHORT, &mut cancelled).await.is_err(), "it does not wait");
    ensure!(cancelled.cancel().await.is_err(), "it was not ended");
    Ok(())
}

async fn nats_without_a_server_or_with_one_that_fails() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || nats(nowhere).map(drop)).await.unwrap_err();
    ensure!(
        format!("{error:#}").contains("refused"),
        "the error is: {error:#}"
    );
    let proxy = Proxy::to(NATS).await?;
    for fault in FAULTS {
        proxy.set(fault);
        let address = proxy.address;
        let error = greenlet_spawn(move || nats(address).map(drop)).await.unwrap_err();
        eprintln!("{fault:?}: {error:#}");
        proxy.set(Fault::None);
        let breaks = proxy.clone();
        let error = greenlet_spawn(move || {
            let client = nats(breaks.address)?;
            breaks.set(fault);
            // Nobody answers.
            await_(client.request("nobody", "".into()))
                .map(drop)
                .map_err(anyhow::Error::from)
        });
        eprintln!("{fault:?}, request: {:#}", error.await.unwrap_err());
        proxy.set(Fault::None);
    }
    Ok(())
}

// ---- RabbitMQ ----------------------------------------------------------------------------------

fn amqp(server: impl ToString) -> Result<lapin::Connection> {
    let url = format!("amqp://guest:guest@{}/%2f", server.to_string());
    Ok(await_(lapin::Connection::connect(
        &url,
        ConnectionProperties::default(),
    ))?)
}

/// Publishes messages, with confirmations, and gets them back.
fn round_trip(connection: &lapin::Connection, messages: usize) -> Result<Vec<Vec<u8>>> {
    let channel = await_(connection.create_channel())?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..Default::default()
    };
    let queue = await_(channel.queue_declare("".into(), options, FieldTable::default()))?;
    await_(channel.confirm_select(ConfirmSelectOptions::default()))?;
    for number in 0..messages {
        let properties = BasicProperties::default();
        let text = number.to_string();
        let publish = channel.basic_publish(
            "".into(),
            queue.name().clone(),
            BasicPublishOptions::default(),
            text.as_bytes(),
            properties,
        );
        let confirmed = await_(await_(publish)?)?;
        ensure!(confirmed.is_ack(), "not confirmed: {confirmed:?}");
    }
    let mut found = Vec::new();
    while let Some(message) = await_(channel.basic_get(queue.name().clone(), BasicGetOptions::default()))? {
        await_(message.ack(BasicAckOptions::default()))?;
        found.push(message.delivery.data);
    }
    Ok(found)
}

async fn lapin_confirms_and_delivers() -> Result<()> {
    let found = measured(|| round_trip(&amqp(RABBITMQ)?, 5)).await?;
    ensure!(found == [b"0", b"1", b"2", b"3", b"4"], "got {found:?}");
    Ok(())
}

async fn lapin_without_a_server_or_with_one_that_fails() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || amqp(nowhere).map(drop)).await.unwrap_err();
    ensure!(
        format!("{error:#}").contains("refused"),
        "the error is: {error:#}"
    );
    let proxy = Proxy::to(RABBITMQ).await?;
    for fault in FAULTS {
        for while_connecting in [true, false] {
            let breaks = proxy.clone();
            breaks.set(if while_connecting { fault } else { Fault::None });
            let spawned = greenlet_spawn(move || {
                let connection = amqp(breaks.address)?;
                breaks.set(fault);
                round_trip(&connection, 5)
            });
            match (fault, timeout(LIMIT, spawned).await) {
                (Fault::Silent, Err(_)) => {}
                (_, Ok(Err(error))) => eprintln!("{fault:?}: {error:#}"),
                (_, other) => anyhow::bail!("{fault:?}: {other:?}"),
            }
        }
    }
    Ok(())
}

fn main() {
    let checks = checks![
        postgres::sqlx_commits_and_rolls_back,
        postgres::sqlx_with_a_server_that_is_not_there_or_fails,
        mariadb::sqlx_commits_and_rolls_back,
        mariadb::sqlx_with_a_server_that_is_not_there_or_fails,
        nats_delivers_to_an_iterator,
        nats_without_a_server_or_with_one_that_fails,
        lapin_confirms_and_delivers,
        lapin_without_a_server_or_with_one_that_fails,
    ];
    greenlet_recipes::main("clients", checks, None);
}
