//! Greenlets leak no memory. These tests are a binary of their own, because it counts allocations.

extern crate greenlet_core as greenlet;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicIsize, Ordering};

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, Locals, getcurrent, getparent, greenlets, no_switch, run_to_end, stacks_in_use};

#[path = "child/this_binary.rs"]
mod this_binary;

use this_binary::this_binary;

/// Counts the blocks that are allocated and not yet freed.
struct Counting;

/// In the whole process.
static BLOCKS: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// The blocks allocated by this thread, less those freed by it.
    static OWN_BLOCKS: Cell<isize> = const { Cell::new(0) };
    /// The blocks allocated by this thread, also those freed since.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    /// If set, the next block of the size of [`Odd`] ends all greenlets of the thread.
    static IS_ENDING: Cell<bool> = const { Cell::new(false) };
}

/// A type of a size that no other block has.
type Odd = [u64; 1237];

fn count(change: isize) {
    BLOCKS.fetch_add(change, Ordering::Relaxed);
    OWN_BLOCKS.set(OWN_BLOCKS.get() + change);
}

// SAFETY: `System` does the work. The counters neither allocate nor have destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1);
        ALLOCATED.set(ALLOCATED.get() + 1);
        if layout.size() == size_of::<Odd>() && IS_ENDING.replace(false) {
            greenlets().iter().for_each(Greenlet::end);
        }
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-1);
        // SAFETY: as above; the block came from `System`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns how many blocks of this thread are left after `times` rounds, not counting those of the
/// first few rounds, which fill the caches.
fn left_after(times: usize, mut round: impl FnMut()) -> isize {
    for _ in 0..10 {
        round();
    }
    let before = OWN_BLOCKS.get();
    for _ in 0..times {
        round();
    }
    OWN_BLOCKS.get() - before
}

fn up<R: 'static>(value: impl Sized + 'static) -> Result<R> {
    getparent().unwrap().switch(value)
}

// LK-1
#[test]
fn round_trips_leak_nothing() {
    let shared = Rc::new(());
    let echo = Greenlet::new(|mut value: Rc<()>| {
        loop {
            value = up(value)?;
        }
        #[expect(unreachable_code, reason = "it sets the return type")]
        Ok(())
    });
    let left = left_after(1000, || {
        let back: Rc<()> = echo.switch(Rc::clone(&shared)).unwrap();
        assert_eq!(Rc::strong_count(&back), 2);
    });
    assert_eq!(left, 0);
    assert_eq!(Rc::strong_count(&shared), 1);
}

// LK-2, LK-3, HZ-20
#[test]
fn starting_and_ending_ten_thousand_times_leaks_nothing() {
    let returns = || drop(Greenlet::new(|text: String| Ok(text)).switch::<String>(String::from("text")));
    let fails = || drop(Greenlet::new(|(): ()| -> Result<()> { Err(anyhow!("boom")) }).switch::<()>(()));
    let is_killed = || {
        let waiting = Greenlet::new(|(): ()| {
            let _local = String::from("dropped by the exit");
            up::<()>(())
        });
        waiting.switch::<()>(()).unwrap();
        assert_eq!(stacks_in_use(), 1);
        waiting.kill().unwrap();
        assert_eq!(stacks_in_use(), 0, "the dead have no stack");
    };
    let is_let_go = || {
        let waiting = Greenlet::new(|(): ()| up::<()>(Box::new("held until it ends")));
        waiting.switch::<Box<&str>>(()).unwrap();
    };
    let never_starts = || drop(Greenlet::builder().name("unused").build(|(): ()| Ok(())));
    let rounds: [(&str, &dyn Fn()); 5] = [
        ("returns", &returns),
        ("fails", &fails),
        ("is killed", &is_killed),
        ("is let go", &is_let_go),
        ("never starts", &never_starts),
    ];
    for (name, round) in rounds {
        assert_eq!(left_after(10_000, round), 0, "one that {name}");
    }
    assert_eq!(stacks_in_use(), 0);
}

// LK-4, TE-7, TE-8, HZ-24, HZ-35
#[test]
fn threads_that_end_leak_nothing() {
    let round = || {
        let function = || {
            let ended = Greenlet::new(|(): ()| Ok(getcurrent()));
            drop(ended.switch::<Greenlet>(()).unwrap());
            // It is still suspended when the function returns, since it has a handle of itself.
            let kept = Greenlet::new(|(): ()| {
                let _itself = getcurrent();
                let _local = String::from("dropped by the end of all");
                up::<()>(())
            });
            kept.switch::<()>(()).unwrap();
        };
        let thread = std::thread::spawn(move || run_to_end(function));
        thread.join().unwrap();
    };
    for _ in 0..10 {
        round();
    }
    // Other tests run at the same time, so a few blocks prove nothing. A leak would be one block a
    // round.
    let before = BLOCKS.load(Ordering::Relaxed);
    for _ in 0..1000 {
        round();
    }
    let left = BLOCKS.load(Ordering::Relaxed) - before;
    assert!(left < 500, "{left} blocks are left by 1,000 threads");
}

