//! A stack overflow prints a message; the library does not handle other faults. Each case kills a
//! process, so it runs in a child: this binary again, with the name of the case in the environment.
//! The usual test harness runs tests on threads of its own, and some cases need the main thread of
//! the process.

extern crate greenlet_core as greenlet;

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Output};
use std::ptr;

use greenlet::{Generator, Greenlet, Yielder, getparent};

mod harness;
#[path = "child/this_binary.rs"]
mod this_binary;

use this_binary::this_binary;

const CASE: &str = "GREENLET_TEST_CASE";

/// Both ways to create guard pages. The first is the newest that the running kernel supports.
const GUARDS: [&str; 2] = ["", "mprotect"];

/// Runs a case in a child, on the child's main thread.
fn run(case: &str, guard: &str) -> Output {
    this_binary()
        .env(CASE, case)
        .env("GREENLET_GUARD", guard)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_reports_overflow(case: &str, name: &str, size: usize) {
    for guard in GUARDS {
        let output = run(case, guard);
        let text = stderr(&output);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGABRT),
            "guard '{guard}': {text}"
        );
        assert!(
            text.contains(&format!("{name} has overflowed its stack")),
            "{text}"
        );
        assert!(text.contains(&format!("{size} bytes")), "{text}");
        assert!(text.contains(&format!("created at {}:", file!())), "{text}");
        assert!(text.contains("Builder::stack_size"), "{text}");
    }
}

/// Overflows the stack that it runs on.
#[inline(never)]
fn recurse(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    if depth == usize::MAX {
        return 0;
    }
    recurse(depth + 1) + black_box(frame)[depth % 64]
}

fn overflow(name: Option<&str>) {
    let mut builder = Greenlet::builder().stack_size(64 << 10);
    if let Some(name) = name {
        builder = builder.name(name);
    }
    let greenlet = builder.build(|(): ()| Ok(recurse(0)));
    let _ = greenlet.switch::<usize>(());
}

/// Overflows the stack by calls that each switch away and back, from one of twelve places that are
/// two words apart.
fn overflow_in_a_switch(place: usize) {
    /// Calls nothing before the switch, so the words that the switch pushes are the deepest of a
    /// call (in release builds).
    #[inline(never)]
    fn descend(depth: usize, main: &Greenlet) -> usize {
        if depth == usize::MAX {
            return 0;
        }
        main.switch::<()>(()).unwrap();
        descend(black_box(depth + 1), main) + black_box(depth)
    }
    #[inline(never)]
    fn lower_by<const BYTES: usize>(main: &Greenlet) -> usize {
        let above = black_box([1_u8; BYTES]);
        descend(0, main) + usize::from(black_box(above)[BYTES - 1])
    }
    const BY: [fn(&Greenlet) -> usize; 12] = [
        lower_by::<16>,
        lower_by::<32>,
        lower_by::<48>,
        lower_by::<64>,
        lower_by::<80>,
        lower_by::<96>,
        lower_by::<112>,
        lower_by::<128>,
        lower_by::<144>,
        lower_by::<160>,
        lower_by::<176>,
        lower_by::<192>,
    ];
    let greenlet = Greenlet::builder().name("deep").stack_size(64 << 10);
    let greenlet = greenlet.build(move |(): ()| {
        BY[place](&getparent().unwrap());
        Ok(())
    });
    loop {
        greenlet.switch::<()>(()).unwrap();
    }
}

/// A generator with a stack of 64 KiB.
fn generator<F>(name: Option<&str>, function: F) -> Generator<(), (), usize>
where
    F: FnOnce(Yielder<()>) -> usize + 'static,
{
    let builder = Generator::builder().stack_size(64 << 10);
    let builder = match name {
        Some(name) => builder.name(name),
        None => builder,
    };
    builder.build(|out| Ok(function(out)))
}

fn overflow_in_a_generator(name: Option<&str>) {
    drop(generator(name, |_| recurse(0)).resume(()));
}

