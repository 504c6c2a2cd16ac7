//! The program of `tests/panic_abort.rs`.

use anyhow::{Result, anyhow};
use greenlet_core::{Greenlet, end_suspended, getmain, no_switch, raise, stack};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments[0].as_str() {
        "error" => {
            let raises = Greenlet::new(|(): ()| -> Result<()> { raise(anyhow!("disk full")) });
            println!("{}", raises.switch::<()>(()).unwrap_err());
        }
        "main" => raise(anyhow!("in main")),
        "section" => {
            let raises = Greenlet::new(|(): ()| -> Result<()> { no_switch(|| raise(anyhow!("in a section"))) });
            let _ = raises.switch::<()>(());
        }
        function => leave(function.to_owned(), &arguments[1]),
    }
}

fn leave(function: String, way: &str) {
    let left = Greenlet::builder().name("left").build(move |(): ()| -> Result<()> {
        let _on_its_stack = String::from("left");
        loop {
            let asked = getmain().switch::<()>(());
            match (function.as_str(), asked) {
                ("returns", asked) => return asked,
                ("raises", Err(exit)) => raise(exit),
                _ => {}
            }
        }
    });
    left.switch::<()>(()).unwrap();
    let weak = left.downgrade();
    match way {
        "drop" => drop(left),
        "end" => left.end(),
        _ => assert!(left.kill().unwrap().is_exit()),
    }
    println!("dead: {}, leaked: {}", weak.is_dead(), stack::stats().leaked);
    end_suspended().unwrap();
    let seven = Greenlet::new(|(): ()| Ok(7)).switch::<i32>(()).unwrap();
    println!("goes on: {seven}");
}
