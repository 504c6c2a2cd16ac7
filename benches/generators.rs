//! A generator through `Iterator`, for each value: two switches, or what takes their place. Two
//! groups measure the creation and the end as well.

use std::cell::Cell;
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet_benches::{Group, raw, stacks};

/// Takes values from an iterator that does not end. What is left suspended is leaked.
fn drain<I: Iterator<Item = u64>>(iterator: I) -> impl FnMut(u64) {
    let mut iterator = ManuallyDrop::new(iterator);
    move |values| {
        let mut sum = 0_u64;
        for _ in 0..values {
            sum = sum.wrapping_add(iterator.next().unwrap());
        }
        black_box(sum);
    }
}

fn ours() -> impl FnMut(u64) {
    let generator = greenlet::Generator::new(|out| {
        for n in 0..u64::MAX {
            out.yield_(n)?;
        }
        Ok(())
    });
    // An item is a `Result`.
    drain(generator.map(Result::unwrap))
}

/// The resume points of both sides.
struct Pair {
    main: raw::Resume,
    other: raw::Resume,
}

unsafe extern "C" fn count(_: u64, pair: *mut ()) -> ! {
    let pair = pair.cast::<Pair>();
    for n in 0..u64::MAX {
        // SAFETY: `raw` leaked the pair; main is suspended in `next`.
        unsafe { raw::switch(&raw mut (*pair).other, (*pair).main, n) };
    }
    unreachable!("nobody takes as many")
}

struct Raw(*mut Pair);

impl Iterator for Raw {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // SAFETY: the other is suspended.
        Some(unsafe { raw::switch(&raw mut (*self.0).main, (*self.0).other, 0) })
    }
}

fn raw() -> impl FnMut(u64) {
    let pair = Box::into_raw(Box::new(Pair {
        main: std::ptr::null_mut(),
        other: std::ptr::null_mut(),
    }));
    let base = stacks::map(1)[0];
    // SAFETY: a fresh stack.
    unsafe { (*pair).other = raw::prepare(base, count, pair.cast()) };
    drain(Raw(pair))
}

struct Corosensei(corosensei::Coroutine<(), u64, (), stacks::Pooled>);

impl Iterator for Corosensei {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.resume(()).as_yield()
    }
}

fn corosensei() -> impl FnMut(u64) {
    let coroutine = corosensei::Coroutine::with_stack(stacks::Pooled::take(), |yielder, ()| {
        for n in 0..u64::MAX {
            yielder.suspend(n);
        }
    });
    drain(Corosensei(coroutine))
}

/// It is an `Iterator` itself.
fn generator() -> impl FnMut(u64) {
    drain(generator::Gn::<()>::new_scoped(|mut scope| {
        for n in 0..u64::MAX {
            scope.yield_(n);
        }
        0
    }))
}

struct Wasmtime(wasmtime_fiber::Fiber<'static, (), u64, ()>);

impl Iterator for Wasmtime {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.resume(()).err()
    }
}

fn wasmtime() -> impl FnMut(u64) {
    let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
    let fiber = wasmtime_fiber::Fiber::new(stack, |(), suspend| {
        for n in 0..u64::MAX {
            suspend.suspend(n);
        }
    });
    drain(Wasmtime(fiber.unwrap()))
}

/// What a crate of generators over `async` does: a future leaves each value in a cell, and waits to
/// be polled again.
struct Async {
    future: Pin<Box<dyn Future<Output = ()>>>,
    slot: Rc<Cell<Option<u64>>>,
}

impl Iterator for Async {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut context = Context::from_waker(Waker::noop());
        match self.future.as_mut().poll(&mut context) {
            Poll::Pending => self.slot.take(),
            Poll::Ready(()) => None,
        }
    }
}

async fn hand_out(slot: &Cell<Option<u64>>, n: u64) {
    slot.set(Some(n));
    std::future::poll_fn(|_| match slot.get() {
        Some(_) => Poll::Pending,
        None => Poll::Ready(()),
    })
    .await;
}

fn native_async() -> impl FnMut(u64) {
    let slot = Rc::new(Cell::new(None));
    let shared = Rc::clone(&slot);
    let future = Box::pin(async move {
        for n in 0..u64::MAX {
            hand_out(&shared, n).await;
        }
    });
    drain(Async { future, slot })
}

