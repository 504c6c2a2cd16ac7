//! Switches between two greenlets: of a `u64`, 50 frames deep, of an error, and with a tracer.
//!
//! One way; a round trip is two. Making the greenlets is not measured. What goes to and fro is a
//! local variable of each: one that a closure has captured would be stored each time by some and
//! not by others.

use std::cell::Cell;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet_benches::{Group, deep, raw, stacks};

/// The contenders that are this library, once for each backend.
macro_rules! ours {
    ($module:ident, $core:ident) => {
        pub(crate) mod $module {
            use super::*;
            use $core::{Greenlet, GreenletExit, TraceEvent, Tracer, getparent, settrace};

            pub(crate) fn ping_pong() -> impl FnMut(u64) {
                let greenlet = Greenlet::new(|mut n: u64| {
                    let main = getparent().unwrap();
                    loop {
                        n = main.switch::<u64>(n + 1)?;
                    }
                    #[allow(unreachable_code)]
                    Ok(n)
                });
                let mut n = 0;
                move |round_trips| {
                    let mut value = n;
                    for _ in 0..round_trips {
                        value = greenlet.switch::<u64>(black_box(value)).unwrap();
                    }
                    n = value;
                }
            }

            pub(crate) fn deep_ping_pong() -> impl FnMut(u64) {
                let greenlet = Greenlet::new(|n: u64| {
                    let main = getparent().unwrap();
                    deep(&mut || -> anyhow::Result<u64> {
                        let mut value = n;
                        loop {
                            value = main.switch::<u64>(value + 1)?;
                        }
                    })
                });
                let mut n = 0;
                move |round_trips| {
                    deep(&mut || {
                        let mut value = n;
                        for _ in 0..round_trips {
                            value = greenlet.switch::<u64>(black_box(value)).unwrap();
                        }
                        n = value;
                    });
                }
            }

            pub(crate) fn throw() -> impl FnMut(u64) {
                let greenlet = Greenlet::new(|_: u64| {
                    let main = getparent().unwrap();
                    loop {
                        let thrown = main.switch::<u64>(1_u64);
                        assert!(black_box(thrown).is_err());
                    }
                    #[allow(unreachable_code)]
                    Ok(0_u64)
                });
                greenlet.switch::<u64>(0_u64).unwrap();
                move |round_trips| {
                    for _ in 0..round_trips {
                        black_box(greenlet.throw::<u64>(GreenletExit::new()).unwrap());
                    }
                }
            }

            pub(crate) fn traced() -> impl FnMut(u64) {
                let seen = Rc::new(Cell::new(0_u64));
                let tracer = Tracer::new(move |event: &TraceEvent| {
                    seen.set(seen.get() + event.origin.id());
                    Ok(())
                });
                let mut run = ping_pong();
                move |round_trips| {
                    let before = settrace(Some(tracer.clone()));
                    run(round_trips);
                    settrace(before);
                }
            }
        }
    };
}

ours!(asm, greenlet_core);
ours!(fcontext, greenlet_core_fcontext);

/// The two resume points of a raw pair.
struct Pair {
    main: Cell<raw::Resume>,
    other: Cell<raw::Resume>,
}

unsafe extern "C" fn echo(mut n: u64, pair: *mut ()) -> ! {
    // SAFETY: `raw_ping_pong` leaked it.
    let pair = unsafe { &*pair.cast::<Pair>() };
    loop {
        // SAFETY: main is suspended.
        n = unsafe { raw::switch(pair.other.as_ptr(), pair.main.get(), n + 1) };
    }
}

unsafe extern "C" fn deep_echo(n: u64, pair: *mut ()) -> ! {
    // SAFETY: `raw_ping_pong` leaked it.
    let pair = unsafe { &*pair.cast::<Pair>() };
    deep(&mut || {
        let mut value = n;
        loop {
            // SAFETY: main is suspended.
            value = unsafe { raw::switch(pair.other.as_ptr(), pair.main.get(), value + 1) };
        }
    })
}

