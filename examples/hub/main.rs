//! An I/O hub that serves a line echo and a chat over TCP to a thousand clients, with sequential
//! code for each.
//!
//! ```text
//! cargo run --release --example hub                   a thousand clients of each
//! cargo run --release --example hub 200 50            200 clients, 50 lines each
//! ```
//!
//! `hub.rs` is the loop, `net.rs` has the sockets, `servers.rs` and `clients.rs` the tasks,
//! `channel.rs` the channel between the hubs of two threads. `benches/echo` compares it with others.

mod channel;
mod clients;
mod hub;
mod net;
mod servers;

use std::time::Instant;

use anyhow::{Context, Result};
use greenlet::run_to_end;

use crate::channel::channel;
use crate::clients::{chat_client, echo_client, greet_chat, greet_echo, run_clients};
use crate::hub::Hub;

/// Two hubs in two threads: one sends numbers, the other one squares them and sends them back.
fn hand_over(count: u64) -> Result<u64> {
    let here = Hub::new()?;
    let (back, squares) = channel(&here);
    let (meet, meeting) = std::sync::mpsc::channel();
    let square = move || -> Result<()> {
        let there = Hub::new()?;
        let (work, numbers) = channel::<u64>(&there);
        meet.send(work)?;
        there.run(move || {
            while let Some(n) = numbers.recv()? {
                back.send(n * n);
            }
            Ok(())
        })
    };
    // The end of a thread does not end its suspended greenlets, so `run_to_end` ends them first.
    let worker = std::thread::spawn(|| run_to_end(square));
    let work = meeting.recv()?;
    let sum = here.run(move || {
        let mut sum = 0;
        for n in 0..count {
            work.send(n); // wakes the other hub; the answer wakes this one
            sum += squares.recv()?.context("the worker has gone")?;
        }
        Ok(sum)
    })?;
    worker.join().expect("the worker does not panic")?;
    Ok(sum)
}

fn main() -> Result<()> {
    run_to_end(run)
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let clients = arguments.next().unwrap_or(Ok(1000))?;
    let rounds = arguments.next().unwrap_or(Ok(100))?;
    let server = servers::hub_echo()?;
    let time = run_clients(clients, server.address, greet_echo, move |n, _, lines| {
        echo_client(lines, n, rounds)
    })?;
    let per_second = (clients * rounds) as f64 / time.as_secs_f64();
    println!("echo: {clients} clients, {rounds} lines each: {per_second:.0} lines a second");
    let in_room = 10;
    let clients = clients.next_multiple_of(in_room);
    let server = servers::hub_chat()?;
    let time = run_clients(clients, server.address, greet_chat, move |n, hub, lines| {
        chat_client(hub, lines, n, in_room)
    })?;
    println!(
        "chat: {clients} clients in rooms of {in_room}: {:.2} s",
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
mod tests;