/// Takes values of any type from an iterator that does not end. What is left suspended is leaked.
fn drain_of<T>(iterator: impl Iterator<Item = T>) -> impl FnMut(u64) {
    let mut iterator = ManuallyDrop::new(iterator);
    move |values| {
        for _ in 0..values {
            black_box(iterator.next().unwrap());
        }
    }
}

/// The contenders for values of another type than `u64`.
macro_rules! of_type {
    ($module:ident, $T:ty, $value:expr) => {
        mod $module {
            use super::*;

            pub(super) fn ours() -> impl FnMut(u64) {
                let generator = greenlet::Generator::<$T>::new(|out| {
                    for n in 0..u64::MAX {
                        out.yield_($value(n))?;
                    }
                    Ok(())
                });
                drain_of(generator.map(Result::unwrap))
            }

            struct Corosensei(corosensei::Coroutine<(), $T, (), stacks::Pooled>);

            impl Iterator for Corosensei {
                type Item = $T;

                fn next(&mut self) -> Option<$T> {
                    self.0.resume(()).as_yield()
                }
            }

            pub(super) fn corosensei() -> impl FnMut(u64) {
                let stack = stacks::Pooled::take();
                let coroutine = corosensei::Coroutine::with_stack(stack, |yielder, ()| {
                    for n in 0..u64::MAX {
                        yielder.suspend($value(n));
                    }
                });
                drain_of(Corosensei(coroutine))
            }

            pub(super) fn genawaiter() -> impl FnMut(u64) {
                let generator = genawaiter::rc::Gen::new(|co| async move {
                    for n in 0..u64::MAX {
                        co.yield_($value(n)).await;
                    }
                });
                drain_of(generator.into_iter())
            }
        }
    };
}

of_type!(words, [u64; 3], |n: u64| [n, n, n]);
of_type!(text, &'static str, |n: u64| ["even", "odd"][n as usize % 2]);

fn genawaiter() -> impl FnMut(u64) {
    let generator = genawaiter::rc::Gen::new(|co| async move {
        for n in 0..u64::MAX {
            co.yield_(n).await;
        }
    });
    drain(generator.into_iter())
}

/// Takes one value from each of many generators, and then the end if it `ends`.
fn one_value<I: Iterator<Item = u64>>(make: fn(u64) -> I, ends: bool) -> impl FnMut(u64) {
    move |generators| {
        for n in 0..generators {
            let mut generator = make(n);
            black_box(generator.next().unwrap());
            if ends {
                assert!(generator.next().is_none());
            }
        }
    }
}

fn one_of_ours(n: u64) -> impl Iterator<Item = u64> {
    greenlet::Generator::new(move |out| {
        out.yield_(n)?;
        Ok(())
    })
    .map(Result::unwrap)
}

fn one_of_corosensei(n: u64) -> impl Iterator<Item = u64> {
    let stack = stacks::Pooled::take();
    Corosensei(corosensei::Coroutine::with_stack(stack, move |yielder, ()| {
        yielder.suspend(n);
    }))
}

fn one_of_genawaiter(n: u64) -> impl Iterator<Item = u64> {
    genawaiter::rc::Gen::new(move |co| async move { co.yield_(n).await }).into_iter()
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("generator, per value", 1)
            .add("raw", raw)
            .add("greenlet", ours)
            .add("corosensei", corosensei)
            .add("generator", generator)
            .add("wasmtime-fiber", wasmtime)
            .add("native async", native_async)
            .add("genawaiter", genawaiter)
            .goal("corosensei", 1.2),
        Group::new("generator, per &str", 1)
            .add("greenlet", text::ours)
            .add("corosensei", text::corosensei)
            .add("genawaiter", text::genawaiter),
        Group::new("generator, per three words", 1)
            .add("greenlet", words::ours)
            .add("corosensei", words::corosensei)
            .add("genawaiter", words::genawaiter)
            .goal("corosensei", 1.0),
        Group::new("generator: create, one value, end", 1)
            .add("greenlet", || one_value(one_of_ours, true))
            .add("corosensei", || one_value(one_of_corosensei, true))
            .add("genawaiter", || one_value(one_of_genawaiter, true))
            .goal("corosensei", 0.4),
        Group::new("generator: create, one value, drop", 1)
            .add("greenlet", || one_value(one_of_ours, false))
            .add("corosensei", || one_value(one_of_corosensei, false))
            .add("genawaiter", || one_value(one_of_genawaiter, false))
            .goal("corosensei", 0.05),
    ]
}