fn raw_pair(entry: raw::Entry) -> &'static Pair {
    let pair: &Pair = Box::leak(Box::new(Pair {
        main: Cell::new(std::ptr::null_mut()),
        other: Cell::new(std::ptr::null_mut()),
    }));
    let base = stacks::map(1)[0];
    let data = (&raw const *pair).cast_mut().cast();
    // SAFETY: a fresh stack.
    pair.other.set(unsafe { raw::prepare(base, entry, data) });
    pair
}

pub(crate) fn raw_ping_pong() -> impl FnMut(u64) {
    let pair = raw_pair(echo);
    let mut n = 0;
    move |round_trips| {
        let mut value = n;
        for _ in 0..round_trips {
            // SAFETY: the other is suspended.
            value = unsafe { raw::switch(pair.main.as_ptr(), pair.other.get(), black_box(value)) };
        }
        n = value;
    }
}

fn raw_deep() -> impl FnMut(u64) {
    let pair = raw_pair(deep_echo);
    let mut n = 0;
    move |round_trips| {
        deep(&mut || {
            let mut value = n;
            for _ in 0..round_trips {
                // SAFETY: the other is suspended.
                value = unsafe { raw::switch(pair.main.as_ptr(), pair.other.get(), black_box(value)) };
            }
            n = value;
        });
    }
}

/// What is suspended in the middle of a loop when a benchmark is over is left there.
struct Leaked<T>(std::mem::ManuallyDrop<T>);

pub(crate) fn corosensei_ping_pong() -> impl FnMut(u64) {
    let coroutine =
        corosensei::Coroutine::<u64, u64, (), _>::with_stack(stacks::Pooled::take(), |yielder, mut n| {
            loop {
                n = yielder.suspend(n + 1);
            }
        });
    let mut coroutine = Leaked(std::mem::ManuallyDrop::new(coroutine));
    let mut n = 0;
    move |round_trips| {
        let mut value = n;
        for _ in 0..round_trips {
            value = coroutine.0.resume(black_box(value)).as_yield().unwrap();
        }
        n = value;
    }
}

fn corosensei_deep() -> impl FnMut(u64) {
    let coroutine =
        corosensei::Coroutine::<u64, u64, (), _>::with_stack(stacks::Pooled::take(), |yielder, n| {
            deep(&mut || {
                let mut value = n;
                loop {
                    value = yielder.suspend(value + 1);
                }
            })
        });
    let mut coroutine = Leaked(std::mem::ManuallyDrop::new(coroutine));
    let mut n = 0;
    move |round_trips| {
        deep(&mut || {
            let mut value = n;
            for _ in 0..round_trips {
                value = coroutine.0.resume(black_box(value)).as_yield().unwrap();
            }
            n = value;
        });
    }
}

/// It has no throw: what its users would write, with the same kind of error.
fn corosensei_throw() -> impl FnMut(u64) {
    let coroutine = corosensei::Coroutine::<anyhow::Result<u64>, u64, (), _>::with_stack(
        stacks::Pooled::take(),
        |yielder, _| {
            loop {
                let thrown = yielder.suspend(1);
                assert!(black_box(thrown).is_err());
            }
        },
    );
    let mut coroutine = Leaked(std::mem::ManuallyDrop::new(coroutine));
    coroutine.0.resume(Ok(0)).as_yield().unwrap();
    move |round_trips| {
        for _ in 0..round_trips {
            let error = anyhow::Error::new(greenlet_core::GreenletExit::new());
            black_box(coroutine.0.resume(Err(error)).as_yield().unwrap());
        }
    }
}

fn generator_ping_pong() -> impl FnMut(u64) {
    let generator = generator::Gn::<u64>::new_scoped(|mut scope| {
        let mut n = 0;
        loop {
            n = scope.yield_(n + 1).unwrap();
        }
        #[allow(unreachable_code)]
        n
    });
    let mut generator = Leaked(std::mem::ManuallyDrop::new(generator));
    generator.0.raw_send(None);
    let mut n = 0;
    move |round_trips| {
        let mut value = n;
        for _ in 0..round_trips {
            value = generator.0.send(black_box(value));
        }
        n = value;
    }
}

