//! A chat server on a hub of its own: sequential code for each client over non-blocking sockets.
//!
//! The clients are greenlets of the same hub and follow a script, so their output is always the
//! same.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getmain};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// The tasks that wait for each socket, and the tasks that are ready. The main greenlet runs the
/// hub.
struct Hub {
    poll: RefCell<Poll>,
    waiting: RefCell<HashMap<(Token, Direction), Greenlet>>,
    ready: RefCell<VecDeque<Greenlet>>,
    next: Cell<usize>,
}

/// One task may wait to read from a socket, and another one to write to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Read,
    Write,
}

type SharedHub = Rc<Hub>;

impl Hub {
    fn new() -> io::Result<SharedHub> {
        Ok(Rc::new(Hub {
            poll: RefCell::new(Poll::new()?),
            waiting: RefCell::default(),
            ready: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    fn spawn(&self, function: impl FnOnce() -> Result<()> + 'static) -> Greenlet {
        let task = Greenlet::builder().parent(&getmain()).build(|(): ()| function());
        self.ready.borrow_mut().push_back(task.clone());
        task
    }

    /// Registers a socket for all events once: mio reports changes.
    fn register(&self, source: &mut impl mio::event::Source) -> io::Result<Token> {
        let token = Token(self.next.replace(self.next.get() + 1));
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll.borrow().registry().register(source, token, interests)?;
        Ok(token)
    }

    /// Does `operation`, and suspends the caller as long as it would block.
    fn wait_for<R>(
        &self,
        token: Token,
        direction: Direction,
        mut operation: impl FnMut() -> io::Result<R>,
    ) -> Result<R> {
        loop {
            match operation() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waiting.borrow_mut().insert((token, direction), getcurrent());
                    getmain().switch::<()>(())?;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    fn run(&self, until: &Greenlet) -> Result<()> {
        let mut events = Events::with_capacity(64);
        loop {
            loop {
                let next = self.ready.borrow_mut().pop_front();
                let Some(task) = next else { break };
                task.switch_owned::<()>(())?;
            }
            if until.is_dead() {
                return Ok(());
            }
            self.poll.borrow_mut().poll(&mut events, None)?;
            for event in &events {
                let wake = |direction| {
                    let task = self.waiting.borrow_mut().remove(&(event.token(), direction));
                    self.ready.borrow_mut().extend(task);
                };
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    wake(Direction::Read);
                }
                if event.is_writable() || event.is_write_closed() || event.is_error() {
                    wake(Direction::Write);
                }
            }
        }
    }
}

/// Lines over a socket, as if it blocked.
struct Stream {
    hub: SharedHub,
    socket: TcpStream,
    token: Token,
    buffer: RefCell<Vec<u8>>,
    outgoing: RefCell<Vec<u8>>,
    is_flushing: Cell<bool>,
}

impl Stream {
    fn new(hub: &SharedHub, mut socket: TcpStream) -> Result<Stream> {
        let token = hub.register(&mut socket)?;
        Ok(Stream {
            hub: hub.clone(),
            socket,
            token,
            buffer: RefCell::default(),
            outgoing: RefCell::default(),
            is_flushing: Cell::new(false),
        })
    }

    fn read_line(&self) -> Result<Option<String>> {
        loop {
            let mut buffer = self.buffer.borrow_mut();
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.drain(..=end).take(end).collect();
                return Ok(Some(String::from_utf8(line)?));
            }
            drop(buffer); // not over a switch
            let mut chunk = [0; 4096];
            let count = self
                .hub
                .wait_for(self.token, Direction::Read, || (&self.socket).read(&mut chunk))?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.borrow_mut().extend(&chunk[..count]);
        }
    }

    /// Writes a line. If another task is writing to the same socket, that task writes this line
    /// too.
    fn write_line(&self, line: &str) -> Result<()> {
        self.outgoing.borrow_mut().extend(line.bytes().chain([b'\n']));
        if self.is_flushing.replace(true) {
            return Ok(());
        }
        let outcome = self.flush();
        self.is_flushing.set(false);
        outcome
    }

    fn flush(&self) -> Result<()> {
        loop {
            let data = self.outgoing.take();
            let mut rest = &data[..];
            if rest.is_empty() {
                return Ok(());
            }
            while !rest.is_empty() {
                let write = || (&self.socket).write(rest);
                let count = self.hub.wait_for(self.token, Direction::Write, write)?;
                rest = &rest[count..];
            }
        }
    }

    fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

type Members = Rc<RefCell<BTreeMap<String, Rc<Stream>>>>;

#[derive(Clone, Default)]
struct Room {
    members: Members,
}

impl Room {
    fn say(&self, line: &str, without: Option<&str>) -> Result<()> {
        // Copy the list: members come and go while a write waits.
        let members = self.members.borrow().clone();
        for (_, member) in members.iter().filter(|(name, _)| Some(name.as_str()) != without) {
            member.write_line(line)?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Rc<Stream>> {
        self.members.borrow().get(name).cloned()
    }

    fn here(&self) -> String {
        let names = self.members.borrow().keys().cloned().collect::<Vec<_>>();
        format!("* here: {}", names.join(" "))
    }
}

fn serve_client(room: &Room, stream: &Rc<Stream>) -> Result<()> {
    stream.write_line("who are you?")?;
    let name = match stream.read_line()? {
        Some(name) if room.find(&name).is_none() => name,
        _ => {
            stream.write_line("that name is taken")?;
            stream.close();
            return Ok(());
        }
    };
    room.say(&format!("* {name} comes in"), None)?;
    room.members.borrow_mut().insert(name.clone(), stream.clone());
    stream.write_line(&room.here())?;
    while let Some(line) = stream.read_line()? {
        if line == "/quit" {
            stream.write_line("* bye")?;
            break;
        } else if line == "/who" {
            stream.write_line(&room.here())?;
        } else if let Some((to, text)) = line.strip_prefix("/to ").and_then(|rest| rest.split_once(' ')) {
            match room.find(to) {
                Some(other) => other.write_line(&format!("{name} (to you): {text}"))?,
                None => stream.write_line(&format!("* nobody is called {to}"))?,
            }
        } else {
            room.say(&format!("{name}: {line}"), Some(&name))?;
        }
    }
    room.members.borrow_mut().remove(&name);
    stream.close();
    room.say(&format!("* {name} leaves"), None)
}

fn listen(hub: &SharedHub, mut listener: TcpListener, room: &Room) -> Result<()> {
    let token = hub.register(&mut listener)?;
    loop {
        let (socket, _) = hub.wait_for(token, Direction::Read, || listener.accept())?;
        let stream = Rc::new(Stream::new(hub, socket)?);
        let room = room.clone();
        hub.spawn(move || serve_client(&room, &stream));
    }
}

struct Client {
    label: &'static str,
    stream: Stream,
}

impl Client {
    fn new(hub: &SharedHub, label: &'static str, address: SocketAddr) -> Result<Client> {
        let stream = Stream::new(hub, TcpStream::connect(address)?)?;
        // The socket is connected when it knows its peer.
        hub.wait_for(stream.token, Direction::Write, || {
            match stream.socket.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => Err(ErrorKind::WouldBlock.into()),
                outcome => outcome,
            }
        })?;
        Ok(Client { label, stream })
    }

    fn say(&self, line: &str) -> Result<()> {
        println!("{} > {line}", self.label);
        self.stream.write_line(line)
    }

    fn hear(&self) -> Result<()> {
        let line = self.stream.read_line()?;
        println!("{} < {}", self.label, line.as_deref().unwrap_or("(closed)"));
        Ok(())
    }
}

fn script(hub: &SharedHub, address: SocketAddr) -> Result<()> {
    let enter = |label, name, others: &[&Client]| {
        let client = Client::new(hub, label, address)?;
        client.hear()?;
        client.say(name)?;
        for other in others {
            other.hear()?;
        }
        client.hear()?;
        anyhow::Ok(client)
    };
    let one = enter("1", "ann", &[])?;
    let two = enter("2", "bob", &[&one])?;
    let three = enter("3", "cid", &[&one, &two])?;

    one.say("hello, everybody")?;
    two.hear()?;
    three.hear()?;
    two.say("hello ann")?;
    one.hear()?;
    three.hear()?;
    three.say("/to ann psst")?;
    one.hear()?;
    three.say("/to dan psst")?;
    three.hear()?;
    let four = enter("4", "bob", &[])?;
    four.hear()?;
    two.say("/quit")?;
    for client in [&two, &two, &one, &three] {
        client.hear()?;
    }
    one.say("/who")?;
    one.hear()?;
    one.stream.close(); // without `/quit`
    three.hear()?;
    three.say("/who")?;
    three.hear()
}

fn main() -> Result<()> {
    let hub = Hub::new()?;
    let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    let address = listener.local_addr()?;
    let server = hub.clone();
    let _listening = hub.spawn(move || listen(&server, listener, &Room::default()));
    let clients = hub.clone();
    let script = hub.spawn(move || script(&clients, address));
    hub.run(&script)?;
    println!("over");
    Ok(())
}
