//! An HTTP server on a multi-threaded runtime, whose handlers run synchronous business code over an
//! asynchronous database.
//!
//! ```text
//! cargo run --release --features tokio --example server                  # embedded SQLite, no set-up
//! DATABASE_URL=postgres://user@host/db cargo run --release --features tokio,postgres --example server
//!
//! curl -X POST localhost:3000/accounts -d '{"owner": "ann", "balance": 100}' -H content-type:application/json
//! curl -X POST localhost:3000/transfers -d '{"from": 1, "to": 2, "amount": 5}' -H content-type:application/json
//! curl localhost:3000/accounts/1
//! ```
//!
//! `ADDRESS` is the address that it listens on, `127.0.0.1:3000` by default.

use std::num::NonZeroUsize;

use anyhow::{Context, Result, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use greenlet::{PinnedPool, await_};
use serde_json::{Value, json};
use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, Row, Transaction};

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

// ---- HTTP: each handler runs business code on a pinned worker -------------------------------------------

#[derive(Clone)]
struct App {
    db: AnyPool,
    workers: PinnedPool,
}

type Answer = (StatusCode, Json<Value>);

/// Runs business code on a worker, while the thread of the runtime stays free. If the client
/// disconnects, the handler is dropped, which ends the code and rolls back its transaction.
async fn run(app: App, code: impl FnOnce(&AnyPool) -> Result<Value> + Send + 'static) -> Answer {
    match app.workers.run(move || code(&app.db)).await {
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

async fn post_account(State(app): State<App>, Json(body): Json<Value>) -> Answer {
    run(app, move |db| {
        let owner = body["owner"].as_str().context("\"owner\" must be a text")?;
        let id = open_account(db, owner, number(&body, "balance")?)?;
        Ok(json!({ "id": id }))
    })
    .await
}

async fn get_account(State(app): State<App>, Path(id): Path<i64>) -> Answer {
    run(app, move |db| {
        Ok(json!({ "id": id, "balance": balance(db, id)? }))
    })
    .await
}

async fn post_transfer(State(app): State<App>, Json(body): Json<Value>) -> Answer {
    run(app, move |db| {
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

/// Returns the routes of the server, with a database that has its tables.
pub async fn router(url: &str) -> Result<Router> {
    sqlx::any::install_default_drivers();
    let is_sqlite = url.starts_with("sqlite:");
    // An in-memory SQLite database belongs to one connection.
    let connections = if is_sqlite { 1 } else { 10 };
    let options = AnyPoolOptions::new().max_connections(connections);
    let db = options.idle_timeout(None).max_lifetime(None).connect(url).await?;
    let id = if is_sqlite {
        "integer primary key"
    } else {
        "bigserial primary key"
    };
    let table = format!(
        "create table if not exists accounts (id {id}, owner text not null, balance bigint not null)"
    );
    sqlx::query(&table).execute(&db).await?;
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let app = App {
        db,
        workers: PinnedPool::new(threads),
    };
    Ok(Router::new()
        .route("/accounts", post(post_account))
        .route("/accounts/{id}", get(get_account))
        .route("/transfers", post(post_transfer))
        .with_state(app))
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".into());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(&address).await.context(address)?;
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, router(&url).await?).await?;
    Ok(())
}
