//! Rings: each member switches to the next one. One hop; everything is warm, as far as the caches
//! reach.
//!
//! Ours and the raw ring hop directly. corosensei cannot: its ring is a trampoline, a loop that
//! resumes one after the other, on pooled stacks, which is as good as it gets.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet_benches::{Group, raw, stacks};

macro_rules! ours {
    ($module:ident, $core:ident) => {
        mod $module {
            use super::*;
            use $core::{Greenlet, getparent};

            pub(super) fn ring(members: usize) -> impl FnMut(u64) {
                let ring: Rc<RefCell<Vec<Greenlet>>> = Rc::default();
                for index in 0..members {
                    let handles = Rc::clone(&ring);
                    let greenlet = Greenlet::new(move |mut n: u64| {
                        let next = handles.borrow().get(index + 1).cloned();
                        drop(handles);
                        let next = next.or_else(getparent).unwrap();
                        loop {
                            n = next.switch::<u64>(n + 1)?;
                        }
                        #[allow(unreachable_code)]
                        Ok(n)
                    });
                    ring.borrow_mut().push(greenlet);
                }
                let mut n = 0;
                move |laps| {
                    let first = ring.borrow()[0].clone();
                    for _ in 0..laps {
                        n = first.switch::<u64>(n).unwrap();
                    }
                }
            }
        }
    };
}

ours!(asm, greenlet_core);
ours!(fcontext, greenlet_core_fcontext);

/// One member of a raw ring. The last one's next is the first member of all: main.
struct Member {
    resume: Cell<raw::Resume>,
    next: Cell<*const Member>,
}

unsafe extern "C" fn member(mut n: u64, me: *mut ()) -> ! {
    // SAFETY: `raw_ring` leaked all members.
    let me = unsafe { &*me.cast::<Member>() };
    // SAFETY: as above.
    let next = unsafe { &*me.next.get() };
    loop {
        // SAFETY: the next one is suspended.
        n = unsafe { raw::switch(me.resume.as_ptr(), next.resume.get(), n + 1) };
    }
}

fn raw_ring(stacks: Vec<*mut u8>) -> impl FnMut(u64) {
    let members = stacks.len();
    let ring: &'static [Member] = (0..=members)
        .map(|_| Member {
            resume: Cell::new(std::ptr::null_mut()),
            next: Cell::new(std::ptr::null()),
        })
        .collect::<Vec<Member>>()
        .leak();
    for (index, base) in stacks.into_iter().enumerate() {
        let me = &ring[index + 1];
        me.next.set(&raw const ring[(index + 2) % (members + 1)]);
        let data = (&raw const *me).cast_mut().cast();
        // SAFETY: a fresh stack.
        me.resume.set(unsafe { raw::prepare(base, member, data) });
    }
    let mut n = 0;
    move |laps| {
        for _ in 0..laps {
            // SAFETY: the first member is suspended.
            n = unsafe { raw::switch(ring[0].resume.as_ptr(), ring[1].resume.get(), n) };
        }
    }
}

/// A `for` loop over the members: two switches a hop.
fn corosensei_ring(stacks: Vec<stacks::Pooled>) -> impl FnMut(u64) {
    let mut ring: Vec<_> = stacks
        .into_iter()
        .map(|stack| {
            let coroutine = corosensei::Coroutine::<u64, u64, (), _>::with_stack(stack, |yielder, mut n| {
                loop {
                    n = yielder.suspend(n + 1);
                }
            });
            std::mem::ManuallyDrop::new(coroutine)
        })
        .collect();
    let mut n = 0;
    move |laps| {
        for _ in 0..laps {
            for coroutine in &mut ring {
                n = coroutine.resume(n).as_yield().unwrap();
            }
        }
    }
}

fn pooled(members: usize) -> Vec<stacks::Pooled> {
    (0..members).map(|_| stacks::Pooled::take()).collect()
}

/// The members say who is next, as ours do: the trampoline's loop does not know it before one has
/// come back.
fn corosensei_told(members: usize) -> impl FnMut(u64) {
    let mut ring: Vec<_> = pooled(members)
        .into_iter()
        .enumerate()
        .map(|(index, stack)| {
            let coroutine = corosensei::Coroutine::<u64, (u64, usize), (), _>::with_stack(
                stack,
                move |yielder, mut n| {
                    loop {
                        n = yielder.suspend((n + 1, black_box(index + 1)));
                    }
                },
            );
            std::mem::ManuallyDrop::new(coroutine)
        })
        .collect();
    let mut n = 0;
    move |laps| {
        for _ in 0..laps {
            let mut next = 0;
            while let Some(coroutine) = ring.get_mut(next) {
                (n, next) = coroutine.resume(n).as_yield().unwrap();
            }
        }
    }
}

