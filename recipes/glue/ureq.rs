//! ureq over tokio: it resolves, connects, reads and writes by awaits, within its own time limits.
//!
//! `Agent::with_parts(config, Tokio, Tokio)`; for TLS `Tokio.chain(RustlsConnector::default())`.

use std::{future::Future, io};

use greenlet::try_await_;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::{resolver::*, transport::*};

/// Resolves names, and connects.
#[derive(Debug)]
pub struct Tokio;

/// A connection.
#[derive(Debug)]
pub struct Socket(TcpStream, LazyBuffers);

/// Awaits, within a time limit.
fn within<T>(limit: NextTimeout, future: impl Future<Output = io::Result<T>>) -> Result<T, Error> {
    match try_await_(tokio::time::timeout(*limit.after, future)) {
        Ok(Ok(done)) => Ok(done?),
        Ok(Err(_)) => Err(Error::Timeout(limit.reason)),
        Err(ended) => Err(Error::Other(ended.into())),
    }
}

impl Resolver for Tokio {
    fn resolve(&self, uri: &Uri, config: &Config, limit: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let parts = uri.scheme().zip(uri.authority());
        let host = parts.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let host = host.ok_or(Error::HostNotFound)?;
        let found: Vec<_> = within(limit, lookup_host(host))?.collect();
        let mut addresses = self.empty();
        config
            .ip_family()
            .keep_wanted(found.into_iter())
            .take(16)
            .for_each(|address| addresses.push(address));
        if addresses.is_empty() {
            Err(Error::HostNotFound)
        } else {
            Ok(addresses)
        }
    }
}

impl Connector for Tokio {
    type Out = Socket;

    fn connect(&self, to: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Socket>, Error> {
        let socket = within(to.timeout, TcpStream::connect(&to.addrs[..]))?;
        socket.set_nodelay(to.config.no_delay())?;
        let buffers = LazyBuffers::new(to.config.input_buffer_size(), to.config.output_buffer_size());
        Ok(Some(Socket(socket, buffers)))
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.1
    }

    fn transmit_output(&mut self, amount: usize, limit: NextTimeout) -> Result<(), Error> {
        within(limit.for_write(), self.0.write_all(&self.1.output()[..amount]))
    }

    fn await_input(&mut self, limit: NextTimeout) -> Result<bool, Error> {
        let length = within(limit.for_read(), self.0.read(self.1.input_append_buf()))?;
        self.1.input_appended(length);
        Ok(length > 0)
    }

    /// ureq holds a lock here, so this must not await.
    fn is_open(&mut self) -> bool {
        matches!(self.0.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
