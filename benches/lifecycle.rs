//! Making, starting and ending.

use std::hint::black_box;
use std::task::{Context, Waker};

use greenlet_benches::{Group, raw, stacks};

macro_rules! ours {
    ($module:ident, $core:ident) => {
        mod $module {
            use super::*;
            use $core::{Greenlet, getparent};

            /// Make, run to the end, drop. The stack comes from the thread's cache, as it does without being asked.
            pub(super) fn create_run_end() -> impl FnMut(u64) {
                |times| {
                    for n in 0..times {
                        let greenlet = Greenlet::new(|n: u64| Ok(n + 1));
                        black_box(greenlet.switch::<u64>(black_box(n)).unwrap());
                    }
                }
            }

            fn suspended() -> Greenlet {
                Greenlet::new(|n: u64| {
                    let main = getparent().unwrap();
                    let again = main.switch::<u64>(n)?;
                    Ok(again)
                })
            }

            /// Make, start, and leave suspended; ending it is not measured (it is what the next group does).
            pub(super) fn start() -> impl FnMut(u64) {
                |times| {
                    for n in 0..times {
                        let greenlet = suspended();
                        black_box(greenlet.switch::<u64>(n).unwrap());
                        black_box(greenlet.switch::<u64>(n).unwrap());
                    }
                }
            }

            /// The whole life: make, start, and drop while suspended, which throws the exit.
            pub(super) fn kill() -> impl FnMut(u64) {
                |times| {
                    for n in 0..times {
                        let greenlet = suspended();
                        black_box(greenlet.switch::<u64>(n).unwrap());
                        drop(greenlet);
                    }
                }
            }
        }
    };
}

ours!(asm, greenlet_core);
ours!(fcontext, greenlet_core_fcontext);

struct Raw {
    main: raw::Resume,
    other: raw::Resume,
}

unsafe extern "C" fn raw_once(n: u64, data: *mut ()) -> ! {
    // SAFETY: `raw_create` waits for it.
    unsafe {
        let pair = &mut *data.cast::<Raw>();
        let main = pair.main;
        raw::switch(&raw mut pair.other, main, n + 1);
    }
    unreachable!("it was switched to once")
}

/// The limit: lay out the one stack that is reused, switch there, switch back.
fn raw_create() -> impl FnMut(u64) {
    let base = stacks::map(1)[0];
    move |times| {
        for n in 0..times {
            let mut pair = Raw {
                main: std::ptr::null_mut(),
                other: std::ptr::null_mut(),
            };
            let data = (&raw mut pair).cast();
            // SAFETY: nothing runs on the stack any more.
            unsafe {
                let fresh = raw::prepare(base, raw_once, data);
                black_box(raw::switch(&raw mut pair.main, fresh, black_box(n)));
            }
        }
    }
}

fn corosensei_create() -> impl FnMut(u64) {
    let mut stack = Some(stacks::Pooled::take());
    move |times| {
        for n in 0..times {
            let mut coroutine =
                corosensei::Coroutine::<u64, (), u64, _>::with_stack(stack.take().unwrap(), |_, n| n + 1);
            black_box(coroutine.resume(black_box(n)).as_return().unwrap());
            stack = Some(coroutine.into_stack());
        }
    }
}

fn corosensei_create_default() -> impl FnMut(u64) {
    |times| {
        for n in 0..times {
            let mut coroutine = corosensei::Coroutine::<u64, (), u64>::new(|_, n| n + 1);
            black_box(coroutine.resume(black_box(n)).as_return().unwrap());
        }
    }
}

fn corosensei_kill() -> impl FnMut(u64) {
    let mut stack = Some(stacks::Pooled::take());
    move |times| {
        for n in 0..times {
            let mut coroutine =
                corosensei::Coroutine::<u64, u64, u64, _>::with_stack(stack.take().unwrap(), |yielder, n| {
                    yielder.suspend(n)
                });
            black_box(coroutine.resume(black_box(n)).as_yield().unwrap());
            coroutine.force_unwind();
            stack = Some(coroutine.into_stack());
        }
    }
}

fn corosensei_start() -> impl FnMut(u64) {
    let mut stack = Some(stacks::Pooled::take());
    move |times| {
        for n in 0..times {
            let mut coroutine =
                corosensei::Coroutine::<u64, u64, u64, _>::with_stack(stack.take().unwrap(), |yielder, n| {
                    yielder.suspend(n)
                });
            black_box(coroutine.resume(black_box(n)).as_yield().unwrap());
            black_box(coroutine.resume(black_box(n)).as_return().unwrap());
            stack = Some(coroutine.into_stack());
        }
    }
}

fn wasmtime_create() -> impl FnMut(u64) {
    let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
    let mut stack = Some(stack);
    move |times| {
        for n in 0..times {
            let fiber = wasmtime_fiber::Fiber::<u64, (), u64>::new(stack.take().unwrap(), |n, _| n + 1);
            let fiber = fiber.unwrap();
            black_box(fiber.resume(black_box(n)).unwrap());
            stack = Some(fiber.into_stack());
        }
    }
}

fn generator_create() -> impl FnMut(u64) {
    |times| {
        for n in 0..times {
            let mut generator = generator::Gn::<u64>::new_scoped(move |_| n + 1);
            black_box(generator.raw_send(None).unwrap());
        }
    }
}

fn async_create() -> impl FnMut(u64) {
    |times| {
        let mut context = Context::from_waker(Waker::noop());
        for n in 0..times {
            let mut future: std::pin::Pin<Box<dyn Future<Output = u64>>> =
                Box::pin(async move { black_box(n) + 1 });
            let _ = black_box(black_box(future.as_mut()).poll(&mut context));
        }
    }
}

fn main() {
    let groups = vec![
        Group::new("create, run, end", 1)
            .add("raw", raw_create)
            .add("greenlet", asm::create_run_end)
            .add("greenlet (context)", fcontext::create_run_end)
            .add("corosensei", corosensei_create)
            .add("corosensei (default)", corosensei_create_default)
            .add("generator", generator_create)
            .add("wasmtime-fiber", wasmtime_create)
            .add("native async", async_create)
            .goal("corosensei", 1.0)
            .goal("corosensei (default)", 1.0 / 400.0),
        Group::new("create, suspend, resume, end", 1)
            .add("greenlet", asm::start)
            .add("greenlet (context)", fcontext::start)
            .add("corosensei", corosensei_start),
        Group::new("create, suspend, kill", 1)
            .add("greenlet", asm::kill)
            .add("greenlet (context)", fcontext::kill)
            .add("corosensei (unwinds)", corosensei_kill),
    ];
    greenlet_benches::main("lifecycle", groups);
}
