//! redis: synchronous commands, pipelines and transactions, on an asynchronous connection.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use greenlet::greenlet_spawn;
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{Future, bench, checks, measured};
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{Client, Commands, RedisResult};
use tokio::time::{sleep, timeout};

use glue::Bridged;

#[path = "../../glue/redis.rs"]
mod glue;

const SERVER: &str = "127.0.0.1:6379";
const LIMIT: Duration = Duration::from_secs(1);

async fn connect(server: impl ToString) -> RedisResult<Bridged<MultiplexedConnection>> {
    let client = Client::open(format!("redis://{}", server.to_string()))?;
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(LIMIT))
        .set_response_timeout(Some(LIMIT));
    Ok(Bridged(
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await?,
    ))
}

/// A connection that connects again when it is lost.
async fn reconnecting(server: impl ToString) -> RedisResult<Bridged<ConnectionManager>> {
    let client = Client::open(format!("redis://{}", server.to_string()))?;
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(LIMIT))
        .set_response_timeout(Some(LIMIT))
        .set_number_of_retries(1);
    Ok(Bridged(client.get_connection_manager_with_config(config).await?))
}

/// A key of this process.
fn key(name: &str) -> String {
    format!("recipe:{}:{name}", std::process::id())
}

async fn greenlets_share_one_connection() -> Result<()> {
    let connection = connect(SERVER).await?;
    let count = |_| {
        let mut connection = connection.clone();
        measured(move || {
            for _ in 0..10 {
                connection.incr::<_, _, i64>(key("count"), 1)?;
            }
            connection.expire::<_, bool>(key("count"), 60)
        })
    };
    try_join_all((0..20).map(count)).await?;
    let mut connection = connection.clone();
    let counted: i64 = greenlet_spawn(move || connection.get_del(key("count"))).await?;
    ensure!(counted == 200, "counted {counted}");
    Ok(())
}

async fn pipelines_and_transactions_keep_their_answers_apart() -> Result<()> {
    let connection = connect(SERVER).await?;
    let ask = |number: i64| {
        let mut connection = connection.clone();
        measured(move || {
            let name = key(&format!("pipe {number}"));
            for atomic in [false, true] {
                let mut pipeline = redis::pipe();
                if atomic {
                    pipeline.atomic();
                }
                pipeline
                    .set(&name, "binary \0\r\n bytes")
                    .ignore()
                    .strlen(&name)
                    .set(&name, number)
                    .ignore()
                    .get_del(&name);
                let answers: (i64, i64) = pipeline.query(&mut connection)?;
                ensure!(answers == (16, number), "atomic {atomic}: {answers:?}");
            }
            let packed = redis::cmd("ECHO").arg(number).get_packed_command();
            let echo: i64 = redis::from_redis_value(redis::ConnectionLike::req_packed_command(
                &mut connection,
                &packed,
            )?)?;
            ensure!(echo == number, "got {echo} for {number}");
            Ok(())
        })
    };
    try_join_all((0..20).map(ask)).await.map(drop)
}

async fn an_error_of_the_server_is_an_error() -> Result<()> {
    let mut connection = connect(SERVER).await?;
    greenlet_spawn(move || {
        let error = redis::cmd("NOSUCHCOMMAND")
            .query::<()>(&mut connection)
            .unwrap_err();
        ensure!(
            error.to_string().contains("unknown command"),
            "the error is: {error}"
        );
        let mut pipeline = redis::pipe();
        pipeline.atomic().cmd("NOSUCHCOMMAND").ignore().cmd("PING");
        let error = pipeline.query::<()>(&mut connection).unwrap_err();
        ensure!(
            error.to_string().contains("Transaction aborted"),
            "the error is: {error}"
        );
        ensure!(
            redis::ConnectionLike::check_connection(&mut connection),
            "the connection is lost"
        );
        Ok(())
    })
    .await
}

async fn a_drop_or_cancel_in_the_middle_leaves_the_connection() -> Result<()> {
    let connection = Bridged(
        Client::open(format!("redis://{SERVER}"))?
            .get_multiplexed_async_connection_with_config(
                &redis::AsyncConnectionConfig::new().set_response_timeout(None),
            )
            .await?,
    );
    // A connection of its own waits, since a blocking command holds up all that follow it.
    let waits = |mut connection: Bridged<MultiplexedConnection>| {
        greenlet_spawn(move || connection.blpop::<_, Option<(String, String)>>(key("never"), 0.2))
    };
    let mut dropped = waits(connection.clone());
    ensure!(
        timeout(LIMIT / 10, &mut dropped).await.is_err(),
        "it does not wait"
    );
    drop(dropped);
    let mut cancelled = waits(connection.clone());
    ensure!(
        timeout(LIMIT / 10, &mut cancelled).await.is_err(),
        "it does not wait"
    );
    let error = cancelled.cancel().await?.unwrap_err();
    ensure!(error.to_string().contains("cancelled"), "the error is: {error}");
    for step in 0..20 {
        let mut connection = connection.clone();
        let incr = greenlet_spawn(move || connection.incr::<_, _, i64>(key("ended"), 1));
        drop(timeout(step * Duration::from_micros(100), incr).await);
    }
    let mut connection = connection.clone();
    let echo: String = greenlet_spawn(move || {
        connection.del::<_, i64>(key("ended"))?;
        redis::cmd("ECHO").arg("mine").query(&mut connection)
    })
    .await?;
    ensure!(echo == "mine", "got the answer of another: {echo}");
    Ok(())
}

