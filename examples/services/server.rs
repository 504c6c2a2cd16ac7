//! An HTTP server with a thread for each processor, whose handlers run synchronous business code over
//! an asynchronous database.
//!
//! ```text
//! cargo run --release --example server                      # embedded SQLite, no set-up
//! DATABASE_URL=postgres://user@host/db cargo run --release --features postgres --example server
//!
//! curl -X POST localhost:3000/accounts -d '{"owner": "ann", "balance": 100}' -H content-type:application/json
//! curl -X POST localhost:3000/transfers -d '{"from": 1, "to": 2, "amount": 5}' -H content-type:application/json
//! curl localhost:3000/accounts/1
//! ```
//!
//! `ADDRESS` is the address that it listens on, `127.0.0.1:3000` by default. Ctrl-C ends it, after the
//! requests that it works on.
//!
//! ```text
//!   thread 0: runtime, listener, database pool     connections and handlers stay on the thread
//!   thread 1: runtime, listener, database pool     that has accepted them; the kernel spreads
//!   ...                                            new connections over the listeners
//! ```
//!
//! A handler is a spawned function on the runtime's own thread, so a request crosses no thread.
//! axum wants futures that are `Send`, because most runtimes move tasks between threads. These
//! runtimes have one thread each: `SendWrapper` makes the future `Send`, and would panic on any other
//! thread. On a runtime of many threads, use `PinnedPool` instead.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::{future::Future, io};

use anyhow::{Context, Result, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use greenlet::{await_, greenlet_spawn, run_to_end};
use send_wrapper::SendWrapper;
use serde_json::{Value, json};
use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, Row, Transaction};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::sync::watch;

// ---- business code: synchronous, at any depth of calls ----------------------------------------------------

/// Opens an account, and returns its number.
fn open_account(db: &AnyPool, owner: &str, balance: i64) -> Result<i64> {
    let insert = sqlx::query("insert into accounts(owner, balance) values ($1, $2) returning id");
    let row = await_(insert.bind(owner).bind(balance).fetch_one(db))?;
    Ok(row.try_get("id")?)
}

fn balance(db: &AnyPool, account: i64) -> Result<i64> {
    let select = sqlx::query("select balance from accounts where id = $1").bind(account);
    let row = await_(select.fetch_optional(db))?;
    let row = row.with_context(|| format!("there is no account {account}"))?;
    Ok(row.try_get("balance")?)
}

/// Moves money from one account to another. An error rolls back everything.
fn transfer(db: &AnyPool, from: i64, to: i64, amount: i64) -> Result<()> {
    ensure!(amount > 0, "the amount must be positive");
    let mut transaction = await_(db.begin())?;
    // Lock the accounts in the order of their numbers, so that two transfers never deadlock.
    let mut changes = [(from, -amount), (to, amount)];
    changes.sort_unstable();
    for (account, change) in changes {
        book(&mut transaction, account, change)?;
    }
    await_(transaction.commit())?;
    Ok(())
}

fn book(transaction: &mut Transaction<'_, Any>, account: i64, change: i64) -> Result<()> {
    let update = sqlx::query("update accounts set balance = balance + $1 where id = $2 returning balance");
    let row = await_(
        update
            .bind(change)
            .bind(account)
            .fetch_optional(&mut **transaction),
    )?;
    let row = row.with_context(|| format!("there is no account {account}"))?;
    let balance: i64 = row.try_get("balance")?;
    ensure!(balance >= 0, "account {account} has not enough money");
    Ok(())
}

// ---- HTTP: each handler runs business code in a greenlet -------------------------------------------------

type Answer = (StatusCode, Json<Value>);

/// Runs business code, while the thread serves other requests. If the client disconnects, the
/// handler is dropped, which ends the code and rolls back its transaction.
async fn run(db: AnyPool, code: impl FnOnce(&AnyPool) -> Result<Value> + 'static) -> Answer {
    match SendWrapper::new(greenlet_spawn(move || code(&db))).await {
        Ok(answer) => (StatusCode::OK, Json(answer)),
        Err(error) => (
            StatusCode::BAD_REQUEST,
            Json(json!({ "error": format!("{error:#}") })),
        ),
    }
}

fn number(body: &Value, name: &str) -> Result<i64> {
    body[name]
        .as_i64()
        .with_context(|| format!("{name:?} must be a number"))
}

