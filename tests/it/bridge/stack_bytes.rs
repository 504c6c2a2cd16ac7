//! What an awaited future costs on the stack of a greenlet.

use std::future::Future;

use greenlet::{SpawnBuilder, await_, await_nested, getcurrent, try_await_};

use crate::bridge::{poll, ready};

/// A future of a little more than `N` bytes, which waits once.
async fn large<const N: usize>() -> usize {
    let buffer = [1_u8; N];
    tokio::task::yield_now().await;
    buffer.iter().map(|byte| usize::from(*byte)).sum()
}

/// Returns how much of its stack a function has touched. Each runs on a thread of its own: on a used
/// stack, earlier functions would count.
fn touched(in_place: bool, function: fn()) -> usize {
    std::thread::spawn(move || {
        let mut spawned = SpawnBuilder::new()
            .poll_in_place(in_place)
            .stack_size(4 << 20)
            .spawn(move || {
                function();
                getcurrent().stack_high_water().unwrap()
            });
        assert!(poll(&mut spawned).is_pending());
        ready(poll(&mut spawned))
    })
    .join()
    .unwrap()
}

fn generic<F: Future>(future: F) -> F::Output {
    await_(future)
}

#[test]
fn an_await_keeps_one_copy_of_its_future_in_release_and_three_in_debug() {
    if cfg!(feature = "asan") {
        return; // its frames are larger
    }
    const SMALL: usize = 16 << 10;
    const LARGE: usize = 64 << 10;
    type Way = (&'static str, bool, [fn(); 2]);
    let ways: [Way; 5] = [
        (
            "await_",
            false,
            [|| _ = await_(large::<SMALL>()), || _ = await_(large::<LARGE>())],
        ),
        (
            "in place",
            true,
            [|| _ = await_(large::<SMALL>()), || _ = await_(large::<LARGE>())],
        ),
        (
            "try_await_",
            false,
            [
                || _ = try_await_(large::<SMALL>()),
                || _ = try_await_(large::<LARGE>()),
            ],
        ),
        (
            "await_nested",
            false,
            [
                || _ = await_nested(large::<SMALL>()),
                || _ = await_nested(large::<LARGE>()),
            ],
        ),
        // The caller's parameter is a copy of its own in debug.
        (
            "generic",
            false,
            [|| _ = generic(large::<SMALL>()), || _ = generic(large::<LARGE>())],
        ),
    ];
    for (name, in_place, functions) in ways {
        let [small, large] = functions.map(|function| touched(in_place, function));
        let copies = match (cfg!(debug_assertions), name) {
            (false, _) => 1,
            (true, "generic") => 4,
            (true, _) => 3,
        };
        // The kernel counts whole pages, and stacks begin at different places in their first one.
        let most = copies * (LARGE - SMALL) + 2 * 4096;
        assert!(large - small <= most, "{name}: {small} and {large} bytes");
        assert!(
            large <= copies * LARGE + (2 << 10) + 6 * 4096,
            "{name}: {large} bytes"
        );
    }
}

#[test]
fn in_release_an_await_takes_the_size_of_its_future_and_two_kibibytes() {
    if cfg!(feature = "asan") {
        return; // its frames are larger
    }
    if cfg!(debug_assertions) {
        return;
    }
    // Pages, and the place where the stack begins in its first one, add up to two pages.
    let touched = touched(false, || _ = await_(large::<{ 64 << 10 }>()));
    assert!(touched <= (64 << 10) + (2 << 10) + 2 * 4096, "{touched} bytes");
}
