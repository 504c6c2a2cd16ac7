//! A small server, and an asynchronous client of it: what callbacks and templates await.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::proxy::Proxy;

/// The client gives up after this time.
pub const LIMIT: Duration = Duration::from_secs(1);

/// Starts a server that answers `<LINE>` to a line, and to `wait N` after N milliseconds.
pub async fn start() -> anyhow::Result<Proxy> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(BufReader::new(socket)));
        }
    });
    Proxy::to(address).await
}

async fn answer(mut socket: BufReader<TcpStream>) -> Result<()> {
    let mut line = String::new();
    while socket.read_line(&mut line).await? > 0 {
        if let Some(time) = line
            .trim()
            .strip_prefix("wait ")
            .and_then(|time| time.parse().ok())
        {
            sleep(Duration::from_millis(time)).await;
        }
        socket
            .write_all(format!("<{}>\n", line.trim()).as_bytes())
            .await?;
        line.clear();
    }
    Ok(())
}

/// Asks the server, on a new connection.
pub async fn ask(server: SocketAddr, line: impl Into<String>) -> Result<String> {
    let line = line.into() + "\n";
    let asked = timeout(LIMIT, async {
        let mut socket = BufReader::new(TcpStream::connect(server).await?);
        socket.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_line(&mut answer).await?;
        let answer = answer.strip_suffix('\n').ok_or(ErrorKind::UnexpectedEof)?;
        Ok(answer.to_owned())
    });
    asked.await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::TimedOut,
            "the server did not answer in time",
        ))
    })
}
