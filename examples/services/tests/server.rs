//! The example server: under load, with many clients at once over real connections, against SQLite,
//! and with the feature `postgres`, against PostgreSQL if `DATABASE_URL` is set; with clients that
//! vanish; and its shutdown.

#[path = "../server.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures::future::join_all;
use greenlet::{TokioIo, await_, greenlet_spawn, try_await_};
use send_wrapper::SendWrapper;
use serde_json::{Value, json};
use server::Server;
use tokio::net::TcpStream;
use tokio::runtime::Builder;

/// A synchronous HTTP client, itself on the bridge: one request for each connection.
fn request(address: std::net::SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let stream = await_(TcpStream::connect(address)).unwrap();
    let mut stream = BufReader::new(TokioIo::new(stream));
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    write!(
        stream.get_mut(),
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut status = String::new();
    stream.read_line(&mut status).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, answer) = answer.split_once("\r\n\r\n").unwrap();
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(answer).unwrap_or(Value::Null))
}

fn under_load(url: &str) {
    const ACCOUNTS: usize = 8;
    const CLIENTS: usize = 100;
    let server = {
        let url = url.to_owned();
        let any = "127.0.0.1:0".parse().unwrap();
        Server::start(any, server::threads(&url), move || server::router(url.clone())).unwrap()
    };
    let address = server.address;
    // The clients are greenlets of this thread.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let clients = local.run_until(async move {
        let ids = greenlet_spawn(move || {
            let open = |n| {
                request(
                    address,
                    "POST",
                    "/accounts",
                    &json!({ "owner": n, "balance": 100 }),
                )
            };
            (0..ACCOUNTS)
                .map(|n| open(n.to_string()).1["id"].as_i64().unwrap())
                .collect::<Vec<_>>()
        })
        .await;
        let transfers = (0..CLIENTS).map(|n| {
            let ids = ids.clone();
            tokio::task::spawn_local(greenlet_spawn(move || {
                let mut random = fastrand::Rng::with_seed(n as u64);
                let (from, to) = (ids[random.usize(..ACCOUNTS)], ids[random.usize(..ACCOUNTS)]);
                let body = json!({ "from": from, "to": to, "amount": random.i64(1..60) });
                request(address, "POST", "/transfers", &body)
            }))
        });
        let mut refused = 0;
        for answer in join_all(transfers).await {
            let (status, body) = answer.unwrap();
            match status {
                200 => {}
                400 => {
                    assert!(
                        body["error"].as_str().unwrap().contains("not enough money"),
                        "{body}"
                    );
                    refused += 1;
                }
                _ => panic!("{status}: {body}"),
            }
        }
        let total = greenlet_spawn(move || {
            let balance = |id| request(address, "GET", &format!("/accounts/{id}"), &Value::Null).1;
            let balances = ids.iter().map(|id| balance(id)["balance"].as_i64().unwrap());
            let (missing, _) = request(address, "GET", "/accounts/999999999", &Value::Null);
            assert_eq!(missing, 400);
            balances.inspect(|balance| assert!(*balance >= 0)).sum::<i64>()
        })
        .await;
        (total, refused)
    });
    let (total, refused) = runtime.block_on(clients);
    assert_eq!(total, 100 * ACCOUNTS as i64, "money was made or lost");
    assert!(refused > 0, "no transfer had to be rolled back");
    server.shut_down().unwrap();
}

#[test]
fn sqlite_under_load() {
    under_load("sqlite::memory:");
}

#[test]
#[cfg(feature = "postgres")]
fn postgres_under_load() {
    match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => under_load(&url),
        // Not `eprintln!`: the harness hides its output when a test passes.
        _ => std::io::stderr()
            .write_all(b"left out: the server on PostgreSQL wants a DATABASE_URL\n")
            .unwrap(),
    }
}

/// Starts a server with a handler that runs `function` in a greenlet.
fn serve_with(threads: usize, function: impl Fn() -> String + Clone + Send + Sync + 'static) -> Server {
    let any = "127.0.0.1:0".parse().unwrap();
    Server::start(any, threads, move || {
        let function = function.clone();
        let handler = async move || SendWrapper::new(greenlet_spawn(function.clone())).await;
        async { Ok(Router::new().route("/", get(handler))) }
    })
    .unwrap()
}

/// Sends a request over a new connection.
fn send(server: &Server) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .unwrap();
    stream
}

fn answer(mut stream: std::net::TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until a number of another thread is what it should be.
fn wait_for(number: &AtomicUsize, wanted: usize) {
    let start = Instant::now();
    while number.load(Ordering::SeqCst) != wanted {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{number:?}, and not {wanted}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Counts itself as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_client_that_vanishes_ends_its_handler_on_its_thread() {
    let alive = Arc::new(AtomicUsize::new(0));
    let server = {
        let alive = Arc::clone(&alive);
        serve_with(2, move || {
            let before = thread::current().id();
            let _counted = Counted::new(&alive);
            let _ = try_await_(std::future::pending::<()>());
            assert_eq!(thread::current().id(), before);
            "never".into()
        })
    };
    let clients: Vec<_> = (0..30).map(|_| send(&server)).collect();
    wait_for(&alive, 30);
    drop(clients);
    wait_for(&alive, 0);
    server.shut_down().unwrap();
}

#[test]
fn a_shutdown_answers_the_requests_that_have_come() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (release, released) = tokio::sync::watch::channel(false);
    let server = {
        let alive = Arc::clone(&alive);
        serve_with(2, move || {
            let _counted = Counted::new(&alive);
            let mut released = released.clone();
            await_(released.wait_for(|released| *released)).unwrap();
            "answered".into()
        })
    };
    let clients: Vec<_> = (0..10).map(|_| send(&server)).collect();
    wait_for(&alive, 10);
    let address = server.address;
    let shutdown = thread::spawn(|| server.shut_down());
    // New connections are refused before the requests are answered.
    let start = Instant::now();
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!shutdown.is_finished());
    release.send(true).unwrap();
    shutdown.join().unwrap().unwrap();
    for client in clients {
        let text = answer(client);
        assert!(text.ends_with("\r\n\r\nanswered"), "{text}");
    }
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn a_panic_of_a_handler_ends_its_connection_alone() {
    let calls = Arc::new(AtomicUsize::new(0));
    let server = serve_with(1, move || {
        await_(tokio::task::yield_now());
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            std::panic::resume_unwind(Box::new("the first request"));
        }
        "answered".into()
    });
    assert_eq!(answer(send(&server)), "");
    assert!(answer(send(&server)).ends_with("answered"));
    server.shut_down().unwrap();
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let started = Server::start(address, 2, async || Ok(Router::new()));
    let error = started.err().unwrap();
    assert_eq!(error.to_string(), address.to_string());
    let no_router = Server::start(address, 2, async || anyhow::bail!("no database"));
    assert_eq!(no_router.err().unwrap().to_string(), "no database");
}
