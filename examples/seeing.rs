//! The views of a program's greenlets: `cargo run --example seeing`.
//!
//! A small shop with three clerks in different places, some of them waiting. It prints the tree.
//! With `dot`, `dump` or `trace` as an argument it prints the graph, the backtraces or a time line.
//! With `wait` it runs until it is killed, so that a debugger can inspect it.

use anyhow::Result;
use greenlet::record;
use greenlet::{Greenlet, dump, getparent, track_ages, tree};

fn main() -> Result<()> {
    track_ages(true);
    let (shop, recording) = record(open_shop);
    let shop = shop?;
    match std::env::args().nth(1).as_deref() {
        None | Some("tree") => print!("{}", tree()),
        Some("dot") => print!("{}", tree().to_dot()),
        Some("dump") => print!("{}", dump()),
        Some("trace") => print!("{}", recording.to_chrome_trace()),
        Some("mermaid") => print!("{}", recording.to_mermaid()),
        Some("wait") => {
            println!("waiting");
            loop {
                std::thread::park();
            }
        }
        Some(other) => anyhow::bail!("{other}? I know tree, dot, dump, trace, mermaid, wait"),
    }
    drop(shop);
    Ok(())
}

/// A clerk that works until there is nothing to do.
#[track_caller]
fn clerk(name: &str, work: fn() -> Result<()>) -> Greenlet {
    Greenlet::builder().name(name).build(move |(): ()| work())
}

fn open_shop() -> Result<Vec<Greenlet>> {
    let baker = clerk("baker", bake);
    let cashier = clerk("cashier", serve);
    baker.switch::<()>(())?;
    cashier.switch::<()>(())?;
    baker.switch::<()>(())?;
    let driver = clerk("driver", || Ok(())); // nothing to drive yet
    Ok(vec![baker, cashier, driver])
}

#[inline(never)]
fn bake() -> Result<()> {
    let oven = clerk("oven", heat);
    oven.switch::<()>(())?;
    wait_for_flour()?;
    oven.switch::<()>(())
}

#[inline(never)]
fn heat() -> Result<()> {
    pause()
}

#[inline(never)]
fn serve() -> Result<()> {
    let receipt = [0_u8; 10_000]; // on the stack
    pause()?;
    anyhow::ensure!(receipt.len() == 10_000);
    Ok(())
}

#[inline(never)]
fn wait_for_flour() -> Result<()> {
    pause()?;
    pause()
}

/// Switches back to the parent.
#[track_caller]
fn pause() -> Result<()> {
    getparent().expect("clerks are greenlets").switch(())
}
