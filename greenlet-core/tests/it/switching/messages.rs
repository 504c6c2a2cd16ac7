//! What the errors of wrong types say: both greenlets, both places, and what to do.

use greenlet::{Generator, Greenlet, Tracer, Value, getcurrent, settrace, yield_};

use crate::support::up;

/// Creates a greenlet with a name.
fn named<A: 'static, R: 'static>(
    name: &str,
    function: impl FnOnce(A) -> anyhow::Result<R> + 'static,
) -> Greenlet {
    Greenlet::builder().name(name).build(function)
}

/// The place of a line of this file, as messages begin it.
fn line(line: u32) -> String {
    format!("{}:{line}:", file!())
}

#[track_caller]
fn assert_says(error: &anyhow::Error, parts: &[&str]) {
    let text = error.to_string();
    let mut rest = text.as_str();
    for part in parts {
        let Some(at) = rest.find(part) else {
            panic!("{part:?} is not in {rest:?}, the rest of {text:?}");
        };
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn a_mismatch_names_receiver_and_sender_and_both_places() {
    let asked = line!() + 2;
    let bob = named("bob", |(): ()| {
        let error = up::<&str>(()).unwrap_err();
        Ok(error.to_string())
    });
    bob.switch::<()>(()).unwrap();
    let target = bob.clone();
    let sent = line!() + 2;
    let ann = named("ann", move |(): ()| {
        target.switch::<()>(vec![7_u64]) // behind a pointer
    });
    let text = anyhow::anyhow!(ann.switch::<String>(()).unwrap());
    assert_says(
        &text,
        &[
            "greenlet 'bob' asked for a value of type `&str` at ",
            &line(asked),
            "but greenlet 'ann' sent a `alloc::vec::Vec<u64>` at ",
            &line(sent),
            "ask for `Value`",
        ],
    );
}

#[test]
fn a_value_in_a_word_has_a_sender_too() {
    let worker = named("worker", |(): ()| up::<()>(5_u8));
    assert_says(
        &worker.switch::<u64>(()).unwrap_err(),
        &[
            "the main greenlet asked",
            "`u64`",
            "but greenlet 'worker' sent a `u8` at ",
        ],
    );
}

#[test]
fn a_mismatch_says_that_the_sender_has_ended() {
    let expected = [
        "the main greenlet asked",
        "`u64`",
        "but greenlet 'worker' ended with a `u8`",
    ];
    assert_says(
        &named("worker", |(): ()| Ok(5_u8)).switch::<u64>(()).unwrap_err(),
        &expected,
    );
    // With its last handle dropped, and traced, it ends on the slow path.
    let slot = std::rc::Rc::new(std::cell::RefCell::new(None));
    let own = slot.clone();
    let unowned = named("worker", move |(): ()| {
        drop(own.take());
        Ok(5_u8)
    });
    slot.replace(Some(unowned.clone()));
    assert_says(
        &unowned.switch_owned::<u64>(()).unwrap_err(),
        &["asked for a value of type `u64`", "`u8`"],
    );
    settrace(Some(Tracer::new(|_| Ok(()))));
    let traced = named("worker", |(): ()| Ok(5_u8)).switch::<u64>(());
    settrace(None);
    assert_says(&traced.unwrap_err(), &expected);
}

#[test]
fn a_mismatch_after_a_backtrace_names_the_sender() {
    let bob = named("bob", |(): ()| Ok(up::<&str>(()).unwrap_err().to_string()));
    bob.switch::<()>(()).unwrap();
    assert!(bob.backtrace().is_ok());
    let text = bob.switch::<String>(1_u8).unwrap();
    assert!(text.contains("but the main greenlet sent a `u8` at "), "{text}");
}

#[test]
fn a_value_that_comes_back_from_a_dead_greenlet_says_so() {
    let worker = named("worker", |(): ()| Ok(()));
    worker.switch::<()>(()).unwrap();
    let (error, at) = (worker.switch::<u64>(5_u32).unwrap_err(), line!());
    let expected = [
        "greenlet 'worker' is dead, so the value came back to the caller at ",
        &line(at),
        "a `u32`, where a value of type `u64` was asked for",
    ];
    assert_says(&error, &expected);
    settrace(Some(Tracer::new(|_| Ok(()))));
    let traced = worker.switch::<u64>(5_u32);
    settrace(None);
    assert_says(&traced.unwrap_err(), &expected[..1]);
    assert_eq!(worker.switch::<u64>(5_u64).unwrap(), 5);
    assert_eq!(worker.switch::<u64>(Value::new(5_u64)).unwrap(), 5);
    assert!(worker.switch::<Value>(5_u8).unwrap().is::<u8>());
}

#[test]
fn a_value_sent_to_itself_says_so() {
    assert_says(
        &getcurrent().switch::<u64>(5_u32).unwrap_err(),
        &["the main greenlet ", "itself", "`u32`"],
    );
    let own = named("own", |(): ()| {
        Ok(getcurrent().switch::<u64>(5_u32).unwrap_err().to_string())
    });
    let text = own.switch::<String>(()).unwrap();
    assert!(
        text.starts_with("greenlet 'own' ") && text.contains("itself"),
        "{text}"
    );
}

#[test]
fn a_pending_greenlet_that_takes_another_type_says_that_it_is_still_pending() {
    let pending = named("pending", |text: String| Ok(text));
    let (error, at) = (pending.switch::<String>("text").unwrap_err(), line!());
    assert_says(
        &error,
        &[
            "greenlet 'pending' starts with a value of type `alloc::string::String`",
            "the main greenlet sent a `&str` at ",
            &line(at),
            "it is still pending (a text in quotes is a `&str`",
        ],
    );
}

#[test]
fn a_pending_parent_that_takes_another_type_says_what_the_child_left() {
    let parent = named("parent", |n: u32| Ok(n));
    let child = named("child", |(): ()| Ok("text"));
    child.set_parent(&parent).unwrap();
    assert_says(
        &child.switch::<u32>(()).unwrap_err(),
        &[
            "greenlet 'parent' starts with a value of type `u32`",
            "greenlet 'child' ended with a `&str`, so it ends",
        ],
    );
}

#[test]
fn a_literal_of_the_default_type_gets_a_hint() {
    let hint = "an integer without a suffix is an `i32`";
    let takes = || Greenlet::new(|n: u64| Ok(n));
    assert_says(&takes().switch::<u64>(1).unwrap_err(), &[hint]);
    assert!(
        !takes()
            .switch::<u64>(1_u8)
            .unwrap_err()
            .to_string()
            .contains("suffix")
    );
    let float = Greenlet::new(|n: f32| Ok(n)).switch::<f32>(1.0).unwrap_err();
    assert_says(&float, &["a number without a suffix is an `f64`"]);
}

#[test]
fn a_yield_of_another_type_names_both_types_and_the_generator() {
    let created = line!() + 1;
    let mut numbers = Generator::<u64>::new(|_| yield_(1));
    let error = numbers.next().unwrap().unwrap_err();
    assert_says(
        &error,
        &[
            "yield of a `i32`, but the nearest generator created at ",
            &line(created),
            "is of `u64`",
            "suffix",
        ],
    );
    let mut asks = Generator::<u64, String>::with_input(|_, _: String| yield_(1_u64));
    let error = asks.send("a".to_owned()).unwrap().unwrap_err();
    assert_says(
        &error,
        &["is of `u64`, and takes a `alloc::string::String` where this yield takes a `()`"],
    );
    assert_says(
        &yield_(1_u8).unwrap_err(),
        &["yield of a `u8` outside a generator"],
    );
}

#[test]
fn a_yielder_outside_its_function_names_the_generator() {
    let slot = std::rc::Rc::new(std::cell::RefCell::new(None));
    let out = slot.clone();
    let created = line!() + 1;
    let mut numbers = Generator::<u64>::new(move |yielder| {
        *out.borrow_mut() = Some(yielder.clone());
        yielder.yield_(1)
    });
    numbers.next().unwrap().unwrap();
    let error = slot.take().unwrap().yield_(2).unwrap_err();
    assert_says(
        &error,
        &[
            "yield outside the function of the generator created at ",
            &line(created),
        ],
    );
}
