//! rayon: synchronous code that awaits, called from rayon's threads. There is no glue.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use greenlet::{await_, with_blocking_awaits};
use greenlet_recipes::backend::{self, ask};
use greenlet_recipes::checks;
use greenlet_recipes::proxy::{FAULTS, Fault, absent};
use rayon::prelude::*;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

/// Synchronous, and awaits: it could be anybody's callback.
fn fetch(server: SocketAddr, key: &str) -> Result<String> {
    Ok(await_(ask(server, key))?)
}

/// Fetches all keys, on the threads of a pool. Keep it off the threads of the runtime: it blocks.
fn fetch_all(runtime: &Handle, server: SocketAddr, keys: &[String]) -> Result<Vec<String>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build()?;
    let fetch_one = |key: &String| {
        let _entered = runtime.enter(); // tokio's sockets need their runtime
        with_blocking_awaits(|| fetch(server, key))
    };
    pool.install(|| keys.par_iter().map(fetch_one).collect())
}

async fn all(server: SocketAddr, keys: &[&str]) -> Result<Vec<String>> {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let runtime = Handle::current();
    spawn_blocking(move || fetch_all(&runtime, server, &keys)).await?
}

async fn the_threads_of_rayon_await() -> Result<()> {
    let server = backend::start().await?.address;
    let start = Instant::now();
    let found = all(server, &["a", "wait 50", "wait 50", "wait 50", "b"]).await?;
    ensure!(
        found == ["<a>", "<wait 50>", "<wait 50>", "<wait 50>", "<b>"],
        "got {found:?}"
    );
    eprintln!("three waits of 50 ms took {:?}", start.elapsed());
    Ok(())
}

async fn a_server_that_is_not_there_or_fails() -> Result<()> {
    let proxy = backend::start().await?;
    let mut servers = vec![(Fault::None, absent().await?)];
    servers.extend(FAULTS.map(|fault| (fault, proxy.address)));
    for (fault, server) in servers {
        proxy.set(fault);
        let error = all(server, &["a", "b"]).await.unwrap_err();
        eprintln!("{fault:?}: {error:#}");
        proxy.set(Fault::None);
        ensure!(
            all(proxy.address, &["a"]).await? == ["<a>"],
            "{fault:?}: nothing works any more"
        );
    }
    Ok(())
}

fn main() {
    greenlet_recipes::main(
        "rayon",
        checks![the_threads_of_rayon_await, a_server_that_is_not_there_or_fails],
        None,
    );
}
