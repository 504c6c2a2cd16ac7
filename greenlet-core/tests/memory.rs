//! Memory is bounded and given back, and a lack of memory is an error. Each test measures a whole
//! process, so it runs in a child: this binary again, with the name of the test in the environment.

extern crate greenlet_core as greenlet;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Result;
use greenlet::{
    Generator, Greenlet, GreenletExit, StackError, State, Yielder, getcurrent, getparent, raw, stack,
    stacks_in_use, track_high_water,
};

#[path = "child/this_binary.rs"]
mod this_binary;

use this_binary::this_binary;

const TEST: &str = "GREENLET_TEST_CASE";
const PAGE: usize = 4096;

/// Runs `body` in a child, with `settings` in its environment.
fn in_child(test: &str, settings: &[(&str, &str)], body: fn()) {
    if std::env::var(TEST).is_ok_and(|wanted| wanted == test) {
        return body();
    }
    let output = this_binary()
        .args([test, "--nocapture"])
        .env(TEST, test)
        .env("RUST_BACKTRACE", "0") // backtraces of errors are slow
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    for line in text.lines().filter(|line| line.starts_with("left out: ")) {
        // Not `eprintln!`: the harness hides its output when a test passes.
        io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    let ran = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(ran.contains("1 passed"), "{ran}");
}

const LIMIT: &str = "an emulator heeds no limit of address space";

/// Prints, in a child, that a test does nothing here.
fn left_out(what: &str, why: &str) {
    eprintln!("left out: {what}: {why}");
}

/// Creates suspended greenlets.
fn suspended(count: usize) -> Vec<Greenlet> {
    let (all, refused) = suspended_up_to(count);
    assert!(refused.is_none(), "{refused:?}");
    all
}

/// Creates suspended greenlets, until there are `count`, or until one gets no stack.
fn suspended_up_to(count: usize) -> (Vec<Greenlet>, Option<(Greenlet, StackError)>) {
    let mut all = Vec::new();
    for number in 0..count {
        let next = Greenlet::builder().stack_size(64 << 10).build(wait);
        match next.switch::<usize>(number) {
            Ok(answer) => assert_eq!(answer, number),
            Err(error) => return (all, Some((next, error.downcast().unwrap()))),
        }
        all.push(next);
    }
    (all, None)
}

/// Answers each number with itself.
fn wait(mut number: usize) -> anyhow::Result<usize> {
    loop {
        number = getparent().unwrap().switch(number)?;
    }
}

/// The memory of the process, in bytes.
fn resident() -> usize {
    status("VmRSS:")
}

fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Limits the address space of the process. Returns `true` if the limit has an effect. Emulators
/// ignore it.
#[must_use]
fn limit_address_space(bytes: libc::rlim_t) -> bool {
    let limit = libc::rlimit {
        rlim_cur: bytes as _,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: reads the struct that it is given.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    bytes == libc::RLIM_INFINITY || Vec::<u8>::new().try_reserve_exact(200 << 20).is_err()
}

#[test]
fn a_burst_of_greenlets_gives_its_memory_back() {
    in_child("a_burst_of_greenlets_gives_its_memory_back", &[], || {
        drop(suspended(10)); // allocates what stays for the whole process
        let before = resident();
        let all = suspended_up_to(100_000).0;
        let count = all.len();
        // Fewer if guards need mappings.
        assert!(count >= 20_000, "{count}");
        let at_most = stack::stats();
        assert_eq!((at_most.in_use, stacks_in_use()), (count, count));
        assert!(at_most.resident_bytes >= count * PAGE);
        assert!(resident() - before >= count * PAGE);
        assert!(at_most.mappings < 100, "{at_most:?}");
        drop(all);

        let after = stack::stats();
        // A debug build touches up to three pages of a stack.
        let each = 3 * PAGE;
        assert_eq!((after.in_use, stacks_in_use()), (0, 0));
        assert!(after.idle >= count);
        assert_eq!(after.mapped_bytes, at_most.mapped_bytes);
        assert!(after.resident_bytes <= (1024 + 129) * each, "{after:?}");
        let kept = resident().saturating_sub(before);
        assert!(kept < count * PAGE / 4, "{kept} bytes are kept");

        stack::set_idle_limit(0);
        let bare = stack::stats();
        assert!(bare.resident_bytes <= 129 * each, "{bare:?}");
        assert_eq!(bare.idle, after.idle);
        // Stacks that gave their memory back can be used again, with their guards.
        drop(suspended(2000));
        assert_eq!(stack::stats().mapped_bytes, bare.mapped_bytes);
    });
}

#[test]
fn a_lower_idle_limit_holds_less() {
    in_child("a_lower_idle_limit_holds_less", &[], || {
        let held = |limit| {
            stack::set_idle_limit(limit);
            drop(suspended(5000));
            stack::stats().resident_bytes / PAGE
        };
        let (none, some, all) = (held(0), held(2000), held(10_000));
        assert!(none <= 3 * 129, "{none}");
        assert!((2000..3 * 2129).contains(&some), "{some}");
        assert!(all >= 5000, "{all}");
        assert_eq!(stack::idle_limit(), 10_000);
    });
}

#[test]
fn stacks_of_an_ended_thread_are_reused() {
    in_child("stacks_of_an_ended_thread_are_reused", &[], || {
        let use_thread = || std::thread::spawn(|| drop(suspended(1000))).join().unwrap();
        use_thread();
        let before = stack::stats();
        assert_eq!((before.in_use, stacks_in_use()), (0, 0));
        assert!(before.idle >= 1000);
        use_thread();
        drop(suspended(1000));
        let after = stack::stats();
        assert_eq!(
            (after.mapped_bytes, after.idle),
            (before.mapped_bytes, before.idle)
        );
    });
}

// SW-33
#[test]
fn a_failed_stack_allocation_is_an_error_and_changes_nothing() {
    in_child(
        "a_failed_stack_allocation_is_an_error_and_changes_nothing",
        &[],
        || {
            drop(suspended(1));
            if !limit_address_space((status("VmSize:") + (64 << 20)) as _) {
                return left_out("a stack without memory for it", LIMIT);
            }
            let large = Greenlet::builder()
                .stack_size(256 << 20)
                .build(|text: String| Ok(text.len()));
            let error = large.switch::<usize>(String::from("kept")).unwrap_err();
            let error = error.downcast::<StackError>().unwrap();
            assert!(error.is_out_of_memory());
            assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::ENOMEM));
            assert_eq!(error.into_value().unwrap().downcast::<String>().unwrap(), "kept");
            assert_eq!(large.state(), State::Pending);
            assert_eq!(stack::stats().in_use, 0);

            assert!(limit_address_space(libc::RLIM_INFINITY));
            assert_eq!(large.switch::<usize>(String::from("kept")).unwrap(), 4);
        },
    );
}

