//! Making, starting and ending.

use std::cell::RefCell;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use greenlet_benches::{Group, raw, stacks};

/// How many are made before they are measured: as many as have their stacks in the thread's cache.
const BATCH: u64 = 100;

/// Makes some, measures `what` of each of them, and then ends them: by batches, so that the clock
/// costs nothing, and only `what` is measured.
fn batches<T>(
    make: impl Fn(u64) -> T,
    what: impl Fn(&mut T, u64),
    end: impl Fn(T),
) -> impl FnMut(u64) -> Duration {
    move |times| {
        let mut measured = Duration::ZERO;
        let mut made = Vec::with_capacity(BATCH as usize);
        let mut left = times;
        while left > 0 {
            let count = left.min(BATCH);
            made.extend((0..count).map(&make));
            let start = Instant::now();
            for (each, n) in made.iter_mut().zip(0..) {
                what(each, black_box(n));
            }
            measured += start.elapsed();
            made.drain(..).for_each(&end);
            left -= count;
        }
        measured
    }
}

/// What each one that is killed has on its stack: a destructor.
struct Local;

impl Drop for Local {
    #[inline(never)]
    fn drop(&mut self) {
        DROPPED.fetch_add(black_box(1), Ordering::Relaxed);
    }
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

macro_rules! ours {
    ($module:ident, $core:ident) => {
        pub(crate) mod $module {
            use super::*;
            use $core::{Greenlet, GreenletExit, getcurrent, switch_to_parent};

            /// Make, run to the end, drop. The stack comes from the thread's cache, as it does
            /// without being asked.
            pub(crate) fn create_run_end() -> impl FnMut(u64) {
                |times| {
                    for n in 0..times {
                        let greenlet = Greenlet::new(|n: u64| Ok(n + 1));
                        black_box(greenlet.switch::<u64>(black_box(n)).unwrap());
                    }
                }
            }

            /// The first switch into a pending greenlet, and the switch back.
            pub(crate) fn first_switch() -> impl FnMut(u64) -> Duration {
                let main = getcurrent();
                batches(
                    move |_| {
                        let main = main.clone();
                        Greenlet::new(move |n: u64| main.switch::<u64>(n))
                    },
                    |greenlet, n| {
                        black_box(greenlet.switch::<u64>(n).unwrap());
                    },
                    |greenlet| {
                        greenlet.switch::<u64>(0_u64).unwrap();
                    },
                )
            }

            /// A suspended one is thrown an exit, which its function returns.
            pub(crate) fn throw_exit() -> impl FnMut(u64) -> Duration {
                batches(
                    |_| {
                        let greenlet = Greenlet::new(|(): ()| switch_to_parent::<()>(()));
                        greenlet.switch::<()>(()).unwrap();
                        greenlet
                    },
                    |greenlet, _| {
                        black_box(greenlet.throw::<GreenletExit>(GreenletExit::new()).unwrap());
                    },
                    drop,
                )
            }

            /// The last handle of a suspended one is dropped, which throws the exit: its function
            /// returns it as its `Err`, by `?`.
            pub(crate) fn kill() -> impl FnMut(u64) -> Duration {
                let main = getcurrent();
                batches(
                    move |n| {
                        let main = main.clone();
                        let greenlet = Greenlet::new(move |n: u64| {
                            let _local = Local;
                            main.switch::<u64>(n)
                        });
                        greenlet.switch::<u64>(n).unwrap();
                        Some(greenlet)
                    },
                    |greenlet, _| drop(greenlet.take()),
                    drop,
                )
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
pub(crate) fn raw_create() -> impl FnMut(u64) {
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

pub(crate) fn corosensei_create() -> impl FnMut(u64) {
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

// ---- the first switch ---------------------------------------------------------------------------------

/// Two resume points, and a stack.
struct Fresh {
    pair: Box<Raw>,
    stack: stacks::Pooled,
}

fn raw_fresh(entry: raw::Entry) -> Fresh {
    let stack = stacks::Pooled::take();
    let mut pair = Box::new(Raw {
        main: std::ptr::null_mut(),
        other: std::ptr::null_mut(),
    });
    let data = (&raw mut *pair).cast();
    // SAFETY: nothing else runs on the stack.
    pair.other = unsafe { raw::prepare(stack.base(), entry, data) };
    Fresh { pair, stack }
}

fn raw_switch(fresh: &mut Fresh, word: u64) {
    let pair = &raw mut *fresh.pair;
    // SAFETY: the other is suspended, and writes to `main`, in which it finds where to go back.
    black_box(unsafe { raw::switch(&raw mut (*pair).main, (*pair).other, word) });
}

fn raw_first() -> impl FnMut(u64) -> Duration {
    batches(|_| raw_fresh(raw_once), raw_switch, |fresh| drop(fresh.stack))
}

fn corosensei_first() -> impl FnMut(u64) -> Duration {
    batches(
        |_| {
            let stack = stacks::Pooled::take();
            corosensei::Coroutine::<u64, u64, u64, _>::with_stack(stack, |yielder, n| yielder.suspend(n))
        },
        |coroutine, n| {
            black_box(coroutine.resume(n).as_yield().unwrap());
        },
        |mut coroutine| {
            coroutine.resume(0).as_return().unwrap();
        },
    )
}

/// Its stack is made with it, and its first page touched: that is not measured.
fn generator_first() -> impl FnMut(u64) -> Duration {
    batches(
        |n| {
            generator::Gn::<u64>::new_scoped(move |mut scope| {
                scope.yield_(n);
                n
            })
        },
        |generator, _| {
            black_box(generator.raw_send(None).unwrap());
        },
        |mut generator| {
            generator.raw_send(Some(0)).unwrap();
        },
    )
}

fn wasmtime_first() -> impl FnMut(u64) -> Duration {
    let free = Rc::new(RefCell::new(Vec::new()));
    let pool = Rc::clone(&free);
    batches(
        move |_| {
            let stack = pool.borrow_mut().pop();
            let stack = stack.unwrap_or_else(|| wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap());
            let body = |n, suspend: &mut wasmtime_fiber::Suspend<u64, u64, u64>| suspend.suspend(n);
            wasmtime_fiber::Fiber::<u64, u64, u64>::new(stack, body).unwrap()
        },
        |fiber, n| {
            black_box(fiber.resume(n).unwrap_err());
        },
        move |fiber| {
            fiber.resume(0).unwrap();
            free.borrow_mut().push(fiber.into_stack());
        },
    )
}

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

fn async_suspended() -> Boxed {
    Box::pin(async {
        let _local = Local;
        std::future::pending::<()>().await;
    })
}

fn async_first() -> impl FnMut(u64) -> Duration {
    batches(|_| async_suspended(), poll, drop)
}

fn poll(future: &mut Boxed, _: u64) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(black_box(future.as_mut().poll(&mut context)).is_pending());
}

// ---- killing ------------------------------------------------------------------------------------------

unsafe extern "C" fn raw_told(n: u64, data: *mut ()) -> ! {
    // SAFETY: as in `raw_once`.
    unsafe {
        let pair = data.cast::<Raw>();
        let local = Local;
        raw::switch(&raw mut (*pair).other, (*pair).main, n);
        drop(local);
        raw::switch(&raw mut (*pair).other, (*pair).main, n);
    }
    unreachable!("it was told to end")
}

/// The limit: a switch there, the destructor, and a switch back.
fn raw_kill() -> impl FnMut(u64) -> Duration {
    batches(
        |n| {
            let mut fresh = raw_fresh(raw_told);
            raw_switch(&mut fresh, n);
            fresh
        },
        raw_switch,
        |fresh| drop(fresh.stack),
    )
}

fn corosensei_kill() -> impl FnMut(u64) -> Duration {
    batches(
        |n| {
            let stack = stacks::Pooled::take();
            let mut coroutine = corosensei::Coroutine::<u64, u64, u64, _>::with_stack(stack, |yielder, n| {
                let _local = Local;
                yielder.suspend(n)
            });
            coroutine.resume(n).as_yield().unwrap();
            Some(coroutine)
        },
        |coroutine, _| drop(coroutine.take()),
        drop,
    )
}

/// By hand: what it is resumed with says that it is to end, and it returns that.
fn corosensei_told() -> impl FnMut(u64) -> Duration {
    type Told = Result<u64, greenlet_core::GreenletExit>;
    batches(
        |n| {
            let stack = stacks::Pooled::take();
            let mut coroutine =
                corosensei::Coroutine::<Told, u64, Told, _>::with_stack(stack, |yielder, n| {
                    let _local = Local;
                    yielder.suspend(n?)
                });
            coroutine.resume(Ok(n)).as_yield().unwrap();
            Some(coroutine)
        },
        |coroutine, _| {
            let exit = Err(greenlet_core::GreenletExit::new());
            let mut coroutine = coroutine.take().unwrap();
            let _ = black_box(coroutine.resume(exit).as_return().unwrap());
        },
        drop,
    )
}

fn generator_kill() -> impl FnMut(u64) -> Duration {
    batches(
        |n| {
            let mut generator = generator::Gn::<u64>::new_scoped(move |mut scope| {
                let _local = Local;
                scope.yield_(n);
                n
            });
            generator.raw_send(None).unwrap();
            Some(generator)
        },
        |generator, _| drop(generator.take()),
        drop,
    )
}

fn async_kill() -> impl FnMut(u64) -> Duration {
    batches(
        |n| {
            let mut future = async_suspended();
            poll(&mut future, n);
            Some(future)
        },
        |future, _| drop(future.take()),
        drop,
    )
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
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
        Group::new("first switch", 1)
            .add_timed("raw", raw_first)
            .add_timed("greenlet", asm::first_switch)
            .add_timed("greenlet (context)", fcontext::first_switch)
            .add_timed("corosensei", corosensei_first)
            .add_timed("generator", generator_first)
            .add_timed("wasmtime-fiber", wasmtime_first)
            .add_timed("native async", async_first),
        // wasmtime-fiber is absent: it has no way to end what is suspended.
        Group::new("kill of a suspended one", 1)
            .add_timed("raw (told to end)", raw_kill)
            .add_timed("greenlet", asm::kill)
            .add_timed("greenlet (context)", fcontext::kill)
            .add_timed("corosensei (unwinds)", corosensei_kill)
            .add_timed("corosensei (told to end)", corosensei_told)
            .add_timed("generator (unwinds)", generator_kill)
            .add_timed("native async", async_kill)
            .limit(60.0),
        // At most 1.5 times the row above.
        Group::new("kill of a suspended one, RUST_BACKTRACE=1", 1)
            .add_timed("greenlet", asm::kill)
            .add_timed("greenlet (context)", fcontext::kill)
            .limit(90.0)
            .with_backtraces(),
        Group::new("throw of an exit that ends one", 1)
            .add_timed("greenlet", asm::throw_exit)
            .add_timed("greenlet (context)", fcontext::throw_exit),
        Group::new("throw of an exit that ends one, RUST_BACKTRACE=1", 1)
            .add_timed("greenlet", asm::throw_exit)
            .add_timed("greenlet (context)", fcontext::throw_exit)
            .with_backtraces(),
    ]
}
