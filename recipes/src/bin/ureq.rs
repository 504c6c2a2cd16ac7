//! ureq, a synchronous HTTP client, over tokio's sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::routing::{get, post};
use futures::future::try_join_all;
use futures::poll;
use greenlet::{await_, greenlet_spawn};
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{Future, bench, checks, measured};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, RustlsConnector};

use glue::Tokio;

#[path = "../../glue/ureq.rs"]
mod glue;

const LIMIT: Duration = Duration::from_secs(1);

fn agent() -> Agent {
    Agent::with_parts(
        Config::builder().timeout_global(Some(LIMIT)).build(),
        Tokio,
        Tokio,
    )
}

/// Starts a server: `/echo` returns what it is sent, `/wait/MS` answers late, `/large` has 1 MB.
async fn server() -> Result<Proxy> {
    let routes = Router::new()
        .route("/echo", post(async |body: Bytes| body))
        .route("/large", get(async || vec![b'x'; 1_000_000]))
        .route(
            "/wait/{milliseconds}",
            get(async |Path(milliseconds): Path<u64>| sleep(Duration::from_millis(milliseconds)).await),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, routes).await });
    Proxy::to(address).await
}

/// Plain ureq.
fn echo(agent: &Agent, server: &str, text: &str) -> Result<String> {
    Ok(agent
        .post(format!("http://{server}/echo"))
        .send(text)?
        .body_mut()
        .read_to_string()?)
}

async fn requests_run_at_once_and_keep_their_connections() -> Result<()> {
    let proxy = server().await?;
    let (address, agent) = (proxy.address.to_string(), agent());
    let client = |name: usize| {
        let (address, agent) = (address.clone(), agent.clone());
        measured(move || {
            for round in 0..10 {
                let text = format!("{name}, {round}");
                ensure!(echo(&agent, &address, &text)? == text, "another answer");
            }
            agent.get(format!("http://{address}/wait/100")).call()?;
            Ok(())
        })
    };
    let start = Instant::now();
    try_join_all((0..8).map(client)).await?;
    ensure!(
        start.elapsed() < Duration::from_millis(8 * 100),
        "they ran one after the other"
    );
    ensure!(
        proxy.accepted() <= 8,
        "{} connections for 8 clients",
        proxy.accepted()
    );
    Ok(())
}

async fn names_are_resolved() -> Result<()> {
    let port = server().await?.address.port();
    let found = measured(move || echo(&agent(), &format!("localhost:{port}"), "hello")).await?;
    ensure!(found == "hello", "got {found}");
    let error = greenlet_spawn(|| echo(&agent(), "nowhere.invalid", "hello"))
        .await
        .unwrap_err();
    eprintln!("no such name: {error:#}");
    Ok(())
}

async fn a_large_body_is_read_in_parts() -> Result<()> {
    let address = server().await?.address;
    let length = measured(move || {
        let mut answer = agent().get(format!("http://{address}/large")).call()?;
        anyhow::Ok(std::io::copy(
            &mut answer.body_mut().as_reader(),
            &mut std::io::sink(),
        )?)
    });
    ensure!(length.await? == 1_000_000, "another length");
    Ok(())
}

async fn tls_works_on_top() -> Result<()> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let root = Certificate::from_der(key.cert.der()).to_owned();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            key.signing_key.serialize_der().try_into().unwrap(),
        )?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // A client that does not know the certificate ends the connection here.
            let Ok(mut socket) = acceptor.accept(socket).await else {
                continue;
            };
            socket.read(&mut [0; 4096]).await?;
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
                .await?;
            socket.shutdown().await?;
        }
        anyhow::Ok(())
    });
    let ask = move |tls: TlsConfig| {
        let config = Config::builder()
            .tls_config(tls)
            .timeout_global(Some(10 * LIMIT))
            .build();
        let agent = Agent::with_parts(config, Tokio.chain(RustlsConnector::default()), Tokio);
        agent
            .get(format!("https://localhost:{port}/"))
            .call()?
            .body_mut()
            .read_to_string()
    };
    let trusted = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[root]))
        .build();
    let found = measured(move || ask(trusted)).await?;
    ensure!(found == "secret", "got {found}");
    let error = greenlet_spawn(move || ask(TlsConfig::default()))
        .await
        .unwrap_err()
        .to_string();
    ensure!(error.contains("certificate"), "the error is: {error}");
    Ok(())
}

async fn a_time_limit_of_ureq_ends_a_request() -> Result<()> {
    let proxy = server().await?;
    let (address, agent) = (proxy.address.to_string(), agent());
    let start = Instant::now();
    greenlet_spawn(move || {
        let error = agent
            .get(format!("http://{address}/wait/5000"))
            .call()
            .unwrap_err();
        ensure!(
            matches!(error, ureq::Error::Timeout(ureq::Timeout::Global)),
            "the error is: {error:?}"
        );
        echo(&agent, &address, "still works").map(drop)
    })
    .await?;
    ensure!(start.elapsed() < 4 * LIMIT, "it took {:?}", start.elapsed());
    ensure!(
        proxy.accepted() == 2,
        "the connection that was given up is used again"
    );
    Ok(())
}

