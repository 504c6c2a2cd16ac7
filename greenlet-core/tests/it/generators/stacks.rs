//! The stacks of generators: when they are released, how large they are, what a backtrace shows.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use anyhow::Result;

use super::{all, count};
use crate::support::{Drops, NoLeaks, up};
use greenlet::{Generator, Greenlet, StackError, Yielder, getcurrent, getmain, stacks_in_use};

#[test]
fn a_forgotten_generator_keeps_its_stack() {
    let before = stacks_in_use();
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::new(move |out| {
        let _witness = witness;
        out.yield_(1)
    });
    generator.next().unwrap().unwrap();
    std::mem::forget(generator);
    assert_eq!((drops.count(), stacks_in_use()), (0, before + 1));
    // Other generators are not affected.
    assert_eq!(all(count(3)), [1, 2, 3]);
}

#[test]
fn a_stack_is_released_after_the_function_and_its_last_yielder() {
    let _no_leaks = NoLeaks::watch();
    let before = stacks_in_use();
    for _ in 0..1000 {
        let mut generator = count(1);
        generator.next().unwrap().unwrap();
    }
    assert_eq!(stacks_in_use(), before);
    let kept = Rc::new(RefCell::new(None));
    let keeps = kept.clone();
    let mut generator = Generator::<u32>::new(move |out| {
        keeps.replace(Some(out));
        Ok(())
    });
    assert_eq!(stacks_in_use(), before + 1);
    assert!(generator.next().is_none());
    assert_eq!(stacks_in_use(), before + 1, "there is a yielder");
    kept.take();
    assert_eq!(stacks_in_use(), before);
}

#[test]
fn finished_generators_have_no_stacks() {
    let _no_leaks = NoLeaks::watch();
    let before = stacks_in_use();
    let ended: Vec<Generator<u32>> = (0..100)
        .map(|_| count(0))
        .inspect(|generator| assert!(generator.resume(()).is_none()))
        .collect();
    assert_eq!(stacks_in_use(), before);
    drop(ended);
}

#[test]
fn without_a_stack_the_first_step_is_an_error() {
    let drops = Drops::new();
    let witness = drops.witness();
    let mut generator = Generator::builder().stack_size(1).build(move |out| {
        let _witness = &witness;
        out.yield_(1)
    });
    assert_eq!(drops.count(), 1);
    assert!(!generator.is_finished());
    assert!(generator.next().unwrap().unwrap_err().is::<StackError>());
    assert!(generator.is_finished());
    assert!(generator.next().is_none());
}

#[test]
fn the_builder_sets_the_name_and_the_stack_size() {
    let generator = Generator::builder().name("numbers").stack_size(64 << 10);
    let generator = generator.build(|out: Yielder<u32>| {
        let usage = getcurrent().stack_usage().unwrap();
        assert!(usage.size == 64 << 10 && usage.used < usage.size, "{usage:?}");
        out.yield_(1)
    });
    let text = format!("{generator:?}");
    assert!(text.contains("numbers") && text.contains(file!()), "{text}");
    let inside = Greenlet::new(move |(): ()| Ok(all(generator)));
    assert_eq!(inside.switch::<Vec<u32>>(()).unwrap(), [1]);
}

#[test]
fn stack_usage_is_that_of_the_stack_where_the_greenlet_is_suspended() {
    let greenlet = Greenlet::builder().stack_size(512 << 10).build(|(): ()| {
        let generator = Generator::builder().stack_size(128 << 10).build(|out| {
            let deep = black_box([1_u8; 5000]);
            up::<()>(())?;
            black_box(deep);
            out.yield_(1)
        });
        generator.resume(()).unwrap()?;
        up::<()>(())
    });
    greenlet.switch::<()>(()).unwrap();
    let usage = greenlet.stack_usage().unwrap();
    assert_eq!(usage.size, 128 << 10);
    // AddressSanitizer moves `deep` to its fake stack.
    let deep = if cfg!(feature = "asan") { 0 } else { 5000 };
    assert!(usage.used > deep && usage.used < usage.size, "{usage:?}");
    greenlet.switch::<()>(()).unwrap();
    assert_eq!(greenlet.stack_usage().unwrap().size, 512 << 10);
    assert_eq!(getmain().stack_usage(), None);
}

#[inline(never)]
fn waits_in_the_function() -> Result<()> {
    black_box(up::<()>(()))
}

#[inline(never)]
fn steps_once(generator: &Generator<u32>) -> Result<u32> {
    black_box(generator.resume(()).unwrap())
}

#[test]
fn a_backtrace_includes_the_function_of_a_generator() {
    let greenlet = Greenlet::new(|(): ()| {
        let generator = Generator::new(|out| {
            waits_in_the_function()?;
            out.yield_(1)
        });
        steps_once(&generator)
    });
    greenlet.switch::<()>(()).unwrap();
    let text = greenlet.backtrace().unwrap().to_string();
    assert!(text.contains("waits_in_the_function"), "{text}");
    if greenlet::BACKEND == "asm" {
        assert!(text.contains("steps_once"), "{text}");
    }
    assert_eq!(greenlet.switch::<u32>(()).unwrap(), 1);
}

/// The check looks at the free part of the generator's stack, in the main greenlet too.
#[test]
fn a_backtrace_of_a_full_stack_is_refused() {
    /// Calls itself until too little stack is left.
    fn descend(other: &Greenlet) -> bool {
        let frame = black_box([1_u8; 512]);
        let is_refused = other.switch::<bool>(getmain()).unwrap() || descend(other);
        black_box(frame);
        is_refused
    }
    let other = Greenlet::new(|main: Greenlet| -> Result<()> {
        loop {
            main.switch::<Greenlet>(main.backtrace().is_err())?;
        }
    });
    let generator = Generator::builder()
        .stack_size(64 << 10)
        .build(move |out| out.yield_(descend(&other)));
    assert!(getmain().backtrace().is_ok());
    assert!(generator.resume(()).unwrap().unwrap());
}

#[test]
#[cfg(not(feature = "fcontext"))]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    ignore = "the frames end at the first one there"
)]
fn a_captured_backtrace_continues_into_the_consumer() {
    #[inline(never)]
    fn captures() -> String {
        black_box(std::backtrace::Backtrace::force_capture()).to_string()
    }
    let generator = Generator::new(|out| out.yield_(captures()));
    #[inline(never)]
    fn asks(generator: &Generator<String>) -> String {
        black_box(generator.resume(()).unwrap().unwrap())
    }
    let consumer = Greenlet::new(move |(): ()| Ok((asks(&generator), generator)));
    let (text, generator) = consumer.switch::<(String, Generator<String>)>(()).unwrap();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in\n{text}"));
    assert!(place("captures") < place("asks"), "{text}");
    drop(generator);
}
