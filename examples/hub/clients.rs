//! The clients of the servers, on a hub of their own.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use greenlet_toolkit::{Kit, Task};

use crate::hub::Hub;
use crate::net::Lines;

/// Runs `count` clients at once, in a hub of their own, until all have ended.
///
/// They connect one after the other, each when `greet` has seen that the previous one is served. So
/// they do not overrun the queue of the listener. The returned time is that of the rest.
pub(crate) fn run_clients(
    count: usize,
    address: SocketAddr,
    greet: fn(&Lines) -> Result<()>,
    client: impl Fn(usize, &Rc<Hub>, &Lines) -> Result<()> + 'static,
) -> Result<Duration> {
    let hub = Hub::new()?;
    let kit = Kit::new(&hub);
    let (inside, inside_kit) = (hub.clone(), kit.clone());
    let client = Rc::new(client);
    let all = kit.spawn("clients", move || {
        let mut connected = Vec::new();
        for _ in 0..count {
            let lines = Lines::connect(&inside, address).context("connecting")?;
            greet(&lines).context("greeting")?;
            connected.push(lines);
        }
        let start = Instant::now();
        let spawn = |(n, lines)| {
            let (client, hub) = (client.clone(), inside.clone());
            inside_kit.spawn(&format!("client {n}"), move || client(n, &hub, &lines))
        };
        let clients: Vec<Task<()>> = connected.into_iter().enumerate().map(spawn).collect();
        inside_kit.joinall(&clients, None)?;
        for (n, client) in clients.iter().enumerate() {
            client.get(None).with_context(|| format!("client {n}"))?;
        }
        Ok(start.elapsed())
    });
    let outcome = kit.run(|| hub.run_all());
    hub.clear();
    outcome?;
    all.get(None)?.context("the clients have not ended")
}

pub(crate) fn greet_echo(lines: &Lines) -> Result<()> {
    lines.write("hello")?;
    ensure!(lines.read()?.as_deref() == Some("hello"), "no echo");
    Ok(())
}

pub(crate) fn greet_chat(lines: &Lines) -> Result<()> {
    ensure!(lines.read()?.as_deref() == Some("* which room?"), "no welcome");
    Ok(())
}

/// Sends lines one by one, and expects each back.
pub(crate) fn echo_client(lines: &Lines, n: usize, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let line = format!("line {round} of client {n}");
        lines.write(&line)?;
        let back = lines.read()?.context("the server has closed")?;
        ensure!(back == line, "{back} came back for {line}");
    }
    lines.close();
    Ok(())
}

/// Enters a room of the chat, waits until all members are there, sends a line, and reads the
/// others' lines.
pub(crate) fn chat_client(hub: &Hub, lines: &Lines, n: usize, in_room: usize) -> Result<()> {
    lines.write(&format!("room{}", n / in_room))?;
    lines.write(&format!("client{n}"))?;
    let mut present = 0;
    while present < in_room {
        let line = lines.read()?.context("the server has closed")?;
        present = line.strip_prefix("* here: ").context(line.clone())?.parse()?;
    }
    lines.write(&format!("hello from {n}"))?;
    let mut heard = 0;
    while heard < in_room - 1 {
        let line = lines.read()?.context("the server has closed")?;
        heard += usize::from(line.contains(": hello from "));
    }
    hub.sleep(Duration::from_millis(1))?;
    lines.write("/quit")?;
    while lines.read()?.is_some() {}
    Ok(())
}
