//! The end of a thread and of the process, with spawned functions and with threads of a pool. Each
//! test runs itself again as a child process.

#![cfg(target_os = "linux")] // the order in which thread-locals are destroyed

use std::cell::RefCell;
use std::pin::Pin;
use std::process::{Command, Output};
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use greenlet::{
    Greenlet, Spawn, ThreadExiting, await_, end_suspended, getcurrent, getparent, greenlet_spawn,
    set_unraisable_hook, stack,
};

const CHILD: &str = "GREENLET_TEST_CASE";

/// Runs the test of this name again, alone, in a child process, which then runs `case`.
fn in_child(test: &str, case: fn()) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        case();
        return None;
    }
    let this = std::env::current_exe().unwrap();
    let child = Command::new(this)
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .output();
    Some(child.unwrap())
}

/// Checks the status of a child, that its output contains these lines in this order, and that it
/// reports nothing.
#[track_caller]
fn assert_ended(output: &Output, status: i32, lines: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(status), "{printed}{errors}");
    assert!(printed.contains(&lines.join("\n")), "{printed}{errors}");
    assert_eq!(errors, "", "no noise");
}

/// Prints when it is dropped.
struct Says(&'static str);

impl Drop for Says {
    fn drop(&mut self) {
        println!("{} dropped", self.0);
    }
}

/// Leaves a suspended greenlet with a handle of itself on its stack.
fn leave_ring() {
    let ring = Greenlet::new(|(): ()| {
        let _itself = getcurrent();
        getparent().unwrap().switch::<()>(())
    });
    ring.switch::<()>(()).unwrap();
}

// SH-1, TE-6: after `exit`, no code of a suspended greenlet runs. A thread-local that is destroyed
// later polls its awaited future, which uses a destroyed thread-local.
#[test]
fn exit_in_a_greenlet_marks_the_others_dead_first() {
    struct Late(Option<Spawn<()>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let spawned = self.0.take().unwrap();
            let state = spawned.greenlet().state();
            let mut result = spawned.into_result();
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Err(error)) = Pin::new(&mut result).poll(&mut cx) else {
                panic!("the poll is not refused")
            };
            drop(result);
            let is_refused = error.is::<ThreadExiting>();
            println!(
                "{state:?}, refused {is_refused}, leaked {}",
                stack::stats().leaked
            );
        }
    }
    thread_local! {
        static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
        static GONE: Says = const { Says("what the future looks at") };
    }
    let output = in_child("exit_in_a_greenlet_marks_the_others_dead_first", || {
        std::thread::spawn(|| {
            LATE.with(|_| ());
            let mut spawned = greenlet_spawn(|| {
                GONE.with(|gone| {
                    await_(std::future::poll_fn(|_| {
                        println!("polled, with {}", gone.0);
                        Poll::<()>::Pending
                    }));
                });
            });
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut spawned).poll(&mut cx).is_pending());
            LATE.with_borrow_mut(|late| late.0 = Some(spawned));
            let exits = Greenlet::new(|(): ()| -> Result<()> { std::process::exit(3) });
            exits.switch::<()>(()).unwrap();
        })
        .join()
        .unwrap();
    });
    let Some(output) = output else { return };
    let lines = [
        "polled, with what the future looks at",
        "what the future looks at dropped",
        "Dead, refused true, leaked 1",
    ];
    assert_ended(&output, 3, &lines);
}

// TE-8: the hook of a pool ends the greenlets that are suspended on its threads.
#[test]
fn a_pool_with_a_hook_leaks_nothing() {
    let output = in_child("a_pool_with_a_hook_leaks_nothing", || {
        set_unraisable_hook(|_| ());
        let run_pool = |has_hook: bool| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1);
            if has_hook {
                builder.on_thread_stop(|| drop(end_suspended()));
            }
            let runtime = builder.build().unwrap();
            runtime.block_on(async {
                let tasks = [0; 4].map(|_| tokio::task::spawn_blocking(leave_ring));
                for task in tasks {
                    task.await.unwrap();
                }
            });
            drop(runtime); // waits until its threads have ended
            stack::stats().leaked
        };
        assert!((0..50).all(|_| run_pool(true) == 0));
        println!("without: {}", run_pool(false));
    });
    let Some(output) = output else { return };
    assert_ended(&output, 0, &["without: 4"]);
}