// RT-6
#[test]
fn an_outcome_skips_a_pending_parent_that_gets_no_stack() {
    in_child(
        "an_outcome_skips_a_pending_parent_that_gets_no_stack",
        &[],
        || {
            drop(suspended(1));
            if !limit_address_space((status("VmSize:") + (64 << 20)) as _) {
                return left_out("a pending parent without memory for its stack", LIMIT);
            }
            let parent = Greenlet::builder()
                .stack_size(256 << 20)
                .build(|number: u8| Ok(number));
            let child = Greenlet::builder()
                .parent(&parent)
                .build(|number: u8| Ok(number + 1));
            let error = child.switch::<u8>(1_u8).unwrap_err();
            let error = error.downcast::<StackError>().unwrap();
            assert_eq!(error.into_value().unwrap().downcast::<u8>().unwrap(), 2);
            assert_eq!((child.state(), parent.state()), (State::Dead, State::Pending));
        },
    );
}

#[test]
fn existing_greenlets_keep_working_when_guards_run_out() {
    const SETTINGS: [(&str, &str); 1] = [("GREENLET_GUARD", "mprotect")];
    in_child(
        "existing_greenlets_keep_working_when_guards_run_out",
        &SETTINGS,
        || {
            let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
            let limit: usize = limit.trim().parse().unwrap();
            if limit > 200_000 {
                return left_out("guards that run out", "this machine allows too many mappings");
            }
            let (all, refused) = suspended_up_to(limit);
            let (refused, error) = refused.expect("the kernel stops");
            assert!(
                error.is_out_of_memory() && error.to_string().contains("max_map_count"),
                "{error}"
            );
            assert_eq!(
                error.into_value().unwrap().downcast::<usize>().unwrap(),
                all.len()
            );
            assert_eq!(refused.state(), State::Pending);
            assert!(all.len() > limit / 2 - 1000, "{}", all.len());

            // Other allocations still find mappings.
            let block = vec![1_u8; 8 << 20];
            assert_eq!(std::thread::spawn(|| 5).join().unwrap(), 5);
            drop(block);
            for (number, greenlet) in all.iter().enumerate() {
                assert_eq!(greenlet.switch::<usize>(number).unwrap(), number);
            }
            // After one greenlet has ended, another one can start.
            let _: GreenletExit = all[0].throw(GreenletExit::new()).unwrap();
            let _: GreenletExit = all[1].throw(GreenletExit::new()).unwrap();
            assert_eq!(refused.switch::<usize>(8_usize).unwrap(), 8);
            drop(all);
            assert_eq!(stack::stats().in_use, 1);
        },
    );
}