// LK-5
#[test]
fn refused_operations_leak_nothing() {
    let child = Greenlet::new(|text: String| Ok(text.len()));
    let below = Greenlet::builder().parent(&child).build(|(): ()| Ok(()));
    let huge = Greenlet::builder()
        .stack_size(usize::MAX)
        .build(|_: String| Ok(()));
    let left = left_after(1000, || {
        assert!(child.set_parent(&below).is_err());
        assert!(getcurrent().set_parent(&child).is_err());
        assert!(huge.switch::<()>(String::from("no stack")).is_err());
        assert!(huge.throw::<()>(anyhow!("no stack")).is_err());
        assert!(child.switch::<usize>(vec![String::from("wrong type")]).is_err());
        assert!(no_switch(|| child.switch::<usize>(String::from("forbidden"))).is_err());
        let asks_wrongly = Greenlet::new(|(): ()| Ok(up::<u8>(()).is_err()));
        asks_wrongly.switch::<()>(()).unwrap();
        assert!(asks_wrongly.switch::<bool>(String::from("not a u8")).unwrap());
    });
    assert_eq!(left, 0);
}

#[test]
fn captures_are_stored_once_until_the_start() {
    /// Returns the number of additional blocks for a pending greenlet, and for a suspended one.
    fn blocks<const N: usize>() -> (isize, isize) {
        let make = || {
            let captured = [1_u8; N];
            Greenlet::new(move |(): ()| {
                up::<()>(())?;
                Ok(captured[0])
            })
        };
        for _ in 0..2 {
            let warms = make(); // fills the caches
            warms.switch::<()>(()).unwrap();
            assert_eq!(warms.switch::<u8>(()).unwrap(), 1);
        }
        let before = OWN_BLOCKS.get();
        let greenlet = make();
        let pending = OWN_BLOCKS.get() - before;
        greenlet.switch::<()>(()).unwrap();
        let suspended = OWN_BLOCKS.get() - before;
        assert_eq!(greenlet.switch::<u8>(()).unwrap(), 1);
        (pending, suspended)
    }
    assert_eq!(blocks::<1>(), (0, 0));
    const SPACE: usize = 4 * size_of::<usize>();
    assert_eq!(blocks::<SPACE>(), (0, 0));
    assert_eq!(blocks::<{ SPACE + 1 }>(), (1, 0));
    assert_eq!(blocks::<4096>(), (1, 0));
}

#[test]
fn an_allocator_may_end_all_greenlets_while_one_is_created() {
    let _main = getcurrent();
    let other = Greenlet::new(|(): ()| Ok(()));
    // Leaves bytes in the slot that are no valid box, for the next greenlet.
    let before = Greenlet::new({
        let captured = [0x41_usize; 4];
        move |(): ()| Ok(captured[0])
    });
    before.switch::<usize>(()).unwrap();
    drop(before);
    let (odd, captured): (Odd, _) = ([1; 1237], ());
    IS_ENDING.set(true);
    let greenlet = Greenlet::new(move |(): ()| {
        let () = captured;
        Ok(odd[7])
    });
    assert!(!IS_ENDING.get() && other.is_dead());
    assert_eq!(greenlet.switch::<u64>(()).unwrap(), 1);
}

#[test]
fn each_rarely_used_field_is_freed_with_its_greenlet() {
    let run = |greenlet: Greenlet| {
        greenlet.switch::<()>(()).unwrap();
        greenlet
    };
    let ends = |(): ()| Ok(());
    let named = || drop(run(Greenlet::builder().name("one of few").build(ends)));
    assert_eq!(left_after(100, named), 0);
    let local = || drop(run(Greenlet::builder().locals(Locals::new()).build(ends)));
    assert_eq!(left_after(100, local), 0);
    let attached = || {
        let greenlet = Greenlet::new(ends);
        greenlet.attach(Rc::new(0));
        drop(run(greenlet));
    };
    assert_eq!(left_after(100, attached), 0);
    let when_dead = || {
        let greenlet = run(Greenlet::new(ends));
        greenlet.set_locals(Locals::new());
    };
    assert_eq!(left_after(100, when_dead), 0);
    let attached_when_dead = || {
        let greenlet = run(Greenlet::new(ends));
        greenlet.attach(Rc::new(0));
    };
    assert_eq!(left_after(100, attached_when_dead), 0);
}

