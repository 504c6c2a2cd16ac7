//! Runs the checks of a recipe, and prints one line of result.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use greenlet::{SpawnBuilder, assert_no_leaks, getcurrent};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

/// A check, or a comparison of speeds.
pub type Future = Pin<Box<dyn std::future::Future<Output = Result<()>>>>;

/// A check with its name: see [`checks!`](crate::checks).
pub type Check = (&'static str, fn() -> Future);

/// A check that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// The most that a measured function has touched of its stack.
static STACK: AtomicUsize = AtomicUsize::new(0);

/// Makes a list of checks from the names of async functions.
#[macro_export]
macro_rules! checks {
    ($($name:path),* $(,)?) => {
        &[$((stringify!($name), (|| Box::pin($name())) as fn() -> $crate::Future)),*] as &[$crate::Check]
    };
}

/// Runs the checks, each in a runtime of its own, or with `--bench` the comparison of speeds.
///
/// Prints one line. Exits with status 1 if a check fails, hangs, or leaves a greenlet.
pub fn main(recipe: &str, checks: &[Check], bench: Option<fn() -> Future>) {
    if std::env::args().any(|argument| argument == "--bench") {
        match bench {
            Some(bench) => run(bench).expect("a comparison must not fail"),
            None => println!("{recipe}: nothing to compare"),
        }
        return;
    }
    let mut failed = 0;
    for (name, check) in checks {
        let (done, watched) = channel::<()>();
        let (recipe, name) = (recipe.to_owned(), *name);
        thread::spawn({
            let recipe = recipe.clone();
            move || {
                if watched.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                    println!("{recipe}: FAILED: {name} hangs");
                    exit(1);
                }
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| assert_no_leaks(|| run(*check))))
            .unwrap_or_else(|payload| Err(anyhow!("panicked: {}", message_of_panic(&*payload))));
        drop(done);
        match outcome {
            Ok(()) => eprintln!("{recipe}: {name}: ok"),
            Err(error) => {
                failed += 1;
                println!("{recipe}: FAILED: {name}: {error:#}");
            }
        }
    }
    let stack = STACK.load(Ordering::Relaxed) / 1024;
    println!(
        "{recipe}: {} checks passed, {failed} failed, {stack} KiB of stack touched",
        checks.len() - failed
    );
    if failed > 0 {
        exit(1);
    }
}

/// Runs a future in a runtime of one thread, as a task that need not be `Send`.
fn run(future: fn() -> Future) -> Result<()> {
    let runtime: Runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future())
}

/// Runs a function on a fresh stack, and notes how much of it the function has touched.
pub async fn measured<T: 'static>(function: impl FnOnce() -> T + 'static) -> T {
    // No other function uses this size, so the stack is fresh.
    let builder = SpawnBuilder::new().stack_size(3 << 20);
    let spawned = builder.spawn(|| {
        let output = function();
        let touched = getcurrent().stack_high_water().expect("a greenlet has a stack");
        STACK.fetch_max(touched, Ordering::Relaxed);
        output
    });
    spawned.await
}

/// Returns the text of a panic.
pub fn message_of_panic(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| Some((*payload.downcast_ref::<&str>()?).to_owned()))
        .unwrap_or("not a text".into())
}