async fn a_server_that_is_not_there() -> Result<()> {
    let address = absent().await?;
    let error = connect(address).await.err().expect("nothing listens there");
    ensure!(error.is_connection_refusal(), "the error is: {error}");
    Ok(())
}

async fn a_server_that_fails_while_one_connects() -> Result<()> {
    let proxy = Proxy::to(SERVER).await?;
    for fault in FAULTS {
        proxy.set(fault);
        let start = Instant::now();
        let error = connect(proxy.address).await.err();
        eprintln!("{fault:?}: {error:?}");
        ensure!(error.is_some(), "{fault:?}: connected");
        ensure!(
            start.elapsed() < 10 * LIMIT,
            "{fault:?}: it took {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

async fn a_server_that_fails_in_the_middle() -> Result<()> {
    let proxy = Proxy::to(SERVER).await?;
    for fault in FAULTS {
        proxy.set(Fault::None);
        let mut connection = reconnecting(proxy.address).await?;
        let (breaks, mut again) = (proxy.clone(), connection.clone());
        greenlet_spawn(move || {
            ensure!(
                redis::cmd("ECHO").arg(1).query::<i64>(&mut connection)? == 1,
                "no echo"
            );
            breaks.set(fault);
            let error = redis::cmd("ECHO")
                .arg(2)
                .query::<i64>(&mut connection)
                .unwrap_err();
            eprintln!("{fault:?}: {error}");
            ensure!(
                match fault {
                    Fault::Silent => error.is_timeout(),
                    _ => error.is_io_error() || error.kind() == redis::ErrorKind::Parse,
                },
                "{fault:?}: {error:?}"
            );
            breaks.set(Fault::None);
            breaks.close_all();
            Ok(())
        })
        .await?;
        // The connection comes back by itself.
        let mut found = 0;
        for _ in 0..20 {
            sleep(LIMIT / 10).await;
            let mut connection = again.clone();
            found = greenlet_spawn(move || redis::cmd("ECHO").arg(3).query::<i64>(&mut connection))
                .await
                .unwrap_or(0);
            if found == 3 {
                break;
            }
        }
        ensure!(found == 3, "{fault:?}: the connection does not come back");
        ensure!(
            greenlet_spawn(move || redis::ConnectionLike::check_connection(&mut again)).await,
            "{fault:?}: no ping"
        );
    }
    Ok(())
}

/// 100 clients, each with 100 commands.
async fn compare() -> Result<()> {
    const CLIENTS: usize = 100;
    const COMMANDS: usize = 100;
    let connection = connect(SERVER).await?;
    let native = || -> Future {
        let connection = connection.0.clone();
        let client = move |_| {
            let mut connection = connection.clone();
            async move {
                for number in 0..COMMANDS {
                    redis::cmd("ECHO")
                        .arg(number)
                        .query_async::<usize>(&mut connection)
                        .await?;
                }
                anyhow::Ok(())
            }
        };
        Box::pin(async { try_join_all((0..CLIENTS).map(client)).await.map(drop) })
    };
    fn commands(connection: &mut dyn redis::ConnectionLike) -> Result<()> {
        for number in 0..COMMANDS {
            redis::cmd("ECHO").arg(number).query::<usize>(connection)?;
        }
        Ok(())
    }
    let bridged = || -> Future {
        let connection = connection.clone();
        let client = move |_| {
            let mut connection = connection.clone();
            greenlet_spawn(move || commands(&mut connection))
        };
        Box::pin(async { try_join_all((0..CLIENTS).map(client)).await.map(drop) })
    };
    let pool: std::sync::Arc<Vec<_>> = std::sync::Arc::new(
        (0..CLIENTS)
            .map(|_| {
                Ok(std::sync::Mutex::new(
                    Client::open(format!("redis://{SERVER}"))?.get_connection()?,
                ))
            })
            .collect::<RedisResult<_>>()?,
    );
    let threads = || -> Future {
        let pool = pool.clone();
        let client = move |index: usize| {
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || commands(&mut *pool[index].lock().expect("no client panics")))
        };
        Box::pin(async {
            try_join_all((0..CLIENTS).map(client))
                .await?
                .into_iter()
                .collect::<Result<()>>()
        })
    };
    println!("{CLIENTS} clients, each with {COMMANDS} commands:");
    bench::compare(
        9,
        &[
            ("redis, async", &native),
            ("redis, greenlet_spawn", &bridged),
            ("redis, spawn_blocking", &threads),
        ],
    )
    .await
}

fn main() {
    let checks = checks![
        greenlets_share_one_connection,
        pipelines_and_transactions_keep_their_answers_apart,
        an_error_of_the_server_is_an_error,
        a_drop_or_cancel_in_the_middle_leaves_the_connection,
        a_server_that_is_not_there,
        a_server_that_fails_while_one_connects,
        a_server_that_fails_in_the_middle,
    ];
    greenlet_recipes::main("redis", checks, Some(|| Box::pin(compare())));
}
