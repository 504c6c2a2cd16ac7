//! A proxy in front of a real server: it forwards, or spoils what the server answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs, lookup_host};
use tokio::sync::Notify;

/// What happens to the server's next answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Half of it arrives, then the connection is closed.
    Closes,
    /// Other bytes arrive in its place.
    Garbage,
    /// Nothing arrives.
    Silent,
}

/// The faults of a server that is there.
pub const FAULTS: [Fault; 3] = [Fault::Closes, Fault::Garbage, Fault::Silent];

/// Runs in the runtime that made it.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    server: SocketAddr,
    fault: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    close: Arc<Notify>,
}

impl Proxy {
    /// Starts a proxy for a server.
    pub async fn to(server: impl ToSocketAddrs) -> Result<Proxy> {
        let server = lookup_host(server).await?.next().expect("a name has an address");
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Proxy {
            address: listener.local_addr()?,
            server,
            fault: Arc::default(),
            accepted: Arc::default(),
            close: Arc::default(),
        };
        let connections = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                connections.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connections.clone().forward(client));
            }
        });
        Ok(proxy)
    }

    /// Sets what happens to answers from now on, also on connections that exist.
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as usize, Ordering::Relaxed);
    }

    /// Closes all connections. The proxy goes on.
    pub fn close_all(&self) {
        self.close.notify_waiters();
    }

    /// Returns how many connections the proxy has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Returns the address of the server itself.
    pub fn direct(&self) -> SocketAddr {
        self.server
    }

    fn fault(&self) -> Fault {
        let fault = self.fault.load(Ordering::Relaxed);
        FAULTS
            .into_iter()
            .find(|known| *known as usize == fault)
            .unwrap_or(Fault::None)
    }

    async fn forward(self, mut client: TcpStream) -> Result<()> {
        let mut server = TcpStream::connect(self.server).await?;
        let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            tokio::select! {
                () = self.close.notified() => return Ok(()),
                length = client.read(&mut request) => match length? {
                    0 => return Ok(()),
                    length => server.write_all(&request[..length]).await?,
                },
                length = server.read(&mut answer) => match (length?, self.fault()) {
                    // The client must not even see that the server closes.
                    (0, Fault::Silent) => {
                        client.read(&mut request).await?;
                        return Ok(());
                    }
                    (0, _) => return Ok(()),
                    (length, Fault::None) => client.write_all(&answer[..length]).await?,
                    (length, Fault::Closes) => return Ok(client.write_all(&answer[..length / 2]).await?),
                    (_, Fault::Garbage) => client.write_all(&[0xff; 64]).await?,
                    (_, Fault::Silent) => {}
                },
            }
        }
    }
}

/// Returns an address at which nothing listens.
pub async fn absent() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}