#[test]
fn stacks_of_many_sizes_coexist_and_bad_sizes_are_refused() {
    in_child(
        "stacks_of_many_sizes_coexist_and_bad_sizes_are_refused",
        &[],
        || {
            let of_size = |size| Greenlet::builder().stack_size(size).build(wait);
            for size in [
                0,
                1,
                stack::MIN_SIZE - 1,
                stack::MAX_SIZE + 1,
                usize::MAX - 1,
                usize::MAX,
            ] {
                let greenlet = of_size(size);
                let error = greenlet.switch::<usize>(3_usize).unwrap_err();
                let error = error.downcast::<StackError>().unwrap();
                assert!(error.is_bad_size(), "{error}");
                assert_eq!(error.into_value().unwrap().downcast::<usize>().unwrap(), 3);
                assert_eq!(greenlet.state(), State::Pending);
            }
            assert_eq!(stack::stats().mapped_bytes, 0);
            let sizes = [
                stack::MIN_SIZE,
                20_000,
                64 << 10,
                100_000,
                stack::default_size(),
                5 << 20,
            ];
            let all: Vec<Greenlet> = sizes.into_iter().map(of_size).collect();
            for round in 0..3 {
                for (greenlet, size) in all.iter().zip(sizes) {
                    assert_eq!(greenlet.switch::<usize>(size + round).unwrap(), size + round);
                    assert!(greenlet.stack_usage().unwrap().size >= size);
                }
            }
            assert_eq!(stacks_in_use(), sizes.len());
        },
    );
}

/// Returns the size of the stack of a greenlet, and that of a generator, for which no size was
/// asked.
fn sizes_by_default() -> [usize; 2] {
    let size = || getcurrent().stack_usage().unwrap().size;
    let greenlet = Greenlet::new(move |(): ()| Ok(size()));
    let mut generator = Generator::new(move |out: Yielder<usize>| {
        out.yield_(raw::running_stack().unwrap().size)?;
        Ok(())
    });
    [greenlet.switch(()).unwrap(), generator.next().unwrap().unwrap()]
}

/// `GREENLET_MIN_STACK` sets the default of the process; a number out of range is the nearest one,
/// and text is ignored.
#[test]
fn the_environment_sets_the_default_size() {
    let test = "the_environment_sets_the_default_size";
    for (variable, size) in [
        ("1000000", 1 << 20),
        ("1", stack::MIN_SIZE),
        ("99999999999", stack::MAX_SIZE),
        ("much", stack::DEFAULT_SIZE),
        ("", stack::DEFAULT_SIZE),
    ] {
        let expected = size.to_string();
        let settings = [("GREENLET_MIN_STACK", variable), ("EXPECTED", expected.as_str())];
        in_child(test, &settings, || {
            let expected: usize = std::env::var("EXPECTED").unwrap().parse().unwrap();
            if expected < stack::MAX_SIZE {
                assert_eq!(sizes_by_default(), [expected; 2]);
            }
            assert_eq!(stack::default_size(), expected);
        });
    }
}

