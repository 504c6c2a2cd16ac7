//! An HTTP server with synchronous handlers, beside native asynchronous ones.
//!
//! ```text
//! cargo bench --bench server -- --table                          11 rounds of 1 s, 64 clients
//! cargo bench --bench server -- --table --rounds 3 --seconds 0.3 --clients 16
//! ```
//!
//! Kinds: `native` has asynchronous handlers. The others have synchronous ones: `own thread` spawns
//! them on the thread of the runtime, `pool` on one thread of a `PinnedPool`, and `spawn_blocking` on
//! the blocking threads of tokio. Each has one runtime of one thread.
//!
//! Handlers: `nothing` returns at once, `timer` waits for 5 ms, and `queries` asks PostgreSQL three
//! times (with `DATABASE_URL`).
//!
//! Each server is a process of its own. The clients are tasks of this process; each sends its next
//! request when it has the answer. The kinds take turns, in another order in each round, and the
//! medians of the rounds are printed: requests a second, the latency that 99 % do not exceed, and the
//! processor time of the server for a request, which depends least on what else the machine does.
//! Last, requests that wait for ever show the memory of a waiting request.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use greenlet::{PinnedPool, await_, greenlet_spawn};
use send_wrapper::SendWrapper;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

const KINDS: [&str; 4] = ["native", "own thread", "pool", "spawn_blocking"];
const HANDLERS: [&str; 3] = ["nothing", "timer", "queries"];
/// How many requests wait at once when their memory is measured: tokio has at most 512 blocking threads.
const WAITING: usize = 400;

// ---- the servers ------------------------------------------------------------------------------------

#[derive(Clone)]
struct App {
    db: Option<PgPool>,
    /// Of the kind `pool`.
    workers: Option<PinnedPool>,
}

impl App {
    fn db(&self) -> &PgPool {
        self.db
            .as_ref()
            .expect("the benchmark asks for queries only with DATABASE_URL")
    }
}

async fn query(db: &PgPool, n: i32) -> i32 {
    let answer = sqlx::query_scalar("select $1::int4 + 1")
        .bind(n)
        .fetch_one(db)
        .await;
    answer.expect("PostgreSQL answers")
}

async fn native(State(app): State<App>, Path(handler): Path<String>) -> String {
    match &*handler {
        "nothing" => {}
        "timer" => tokio::time::sleep(Duration::from_millis(5)).await,
        "queries" => {
            for n in 0..3 {
                query(app.db(), n).await;
            }
        }
        _ => std::future::pending().await,
    }
    handler
}

/// The handler as a synchronous function.
fn synchronous(app: &App, handler: String) -> String {
    match &*handler {
        "nothing" => {}
        "timer" => await_(tokio::time::sleep(Duration::from_millis(5))),
        "queries" => {
            for n in 0..3 {
                await_(query(app.db(), n));
            }
        }
        _ => await_(std::future::pending::<()>()),
    }
    handler
}

async fn own_thread(State(app): State<App>, Path(handler): Path<String>) -> String {
    // The runtime has one thread, so the wrapper is never used on another one.
    SendWrapper::new(greenlet_spawn(move || synchronous(&app, handler))).await
}

async fn pool(State(app): State<App>, Path(handler): Path<String>) -> String {
    let workers = app.workers.clone().expect("this kind has a pool");
    workers.run(move || synchronous(&app, handler)).await
}

async fn spawn_blocking(State(app): State<App>, Path(handler): Path<String>) -> String {
    let runtime = tokio::runtime::Handle::current();
    let blocking = move || {
        match &*handler {
            "nothing" => {}
            "timer" => std::thread::sleep(Duration::from_millis(5)),
            "queries" => {
                for n in 0..3 {
                    runtime.block_on(query(app.db(), n));
                }
            }
            _ => std::thread::park(),
        }
        handler
    };
    tokio::task::spawn_blocking(blocking)
        .await
        .expect("it does not panic")
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Serves until the process is killed. Prints the address first.
fn serve(kind: &str) -> Result<()> {
    let is_pool = kind == "pool";
    let handler = match kind {
        "native" => get(native),
        "own thread" => get(own_thread),
        "pool" => get(pool),
        "spawn_blocking" => get(spawn_blocking),
        _ => bail!("there is no kind {kind}"),
    };
    runtime()?.block_on(async {
        let options = PgPoolOptions::new().max_connections(10);
        let app = App {
            db: match std::env::var("DATABASE_URL") {
                Ok(url) => Some(options.connect_lazy(&url)?),
                Err(_) => None,
            },
            workers: is_pool.then(|| PinnedPool::new(1.try_into().expect("one is not zero"))),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let router = Router::new().route("/{handler}", handler).with_state(app);
        Ok(axum::serve(listener, router).await?)
    })
}

/// A server in a process of its own, which ends with this.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(kind: &str) -> Result<Server> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--serve", kind])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("it is piped")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim().parse()?;
        Ok(Server { process, address })
    }

    /// The processor time of all threads that it has now, in nanoseconds.
    fn time(&self) -> Result<f64> {
        let mut time = 0.0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split(' ').next().context("it has three numbers")?;
            time += first.parse::<f64>()?;
        }
        Ok(time)
    }

    /// Its memory, in bytes.
    fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("Linux has VmRSS")?.parse::<f64>()? * 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It serves for ever, and has nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ---- the clients ------------------------------------------------------------------------------------