/// Overflows the stack by calls that each yield.
fn overflow_in_a_yield() {
    #[inline(never)]
    fn descend(depth: usize, out: &Yielder<()>) -> usize {
        if depth == usize::MAX {
            return 0;
        }
        out.yield_(()).unwrap();
        descend(black_box(depth + 1), out) + black_box(depth)
    }
    let generator = generator(Some("deep"), |out| descend(0, &out));
    loop {
        generator.resume(()).unwrap().unwrap();
    }
}

/// Accesses unmapped memory.
fn stray() {
    // SAFETY: the write does not return: it kills the process, or a handler jumps away.
    unsafe { black_box(ptr::without_provenance_mut::<u8>(8)).write_volatile(1) };
}

fn install(signal: libc::c_int, function: usize, flags: libc::c_int) {
    // SAFETY: zeros are a valid `sigaction`.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = function;
    action.sa_flags = flags;
    // SAFETY: the handlers below do only what handlers may do.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    assert_eq!(result, 0);
}

extern "C" fn exit_with_77(signal: libc::c_int) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(if signal == libc::SIGSEGV { 77 } else { 1 }) };
}

extern "C" fn exit_with_78(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid pointer.
    let info = unsafe { &*info };
    // SAFETY: the kernel fills in the address of a SIGSEGV.
    let address = unsafe { info.si_addr() };
    let is_right = signal == libc::SIGSEGV && address.addr() == 8;
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { libc::_exit(if is_right { 78 } else { 1 }) };
}

/// Makes the library install its handler, and leaves a greenlet suspended.
fn use_greenlets() -> Greenlet {
    let greenlet = Greenlet::new(|(): ()| getparent().unwrap().switch::<()>(()));
    greenlet.switch::<()>(()).unwrap();
    greenlet
}

fn on_a_thread(function: fn()) {
    std::thread::spawn(function).join().unwrap();
}

/// Runs a function on a thread that std did not create. Such a thread has no signal stack.
fn on_a_bare_thread(function: fn()) {
    extern "C" fn enter(function: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer is the function that is passed to `pthread_create` below.
        let function = unsafe { std::mem::transmute::<*mut libc::c_void, fn()>(function) };
        assert!(signal_stack_is_missing());
        function();
        ptr::null_mut()
    }
    let mut thread = MaybeUninit::uninit();
    let argument = function as *mut libc::c_void;
    // SAFETY: the argument is the function that `enter` expects.
    let result = unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), enter, argument) };
    assert_eq!(result, 0);
    // SAFETY: the call has succeeded, so it has written the thread.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: the thread exists, and is joined once.
    let result = unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    assert_eq!(result, 0);
}

fn signal_stack_is_missing() -> bool {
    // SAFETY: zeros are a valid `stack_t`.
    let mut stack = unsafe { MaybeUninit::<libc::stack_t>::zeroed().assume_init() };
    // SAFETY: the call writes the signal stack of this thread into a local.
    let result = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    assert_eq!(result, 0);
    stack.ss_flags & libc::SS_DISABLE != 0
}

