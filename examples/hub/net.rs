//! Lines over TCP, as if the sockets blocked.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use anyhow::Result;
use mio::net::{TcpListener, TcpStream};

use crate::hub::{Direction, Hub, Registration};

pub(crate) struct Lines {
    socket: TcpStream,
    registration: Registration,
    /// The last read returned all available bytes.
    is_drained: Cell<bool>,
    incoming: RefCell<Vec<u8>>,
    outgoing: RefCell<Vec<u8>>,
    is_flushing: Cell<bool>,
}

impl Lines {
    fn new(hub: &Rc<Hub>, mut socket: TcpStream) -> Result<Lines> {
        let registration = hub.register(&mut socket)?;
        Ok(Lines {
            socket,
            registration,
            is_drained: Cell::new(false),
            incoming: RefCell::default(),
            outgoing: RefCell::default(),
            is_flushing: Cell::new(false),
        })
    }

    #[track_caller]
    pub(crate) fn connect(hub: &Rc<Hub>, address: SocketAddr) -> Result<Lines> {
        let lines = Lines::new(hub, TcpStream::connect(address)?)?;
        let socket = &lines.socket;
        // The socket is connected when it knows its peer.
        lines
            .registration
            .wait_for(Direction::Write, || match socket.peer_addr() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => match socket.take_error()? {
                    Some(error) => Err(error),
                    None => Err(io::ErrorKind::WouldBlock.into()),
                },
                outcome => outcome,
            })?;
        socket.set_nodelay(true)?;
        Ok(lines)
    }

    /// Returns the next line, without its end, or `None` at the end of the stream.
    #[track_caller]
    pub(crate) fn read(&self) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.take_line()? {
                return Ok(Some(line));
            }
            if self.is_drained.get() {
                self.registration.wait(Direction::Read)?;
            }
            let mut chunk = [0; 1024];
            let read = || (&self.socket).read(&mut chunk);
            let count = self.registration.wait_for(Direction::Read, read)?;
            if count == 0 {
                return Ok(None);
            }
            self.is_drained.set(count < chunk.len());
            self.incoming.borrow_mut().extend(&chunk[..count]);
        }
    }

    fn take_line(&self) -> Result<Option<String>> {
        let mut incoming = self.incoming.borrow_mut();
        let Some(end) = incoming.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = incoming.drain(..=end).take(end).collect();
        Ok(Some(String::from_utf8(line)?))
    }

    /// Writes a line. If another task is writing to the same stream, that task writes this line
    /// too.
    #[track_caller]
    pub(crate) fn write(&self, line: &str) -> Result<()> {
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.extend_from_slice(line.as_bytes());
        outgoing.push(b'\n');
        drop(outgoing);
        if self.is_flushing.replace(true) {
            return Ok(());
        }
        let outcome = self.flush();
        self.is_flushing.set(false);
        outcome
    }

    fn flush(&self) -> Result<()> {
        loop {
            let data = mem::take(&mut *self.outgoing.borrow_mut());
            let mut rest = &data[..];
            if rest.is_empty() {
                return Ok(());
            }
            while !rest.is_empty() {
                let write = || (&self.socket).write(rest);
                let count = self.registration.wait_for(Direction::Write, write)?;
                rest = &rest[count..];
            }
        }
    }

    pub(crate) fn close(&self) {
        // The other side may have closed first.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Accepts clients, and serves each in its own task.
pub(crate) fn listen(
    hub: &Rc<Hub>,
    mut listener: TcpListener,
    serve: impl Fn(Rc<Lines>) -> Result<()> + 'static,
) -> Result<()> {
    let registration = hub.register(&mut listener)?;
    let serve = Rc::new(serve);
    loop {
        let (socket, _) = registration.wait_for(Direction::Read, || listener.accept())?;
        socket.set_nodelay(true)?;
        let lines = Rc::new(Lines::new(hub, socket)?);
        let serve = serve.clone();
        hub.spawn("connection", move || serve(lines));
    }
}