/// A connection that is kept alive.
struct Client {
    stream: TcpStream,
    request: String,
}

impl Client {
    async fn connect(address: SocketAddr, handler: &str) -> Result<Client> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!("GET /{handler} HTTP/1.1\r\nhost: bench\r\n\r\n");
        Ok(Client { stream, request })
    }

    async fn send(&mut self) -> Result<()> {
        Ok(self.stream.write_all(self.request.as_bytes()).await?)
    }

    /// Sends a request, and reads its answer, whose body is the name of the handler.
    async fn request(&mut self, handler: &str) -> Result<()> {
        self.send().await?;
        let (mut answer, mut len) = ([0; 512], 0);
        loop {
            let read = self.stream.read(&mut answer[len..]).await?;
            ensure!(read > 0, "the server closed the connection");
            len += read;
            let text = std::str::from_utf8(&answer[..len])?;
            ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
            if text
                .split_once("\r\n\r\n")
                .is_some_and(|(_, body)| body == handler)
            {
                return Ok(());
            }
        }
    }
}

/// What one round of one server gives.
struct Round {
    per_second: f64,
    p99: f64,
    /// Nanoseconds for a request.
    processor: f64,
}

async fn load(server: &Server, handler: &'static str, clients: usize, duration: Duration) -> Result<Round> {
    let mut connected = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(server.address, handler).await?;
        client.request(handler).await?; // warms up
        connected.push(client);
    }
    let (before, start) = (server.time()?, Instant::now());
    let mut tasks = JoinSet::new();
    for mut client in connected {
        tasks.spawn_local(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < duration {
                let sent = Instant::now();
                client.request(handler).await?;
                latencies.push(sent.elapsed().as_secs_f64());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(client) = tasks.join_next().await {
        latencies.extend(client??);
    }
    let (time, elapsed) = (server.time()? - before, start.elapsed());
    let count = latencies.len() as f64;
    latencies.sort_unstable_by(f64::total_cmp);
    Ok(Round {
        per_second: count / elapsed.as_secs_f64(),
        p99: latencies[latencies.len() * 99 / 100],
        processor: time / count,
    })
}

/// The memory that each of many requests takes in the server while it waits, with its connection.
async fn memory(server: &Server) -> Result<f64> {
    Client::connect(server.address, "nothing")
        .await?
        .request("nothing")
        .await?;
    let before = server.resident()?;
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let mut client = Client::connect(server.address, "forever").await?;
        client.send().await?;
        waiting.push(client);
    }
    tokio::time::sleep(Duration::from_millis(500)).await; // until all are handled
    Ok((server.resident()? - before) / WAITING as f64)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

// ---- the table --------------------------------------------------------------------------------------

async fn table(rounds: usize, seconds: f64, clients: usize) -> Result<()> {
    let duration = Duration::from_secs_f64(seconds);
    println!("| handler | kind | requests/s | p99 | processor/request | beside native |");
    println!("| --- | --- | ---: | ---: | ---: | ---: |");
    for handler in HANDLERS {
        if handler == "queries" && std::env::var_os("DATABASE_URL").is_none() {
            eprintln!("left out: the queries want a PostgreSQL DATABASE_URL");
            continue;
        }
        let servers = KINDS.map(Server::start);
        let mut results: [Vec<Round>; KINDS.len()] = Default::default();
        for round in 0..rounds {
            for turn in 0..KINDS.len() {
                let kind = (turn + round) % KINDS.len();
                let server = servers[kind]
                    .as_ref()
                    .map_err(|error| anyhow::anyhow!("{error:#}"))?;
                results[kind].push(load(server, handler, clients, duration).await?);
            }
        }
        for (kind, rounds) in KINDS.iter().zip(&results) {
            let pairs = rounds.iter().zip(&results[0]);
            println!(
                "| {handler} | {kind} | {:.0} | {:.2} ms | {:.1} µs | {:.2} |",
                median(rounds.iter().map(|round| round.per_second)),
                median(rounds.iter().map(|round| round.p99)) * 1e3,
                median(rounds.iter().map(|round| round.processor)) / 1e3,
                median(pairs.map(|(round, native)| round.processor / native.processor)),
            );
        }
    }
    println!("\n| kind | memory of a waiting request, with its connection | beyond native |");
    println!("| --- | ---: | ---: |");
    let mut native = None;
    for kind in KINDS {
        let bytes = memory(&Server::start(kind)?).await?;
        let native = *native.get_or_insert(bytes);
        println!("| {kind} | {bytes:.0} bytes | {:.0} bytes |", bytes - native);
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    if let Some(kind) = value("--serve") {
        return serve(kind);
    }
    // Without `--table`, as `cargo test` runs it: once, briefly.
    let (rounds, seconds, clients) = match arguments.iter().any(|argument| argument == "--table") {
        true => (11, 1.0, 64),
        false => (1, 0.05, 4),
    };
    let rounds = value("--rounds").map_or(Ok(rounds), |text| text.parse())?;
    let seconds = value("--seconds").map_or(Ok(seconds), |text| text.parse())?;
    let clients = value("--clients").map_or(Ok(clients), |text| text.parse())?;
    let tasks = tokio::task::LocalSet::new();
    runtime()?.block_on(tasks.run_until(table(rounds, seconds, clients)))
}