#[test]
fn greenlets_of_a_late_destructor_leak_nothing() {
    struct Late;

    impl Drop for Late {
        fn drop(&mut self) {
            let before = OWN_BLOCKS.get();
            for _ in 0..3 {
                drop(Greenlet::new(|(): ()| Ok(())));
            }
            LEFT.store(OWN_BLOCKS.get() - before, Ordering::Relaxed);
        }
    }

    thread_local! {
        static LATE: Late = const { Late };
    }

    /// The number of blocks that the destructor leaked, or the initial value before it has run.
    static LEFT: AtomicIsize = AtomicIsize::new(-1000);
    let ends = std::thread::spawn(|| {
        LATE.with(|_| ()); // before the first greenlet, so destroyed after the library's own thread-local
        let greenlet = Greenlet::new(|(): ()| Ok(()));
        greenlet.switch::<()>(()).unwrap();
    });
    ends.join().unwrap();
    assert_eq!(LEFT.load(Ordering::Relaxed), 0);
}

/// What exits allocate, and what they show. On other architectures errors of exits are created anew if
/// they capture backtraces.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod exits {
    use std::backtrace::BacktraceStatus;

    use greenlet::{Generator, GreenletExit, raise};

    use super::*;

    /// Runs a test in a child process, and returns what it prints. `backtrace` is its `RUST_BACKTRACE`.
    fn printed_in_child(test: &str, backtrace: &str) -> String {
        let output = this_binary()
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("RUST_BACKTRACE", backtrace)
            .env(CHILD, "1")
            .output()
            .expect("the test can run itself");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let lines = text.lines().filter(|line| line.starts_with("blocks for"));
        lines.collect::<Vec<_>>().join("\n")
    }

    const CHILD: &str = "GREENLET_TEST_CHILD";

    /// Prints how many blocks each way of ending greenlets allocates.
    fn print_blocks_of_exits() {
        /// Runs until it is ended.
        fn waits(_: ()) -> Result<()> {
            up(())
        }
        fn suspended() -> Greenlet {
            let greenlet = Greenlet::new(waits);
            greenlet.switch::<()>(()).unwrap();
            greenlet
        }
        let raises = || -> Result<()> { raise(GreenletExit::with_reason("static")) };
        let ways: [(&str, &dyn Fn()); 8] = [
            ("a kill", &|| drop(suspended().kill().unwrap())),
            ("a throw", &|| {
                suspended().throw::<GreenletExit>(GreenletExit::new()).unwrap();
            }),
            ("an end", &|| suspended().end()),
            ("a dropped handle", &|| drop(suspended())),
            ("a kill of one that has not begun", &|| {
                drop(Greenlet::new(waits).kill().unwrap());
            }),
            ("a raise", &|| {
                let raises = Greenlet::new(move |(): ()| raises());
                raises.switch::<GreenletExit>(()).unwrap();
            }),
            ("nested ends", &|| {
                let outer = Greenlet::new(|(): ()| {
                    let _inner = suspended();
                    up::<()>(())
                });
                outer.switch::<()>(()).unwrap();
                outer.end();
            }),
            ("a closed generator", &|| {
                let mut generator = Generator::new(|out| out.yield_(1));
                generator.next().unwrap().unwrap();
            }),
        ];
        println!(); // ends the line of the test's name
        for (name, end) in ways {
            for _ in 0..10 {
                end();
            }
            let before = ALLOCATED.get();
            for _ in 0..1000 {
                end();
            }
            println!("blocks for 1000 times {name}: {}", ALLOCATED.get() - before);
        }
    }

    // A captured backtrace allocates. Its 5,000 ns would be nearly all of the cost of a kill.
    #[test]
    fn exits_capture_no_backtrace() {
        if std::env::var_os(CHILD).is_some() {
            return print_blocks_of_exits();
        }
        let test = "exits::exits_capture_no_backtrace";
        let without = printed_in_child(test, "0");
        let with = printed_in_child(test, "1");
        let lines: Vec<(&str, &str)> = without.lines().zip(with.lines()).collect();
        assert_eq!(lines.len(), 8, "{without}\n{with}");
        for (without, with) in lines {
            let blocks = |line: &str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
            assert!(
                blocks(with) <= blocks(without),
                "{without}; with backtraces: {with}"
            );
        }
    }

    // A cached error must not show where another exit was created.
    #[test]
    fn the_backtrace_of_an_exit_names_no_function_of_a_user() {
        if std::env::var_os(CHILD).is_none() {
            let test = "exits::the_backtrace_of_an_exit_names_no_function_of_a_user";
            assert_eq!(printed_in_child(test, "1"), "blocks for nothing");
            return;
        }
        #[inline(never)]
        fn kills(greenlet: &Greenlet) {
            greenlet.kill().unwrap();
        }
        let shows = Greenlet::new(|(): ()| {
            let exit = up::<()>(()).unwrap_err();
            let text = format!("{exit:?}");
            assert!(
                text.contains("greenlet exit") && !text.contains("kills"),
                "{text}"
            );
            assert!(!text.contains("names_no_function"), "{text}");
            Err::<(), _>(exit)
        });
        shows.switch::<()>(()).unwrap();
        kills(&shows);
        let captured = anyhow!("another error").backtrace().status();
        assert_eq!(captured, BacktraceStatus::Captured);
        println!("\nblocks for nothing");
    }
}
