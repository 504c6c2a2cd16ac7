//! The servers: a line echo and a chat.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use greenlet::run_to_end;
use mio::net::TcpListener;

use crate::hub::Hub;
use crate::net::{Lines, listen};

/// A server on its own thread, for the life of the process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
}

fn serve_on_hub<F>(make: impl FnOnce() -> F + Send + 'static) -> Result<Server>
where
    F: Fn(Rc<Lines>) -> Result<()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    let address = listener.local_addr()?;
    // Without this, a task that is suspended when the loop fails would never drop its socket.
    std::thread::spawn(|| {
        run_to_end(move || -> Result<()> {
            let hub = Hub::new()?;
            let inside = hub.clone();
            let serve = make();
            hub.run(move || listen(&inside, listener, serve))
        })
    });
    Ok(Server { address })
}

/// Sends each line back.
pub(crate) fn hub_echo() -> Result<Server> {
    serve_on_hub(|| |lines: Rc<Lines>| echo(&lines))
}

pub(crate) fn echo(lines: &Lines) -> Result<()> {
    while let Some(line) = lines.read()? {
        lines.write(&line)?;
    }
    Ok(())
}

type Room = BTreeMap<String, Rc<Lines>>;

/// The rooms of the chat, by name.
#[derive(Clone, Default)]
pub(crate) struct Rooms(Rc<RefCell<HashMap<String, Room>>>);

impl Rooms {
    /// Sends a line to all members of a room except one.
    fn say(&self, room: &str, but: &str, line: &str) {
        // Copy the list: members come and go while a write waits.
        let members = self.0.borrow().get(room).cloned().unwrap_or_default();
        for (_, member) in members.iter().filter(|(name, _)| *name != but) {
            // If it fails, the member's own task sees the end of the stream.
            let _ = member.write(line);
        }
    }

    /// Adds a member, and returns the number of members.
    fn enter(&self, room: &str, name: &str, lines: Rc<Lines>) -> usize {
        let mut rooms = self.0.borrow_mut();
        let room = rooms.entry(room.to_owned()).or_default();
        room.insert(name.to_owned(), lines);
        room.len()
    }

    fn leave(&self, room: &str, name: &str) {
        if let Some(room) = self.0.borrow_mut().get_mut(room) {
            room.remove(name);
        }
    }
}

/// Serves a client: reads its room and its name, and then forwards its lines to the room until
/// `/quit`.
pub(crate) fn chat(rooms: &Rooms, lines: &Rc<Lines>) -> Result<()> {
    lines.write("* which room?")?;
    let (Some(room), Some(name)) = (lines.read()?, lines.read()?) else {
        return Ok(());
    };
    let present = rooms.enter(&room, &name, lines.clone());
    rooms.say(&room, "", &format!("* here: {present}"));
    let outcome = loop {
        match lines.read() {
            Ok(Some(line)) if line != "/quit" => rooms.say(&room, &name, &format!("{name}: {line}")),
            Ok(_) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    rooms.leave(&room, &name);
    lines.close();
    outcome
}

pub(crate) fn hub_chat() -> Result<Server> {
    serve_on_hub(|| {
        let rooms = Rooms::default();
        move |lines| chat(&rooms, &lines)
    })
}
