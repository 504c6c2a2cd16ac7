//! What cannot work, with the reason: the second table of `docs/recipes.md`. Each case runs in a
//! process of its own, since some of them end it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join;
use futures::poll;
use greenlet::{SpawnBuilder, await_, greenlet_spawn, try_await_};
use greenlet_recipes::checks;
use tokio::runtime::{Builder, Handle};
use tokio::task::yield_now;

/// Runs a case in a process of its own. Returns whether that ended well, and what it printed.
fn alone(case: &str) -> Result<(bool, String)> {
    let output = Command::new(std::env::current_exe()?).arg(case).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{case}: {}: {text}", output.status);
    Ok((output.status.success(), text))
}

// ---- frames that cannot unwind -----------------------------------------------------------------

thread_local! {
    /// Whether the comparison calls `await_`, which unwinds at an end, or `try_await_`.
    static UNWINDS: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn compare(left: *const c_void, right: *const c_void) -> c_int {
    match UNWINDS.get() {
        true => await_(std::future::pending::<()>()),
        false => drop(try_await_(std::future::pending::<()>())),
    }
    (left as usize).cmp(&(right as usize)) as c_int
}

/// Sorts by C's `qsort`, with a comparison that waits, and drops that in the middle.
async fn drop_in_qsort(unwinds: bool) -> Result<()> {
    UNWINDS.set(unwinds);
    let mut spawned = greenlet_spawn(|| {
        let mut numbers = [2_i32, 1];
        // SAFETY: the array has two elements of this size, and the comparison reads none of them.
        unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 2, size_of::<i32>(), Some(compare)) }
    });
    ensure!(poll!(&mut spawned).is_pending(), "it does not wait");
    Ok(())
}

async fn an_end_below_a_frame_that_cannot_unwind_aborts() -> Result<()> {
    let (ended_well, text) = alone("qsort-await")?;
    ensure!(!ended_well && text.contains("cannot unwind"), "it printed {text}");
    Ok(())
}

async fn an_end_as_an_error_passes_frames_that_cannot_unwind() -> Result<()> {
    let (ended_well, text) = alone("qsort-try-await")?;
    ensure!(ended_well, "it printed {text}");
    Ok(())
}

// ---- values that are lent to the thread --------------------------------------------------------

tokio::task_local! {
    static TASK: u32;
}

/// Two greenlets take turns, each inside of a scope that is kept for the thread.
async fn interleaved_scopes_see_the_values_of_others() -> Result<()> {
    let inside = |value| {
        greenlet_spawn(move || {
            TASK.sync_scope(value, || {
                await_(yield_now());
                TASK.try_with(|value| *value).ok()
            })
        })
    };
    let seen = join(inside(1), inside(2)).await;
    ensure!(seen == (Some(2), None), "saw {seen:?}: is the page still right?");
    Ok(())
}

/// The cure: the scope is around the future, so it is entered for each poll.
async fn a_scope_around_the_spawn_is_right() -> Result<()> {
    let inside = |value| {
        let spawned = greenlet_spawn(|| {
            await_(yield_now());
            await_(async { TASK.get() })
        });
        TASK.scope(value, spawned)
    };
    ensure!(
        join(inside(1), inside(2)).await == (1, 2),
        "the values are of others"
    );
    Ok(())
}

/// Two greenlets take turns, each with the runtime entered.
async fn interleaved_guards() -> Result<()> {
    let other = Builder::new_current_thread().build()?;
    let enter = |turns: usize| {
        let handle = other.handle().clone();
        greenlet_spawn(move || {
            let _entered = handle.enter();
            (0..turns).for_each(|_| await_(yield_now()));
        })
    };
    join(enter(1), enter(2)).await;
    Ok(())
}

async fn interleaved_enter_guards_panic() -> Result<()> {
    let (ended_well, text) = alone("enter")?;
    ensure!(
        !ended_well && text.contains("dropped out of order"),
        "it printed {text}"
    );
    Ok(())
}

// ---- others ------------------------------------------------------------------------------------

async fn blocking_facade() -> Result<()> {
    greenlet_spawn(|| Handle::current().block_on(yield_now())).await;
    Ok(())
}

async fn a_blocking_facade_panics() -> Result<()> {
    let (ended_well, text) = alone("facade")?;
    ensure!(
        !ended_well && text.contains("Cannot start a runtime from within a runtime"),
        "it printed {text}"
    );
    Ok(())
}

async fn stacker_does_not_know_the_stack_of_a_greenlet() -> Result<()> {
    const SIZE: usize = 256 << 10;
    fn left() -> usize {
        let spawned = SpawnBuilder::new()
            .stack_size(SIZE)
            .spawn(stacker::remaining_stack);
        futures::executor::block_on(spawned).expect("stacker knows the bounds of a thread")
    }
    for left in [
        left(),
        std::thread::spawn(left).join().expect("stacker does not panic"),
    ] {
        eprintln!("stacker finds {left} bytes left of {SIZE}");
        ensure!(
            left == 0 || left > SIZE,
            "stacker finds {left} bytes: is the page still right?"
        );
    }
    Ok(())
}

async fn stacker_leaves_its_limit_behind_over_an_await() -> Result<()> {
    let before = stacker::remaining_stack().context("stacker knows the bounds of a thread")?;
    let mut spawned = greenlet_spawn(|| stacker::grow(1 << 20, || await_(std::future::pending::<()>())));
    ensure!(poll!(&mut spawned).is_pending(), "it does not wait");
    let meanwhile = stacker::remaining_stack().context("stacker has a limit")?;
    drop(spawned);
    eprintln!("stacker finds {before} bytes left of the thread's own stack, then {meanwhile}");
    ensure!(
        meanwhile.abs_diff(before) > 1 << 20,
        "stacker is right: is the page still right?"
    );
    Ok(())
}

fn main() -> Result<()> {
    if let Some(case) = std::env::args().nth(1) {
        let run = async {
            match case.as_str() {
                "qsort-await" => drop_in_qsort(true).await,
                "qsort-try-await" => drop_in_qsort(false).await,
                "enter" => interleaved_guards().await,
                "facade" => blocking_facade().await,
                other => bail!("no case {other}"),
            }
        };
        return Builder::new_current_thread()
            .build()?
            .block_on(run)
            .context("the case failed");
    }
    let checks = checks![
        an_end_below_a_frame_that_cannot_unwind_aborts,
        an_end_as_an_error_passes_frames_that_cannot_unwind,
        interleaved_scopes_see_the_values_of_others,
        a_scope_around_the_spawn_is_right,
        interleaved_enter_guards_panic,
        a_blocking_facade_panics,
        stacker_does_not_know_the_stack_of_a_greenlet,
        stacker_leaves_its_limit_behind_over_an_await,
    ];
    greenlet_recipes::main("limits", checks, None);
    Ok(())
}
