//! Greenlets in a forked child. Each test runs itself again as a child, on the main thread.

extern crate greenlet_core as greenlet;

use std::process::{ExitCode, Output};

use greenlet::{Greenlet, end_suspended, getparent};

mod child;

fn main() -> ExitCode {
    child::run_tests(&[
        ("a_forked_child_runs_no_clean_up", a_forked_child_runs_no_clean_up),
        (
            "a_forked_child_can_use_greenlets",
            a_forked_child_can_use_greenlets,
        ),
    ])
}

/// Prints when it is dropped.
struct Says(&'static str);

impl Drop for Says {
    fn drop(&mut self) {
        println!("{} dropped", self.0);
    }
}

#[track_caller]
fn assert_ended(output: &Output, lines: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{:?} {errors}", output.status);
    assert_eq!(child::lines(output), lines, "{errors}");
    assert_eq!(errors, "", "no noise");
}

// TD-10: a forked child that exits runs no clean-up of the parent, and reports nothing.
// #[test], on the main thread
fn a_forked_child_runs_no_clean_up() {
    let output = child::run("a_forked_child_runs_no_clean_up", || {
        std::thread::spawn(|| {
            let parents = Greenlet::new(|(): ()| {
                let _local = Says("of the parent");
                getparent().unwrap().switch::<()>(())
            });
            parents.switch::<()>(()).unwrap();
            std::mem::forget(parents);
            // SAFETY: the child uses memory of its own thread, and exits.
            let child = unsafe { libc::fork() };
            if child == 0 {
                std::process::exit(6);
            }
            let mut status = 0;
            // SAFETY: `status` is valid for the write.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            println!("the child ended with {}", libc::WEXITSTATUS(status));
            end_suspended().unwrap();
        })
        .join()
        .unwrap();
    });
    let Some(output) = output else { return };
    assert_ended(&output, &["the child ended with 6", "of the parent dropped"]);
}

// TD-10: a forked child can use greenlets, although other threads of the parent used them during
// the fork. A thread with cached stacks takes no lock of the process.
// #[test], on the main thread
fn a_forked_child_can_use_greenlets() {
    let output = child::run("a_forked_child_can_use_greenlets", || {
        let start_some = || {
            let some: Vec<Greenlet> = (0..100)
                .map(|_| Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(())))
                .collect();
            for greenlet in &some {
                greenlet.switch::<()>(()).unwrap();
            }
        };
        start_some();
        std::thread::spawn(move || {
            loop {
                std::thread::spawn(start_some).join().unwrap();
            }
        });
        for _ in 0..20 {
            // SAFETY: the child uses greenlets and memory of its own thread, and leaves by `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                start_some();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(5) };
            }
            let mut status = 0;
            // SAFETY: `status` is valid for the write.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 5);
        }
        println!("all children ended");
    });
    let Some(output) = output else { return };
    assert_ended(&output, &["all children ended"]);
}
