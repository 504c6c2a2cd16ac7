//! Greenlets at the end of the process. Each test runs itself again as a child.

extern crate greenlet_core as greenlet;

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::hint::black_box;
use std::process::{ExitCode, Output};

use anyhow::Result;
use greenlet::{
    Generator, Greenlet, ThreadExiting, Tracer, end_suspended, getcurrent, getparent, gettrace, no_switch,
    raw, run_to_end, set_unraisable_hook, settrace, stack,
};

mod child;

fn main() -> ExitCode {
    child::run_tests(&[
        (
            "suspended_greenlets_are_dead_when_main_returns",
            suspended_greenlets_are_dead_when_main_returns,
        ),
        (
            "run_to_end_ends_suspended_greenlets_before_main_returns",
            run_to_end_ends_suspended_greenlets_before_main_returns,
        ),
        #[cfg(target_os = "linux")]
        (
            "a_report_that_cannot_be_printed_does_not_panic",
            a_report_that_cannot_be_printed_does_not_panic,
        ),
        (
            "the_report_of_a_thread_names_at_most_eight_greenlets",
            the_report_of_a_thread_names_at_most_eight_greenlets,
        ),
        ("leaked_stacks_are_counted", leaked_stacks_are_counted),
        (
            "many_suspended_greenlets_do_not_crash_the_process_end",
            many_suspended_greenlets_do_not_crash_the_process_end,
        ),
        (
            "exit_inside_a_greenlet_runs_no_suspended_code",
            exit_inside_a_greenlet_runs_no_suspended_code,
        ),
        (
            "exit_inside_a_generator_runs_no_destructor_of_it",
            exit_inside_a_generator_runs_no_destructor_of_it,
        ),
        (
            "generators_in_thread_locals_give_their_stacks_back",
            generators_in_thread_locals_give_their_stacks_back,
        ),
        (
            "exit_while_unwinding_runs_no_suspended_code",
            exit_while_unwinding_runs_no_suspended_code,
        ),
        (
            "exit_leaves_a_kept_greenlet_suspended",
            exit_leaves_a_kept_greenlet_suspended,
        ),
        (
            "threads_inside_greenlets_do_not_delay_the_process_end",
            threads_inside_greenlets_do_not_delay_the_process_end,
        ),
        ("exit_handlers_may_use_greenlets", exit_handlers_may_use_greenlets),
        (
            "exit_handlers_may_capture_backtraces",
            exit_handlers_may_capture_backtraces,
        ),
        (
            "thread_local_destructors_may_use_greenlets",
            thread_local_destructors_may_use_greenlets,
        ),
        (
            "the_first_use_of_greenlets_may_be_in_a_thread_local_destructor",
            the_first_use_of_greenlets_may_be_in_a_thread_local_destructor,
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

/// Returns a suspended greenlet, with a local variable on its stack.
fn suspended(name: &'static str) -> Greenlet {
    let greenlet = Greenlet::builder().name(name).build(move |(): ()| {
        let _local = Says(name);
        getparent().unwrap().switch::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

thread_local! {
    static KEPT: RefCell<Vec<Greenlet>> = const { RefCell::new(Vec::new()) };
}

fn keep(greenlet: Greenlet) {
    KEPT.with_borrow_mut(|kept| kept.push(greenlet));
}

#[track_caller]
fn assert_ended(output: &Output, status: i32, lines: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{:?} {errors}", output.status);
    assert_eq!(child::lines(output), lines, "{errors}");
    assert_eq!(errors, "", "no noise");
}

/// Leaves greenlets suspended: a forgotten one, one in a thread-local, and a child on the stack of
/// its suspended parent.
fn leave_some() {
    std::mem::forget(suspended("forgotten"));
    keep(suspended("in a thread-local"));
    let outer = Greenlet::new(|(): ()| {
        let main = getparent().unwrap();
        let _inner = suspended("inner");
        main.switch::<()>(())
    });
    outer.switch::<()>(()).unwrap();
    keep(outer);
}

// SH-1, HZ-10, HZ-11, UD-8: suspended greenlets are dead when the main thread returns, and nothing
// is reported. The process ends with its own status.
// #[test], on the main thread
fn suspended_greenlets_are_dead_when_main_returns() {
    let output = child::run("suspended_greenlets_are_dead_when_main_returns", || {
        KEPT.with(|_| ()); // on Linux destroyed after the library's own thread-local
        leave_some();
    });
    let Some(output) = output else { return };
    if cfg!(target_os = "linux") {
        assert_ended(&output, 0, &[]);
    }
}

// DE-6: if standard error cannot be written, the report is lost, and the drop that caused it
// returns normally.
// #[test], on the main thread
#[cfg(target_os = "linux")]
fn a_report_that_cannot_be_printed_does_not_panic() {
    use std::os::fd::AsRawFd;
    let output = child::run("a_report_that_cannot_be_printed_does_not_panic", || {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full") // each write fails
            .unwrap();
        // SAFETY: both descriptors are open, and no other thread uses standard error.
        assert_eq!(unsafe { libc::dup2(full.as_raw_fd(), libc::STDERR_FILENO) }, 2);
        let fails = Greenlet::new(|(): ()| -> Result<()> {
            let _ = getparent().unwrap().switch::<()>(());
            anyhow::bail!("the clean-up fails")
        });
        fails.switch::<()>(()).unwrap();
        drop(fails);
        println!("dropped");
    });
    let Some(output) = output else { return };
    assert_ended(&output, 0, &["dropped"]);
}

// SH-1: `run_to_end` in `main` runs their destructors once.
// #[test], on the main thread
fn run_to_end_ends_suspended_greenlets_before_main_returns() {
    let output = child::run("run_to_end_ends_suspended_greenlets_before_main_returns", || {
        run_to_end(leave_some);
        println!("main returns");
    });
    let Some(output) = output else { return };
    let dropped = ["forgotten dropped", "in a thread-local dropped", "inner dropped"];
    assert_ended(&output, 0, &[&dropped[..], &["main returns"]].concat());
}

// TE-2
// #[test], on the main thread
fn the_report_of_a_thread_names_at_most_eight_greenlets() {
    let output = child::run("the_report_of_a_thread_names_at_most_eight_greenlets", || {
        let leave = |count: usize| {
            let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
            let leave = move || {
                names[..count]
                    .iter()
                    .for_each(|name| std::mem::forget(suspended(name)))
            };
            std::thread::spawn(leave).join().unwrap();
        };
        leave(0);
        leave(1);
        leave(10);
    });
    let Some(output) = output else { return };
    let errors = String::from_utf8_lossy(&output.stderr);
    let [one, ten] = errors.lines().collect::<Vec<_>>()[..] else {
        panic!("{errors}")
    };
    let start = format!(
        "greenlet: still suspended when their thread ended, so their stacks are leaked: <Greenlet 'a', suspended at {}:",
        file!()
    );
    assert!(
        one.starts_with(&start) && one.ends_with(">; end them before, with `run_to_end`"),
        "{one}"
    );
    assert!(ten.contains(">, and 2 more; end them"), "{ten}");
    assert!(ten.contains("'h'") && !ten.contains("'i'"), "{ten}");
}

/// Leaves a suspended greenlet with a handle of itself on its stack.
fn leave_ring() {
    let ring = Greenlet::new(|(): ()| {
        let _itself = getcurrent();
        getparent().unwrap().switch::<()>(())
    });
    ring.switch::<()>(()).unwrap();
}

// TE-8: threads that end with and without `run_to_end`.
// #[test], on the main thread
fn leaked_stacks_are_counted() {
    let output = child::run("leaked_stacks_are_counted", || {
        set_unraisable_hook(|report| assert_eq!(report.left_suspended(), 1));
        for thread in 0..1000 {
            std::thread::spawn(|| run_to_end(leave_ring)).join().unwrap();
            std::thread::spawn(leave_ring).join().unwrap();
            let stats = stack::stats();
            assert_eq!((stats.leaked, stats.in_use), (thread + 1, thread + 1));
        }
    });
    let Some(output) = output else { return };
    assert_ended(&output, 0, &[]);
}

// SH-1, XS-9: many suspended greenlets in a deep chain of parents, one of them while it handles an
// error.
// #[test], on the main thread
fn many_suspended_greenlets_do_not_crash_the_process_end() {
    let output = child::run("many_suspended_greenlets_do_not_crash_the_process_end", || {
        let mut parent = getcurrent();
        for number in 0..2000 {
            let greenlet = Greenlet::new(move |(): ()| {
                let main = getparent().unwrap();
                let error = main.switch::<()>(()).unwrap_err();
                if number == 1000 {
                    println!("{error}");
                }
                Err::<(), _>(error)
            });
            greenlet.switch::<()>(()).unwrap();
            greenlet.set_parent(&parent).unwrap();
            parent = greenlet;
        }
        let handling = Greenlet::new(|(): ()| -> Result<()> {
            let error = anyhow::anyhow!("being handled");
            let got = getparent().unwrap().switch::<()>(());
            got.map_err(|_| error.context("while handling"))
        });
        handling.switch::<()>(()).unwrap();
        greenlet::set_unraisable_hook(|report| println!("{report}"));
        keep(Greenlet::builder().name("handling").build(|(): ()| Ok(())));
        keep(handling);
        keep(parent);
    });
    let Some(output) = output else { return };
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = child::lines(&output);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines.iter().any(|line| line.starts_with("greenlet exit")),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("ignored: while handling: being handled")),
        "{lines:?}"
    );
}

// SH-1, HZ-8, UD-8: `std::process::exit` inside a greenlet ends the process there. No destructor of
// suspended code runs, as everywhere in Rust.
// #[test], on the main thread
fn exit_inside_a_greenlet_runs_no_suspended_code() {
    let output = child::run("exit_inside_a_greenlet_runs_no_suspended_code", || {
        std::mem::forget(suspended("other"));
        let exits = Greenlet::new(|(): ()| -> Result<()> {
            let _local = Says("its own local");
            println!("exits");
            std::process::exit(7)
        });
        let _ = exits.switch::<()>(());
    });
    let Some(output) = output else { return };
    assert_ended(&output, 7, &["exits"]);
}

// The same inside the function of a generator.
// #[test], on the main thread
fn exit_inside_a_generator_runs_no_destructor_of_it() {
    let output = child::run("exit_inside_a_generator_runs_no_destructor_of_it", || {
        let mut suspended = Generator::new(|out| {
            let _local = Says("of another");
            out.yield_(1)
        });
        suspended.next().unwrap().unwrap();
        let mut exits = Generator::<u32>::new(|_| {
            let _local = Says("its own local");
            println!("exits");
            std::process::exit(7)
        });
        exits.next();
        drop(suspended);
    });
    let Some(output) = output else { return };
    assert_ended(&output, 7, &["exits"]);
}

// GN-15: a generator is ended when its owner is dropped, even after the end of the library's own
// thread-local. Other threads reuse its stack, and the stacks of generators that are created then.
// #[test], on the main thread
fn generators_in_thread_locals_give_their_stacks_back() {
    thread_local! {
        static OWNER: RefCell<Vec<Generator<u32>>> = const { RefCell::new(Vec::new()) };
    }
    let output = child::run("generators_in_thread_locals_give_their_stacks_back", || {
        for is_first in [true, false] {
            for _ in 0..50 {
                let thread = std::thread::spawn(move || {
                    if is_first {
                        OWNER.with(|_| ()); // so it is dropped last
                    }
                    let mut generator = Generator::new(|out| {
                        let ended = out.yield_(1);
                        let late = Generator::new(|out| (1..=3).try_for_each(|n| out.yield_(n)));
                        assert_eq!(late.map(Result::unwrap).sum::<u32>(), 6);
                        ended
                    });
                    generator.next().unwrap().unwrap();
                    let unrun = Generator::new(|out| out.yield_(1));
                    OWNER.with_borrow_mut(|owner| owner.extend([generator, unrun]));
                });
                thread.join().unwrap();
            }
        }
        let stats = greenlet::stack::stats();
        println!(
            "{} in use, {}",
            stats.in_use,
            if stats.idle < 10 {
                "a few idle"
            } else {
                "many idle"
            }
        );
    });
    let Some(output) = output else { return };
    assert_ended(&output, 0, &["0 in use, a few idle"]);
}

// HZ-5, HZ-8: a destructor that exits the process during a panic ends no greenlets either.
// #[test], on the main thread
fn exit_while_unwinding_runs_no_suspended_code() {
    let output = child::run("exit_while_unwinding_runs_no_suspended_code", || {
        struct Exits;
        impl Drop for Exits {
            fn drop(&mut self) {
                println!("exits");
                std::process::exit(8);
            }
        }
        std::mem::forget(suspended("other"));
        let _exits = Exits;
        std::panic::resume_unwind(Box::new(()));
    });
    let Some(output) = output else { return };
    assert_ended(&output, 8, &["exits"]);
}

// HZ-8: a greenlet that is kept suspended stays suspended, and the process does not wait for it.
// #[test], on the main thread
fn exit_leaves_a_kept_greenlet_suspended() {
    let output = child::run("exit_leaves_a_kept_greenlet_suspended", || {
        let kept = suspended("kept");
        assert!(raw::lock_for_await(&kept));
        raw::keep_suspended(&kept, || {
            println!("exits");
            std::process::exit(9)
        })
    });
    let Some(output) = output else { return };
    assert_ended(&output, 9, &["exits"]);
}

// SH-1, HZ-11, HZ-21: the end of the process just stops threads that are inside greenlets.
// #[test], on the main thread
fn threads_inside_greenlets_do_not_delay_the_process_end() {
    let output = child::run("threads_inside_greenlets_do_not_delay_the_process_end", || {
        for _ in 0..3 {
            let (ready, is_ready) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                std::mem::forget(suspended("of a thread"));
                let inside = Greenlet::new(move |(): ()| -> Result<()> {
                    let _local = Says("of a thread, running");
                    ready.send(())?;
                    loop {
                        std::thread::park();
                    }
                });
                let outer = Greenlet::new(move |(): ()| inside.switch::<()>(()));
                outer.switch::<()>(()).unwrap();
            });
            is_ready.recv().unwrap();
        }
        println!("main returns");
    });
    let Some(output) = output else { return };
    assert_ended(&output, 0, &["main returns"]);
}

/// Calls every kind of operation while the thread ends, and prints the results.
fn use_all_late(when: &str) {
    let main = getcurrent();
    assert!(main.is_main() && main.is_current());
    assert_eq!((main.parent(), getparent()), (None, None));
    let greenlet = Greenlet::builder().name("late").build(|(): ()| Ok("works"));
    let switched = match greenlet.switch::<&str>(()) {
        Ok(result) => result,
        Err(error) => {
            assert!(error.is::<ThreadExiting>(), "{error}");
            assert!(!greenlet.is_dead());
            "refused"
        }
    };
    settrace(Some(Tracer::new(|_| Ok(()))));
    assert!(gettrace().is_some());
    settrace(None);
    assert!(gettrace().is_none());
    let _ = end_suspended();
    no_switch(|| drop(greenlet));
    println!("{when}: switching {switched}, main dead {}", main.is_dead());
}

extern "C" fn at_exit() {
    use_all_late("at exit");
}

unsafe extern "C" {
    fn atexit(callback: extern "C" fn()) -> std::ffi::c_int;
}

// SH-2, SH-3, SH-4, HZ-3, HZ-4: an exit handler runs after the end of the main thread's greenlets.
// Every function can be called there, but a switch is refused. `getcurrent` never fails: it returns
// a dead main greenlet.
// #[test], on the main thread
fn exit_handlers_may_use_greenlets() {
    let output = child::run("exit_handlers_may_use_greenlets", || {
        // SAFETY: the callback is a plain function. A panic in it aborts, so it does not unwind.
        assert_eq!(unsafe { atexit(at_exit) }, 0);
        keep(suspended("kept"));
    });
    let Some(output) = output else { return };
    assert_ended(
        &output,
        0,
        &["kept dropped", "at exit: switching refused, main dead true"],
    );
}

extern "C" fn prints_its_callers() {
    let text = Backtrace::force_capture().to_string();
    for name in ["in_child", "in_parent", "in_main"] {
        println!("{name} {}", text.lines().any(|line| line.ends_with(name)));
    }
}

// After `std::process::exit` in a greenlet, a backtrace skips the ancestors that are dead. The main
// greenlet still has its frames.
// #[test], on the main thread
fn exit_handlers_may_capture_backtraces() {
    #[inline(never)]
    fn in_child() -> ! {
        std::process::exit(black_box(7))
    }
    #[inline(never)]
    fn in_parent() -> Result<()> {
        black_box(Greenlet::new(|(): ()| -> Result<()> { in_child() }).switch(()))
    }
    #[inline(never)]
    fn in_main() -> Result<()> {
        black_box(Greenlet::new(|(): ()| black_box(in_parent())).switch(()))
    }
    let output = child::run("exit_handlers_may_capture_backtraces", || {
        // SAFETY: the callback is a plain function. A panic in it aborts, so it does not unwind.
        assert_eq!(unsafe { atexit(prints_its_callers) }, 0);
        in_main().unwrap();
    });
    let Some(output) = output else { return };
    let is_linked = greenlet::BACKEND == "asm" && !cfg!(feature = "valgrind");
    // On 32-bit ARM, a backtrace of an exit handler ends in the C library.
    let in_child = format!("in_child {}", !cfg!(target_arch = "arm"));
    let in_main = format!("in_main {is_linked}");
    assert_ended(&output, 7, &[&in_child, "in_parent false", &in_main]);
}

struct UsesAllLate(&'static str);

impl Drop for UsesAllLate {
    fn drop(&mut self) {
        use_all_late(self.0);
    }
}

thread_local! {
    static BEFORE: UsesAllLate = const { UsesAllLate("registered before") };
    static AFTER: UsesAllLate = const { UsesAllLate("registered after") };
}

// SH-2, SH-3, SH-4, HZ-4: the same in destructors of thread-locals. Before the library's own is
// destroyed, all operations still work.
// #[test], on the main thread
fn thread_local_destructors_may_use_greenlets() {
    let output = child::run("thread_local_destructors_may_use_greenlets", || {
        let use_in_thread = || {
            BEFORE.with(|_| ());
            keep(suspended("kept"));
            AFTER.with(|_| ());
        };
        std::thread::spawn(use_in_thread).join().unwrap();
        println!("and now on the main thread");
        use_in_thread();
    });
    let Some(output) = output else { return };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""));
    let lines = child::lines(&output);
    let (thread, main) = lines.split_at(lines.iter().position(|line| line.starts_with("and")).unwrap());
    for mut lines in [thread.to_vec(), main[1..].to_vec()] {
        lines.sort();
        // The system decides which of the two runs before the library's own.
        let texts: Vec<&str> = lines
            .iter()
            .map(|line| line.split_once(": ").map_or(&**line, |(_, what)| what))
            .collect();
        assert_eq!(texts[0], "kept dropped");
        let mut how = [texts[1], texts[2]];
        how.sort_unstable();
        assert_eq!(
            how,
            [
                "switching refused, main dead true",
                "switching works, main dead false"
            ]
        );
    }
}

// SH-2: the first use of greenlets on a thread is in a destructor of a thread-local.
// #[test], on the main thread
fn the_first_use_of_greenlets_may_be_in_a_thread_local_destructor() {
    let output = child::run(
        "the_first_use_of_greenlets_may_be_in_a_thread_local_destructor",
        || {
            std::thread::spawn(|| BEFORE.with(|_| ())).join().unwrap();
            println!("the thread is over");
        },
    );
    let Some(output) = output else { return };
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = child::lines(&output);
    assert!(lines[0].starts_with("registered before: switching"), "{lines:?}");
    assert_eq!(lines[1], "the thread is over");
}