fn generator_deep() -> impl FnMut(u64) {
    let generator = generator::Gn::<u64>::new_scoped(|mut scope| {
        let n = 0;
        deep(&mut || {
            let mut value = n;
            loop {
                value = scope.yield_(value + 1).unwrap();
            }
        })
    });
    let mut generator = Leaked(std::mem::ManuallyDrop::new(generator));
    generator.0.raw_send(None);
    let mut n = 0;
    move |round_trips| {
        deep(&mut || {
            let mut value = n;
            for _ in 0..round_trips {
                value = generator.0.send(black_box(value));
            }
            n = value;
        });
    }
}

fn wasmtime_ping_pong() -> impl FnMut(u64) {
    let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
    let fiber = wasmtime_fiber::Fiber::<u64, u64, ()>::new(stack, |mut n, suspend| {
        loop {
            n = suspend.suspend(n + 1);
        }
    });
    let fiber = Leaked(std::mem::ManuallyDrop::new(fiber.unwrap()));
    let mut n = 0;
    move |round_trips| {
        let mut value = n;
        for _ in 0..round_trips {
            value = fiber.0.resume(black_box(value)).unwrap_err();
        }
        n = value;
    }
}

fn wasmtime_deep() -> impl FnMut(u64) {
    let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
    let fiber = wasmtime_fiber::Fiber::<u64, u64, ()>::new(stack, |n, suspend| {
        deep(&mut || {
            let mut value = n;
            loop {
                value = suspend.suspend(value + 1);
            }
        })
    });
    let fiber = Leaked(std::mem::ManuallyDrop::new(fiber.unwrap()));
    let mut n = 0;
    move |round_trips| {
        deep(&mut || {
            let mut value = n;
            for _ in 0..round_trips {
                value = fiber.0.resume(black_box(value)).unwrap_err();
            }
            n = value;
        });
    }
}

/// Waits to be polled once more.
async fn once_more() {
    let mut is_first = true;
    std::future::poll_fn(|_| match std::mem::take(&mut is_first) {
        true => Poll::Pending,
        false => Poll::Ready(()),
    })
    .await;
}

async fn async_echo(cell: Rc<Cell<u64>>) {
    loop {
        once_more().await;
        cell.set(cell.get() + 1);
    }
}

fn async_nested(left: u32, cell: Rc<Cell<u64>>) -> Pin<Box<dyn Future<Output = ()>>> {
    if left == 0 {
        return Box::pin(async_echo(cell));
    }
    Box::pin(async move { async_nested(left - 1, cell).await })
}

fn async_ping_pong(depth: u32) -> impl FnMut(u64) {
    let cell = Rc::new(Cell::new(0));
    let mut future = async_nested(depth, Rc::clone(&cell));
    move |round_trips| {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..round_trips {
            cell.set(black_box(cell.get()));
            let _ = future.as_mut().poll(&mut context);
        }
    }
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("ping-pong", 2)
            .add("raw", raw_ping_pong)
            .add("greenlet", asm::ping_pong)
            .add("greenlet (context)", fcontext::ping_pong)
            .add("corosensei", corosensei_ping_pong)
            .add("generator", generator_ping_pong)
            .add("wasmtime-fiber", wasmtime_ping_pong)
            .add("native async", || async_ping_pong(0))
            .goal("raw", 1.25)
            .goal("corosensei", 1.0),
        Group::new("ping-pong, 50 frames deep", 2)
            .add("raw", raw_deep)
            .add("greenlet", asm::deep_ping_pong)
            .add("greenlet (context)", fcontext::deep_ping_pong)
            .add("corosensei", corosensei_deep)
            .add("generator", generator_deep)
            .add("wasmtime-fiber", wasmtime_deep)
            .add("native async", || async_ping_pong(50))
            .goal("corosensei", 1.0),
        Group::new("throw there and switch back", 1)
            .add("greenlet", asm::throw)
            .add("greenlet (context)", fcontext::throw)
            .add("corosensei (an error as value)", corosensei_throw),
        Group::new("ping-pong with a tracer", 2)
            .add("greenlet", asm::traced)
            .add("greenlet (context)", fcontext::traced),
    ]
}
