//! The example server under load: many clients at once over real connections, against SQLite, and
//! with the feature `postgres`, against PostgreSQL if `DATABASE_URL` is set.

#[path = "../server.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod server;

use std::io::{BufRead, BufReader, Read, Write};

use futures::future::join_all;
use greenlet::{TokioIo, await_, greenlet_spawn};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

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
    let router = {
        let url = url.to_owned();
        async move { server::router(&url).await.unwrap() }
    };
    // The server runs on a multi-threaded runtime, all clients on this thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router.await;
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    });
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
    runtime.shutdown_background();
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
