//! tungstenite and rustls, which want `Read + Write`, over `TokioIo`. There is no glue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use greenlet::{TokioIo, await_, greenlet_spawn};
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{checks, measured};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tungstenite::{Message, WebSocket, accept, client};

const LIMIT: Duration = Duration::from_secs(1);

type Tls<C> = StreamOwned<C, TokioIo<TcpStream>>;

/// Both sides of TLS, with a certificate that they made themselves.
#[derive(Clone)]
struct Keys {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Keys {
    fn new() -> Result<Keys> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Keys {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

/// Starts a server: a greenlet for each client echoes its messages, over TLS.
async fn server(keys: &Keys) -> Result<Proxy> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let config = keys.server.clone();
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let config = config.clone();
            // Ends with an error when its client goes away.
            spawn_local(greenlet_spawn(move || echo(socket, config)));
        }
    });
    Proxy::to(address).await
}

fn echo(socket: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    let tls: Tls<ServerConnection> = StreamOwned::new(ServerConnection::new(config)?, TokioIo::new(socket));
    let mut socket = accept(tls)?;
    loop {
        let message = socket.read()?;
        if message.is_text() {
            socket.send(message)?;
        }
    }
}

fn connect(server: SocketAddr, keys: &Keys) -> Result<WebSocket<Tls<ClientConnection>>> {
    let socket = await_(TcpStream::connect(server))?;
    let connection = ClientConnection::new(keys.client.clone(), "localhost".try_into()?)?;
    Ok(client(
        "wss://localhost/",
        StreamOwned::new(connection, TokioIo::new(socket)),
    )?
    .0)
}

fn ask(socket: &mut WebSocket<Tls<ClientConnection>>, text: &str) -> Result<String> {
    socket.send(Message::text(text))?;
    Ok(socket.read()?.into_text()?.to_string())
}

async fn many_clients_talk_at_once() -> Result<()> {
    let keys = Keys::new()?;
    let address = server(&keys).await?.address;
    let talk = |number: usize| {
        let keys = keys.clone();
        measured(move || {
            let mut socket = connect(address, &keys)?;
            for text in [format!("client {number}"), "x".repeat(200_000), String::new()] {
                ensure!(ask(&mut socket, &text)? == text, "another answer");
            }
            socket.close(None)?;
            Ok(())
        })
    };
    try_join_all((0..10).map(talk)).await.map(drop)
}

async fn a_certificate_that_nobody_knows_is_refused() -> Result<()> {
    let address = server(&Keys::new()?).await?.address;
    let other = Keys::new()?;
    let error = greenlet_spawn(move || connect(address, &other).map(drop))
        .await
        .unwrap_err();
    ensure!(
        format!("{error:#}").contains("certificate"),
        "the error is: {error:#}"
    );
    Ok(())
}

async fn a_server_that_is_not_there() -> Result<()> {
    let (address, keys) = (absent().await?, Keys::new()?);
    let error = greenlet_spawn(move || connect(address, &keys).map(drop))
        .await
        .unwrap_err();
    ensure!(error.to_string().contains("refused"), "the error is: {error}");
    Ok(())
}

async fn a_server_that_fails() -> Result<()> {
    let keys = Keys::new()?;
    let proxy = server(&keys).await?;
    for fault in FAULTS {
        for while_connecting in [true, false] {
            let (address, keys, breaks) = (proxy.address, keys.clone(), proxy.clone());
            breaks.set(if while_connecting { fault } else { Fault::None });
            let spawned = greenlet_spawn(move || {
                let mut socket = connect(address, &keys)?;
                breaks.set(fault);
                ask(&mut socket, "hello")
            });
            match (fault, timeout(LIMIT, spawned).await) {
                // Neither crate has a time limit: it is the caller's.
                (Fault::Silent, Err(_)) => {}
                (Fault::Closes | Fault::Garbage, Ok(Err(error))) => eprintln!("{fault:?}: {error:#}"),
                (_, other) => anyhow::bail!("{fault:?}: {other:?}"),
            }
        }
    }
    Ok(())
}

async fn a_cancel_is_an_error_and_may_say_goodbye() -> Result<()> {
    let keys = Keys::new()?;
    let address = server(&keys).await?.address;
    let mut spawned = greenlet_spawn(move || {
        let mut socket = connect(address, &keys)?;
        let error = socket.read().unwrap_err();
        socket.close(None)?;
        anyhow::Ok(error.to_string())
    });
    ensure!(timeout(LIMIT, &mut spawned).await.is_err(), "it does not wait");
    let error = spawned.cancel().await??;
    ensure!(error.contains("cancelled"), "the error is: {error}");
    Ok(())
}

fn main() {
    let checks = checks![
        many_clients_talk_at_once,
        a_certificate_that_nobody_knows_is_refused,
        a_server_that_is_not_there,
        a_server_that_fails,
        a_cancel_is_an_error_and_may_say_goodbye,
    ];
    greenlet_recipes::main("sockets", checks, None);
}
