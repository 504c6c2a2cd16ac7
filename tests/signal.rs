//! A signal prints the greenlets of all threads. The parent reads standard error of a child
//! process.

#![cfg(all(unix, feature = "signal"))]

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use greenlet::{Greenlet, dump_on_signal, getcurrent, getparent};
use signal_hook::consts::SIGUSR1;

const CHILD: &str = "GREENLET_TEST_SIGNAL_CHILD";

#[test]
fn a_signal_prints_the_greenlets_of_all_threads() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_signal_prints_the_greenlets_of_all_threads",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The blocked thread is the last in the dump.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("has not switched for") && stderr.read_line(&mut text).unwrap() > 0 {}
    drop(child.stdin.take()); // ends the child
    stderr.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
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
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let server = thread::Builder::new().name("server".into()).spawn(move || {
        let reader = Greenlet::builder()
            .name("reader")
            .build(|(): ()| waits_for_news());
        reader.switch::<()>(()).unwrap();
        ready.send(()).unwrap();
        while !stop.load(Ordering::Relaxed) {
            reader.switch::<()>(()).unwrap();
        }
    });
    is_ready.recv().unwrap();
    is_ready.recv().unwrap();
    signal_hook::low_level::raise(SIGUSR1).unwrap();
    // The parent closes standard input when it has read the dump.
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    is_over.store(true, Ordering::Relaxed);
    server.unwrap().join().unwrap();
}