#[test]
fn the_program_sets_the_default_size() {
    let settings = [("GREENLET_MIN_STACK", "4194304")];
    in_child("the_program_sets_the_default_size", &settings, || {
        let pending = Greenlet::new(|(): ()| Ok(getcurrent().stack_usage().unwrap().size));
        for refused in [0, stack::MIN_SIZE - 1, stack::MAX_SIZE + 1, usize::MAX] {
            assert!(stack::set_default_size(refused).unwrap_err().is_bad_size());
        }
        stack::set_default_size(100_000).unwrap();
        assert_eq!(stack::default_size(), 128 << 10);
        assert_eq!(pending.switch::<usize>(()).unwrap(), 128 << 10);
        assert_eq!(sizes_by_default(), [128 << 10; 2]);
        stack::set_default_size(1 << 20).unwrap();
        assert_eq!(sizes_by_default(), [1 << 20; 2], "the cached stack is too small");
        let asked = Greenlet::builder().stack_size(64 << 10);
        let asked = asked.build(|(): ()| Ok(getcurrent().stack_usage().unwrap().size));
        assert_eq!(asked.switch::<usize>(()).unwrap(), 64 << 10);
    });
}

/// Uses at least so many KiB of the stack.
fn deep(levels: usize) -> usize {
    let frame = std::hint::black_box([levels; 128]);
    let below = if levels == 0 { 0 } else { deep(levels - 1) };
    below + std::hint::black_box(frame)[0].min(1)
}

#[test]
fn the_high_water_mark_is_the_deepest_use_of_a_stack() {
    in_child("the_high_water_mark_is_the_deepest_use_of_a_stack", &[], || {
        let greenlet = Greenlet::new(|levels: usize| wait(deep(levels)));
        assert_eq!(greenlet.stack_high_water(), None);
        assert_eq!(greenlet.switch::<usize>(60_usize).unwrap(), 60);
        let mark = greenlet.stack_high_water().unwrap();
        let usage = greenlet.stack_usage().unwrap();
        assert!(mark >= 60 * 1024 && mark <= usage.size, "{mark}");
        assert!(usage.used < mark, "{usage:?}");
        let shallow = Greenlet::new(wait);
        shallow.switch::<usize>(0_usize).unwrap();
        assert!(shallow.stack_high_water().unwrap() < mark);
    });
}

#[test]
fn the_high_water_mark_of_a_tracked_greenlet_outlives_it() {
    in_child(
        "the_high_water_mark_of_a_tracked_greenlet_outlives_it",
        &[],
        || {
            let ended = |levels: usize| {
                let greenlet = Greenlet::new(move |(): ()| Ok(deep(levels)));
                assert_eq!(greenlet.switch::<usize>(()).unwrap(), levels);
                greenlet
            };
            track_high_water(true);
            let shallow = ended(1);
            let deeper = ended(60);
            let panics = Greenlet::new(|(): ()| -> Result<()> {
                deep(60);
                resume_unwind(Box::new("ends by a panic"))
            });
            catch_unwind(AssertUnwindSafe(|| panics.switch::<()>(()))).unwrap_err();
            let never_started = Greenlet::new(|(): ()| Ok(()));
            track_high_water(false);
            let untracked = ended(60);
            for dead in [&deeper, &panics] {
                let mark = dead.stack_high_water().unwrap();
                assert!((60 * 1024..stack::default_size()).contains(&mark), "{mark}");
                assert!(dead.is_dead() && dead.stack_usage().is_none());
            }
            assert!(shallow.stack_high_water().unwrap() < 32 * 1024);
            assert_eq!(untracked.stack_high_water(), None);
            assert_eq!(never_started.stack_high_water(), None);
            assert_eq!(deeper.age(), None, "only the stack is tracked");
        },
    );
}
