//! A signal prints the greenlets of all threads. The parent reads standard error of a child
//! process.

#![cfg(all(unix, feature = "signal"))]

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use greenlet::{Greenlet, dump_on_signal, getcurrent, getparent};
use signal_hook::consts::SIGUSR1;

const CHILD: &str = "GREENLET_TEST_SIGNAL_CHILD";

#[test]
fn a_signal_prints_the_greenlets_of_all_threads() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_signal_prints_the_greenlets_of_all_threads",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("greenlets of thread 'server' ("), "{text}");
    assert!(text.contains("└─ reader  "), "{text}");
    assert!(text.contains("s old, created at tests/signal.rs:"), "{text}");
    assert!(text.contains("waits_for_news"), "{text}");
    assert!(
        text.contains("has greenlets, and has not switched for 1s"),
        "{text}"
    );
    assert_eq!(text.matches("greenlets of thread").count(), 1, "{text}");
}

#[inline(never)]
fn waits_for_news() -> anyhow::Result<()> {
    loop {
        getparent().unwrap().switch::<()>(())?;
    }
}

fn child() {
    dump_on_signal(SIGUSR1).unwrap();
    let (ready, is_ready) = mpsc::channel();
    let blocked = ready.clone();
    thread::spawn(move || {
        let _main = getcurrent();
        blocked.send(()).unwrap();
        loop {
            thread::park();
        }
    });
    let server = thread::Builder::new().name("server".into()).spawn(move || {
        let reader = Greenlet::builder()
            .name("reader")
            .build(|(): ()| waits_for_news());
        reader.switch::<()>(()).unwrap();
        ready.send(()).unwrap();
        // Longer than the second that the dump waits for a blocked thread.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            reader.switch::<()>(()).unwrap();
        }
    });
    is_ready.recv().unwrap();
    is_ready.recv().unwrap();
    signal_hook::low_level::raise(SIGUSR1).unwrap();
    server.unwrap().join().unwrap();
}
