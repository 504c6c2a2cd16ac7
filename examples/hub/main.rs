//! An I/O hub that serves a line echo and a chat over TCP to a thousand clients, in sequential code for each.
//!
//! ```text
//! cargo run --release --example hub                   a thousand clients of each
//! cargo run --release --example hub 200 50            200 clients, 50 lines each
//! ```
//!
//! It runs the echo beside the same in tokio, with the same clients, and prints both. `hub.rs` is the loop,
//! `net.rs` the sockets, `channel.rs` the way from one thread's hub to another one's.

mod channel;
mod hub;
mod net;
mod servers;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::channel::channel;
use crate::hub::Hub;
use crate::net::Lines;
use crate::servers::Server;

/// Runs `count` clients at once, in a hub of their own, until all have ended.
///
/// They connect one after the other, each when `greet` has seen the one before served, so that they do not overrun
/// the queue of the listener. The time that is returned is that of what comes afterwards.
fn run_clients(
    count: usize,
    address: SocketAddr,
    greet: fn(&Lines) -> Result<()>,
    client: impl Fn(usize, &Rc<Hub>, &Lines) -> Result<()> + 'static,
) -> Result<Duration> {
    let hub = Hub::new()?;
    let inside = hub.clone();
    let client = Rc::new(client);
    let outcome = hub.run(move || {
        let mut connected = Vec::new();
        for _ in 0..count {
            let lines = Lines::connect(&inside, address).context("connecting")?;
            greet(&lines).context("greeting")?;
            connected.push(lines);
        }
        let start = Instant::now();
        let (done, results) = channel(&inside);
        for (n, lines) in connected.into_iter().enumerate() {
            let (client, hub, done) = (client.clone(), inside.clone(), done.clone());
            inside.spawn(move || {
                done.send(client(n, &hub, &lines).with_context(|| format!("client {n}")));
                Ok(())
            });
        }
        drop(done);
        let mut ended = 0;
        while let Some(result) = results.recv()? {
            result?;
            ended += 1;
        }
        ensure!(ended == count, "{ended} of {count} clients came to their ends");
        Ok(start.elapsed())
    });
    hub.clear();
    outcome
}

fn greet_echo(lines: &Lines) -> Result<()> {
    lines.write("hello")?;
    ensure!(lines.read()?.as_deref() == Some("hello"), "no echo");
    Ok(())
}

fn greet_chat(lines: &Lines) -> Result<()> {
    ensure!(lines.read()?.as_deref() == Some("* which room?"), "no welcome");
    Ok(())
}

/// Sends lines one by one, and wants each back.
fn echo_client(lines: &Lines, n: usize, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let line = format!("line {round} of client {n}");
        lines.write(&line)?;
        let back = lines.read()?.context("the server has closed")?;
        ensure!(back == line, "{back} came back for {line}");
    }
    lines.close();
    Ok(())
}

/// Enters a room of the chat, waits until all of the room are there, says something, and hears the others.
fn chat_client(hub: &Hub, lines: &Lines, n: usize, in_room: usize) -> Result<()> {
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

/// Two hubs in two threads: one hands numbers over, the other one squares them and hands them back.
fn hand_over(count: u64) -> Result<u64> {
    let here = Hub::new()?;
    let (back, squares) = channel(&here);
    let (meet, meeting) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || -> Result<()> {
        let there = Hub::new()?;
        let (work, numbers) = channel::<u64>(&there);
        meet.send(work)?;
        there.run(move || {
            while let Some(n) = numbers.recv()? {
                back.send(n * n);
            }
            Ok(())
        })
    });
    let work = meeting.recv()?;
    let sum = here.run(move || {
        let mut sum = 0;
        for n in 0..count {
            work.send(n); // wakes the other hub, and the answer this one
            sum += squares.recv()?.context("the worker has gone")?;
        }
        Ok(sum)
    })?;
    worker.join().expect("the worker does not panic")?;
    Ok(sum)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let clients = arguments.next().unwrap_or(Ok(1000))?;
    let rounds = arguments.next().unwrap_or(Ok(100))?;
    for (name, start) in [
        ("hub", servers::hub_echo as fn() -> _),
        ("tokio", servers::tokio_echo),
    ] {
        let server: Server = start()?;
        let time = run_clients(clients, server.address, greet_echo, move |n, _, lines| {
            echo_client(lines, n, rounds)
        })?;
        let per_second = (clients * rounds) as f64 / time.as_secs_f64();
        println!("echo, {name}: {clients} clients, {rounds} lines each: {per_second:.0} lines a second");
    }
    let in_room = 10;
    let clients = clients.next_multiple_of(in_room);
    let server = servers::hub_chat()?;
    let time = run_clients(clients, server.address, greet_chat, move |n, hub, lines| {
        chat_client(hub, lines, n, in_room)
    })?;
    println!(
        "chat, hub: {clients} clients in rooms of {in_room}: {:.2} s",
        time.as_secs_f64()
    );

    let count = 20_000;
    let start = Instant::now();
    hand_over(count)?;
    let time = start.elapsed().as_micros() as f64 / count as f64;
    println!("between two hubs: {time:.1} microseconds there and back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_client_of_the_echo_gets_its_own_lines() {
        for start in [servers::hub_echo as fn() -> Result<Server>, servers::tokio_echo] {
            let address = start().unwrap().address;
            run_clients(100, address, greet_echo, |n, _, lines| echo_client(lines, n, 5)).unwrap();
        }
    }

    #[test]
    fn the_chat_says_what_is_said_to_the_room_and_only_there() {
        let address = servers::hub_chat().unwrap().address;
        run_clients(60, address, greet_chat, |n, hub, lines| {
            chat_client(hub, lines, n, 6)
        })
        .unwrap();
    }

    #[test]
    fn work_goes_to_another_threads_hub_and_back() {
        assert_eq!(hand_over(100).unwrap(), (0..100).map(|n| n * n).sum());
    }

    #[test]
    fn sleepers_wake_in_the_order_of_their_times() {
        let log = Rc::new(RefCell::new(Vec::new()));
        let hub = Hub::new().unwrap();
        let (inside, seen) = (hub.clone(), log.clone());
        hub.run(move || {
            for time in [30, 10, 20] {
                let (hub, log) = (inside.clone(), seen.clone());
                inside.spawn(move || {
                    hub.sleep(Duration::from_millis(time))?;
                    log.borrow_mut().push(time);
                    Ok(())
                });
            }
            inside.sleep(Duration::from_millis(60))
        })
        .unwrap();
        assert_eq!(*log.borrow(), [10, 20, 30]);
    }

    #[test]
    fn tasks_that_wait_are_ended_with_the_hub() {
        let hub = Hub::new().unwrap();
        let (inside, log) = (hub.clone(), Rc::new(RefCell::new(Vec::new())));
        let seen = log.clone();
        hub.spawn(move || {
            let outcome = inside.sleep(Duration::from_secs(3600));
            seen.borrow_mut().push(outcome.unwrap_err().to_string());
            Ok(())
        });
        hub.run(|| Ok(())).unwrap();
        assert!(log.borrow().is_empty());
        hub.clear();
        assert!(log.borrow()[0].starts_with("greenlet exit"), "{log:?}");
    }
}
