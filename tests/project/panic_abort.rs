//! The program of `tests/panic_abort.rs`.

use std::future::pending;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use greenlet::{await_, greenlet_spawn, stack, try_await_};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (function, way) = (arguments[0].clone(), arguments[1].as_str());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut spawned = greenlet_spawn(move || {
        let _on_its_stack = String::from("left");
        match function.as_str() {
            "returns" => drop(try_await_(pending::<()>())),
            _ => await_(pending()),
        }
    });
    let weak = spawned.greenlet().downgrade();
    let timeout = |spawned| {
        runtime.block_on(async { tokio::time::timeout(Duration::from_millis(1), spawned).await })
    };
    match way {
        "timeout" => assert!(timeout(spawned).is_err()),
        _ => {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut spawned).poll(&mut cx).is_pending());
            match way {
                "drop" => drop(spawned),
                _ => println!("cancelled: {:?}", runtime.block_on(spawned.cancel()).map_err(|e| e.to_string())),
            }
        }
    }
    println!("dead: {}, leaked: {}", weak.is_dead(), stack::stats().leaked);
    println!("goes on: {}", runtime.block_on(greenlet_spawn(|| await_(async { 7 }))));
}
