//! A synchronous function on an asynchronous database driver. It runs two queries, and has no
//! `async` code.
//!
//! ```text
//! cargo run --release --example repaint                                   # embedded SQLite, no set-up
//! cargo run --release --example repaint -- --tasks 10                     # ten loops at once, one thread
//! DATABASE_URL=postgres://user@host/db cargo run --release --features postgres --example repaint
//! ```
//!
//! Exit status: 0 when every row came back as it went in, 1 with one line on standard error
//! otherwise.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use greenlet::{await_, greenlet_spawn};
use sqlx::any::AnyPoolOptions;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Connection, Row};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

const ROWS: u64 = 100;
const MAX_CONNECTIONS: u64 = 20;

/// How long a server may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(10);

type Conn = PoolConnection<Any>;

/// Writes a row and reads it back. Plain synchronous code, except for two calls of `await_`.
fn add_and_select_data(conn: &mut Conn, data: &str) -> Result<String> {
    let insert = sqlx::query("insert into mytable(data) values ($1) returning id").bind(data);
    let id: i64 = await_(insert.fetch_one(&mut **conn))?.try_get("id")?;

    let select = sqlx::query("select data from mytable where id = ($1)").bind(id);
    Ok(await_(select.fetch_one(&mut **conn))?.try_get("data")?)
}

/// Calls the synchronous function a hundred times.
async fn write_and_read_back(
    pool: AnyPool,
    turns: Rc<Semaphore>,
    task: u64,
    progress: Progress,
) -> Result<u64> {
    // If there are more tasks than connections, they take turns, however long that takes.
    let _turn = turns.acquire().await?;
    let mut conn = pool.acquire().await?;
    for n in 0..ROWS {
        let data = format!("row {n} of task {task}");
        let sent = data.clone();
        let (back, returned) = greenlet_spawn(move || {
            let back = add_and_select_data(&mut conn, &data);
            (back, conn)
        })
        .await;
        conn = returned;
        let back = back?;
        ensure!(back == sent, "wrote {sent:?}, read {back:?}");
        progress.step();
    }
    Ok(ROWS)
}

async fn run(url: &str, tasks: u64) -> Result<u64> {
    sqlx::any::install_default_drivers();
    let is_sqlite = url.starts_with("sqlite:");
    let id = if is_sqlite {
        "integer primary key"
    } else {
        "bigserial primary key"
    };
    let table = format!("create table if not exists mytable (id {id}, data text not null)");

    // A pool keeps trying an address that refuses connections. One connection first fails at once.
    let first = tokio::time::timeout(PATIENCE, AnyConnection::connect(url)).await;
    let mut first = first.context("no answer from the server")??;
    sqlx::query(&table).execute(&mut first).await?;
    first.close().await?;

    let pool = AnyPoolOptions::new().max_connections(tasks.min(MAX_CONNECTIONS) as u32);
    let pool = pool.acquire_timeout(PATIENCE).after_connect(move |conn, _| {
        // An in-memory SQLite database belongs to one connection, so each needs the table.
        let table = is_sqlite.then(|| table.clone());
        Box::pin(async move {
            if let Some(table) = table {
                sqlx::query(&table).execute(conn).await?;
            }
            Ok(())
        })
    });
    let pool = pool.connect(url).await?;

    let progress = Progress::new(tasks * ROWS);
    let local = LocalSet::new();
    let turns = Rc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let mut handles = Vec::new();
    for task in 0..tasks {
        handles.push(local.spawn_local(write_and_read_back(
            pool.clone(),
            turns.clone(),
            task,
            progress.clone(),
        )));
    }
    let rows = local
        .run_until(async {
            let mut rows = 0;
            for handle in handles {
                rows += handle.await??;
            }
            Ok::<u64, anyhow::Error>(rows)
        })
        .await?;
    progress.done();
    pool.close().await;
    Ok(rows)
}

/// Shows the progress on standard error: in place on a terminal, a few lines elsewhere.
#[derive(Clone)]
struct Progress {
    done: Rc<Cell<u64>>,
    total: u64,
}

impl Progress {
    fn new(total: u64) -> Progress {
        Progress {
            done: Rc::default(),
            total,
        }
    }

    fn step(&self) {
        let done = self.done.get() + 1;
        self.done.set(done);
        let every = (self.total / 4).max(1);
        if std::io::stderr().is_terminal() {
            eprint!("\r{done}/{} rows", self.total);
            let _ = std::io::stderr().flush(); // losing a progress line is no error
        } else if done % every == 0 {
            eprintln!("{done}/{} rows", self.total);
        }
    }

    fn done(&self) {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

/// Returns the number after `--tasks`, or 1 without it.
fn tasks() -> Result<u64> {
    let mut args = std::env::args().skip(1);
    let mut tasks = 1;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--tasks" => {
                let number = args.next().context("--tasks needs a number")?;
                tasks = number
                    .parse()
                    .with_context(|| format!("--tasks {number}: not a number"))?;
                ensure!(tasks > 0, "--tasks 0: there is nothing to do");
            }
            other => bail!("unknown argument {other:?}; usage: repaint [--tasks N]"),
        }
    }
    Ok(tasks)
}

/// Returns the part of a database URL that the last line prints.
fn kind(url: &str) -> Result<&'static str> {
    if url.starts_with("sqlite:") {
        Ok("sqlite")
    } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        ensure!(cfg!(feature = "postgres"), "it needs `--features postgres`");
        Ok("postgres")
    } else {
        bail!("unknown kind of database; it starts with postgres:// or sqlite:")
    }
}

/// Returns an error with its causes, without those that only repeat the one before.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.ends_with(&cause) {
            line = if line.is_empty() {
                cause
            } else {
                format!("{line}: {cause}")
            };
        }
    }
    line.replace('\n', " ")
}

fn main() -> ExitCode {
    let url = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    let url = url.unwrap_or_else(|| "sqlite::memory:".into());
    let outcome = tasks().and_then(|tasks| {
        let kind = kind(&url).context("DATABASE_URL")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let rows = runtime
            .block_on(run(&url, tasks))
            .with_context(|| format!("database ({kind})"))?;
        Ok((rows, kind))
    });
    match outcome {
        Ok((rows, kind)) => {
            println!("{rows} rows written and read back ({kind})");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("repaint: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}