fn generator_ring(members: usize) -> impl FnMut(u64) {
    let mut ring: Vec<_> = (0..members)
        .map(|_| {
            let mut generator = generator::Gn::<u64>::new_scoped(|mut scope| {
                let mut n = 0;
                loop {
                    n = scope.yield_(n + 1).unwrap();
                }
                #[allow(unreachable_code)]
                n
            });
            generator.raw_send(None);
            std::mem::ManuallyDrop::new(generator)
        })
        .collect();
    let mut n = 0;
    move |laps| {
        for _ in 0..laps {
            for generator in &mut ring {
                n = generator.send(n);
            }
        }
    }
}

fn wasmtime_ring(members: usize) -> impl FnMut(u64) {
    let ring: Vec<_> = (0..members)
        .map(|_| {
            let stack = wasmtime_fiber::FiberStack::new(64 << 10, false).unwrap();
            let fiber = wasmtime_fiber::Fiber::<u64, u64, ()>::new(stack, |mut n, suspend| {
                loop {
                    n = suspend.suspend(n + 1);
                }
            });
            std::mem::ManuallyDrop::new(fiber.unwrap())
        })
        .collect();
    let mut n = 0;
    move |laps| {
        for _ in 0..laps {
            for fiber in &ring {
                n = fiber.resume(n).unwrap_err();
            }
        }
    }
}

async fn async_member(cell: Rc<Cell<u64>>) {
    loop {
        let mut is_first = true;
        std::future::poll_fn(|_| match std::mem::take(&mut is_first) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        cell.set(cell.get() + 1);
    }
}

fn async_ring(members: usize) -> impl FnMut(u64) {
    let cell = Rc::new(Cell::new(0));
    let mut ring: Vec<_> = (0..members)
        .map(|_| Box::pin(async_member(Rc::clone(&cell))))
        .collect();
    move |laps| {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..laps {
            for future in &mut ring {
                let _ = future.as_mut().poll(&mut context);
            }
        }
    }
}

pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("ring of 1,000", 1_000)
            .add("raw", || raw_ring(stacks::map(1_000)))
            .add("raw (staggered)", || raw_ring(stacks::map_staggered(1_000)))
            .add("greenlet", || asm::ring(1_000))
            .add("greenlet (context)", || fcontext::ring(1_000))
            .add("corosensei", || corosensei_ring(pooled(1_000)))
            .add("corosensei (staggered)", || {
                corosensei_ring(stacks::Pooled::staggered(1_000))
            })
            .add("corosensei (told who is next)", || corosensei_told(1_000))
            .add("generator", || generator_ring(1_000))
            .add("wasmtime-fiber", || wasmtime_ring(1_000))
            .add("native async", || async_ring(1_000))
            .goal("corosensei", 0.8),
        Group::new("ring of 10,000", 10_000)
            .add("raw", || raw_ring(stacks::map(10_000)))
            .add("raw (staggered)", || raw_ring(stacks::map_staggered(10_000)))
            .add("greenlet", || asm::ring(10_000))
            .add("greenlet (context)", || fcontext::ring(10_000))
            .add("corosensei", || corosensei_ring(pooled(10_000)))
            .add("corosensei (staggered)", || {
                corosensei_ring(stacks::Pooled::staggered(10_000))
            })
            .add("corosensei (told who is next)", || corosensei_told(10_000))
            .add("generator", || generator_ring(10_000))
            .add("wasmtime-fiber", || wasmtime_ring(10_000))
            .add("native async", || async_ring(10_000))
            .goal("corosensei", 0.8),
        // The stacks of generator and wasmtime-fiber are two mappings each: those end at the
        // kernel's limit.
        Group::new("ring of 100,000", 100_000)
            .add("raw", || raw_ring(stacks::map(100_000)))
            .add("raw (staggered)", || raw_ring(stacks::map_staggered(100_000)))
            .add("greenlet", || asm::ring(100_000))
            .add("greenlet (context)", || fcontext::ring(100_000))
            .add("corosensei", || corosensei_ring(pooled(100_000)))
            .add("corosensei (staggered)", || {
                corosensei_ring(stacks::Pooled::staggered(100_000))
            })
            .add("corosensei (told who is next)", || corosensei_told(100_000))
            .add("native async", || async_ring(100_000))
            .goal("corosensei", 0.5),
    ]
}