/// The code of the child processes.
fn run_the_case(case: &str) -> ! {
    // SAFETY: no other thread exists. A core file of each case is useless.
    unsafe {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
    }
    let exit_with_77 = exit_with_77 as *const () as usize;
    let exit_with_78 = exit_with_78 as *const () as usize;
    match case {
        "named" => overflow(Some("deep")),
        "long name" => overflow(Some(&"ü".repeat(5000))),
        "unnamed" => overflow(None),
        "nested" => {
            let _suspended = use_greenlets();
            let outer = Greenlet::builder().name("outer").build(|(): ()| {
                overflow(Some("inner"));
                Ok(())
            });
            outer.switch::<()>(()).unwrap();
        }
        _ if case.starts_with("switch ") => overflow_in_a_switch(case["switch ".len()..].parse().unwrap()),
        "generator" => overflow_in_a_generator(Some("deep")),
        "unnamed generator" => overflow_in_a_generator(None),
        "generator in a greenlet" => {
            let consumer = Greenlet::builder().name("consumer").build(|(): ()| {
                overflow_in_a_generator(Some("deep"));
                Ok(())
            });
            consumer.switch::<()>(()).unwrap();
        }
        "greenlet of a generator" => drop(
            generator(None, |_| {
                overflow(Some("inner"));
                0
            })
            .resume(()),
        ),
        "consumer of a generator" => {
            let consumer = Greenlet::builder()
                .name("consumer")
                .stack_size(64 << 10)
                .build(|(): ()| {
                    let ended = generator(None, |_| 1);
                    drop(ended.resume(()));
                    let suspended = generator(None, |out| out.yield_(()).map_or(0, |()| 1));
                    drop(suspended.resume(()));
                    Ok(recurse(0))
                });
            consumer.switch::<usize>(()).unwrap();
        }
        "generator on a bare thread" => on_a_bare_thread(|| overflow_in_a_generator(Some("deep"))),
        "yield" => overflow_in_a_yield(),
        "thread" => on_a_thread(|| overflow(Some("deep"))),
        "bare thread" => on_a_bare_thread(|| overflow(Some("deep"))),
        "bare thread ends" => {
            on_a_bare_thread(|| {
                drop(use_greenlets());
                assert!(!signal_stack_is_missing());
            });
            on_a_bare_thread(|| drop(use_greenlets()));
            overflow(Some("deep"));
        }
        "main stack" => {
            let _suspended = use_greenlets();
            recurse(0);
        }
        "main stack of a thread" => {
            let _suspended = use_greenlets();
            on_a_thread(|| {
                let _suspended = use_greenlets();
                recurse(0);
            });
        }
        "stray" => {
            let _suspended = use_greenlets();
            stray();
        }
        "stray inside" => Greenlet::new(|(): ()| {
            stray();
            Ok(())
        })
        .switch::<()>(())
        .unwrap(),
        "stray, plain handler" => {
            install(libc::SIGSEGV, exit_with_77, 0);
            let _suspended = use_greenlets();
            stray();
        }
        "stray, handler with info" => {
            install(libc::SIGSEGV, exit_with_78, libc::SA_SIGINFO);
            let _suspended = use_greenlets();
            stray();
        }
        "stray on a thread without greenlets" => {
            install(libc::SIGSEGV, exit_with_78, libc::SA_SIGINFO);
            let _suspended = use_greenlets();
            on_a_thread(stray);
        }
        "stray, ignored" => {
            install(libc::SIGSEGV, libc::SIG_IGN, 0);
            let _suspended = use_greenlets();
            // SAFETY: sends a signal to this process.
            unsafe { libc::raise(libc::SIGSEGV) };
            stray();
        }
        "sent" => {
            install(libc::SIGSEGV, libc::SIG_DFL, 0);
            let _suspended = use_greenlets();
            // SAFETY: sends a signal to this process.
            unsafe { libc::raise(libc::SIGSEGV) };
        }
        "guard of another" => {
            let suspended = Greenlet::builder().stack_size(64 << 10).build(|(): ()| {
                let here = black_box(0_u8);
                getparent().unwrap().switch::<()>((&raw const here).addr())
            });
            let inside = suspended.switch::<usize>(()).unwrap();
            // Stacks are 17 pages apart, 16 of them usable. Write downwards until a write faults.
            for page in 0..18 {
                let address = ptr::with_exposed_provenance::<u8>(inside - page * 4096);
                // SAFETY: the pages belong to a stack of the library, up to the guard that kills
                // the process.
                unsafe { black_box(address.read_volatile()) };
            }
        }
        other => panic!("no such case: {other}"),
    }
    panic!("the case came back");
}

fn overflow_names_the_greenlet() {
    assert_reports_overflow("named", "greenlet 'deep'", 64 << 10);
}

fn overflow_of_an_unnamed_greenlet_names_the_place_of_creation() {
    assert_reports_overflow("unnamed", "greenlet 1", 64 << 10);
}

fn overflow_below_another_greenlet_names_the_inner_one() {
    assert_reports_overflow("nested", "greenlet 'inner'", 64 << 10);
}

