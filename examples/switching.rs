//! The first program with greenlets: two functions take turns.

use anyhow::{Context, Result};
use greenlet::{Greenlet, getparent};

fn foo(greeting: &'static str) -> Result<&'static str> {
    let main = getparent().context("foo runs in a greenlet")?;
    println!("foo: {greeting}");
    let number: i32 = main.switch(1)?;
    println!("foo: {number}");
    let () = main.switch("bar")?;
    Ok("done")
}

fn main() -> Result<()> {
    let child = Greenlet::new(foo);
    let number: i32 = child.switch("starting")?;
    println!("main: {number}");
    let text: &str = child.switch(2)?;
    println!("main: {text}");
    let text: &str = child.switch(())?;
    println!("main: {text}");
    Ok(())
}
