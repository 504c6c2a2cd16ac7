//! Refused steps and yields: re-entry, `no_switch` sections, unwinding.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use anyhow::{Result, anyhow};

use super::{YieldsLate, all, count, is_kind};
use crate::support::{Log, NoLeaks, on_drop};
use greenlet::{
    Generator, GeneratorError, GreenletExit, SwitchForbidden, Unwinding, Yielder, no_switch, stacks_in_use,
};

fn cyclic<Y: 'static>(
    function: impl FnOnce(Yielder<Y>, Rc<Generator<Y>>) -> Result<()> + 'static,
) -> Rc<Generator<Y>> {
    Rc::new_cyclic(|weak: &std::rc::Weak<Generator<Y>>| {
        let weak = weak.clone();
        Generator::new(move |out| {
            let itself = weak.upgrade().unwrap();
            function(out, itself)
        })
    })
}

#[test]
fn a_function_cannot_step_its_own_generator() {
    let generator = cyclic(|out, itself| {
        let errors = [
            itself.resume(()).unwrap().map(drop).unwrap_err(),
            itself.throw(anyhow!("thrown")).unwrap().map(drop).unwrap_err(),
            itself.close().unwrap_err(),
        ];
        assert!(errors.iter().all(|error| is_kind(error, GeneratorError::is_busy)));
        assert!(!itself.is_finished());
        drop(itself);
        out.yield_(1)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert!(generator.resume(()).is_none());
}

#[test]
fn a_function_may_drop_a_handle_of_its_own_generator() {
    let _no_leaks = NoLeaks::watch();
    let generator = cyclic(|out, itself| {
        drop(itself);
        out.yield_(1)?;
        out.yield_(2)
    });
    assert_eq!(generator.resume(()).unwrap().unwrap(), 1);
    assert_eq!(generator.resume(()).unwrap().unwrap(), 2);
    drop(generator);
}

#[test]
fn a_generator_held_by_its_own_function_is_leaked() {
    let before = stacks_in_use();
    let generator = cyclic(|out, itself| {
        out.yield_(1)?;
        drop(itself);
        Ok(())
    });
    generator.resume(()).unwrap().unwrap();
    drop(generator); // leaks a cycle of `Rc`s
    assert_eq!(stacks_in_use(), before + 1);
}

// GN-14
#[test]
fn a_step_in_a_no_switch_section_is_allowed() {
    let mut generator = count(2);
    assert_eq!(no_switch(|| generator.next()).unwrap().unwrap(), 1);
    assert_eq!(generator.next().unwrap().unwrap(), 2);
    assert!(no_switch(|| generator.next()).is_none());
}

// GN-14
#[test]
fn a_yield_out_of_a_no_switch_section_is_refused() {
    let generator = Generator::new(|out| {
        for _ in 0..2 {
            let refused = no_switch(|| out.yield_(String::from("back"))).unwrap_err();
            let value = refused
                .downcast::<SwitchForbidden>()
                .unwrap()
                .into_value()
                .unwrap();
            assert_eq!(value.downcast::<String>().unwrap(), "back");
            let refused = no_switch(|| {
                no_switch(|| ()); // the outer section continues
                no_switch(|| out.yield_("nested".into())).is_err() && out.yield_("outer".into()).is_err()
            });
            assert!(refused);
        }
        out.yield_("yielded".into())
    });
    assert_eq!(no_switch(|| all(generator)), ["yielded"]);
}

// GN-14: the section may be in the outer function, and the yield in an inner one.
#[test]
fn a_yield_over_two_levels_out_of_a_no_switch_section_is_refused() {
    let outer = Generator::new(|outer| {
        let passed_on = outer.clone();
        let inner = Generator::new(move |inner| {
            assert!(passed_on.yield_(1).unwrap_err().is::<SwitchForbidden>());
            inner.yield_(2)
        });
        let item = no_switch(|| inner.resume(())).unwrap()?;
        outer.yield_(item)
    });
    assert_eq!(no_switch(|| all(outer)), [2]);
}

// GN-14
#[test]
fn a_step_while_a_panic_unwinds_is_refused_and_changes_nothing() {
    let generator = Rc::new(Generator::with_input(|out, mut text: String| {
        loop {
            let length = text.len();
            text = out.yield_(length)?;
            if length == 0 {
                return Ok(());
            }
        }
    }));
    let late = generator.clone();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _late = on_drop(move || {
            let error = late.resume("back".into()).unwrap().unwrap_err();
            let value = error.downcast::<Unwinding>().unwrap().into_value().unwrap();
            assert_eq!(value.downcast::<String>().unwrap(), "back");
            let error = late.throw(anyhow!("thrown")).unwrap().unwrap_err();
            assert!(error.is::<Unwinding>());
        });
        resume_unwind(Box::new(()));
    }));
    assert_eq!(generator.resume("four".into()).unwrap().unwrap(), 4);
}

// GN-14
#[test]
fn a_yield_while_the_function_unwinds_is_refused() {
    let log = Log::new();
    let seen = log.clone();
    let mut generator = Generator::new(move |out| {
        let _late = YieldsLate { out, log: seen };
        resume_unwind(Box::new(()))
    });
    catch_unwind(AssertUnwindSafe(|| generator.next().map(drop))).unwrap_err();
    assert_eq!(log.take(), ["unwinding"]);
    let _: &Generator<u32> = &generator;
}

// GN-14
#[test]
fn a_yield_in_a_destructor_during_close_succeeds() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let seen = log.clone();
    let generator = Generator::<u32>::new(move |out| {
        let late = YieldsLate {
            out: out.clone(),
            log: seen,
        };
        out.yield_(1)?;
        drop(late);
        Ok(())
    });
    generator.resume(()).unwrap().unwrap();
    let error = generator.close().unwrap_err();
    assert!(is_kind(&error, GeneratorError::is_exit_ignored));
    assert!(generator.resume(()).unwrap().unwrap_err().is::<GreenletExit>());
    assert_eq!(log.take(), ["yielded"]);
}
