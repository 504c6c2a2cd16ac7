//! The line echo of `examples/hub`, beside the same on tokio and on `may`, on one thread each.
//!
//! ```text
//! cargo run --release -p greenlet-echo                a thousand clients with 100 lines each, 15 rounds
//! cargo run --release -p greenlet-echo 31 200 500     31 rounds, 200 clients, 500 lines each
//! ```
//!
//! Each server is a process of its own, which lives for one run. The clients are those of the
//! example, on a hub in this process, for all servers. The servers take turns, in another order in
//! each round. Printed are, of each, the median of the lines a second, and of the processor time
//! that the server took for a line: that one depends less on what else the machine does.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

#[path = "../../../examples/hub/clients.rs"]
#[allow(dead_code, reason = "the chat is not measured")]
mod clients;
#[path = "../../../examples/hub/hub.rs"]
#[allow(dead_code, reason = "nobody sleeps here")]
mod hub;
#[path = "../../../examples/hub/net.rs"]
mod net;
#[path = "../../../examples/hub/servers.rs"]
#[allow(dead_code, reason = "the chat is not measured")]
mod servers;

const NAMES: [&str; 3] = ["hub", "tokio", "may"];

/// The same on tokio, on one thread.
fn tokio_echo() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                tokio::spawn(async move {
                    let (read, mut write) = socket.into_split();
                    let mut lines = tokio::io::BufReader::new(read).lines();
                    while let Ok(Some(mut line)) = lines.next_line().await {
                        line.push('\n');
                        if write.write_all(line.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        })
    });
    Ok(address)
}

/// The same on `may`, with one worker. Its reads and writes are those of blocking sockets, too.
fn may_echo() -> Result<SocketAddr> {
    // Left to the system, as the threads of the others are.
    may::config().set_worker_pin(false);
    may::config().set_workers(1);
    let listener = may::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let accept = move || {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            // SAFETY: it uses no thread-locals and less than a page of its stack; what it reads
            // into is on the heap.
            unsafe { may::coroutine::spawn(move || echo_lines(stream)) };
        }
    };
    // SAFETY: as above.
    unsafe { may::coroutine::spawn(accept) };
    Ok(address)
}

fn echo_lines(stream: may::net::TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while matches!(stream.read_line(&mut line), Ok(1..)) {
        if stream.get_mut().write_all(line.as_bytes()).is_err() {
            break;
        }
        line.clear();
    }
}

/// Serves until the process is killed.
fn serve(name: &str) -> Result<()> {
    let address = match name {
        "hub" => servers::hub_echo()?.address,
        "tokio" => tokio_echo()?,
        "may" => may_echo()?,
        _ => bail!("there is no server {name}"),
    };
    println!("{address}");
    loop {
        std::thread::park();
    }
}

/// A server in a process of its own, which ends with this.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(name: &str) -> Result<Server> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", name])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("it is piped")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim().parse()?;
        Ok(Server { process, address })
    }

    /// The processor time of all of its threads until now, in nanoseconds.
    fn time(&self) -> Result<u64> {
        let mut time = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split(' ').next().context("it has three numbers")?;
            time += first.parse::<u64>()?;
        }
        Ok(time)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It serves for ever, and has nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of one run: lines a second, and microseconds of the server's processor time a line.
fn run(name: &str, count: usize, rounds: usize) -> Result<(f64, f64)> {
    let server = Server::start(name)?;
    let before = server.time()?;
    let time = clients::run_clients(count, server.address, clients::greet_echo, move |n, _, lines| {
        clients::echo_client(lines, n, rounds)
    })?;
    let lines = (count * rounds) as f64;
    let of_server = (server.time()? - before) as f64 / 1000.0;
    Ok((lines / time.as_secs_f64(), of_server / lines))
}

fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, name] = &arguments[..]
        && command == "serve"
    {
        return serve(name);
    }
    let number = |n: usize, or: usize| arguments.get(n).map_or(Ok(or), |argument| argument.parse());
    let (turns, count, rounds) = (number(0, 15)?, number(1, 1000)?, number(2, 100)?);
    ensure!(turns > 0, "no rounds, no medians");
    let mut speeds = [(); 3].map(|()| Vec::new());
    let mut costs = speeds.clone();
    for turn in 0..turns {
        for n in (0..3).map(|n| (n + turn) % 3) {
            let (speed, cost) = run(NAMES[n], count, rounds).with_context(|| NAMES[n])?;
            speeds[n].push(speed);
            costs[n].push(cost);
        }
    }
    let ratio = |all: &[Vec<f64>; 3], n: usize| {
        let mut ratios: Vec<f64> = all[n]
            .iter()
            .zip(&all[0])
            .map(|(other, ours)| other / ours)
            .collect();
        median(&mut ratios).0
    };
    println!("{count} clients, {rounds} lines each, {turns} rounds");
    for n in 0..3 {
        let (of_hub, cost_of_hub) = (ratio(&speeds, n), ratio(&costs, n));
        let (speed, low, high) = median(&mut speeds[n].clone());
        let cost = median(&mut costs[n].clone()).0;
        println!(
            "{:6} {speed:8.0} lines a second ({low:.0} to {high:.0}), {of_hub:.2} of the hub's; \
             {cost:5.2} us of the server's processor time a line, {cost_of_hub:.2} of the hub's",
            NAMES[n],
        );
    }
    Ok(())
}
