//! `GreenletExit`: killing, cleaning up, refusing, and throwing your own errors.

use std::cell::Cell;

use anyhow::Result;
use greenlet::{Greenlet, GreenletExit, getparent};

#[derive(Debug)]
struct Cancelled(&'static str);

impl std::fmt::Display for Cancelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Cancelled {}

/// Python's `finally`: a destructor runs on every way out.
struct CleanUp<'a> {
    name: &'static str,
    done: &'a Cell<u32>,
}

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        println!("{}: cleaned up after {}", self.name, self.done.get());
    }
}

fn worker(name: &'static str) -> Result<()> {
    let main = getparent().expect("it has one");
    let done = Cell::new(0);
    let _clean_up = CleanUp { name, done: &done };
    loop {
        match main.switch::<()>(format!("{name}: step {}", done.get())) {
            Ok(()) => done.set(done.get() + 1),
            Err(error) if error.is::<Cancelled>() => {
                println!("{name}: {error}, starting again");
                done.set(0);
            }
            Err(error) => {
                if error.is::<GreenletExit>() {
                    println!("{name}: asked to go");
                }
                return Err(error);
            }
        }
    }
}

fn title(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn main() -> Result<()> {
    let a = Greenlet::new(worker);
    println!("{}", a.switch::<String>("a")?);
    println!("{}", a.switch::<String>(())?);
    println!("{}", a.throw::<String>(Cancelled("changed my mind"))?);
    println!("{}", a.switch::<String>(())?);

    // The exit returns as a value, so no code has to catch it.
    let exit: GreenletExit = a.throw(GreenletExit::with_reason("enough"))?;
    println!(
        "GreenletExit {} {}",
        exit.reason().unwrap_or_default(),
        title(a.is_dead())
    );
    println!("{}", if a.kill()?.is_exit() { "GreenletExit" } else { "?" });

    // Dropping the last handle does the same.
    let b = Greenlet::new(worker);
    println!("{}", b.switch::<String>("b")?);
    drop(b);
    println!("b is gone");

    // A greenlet that was never started ends unrun.
    let c = Greenlet::new(worker);
    let exit = if c.kill()?.is_exit() { "GreenletExit" } else { "?" };
    println!("{exit} {}", title(c.is_dead()));

    let d = Greenlet::new(
        |(): ()| match getparent().expect("it has one").switch::<()>("waiting") {
            Err(error) if error.is::<GreenletExit>() => Ok("a last word"),
            other => other.map(|()| "not asked to go"),
        },
    );
    println!("{}", d.switch::<&str>(())?);
    println!("{}", d.throw::<&str>(GreenletExit::new())?);
    Ok(())
}