/// The switch pushes a few words after the target has become current. At one of the tried depths,
/// these words are the first that do not fit.
fn overflow_in_a_switch_names_the_suspending_greenlet() {
    for place in 0..12 {
        assert_reports_overflow(&format!("switch {place}"), "greenlet 'deep'", 64 << 10);
    }
}

fn overflow_in_a_generator_names_it_and_its_consumer() {
    assert_reports_overflow("generator", "generator 'deep' in greenlet 'main'", 64 << 10);
    assert_reports_overflow("unnamed generator", "generator in greenlet 'main'", 64 << 10);
    let name = "generator 'deep' in greenlet 'consumer'";
    assert_reports_overflow("generator in a greenlet", name, 64 << 10);
    assert_reports_overflow(
        "generator on a bare thread",
        "generator 'deep' in greenlet 'main'",
        64 << 10,
    );
    assert_reports_overflow("yield", "generator 'deep' in greenlet 'main'", 64 << 10);
}

fn overflow_beside_a_generator_names_the_greenlet() {
    assert_reports_overflow("greenlet of a generator", "greenlet 'inner'", 64 << 10);
    assert_reports_overflow("consumer of a generator", "greenlet 'consumer'", 64 << 10);
}

fn overflow_on_another_thread_names_the_greenlet() {
    assert_reports_overflow("thread", "greenlet 'deep'", 64 << 10);
}

fn overflow_on_a_thread_not_created_by_std_names_the_greenlet() {
    assert_reports_overflow("bare thread", "greenlet 'deep'", 64 << 10);
    assert_reports_overflow("bare thread ends", "greenlet 'deep'", 64 << 10);
}

fn overflow_cuts_a_long_name_between_characters() {
    let name = format!("greenlet '{}'", "ü".repeat(512));
    assert_reports_overflow("long name", &name, 64 << 10);
}

fn overflow_of_a_thread_stack_keeps_the_message_of_std() {
    for case in ["main stack", "main stack of a thread"] {
        for guard in GUARDS {
            let output = run(case, guard);
            let text = stderr(&output);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
            assert!(
                text.contains("thread ") && text.contains("has overflowed its stack"),
                "{text}"
            );
            assert!(!text.contains("greenlet"), "{text}");
        }
    }
}

fn other_faults_kill_the_process_as_without_the_library() {
    for case in [
        "stray",
        "stray inside",
        "stray, ignored",
        "sent",
        "guard of another",
    ] {
        for guard in GUARDS {
            let output = run(case, guard);
            let text = stderr(&output);
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGSEGV),
                "{case}: {:?} {text}",
                output.status
            );
            assert!(!text.contains("overflowed"), "{text}");
        }
    }
}

fn other_faults_reach_the_previous_handler() {
    for (case, code) in [
        ("stray, plain handler", 77),
        ("stray, handler with info", 78),
        ("stray on a thread without greenlets", 78),
    ] {
        for guard in GUARDS {
            let output = run(case, guard);
            assert_eq!(output.status.code(), Some(code), "{case}: {}", stderr(&output));
        }
    }
}

/// The tests with their names.
macro_rules! tests {
    ($($test:ident)*) => {
        [$((stringify!($test), $test as fn())),*]
    };
}

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(CASE) {
        run_the_case(&case);
    }
    harness::run(&tests! {
        overflow_names_the_greenlet
        overflow_of_an_unnamed_greenlet_names_the_place_of_creation
        overflow_below_another_greenlet_names_the_inner_one
        overflow_in_a_switch_names_the_suspending_greenlet
        overflow_in_a_generator_names_it_and_its_consumer
        overflow_beside_a_generator_names_the_greenlet
        overflow_on_another_thread_names_the_greenlet
        overflow_on_a_thread_not_created_by_std_names_the_greenlet
        overflow_cuts_a_long_name_between_characters
        overflow_of_a_thread_stack_keeps_the_message_of_std
        other_faults_kill_the_process_as_without_the_library
        other_faults_reach_the_previous_handler
    })
}