async fn a_connection_that_the_server_closed_is_not_used_again() -> Result<()> {
    let proxy = server().await?;
    let (address, agent) = (proxy.address.to_string(), agent());
    let accepted = proxy.clone();
    greenlet_spawn(move || {
        for round in 1..4 {
            echo(&agent, &address, "hello")?;
            proxy.close_all();
            await_(sleep(Duration::from_millis(20)));
            ensure!(
                proxy.accepted() == round,
                "{} connections in round {round}",
                proxy.accepted()
            );
        }
        Ok(())
    })
    .await?;
    ensure!(accepted.accepted() == 3, "{} connections", accepted.accepted());
    Ok(())
}

async fn a_drop_or_cancel_in_the_middle_closes_the_connection() -> Result<()> {
    let proxy = server().await?;
    let (address, agent) = (proxy.address.to_string(), agent());
    let waiting = || {
        let (address, agent) = (address.clone(), agent.clone());
        greenlet_spawn(move || {
            Ok(agent
                .get(format!("http://{address}/wait/10000"))
                .call()
                .map(drop)?)
        })
    };
    let mut dropped = waiting();
    ensure!(
        timeout(LIMIT / 3, &mut dropped).await.is_err(),
        "it does not wait"
    );
    drop(dropped);
    let mut cancelled = waiting();
    ensure!(
        timeout(LIMIT / 3, &mut cancelled).await.is_err(),
        "it does not wait"
    );
    let error: anyhow::Error = cancelled.cancel().await?.unwrap_err();
    ensure!(
        matches!(error.downcast_ref(), Some(ureq::Error::Other(_))),
        "the error is: {error:#}"
    );
    eprintln!("a cancelled call returns: {error:#}");
    for polls in 0..8 {
        let mut spawned = waiting();
        for _ in 0..polls {
            ensure!(poll!(&mut spawned).is_pending(), "it does not wait");
            tokio::task::yield_now().await;
        }
    }
    let found = greenlet_spawn(move || echo(&agent, &address, "still works")).await?;
    ensure!(found == "still works", "got {found}");
    Ok(())
}

async fn a_server_that_is_not_there() -> Result<()> {
    let address = absent().await?.to_string();
    let error = greenlet_spawn(move || echo(&agent(), &address, "hello"))
        .await
        .unwrap_err()
        .to_string();
    ensure!(error.contains("refused"), "the error is: {error}");
    Ok(())
}

async fn a_server_that_fails_in_the_middle() -> Result<()> {
    let proxy = server().await?;
    for fault in FAULTS {
        let (address, agent, breaks) = (proxy.address.to_string(), agent(), proxy.clone());
        greenlet_spawn(move || {
            echo(&agent, &address, "hello")?;
            breaks.set(fault);
            let error = echo(&agent, &address, "hello").unwrap_err();
            eprintln!("{fault:?}: {error:#}");
            let error = error.downcast_ref::<ureq::Error>();
            ensure!(
                matches!(
                    (fault, error),
                    (Fault::Silent, Some(ureq::Error::Timeout(_)))
                        | (
                            Fault::Closes | Fault::Garbage,
                            Some(ureq::Error::Protocol(_) | ureq::Error::Io(_) | ureq::Error::Http(_))
                        )
                ),
                "{fault:?}: {error:?}"
            );
            breaks.set(Fault::None);
            echo(&agent, &address, "hello").map(drop)
        })
        .await?;
    }
    Ok(())
}

/// 32 clients, each with 30 requests that the server answers after 1 ms.
async fn compare() -> Result<()> {
    const CLIENTS: usize = 32;
    let address = server().await?.direct().to_string();
    let url = format!("http://{address}/wait/1");
    let bridged = Agent::with_parts(
        Config::builder()
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .build(),
        Tokio,
        Tokio,
    );
    let blocking: Agent = Config::builder()
        .max_idle_connections(64)
        .max_idle_connections_per_host(64)
        .build()
        .into();
    fn calls(agent: Agent, url: String) -> Result<()> {
        for _ in 0..30 {
            agent.get(&url).call()?.body_mut().read_to_vec()?;
        }
        Ok(())
    }
    let on_bridge = || -> Future {
        let (agent, url) = (bridged.clone(), url.clone());
        Box::pin(async move {
            let spawn = |_| {
                greenlet_spawn({
                    let (agent, url) = (agent.clone(), url.clone());
                    move || calls(agent, url)
                })
            };
            try_join_all((0..CLIENTS).map(spawn)).await.map(drop)
        })
    };
    let on_threads = || -> Future {
        let (agent, url) = (blocking.clone(), url.clone());
        Box::pin(async move {
            let spawn = |_| {
                tokio::task::spawn_blocking({
                    let (agent, url) = (agent.clone(), url.clone());
                    move || calls(agent, url)
                })
            };
            for done in try_join_all((0..CLIENTS).map(spawn)).await? {
                done?;
            }
            Ok(())
        })
    };
    println!("{CLIENTS} clients, each with 30 requests, an answer takes 1 ms:");
    bench::compare(
        9,
        &[
            ("ureq, greenlet_spawn", &on_bridge),
            ("ureq, spawn_blocking", &on_threads),
        ],
    )
    .await
}

fn main() {
    let checks = checks![
        requests_run_at_once_and_keep_their_connections,
        names_are_resolved,
        a_large_body_is_read_in_parts,
        tls_works_on_top,
        a_time_limit_of_ureq_ends_a_request,
        a_connection_that_the_server_closed_is_not_used_again,
        a_drop_or_cancel_in_the_middle_closes_the_connection,
        a_server_that_is_not_there,
        a_server_that_fails_in_the_middle,
    ];
    greenlet_recipes::main("ureq", checks, Some(|| Box::pin(compare())));
}