async fn post_account(State(db): State<AnyPool>, Json(body): Json<Value>) -> Answer {
    run(db, move |db| {
        let owner = body["owner"].as_str().context("\"owner\" must be a text")?;
        let id = open_account(db, owner, number(&body, "balance")?)?;
        Ok(json!({ "id": id }))
    })
    .await
}

async fn get_account(State(db): State<AnyPool>, Path(id): Path<i64>) -> Answer {
    run(db, move |db| Ok(json!({ "id": id, "balance": balance(db, id)? }))).await
}

async fn post_transfer(State(db): State<AnyPool>, Json(body): Json<Value>) -> Answer {
    run(db, move |db| {
        transfer(
            db,
            number(&body, "from")?,
            number(&body, "to")?,
            number(&body, "amount")?,
        )?;
        Ok(json!({}))
    })
    .await
}

/// Returns the routes of the server, with a pool of connections to a database that has its tables.
pub async fn router(url: String) -> Result<Router> {
    sqlx::any::install_default_drivers();
    // An in-memory SQLite database belongs to one connection.
    let connections = if is_sqlite(&url) { 1 } else { 10 };
    let options = AnyPoolOptions::new().max_connections(connections);
    let db = options
        .idle_timeout(None)
        .max_lifetime(None)
        .connect(&url)
        .await?;
    let id = if is_sqlite(&url) {
        "integer primary key"
    } else {
        "bigserial primary key"
    };
    let table = format!(
        "create table if not exists accounts (id {id}, owner text not null, balance bigint not null)"
    );
    sqlx::query(&table).execute(&db).await?;
    Ok(Router::new()
        .route("/accounts", post(post_account))
        .route("/accounts/{id}", get(get_account))
        .route("/transfers", post(post_transfer))
        .with_state(db))
}

fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite:")
}

// ---- the threads -----------------------------------------------------------------------------------------

/// A running server: some threads that listen on one address.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts so many threads. Each of them makes a router of its own, so that connections to a
    /// database belong to the runtime that uses them.
    pub fn start<F: Future<Output = Result<Router>>>(
        address: SocketAddr,
        threads: usize,
        make_router: impl Fn() -> F + Clone + Send + 'static,
    ) -> Result<Server> {
        let mut server = Server {
            address,
            stop: watch::Sender::new(false),
            threads: Vec::new(),
        };
        for number in 0..threads {
            let (make_router, stop) = (make_router.clone(), server.stop.subscribe());
            let address = server.address; // that of the first one, so that all share the port
            let (started, has_started) = mpsc::channel();
            let thread = thread::Builder::new().name(format!("server-{number}"));
            let serve = move || {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                // Drops the runtime, with all requests, inside `run_to_end`: no greenlet is left.
                run_to_end(move || runtime.block_on(serve(address, make_router(), started, stop)))
            };
            server.threads.push(thread.spawn(serve)?);
            match has_started.recv() {
                Ok(address) => server.address = address,
                // The thread ends with an error.
                Err(_) => return Err(server.shut_down().expect_err("a thread has failed")),
            }
        }
        Ok(server)
    }

    /// Accepts no more connections, and returns when all requests have been answered.
    pub fn shut_down(self) -> Result<()> {
        self.stop.send_replace(true);
        let mut outcome = Ok(());
        for thread in self.threads {
            let ended = thread.join().expect("a server does not panic");
            outcome = outcome.and(ended);
        }
        outcome
    }
}

/// Serves connections on this thread until it is told to stop.
async fn serve(
    address: SocketAddr,
    router: impl Future<Output = Result<Router>>,
    started: mpsc::Sender<SocketAddr>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let router = router.await?;
    let listener = listen(address).context(address)?;
    started.send(listener.local_addr()?)?;
    drop(started);
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    axum::serve(listener, router)
        .with_graceful_shutdown(stopped)
        .await?;
    Ok(())
}

/// Listens on an address that other threads listen on, too.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    #[cfg(target_os = "linux")]
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Returns how many threads a server has: one for each processor, if they can share a port, and if
/// they can share the database. An in-memory SQLite database belongs to one of them.
pub fn threads(url: &str) -> usize {
    match cfg!(target_os = "linux") && !is_sqlite(url) {
        true => thread::available_parallelism().map_or(1, NonZeroUsize::get),
        false => 1,
    }
}

fn main() -> Result<()> {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".into());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let address = address.parse().context(address)?;
    let server = Server::start(address, threads(&url), move || router(url.clone()))?;
    eprintln!("listening on {}", server.address);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    server.shut_down()
}
