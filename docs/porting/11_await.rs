//! SQLAlchemy's bridge: synchronous code over an asynchronous driver. The library has it.

use anyhow::{Result, bail};
use greenlet::{await_, greenlet_spawn, try_await_};

// An asynchronous driver.

async fn fetch(table: &'static str, row: u32) -> Result<String> {
    println!("fetch {table}/{row}");
    tokio::task::yield_now().await;
    if row > 2 {
        bail!("{table} has no row {row}");
    }
    Ok(format!("{table}[{row}]"))
}

// A synchronous library that has no `async` code, and calls the function that it is given.

fn read_all(mut get: impl FnMut(u32) -> Result<String>) -> String {
    let mut rows = Vec::new();
    for row in 0..10 {
        match get(row) {
            Ok(value) => rows.push(value),
            Err(error) => {
                rows.push(format!("({error})"));
                break;
            }
        }
    }
    rows.join(", ")
}

fn report(table: &'static str) -> String {
    read_all(|row| await_(fetch(table, row)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (users, posts) = futures::join!(
        greenlet_spawn(|| report("users")),
        greenlet_spawn(|| report("posts"))
    );
    println!("{users}\n{posts}");
    if try_await_(fetch("users", 0)).is_err() {
        println!("not here");
    }
}
