//! A generator, for each value: two switches, or what takes their place. Two groups measure the
//! creation and the end as well.
//!
//! Each contender is a closure, called in one place. An adapter of an iterator, such as `map`, may be
//! compiled once for all its users: then its `next` is a call, which the others do not have.

use std::cell::Cell;
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet_benches::{Group, raw, stacks};

/// Takes values without end. What is left suspended is leaked.
fn drain(next: impl FnMut() -> u64) -> impl FnMut(u64) {
    let mut next = ManuallyDrop::new(next);
    move |values| {
        let mut sum = 0_u64;
        for _ in 0..values {
            sum = sum.wrapping_add(next());
        }
        black_box(sum);
    }
}

fn ours() -> impl FnMut(u64) {
    let mut generator = greenlet::Generator::new(|out| {
        for n in 0..u64::MAX {
            out.yield_(n)?;
        }
        Ok(())
    });
    // An item is a `Result`.
    drain(move || generator.next().unwrap().unwrap())
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

fn raw() -> impl FnMut(u64) {
    let pair = Box::into_raw(Box::new(Pair {
        main: std::ptr::null_mut(),
        other: std::ptr::null_mut(),
    }));
    let base = stacks::map(1)[0];
    // SAFETY: a fresh stack.
    unsafe { (*pair).other = raw::prepare(base, count, pair.cast()) };
    // SAFETY: the other is suspended.
    drain(move || unsafe { raw::switch(&raw mut (*pair).main, (*pair).other, 0) })
}

fn corosensei() -> impl FnMut(u64) {
    let mut coroutine = corosensei::Coroutine::with_stack(stacks::Pooled::take(), |yielder, ()| {
        for n in 0..u64::MAX {
            yielder.suspend(n);
        }
    });
    drain(move || coroutine.resume(()).as_yield().unwrap())
}

/// It is an `Iterator` itself.
fn generator() -> impl FnMut(u64) {
    let mut generator = generator::Gn::<()>::new_scoped(|mut scope| {
        for n in 0..u64::MAX {
            scope.yield_(n);
        }
        0
    });
    drain(move || generator.next().unwrap())
}

fn wasmtime() -> impl FnMut(u64) {
    let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
    let fiber = wasmtime_fiber::Fiber::new(stack, |(), suspend| {
        for n in 0..u64::MAX {
            suspend.suspend(n);
        }
    });
    let fiber = fiber.unwrap();
    drain(move || fiber.resume(()).unwrap_err())
}

async fn hand_out(slot: &Cell<Option<u64>>, n: u64) {
    slot.set(Some(n));
    std::future::poll_fn(|_| match slot.get() {
        Some(_) => Poll::Pending,
        None => Poll::Ready(()),
    })
    .await;
}

/// Does what a crate of generators over `async` does: a future leaves each value in a cell, and waits
/// to be polled again.
fn native_async() -> impl FnMut(u64) {
    let slot = Rc::new(Cell::new(None));
    let shared = Rc::clone(&slot);
    let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        for n in 0..u64::MAX {
            hand_out(&shared, n).await;
        }
    });
    drain(move || {
        let mut context = Context::from_waker(Waker::noop());
        match future.as_mut().poll(&mut context) {
            Poll::Pending => slot.take().unwrap(),
            Poll::Ready(()) => unreachable!("it does not end"),
        }
    })
}

/// Takes values of any type without end. What is left suspended is leaked.
fn drain_of<T>(next: impl FnMut() -> T) -> impl FnMut(u64) {
    let mut next = ManuallyDrop::new(next);
    move |values| {
        for _ in 0..values {
            black_box(next());
        }
    }
}

/// The contenders for values of another type than `u64`.
macro_rules! of_type {
    ($module:ident, $T:ty, $value:expr) => {
        mod $module {
            use super::*;

            pub(super) fn ours() -> impl FnMut(u64) {
                let mut generator = greenlet::Generator::<$T>::new(|out| {
                    for n in 0..u64::MAX {
                        out.yield_($value(n))?;
                    }
                    Ok(())
                });
                drain_of(move || generator.next().unwrap().unwrap())
            }

            pub(super) fn corosensei() -> impl FnMut(u64) {
                let stack = stacks::Pooled::take();
                let mut coroutine = corosensei::Coroutine::with_stack(stack, |yielder, ()| {
                    for n in 0..u64::MAX {
                        yielder.suspend($value(n));
                    }
                });
                drain_of(move || coroutine.resume(()).as_yield().unwrap())
            }

            pub(super) fn genawaiter() -> impl FnMut(u64) {
                let generator = genawaiter::rc::Gen::new(|co| async move {
                    for n in 0..u64::MAX {
                        co.yield_($value(n)).await;
                    }
                });
                let mut values = generator.into_iter();
                drain_of(move || values.next().unwrap())
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
    let mut values = generator.into_iter();
    drain(move || values.next().unwrap())
}

/// Takes all values of each of many generators.
fn all_values<N: FnMut() -> Option<u64>>(make: impl Fn(u64) -> N) -> impl FnMut(u64) {
    move |generators| {
        for n in 0..generators {
            let mut next = make(n);
            while let Some(value) = next() {
                black_box(value);
            }
        }
    }
}

/// Takes the first value of each of many generators, and drops them.
fn first_value<N: FnMut() -> Option<u64>>(make: impl Fn(u64) -> N) -> impl FnMut(u64) {
    move |generators| {
        for n in 0..generators {
            let mut next = make(n);
            black_box(next().unwrap());
        }
    }
}

fn one_of_ours(n: u64) -> impl FnMut() -> Option<u64> {
    let mut generator = greenlet::Generator::new(move |out| {
        out.yield_(n)?;
        Ok(())
    });
    move || generator.next().map(Result::unwrap)
}

fn one_of_corosensei(n: u64) -> impl FnMut() -> Option<u64> {
    let stack = stacks::Pooled::take();
    let mut coroutine = corosensei::Coroutine::<(), u64, (), _>::with_stack(stack, move |yielder, ()| {
        yielder.suspend(n);
    });
    move || coroutine.resume(()).as_yield()
}

fn one_of_genawaiter(n: u64) -> impl FnMut() -> Option<u64> {
    let mut values = genawaiter::rc::Gen::new(move |co| async move { co.yield_(n).await }).into_iter();
    move || values.next()
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
            .add("greenlet", || all_values(one_of_ours))
            .add("corosensei", || all_values(one_of_corosensei))
            .add("genawaiter", || all_values(one_of_genawaiter))
            .goal("corosensei", 0.4),
        Group::new("generator: create, one value, drop", 1)
            .add("greenlet", || first_value(one_of_ours))
            .add("corosensei", || first_value(one_of_corosensei))
            .add("genawaiter", || first_value(one_of_genawaiter))
            .goal("corosensei", 0.05),
    ]
}
