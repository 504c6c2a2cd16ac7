//! A switch carries one typed value, unchanged.

use std::rc::Rc;

use greenlet::{Greenlet, GreenletExit, Tracer, TypeMismatch, Value, WeakGreenlet, getcurrent, settrace};

use crate::support::{Drops, Log, NoLeaks, up};

// VP-1, VP-2, VP-3
#[test]
fn a_value_arrives_as_it_was_sent() {
    let _no_leaks = NoLeaks::watch();
    let echo = Greenlet::new(|mut value: Value| {
        while !value.is::<GreenletExit>() {
            value = up(value)?;
        }
        Ok(value)
    });
    // No value is `()`; a single value is sent as it is; several values are a tuple.
    echo.switch::<()>(()).unwrap();
    assert_eq!(echo.switch::<Option<u8>>(None::<u8>).unwrap(), None);
    assert_eq!(echo.switch::<i32>(5).unwrap(), 5);
    assert_eq!(echo.switch::<(i32,)>((5,)).unwrap(), (5,));
    assert_eq!(echo.switch::<(i32, &str)>((5, "x")).unwrap(), (5, "x"));
    assert_eq!(echo.switch::<[u64; 40]>([7_u64; 40]).unwrap(), [7; 40]);
    // A `Value` is not wrapped twice.
    assert_eq!(echo.switch::<i32>(Value::new(Value::new(6))).unwrap(), 6);
    echo.switch::<GreenletExit>(GreenletExit::new()).unwrap();
    // A `Value` also starts a greenlet that takes the type inside it.
    let takes_number = Greenlet::new(|number: i32| Ok(Value::new(number + 1)));
    assert_eq!(takes_number.switch::<i32>(Value::new(7)).unwrap(), 8);
}

// VP-4, VP-5
#[test]
fn struct_fields_replace_keyword_arguments() {
    let _no_leaks = NoLeaks::watch();
    struct Order {
        what: &'static str,
        count: u32,
    }
    let child = Greenlet::new(|order: Order| {
        let again: Order = up(order.count)?;
        Ok(format!("{} {}", again.what, again.count))
    });
    assert_eq!(
        child
            .switch::<u32>(Order {
                what: "tea",
                count: 2
            })
            .unwrap(),
        2
    );
    let text: String = child
        .switch(Order {
            what: "milk",
            count: 1,
        })
        .unwrap();
    assert_eq!(text, "milk 1");
}

// VP-6
#[test]
fn a_start_with_another_type_is_refused_to_the_sender() {
    let _no_leaks = NoLeaks::watch();
    let child = Greenlet::new(|pair: (i32, i32)| Ok(pair.0 + pair.1));
    let error = child
        .switch::<i32>(1)
        .unwrap_err()
        .downcast::<TypeMismatch>()
        .unwrap();
    assert_eq!((error.expected(), error.found()), ("(i32, i32)", "i32"));
    assert_eq!(error.into_value().unwrap().downcast::<i32>().unwrap(), 1);
    assert_eq!(child.switch::<i32>((1, 2)).unwrap(), 3, "it was still pending");
}

// VP-2
#[test]
fn a_receiver_that_asks_for_another_type_gets_an_error_with_the_value() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let child = Greenlet::new(|(): ()| {
        let error = up::<u8>(()).unwrap_err().downcast::<TypeMismatch>()?;
        assert_eq!(error.expected(), "u8");
        Ok(error.into_value().unwrap())
    });
    child.switch::<()>(()).unwrap();
    let back: crate::support::Witness = child.switch(drops.witness()).unwrap();
    assert_eq!(drops.count(), 0, "it travelled there and back");
    drop(back);
    assert_eq!(drops.count(), 1);
}

// VP-7
#[test]
fn a_result_arrives_as_it_was_returned() {
    let _no_leaks = NoLeaks::watch();
    fn result_of<R: 'static>(result: impl Fn() -> R + 'static) -> R {
        Greenlet::new(move |(): ()| Ok(result())).switch(()).unwrap()
    }
    result_of(|| ());
    assert_eq!(result_of(|| None::<i32>), None);
    assert_eq!(result_of(|| (1,)), (1,));
    assert_eq!(result_of(|| (1, "two")), (1, "two"));
    assert!(result_of(|| Value::new(3)).is::<i32>());
    // A returned error that is not inside an `Err` is a value.
    let inner: Result<i32, String> = result_of(|| Err("just a value".to_owned()));
    assert_eq!(inner.unwrap_err(), "just a value");
}

// VP-8
#[test]
fn user_code_during_a_switch_cannot_overwrite_the_sent_value() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let busy = Greenlet::new(|mut value: &'static str| {
        loop {
            value = up(value)?;
        }
        #[expect(unreachable_code)]
        Ok(())
    });
    // At each transfer the tracer switches to `busy` and back. `busy` sends values of its own.
    let (traced, busy_inside) = (log.clone(), busy.clone());
    let in_tracer = Rc::new(std::cell::Cell::new(false));
    settrace(Some(Tracer::new(move |event| {
        if event.target.is_main() || in_tracer.replace(true) {
            return Ok(());
        }
        busy_inside.set_parent(&getcurrent())?;
        traced.add(busy_inside.switch::<&str>("from the tracer")?);
        busy_inside.set_parent(&event.origin)?;
        in_tracer.set(false);
        Ok(())
    })));
    let inside = log.clone();
    let child = Greenlet::new(move |first: &str| {
        inside.add(first);
        let second: &str = up("to main")?;
        inside.add(second);
        Ok("result")
    });
    log.add(child.switch::<&str>("first").unwrap());
    log.add(child.switch::<&str>("second").unwrap());
    settrace(None);
    assert_eq!(
        log.take(),
        [
            "from the tracer",
            "first",
            "to main",
            "from the tracer",
            "second",
            "result"
        ]
    );
}

// VP-8
#[test]
fn a_value_survives_the_end_of_its_sender() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let inside = log.clone();
    let main = getcurrent();
    let receiver = Greenlet::new(|value: Rc<str>| up::<()>(value));
    let sender = Greenlet::new(move |child: WeakGreenlet| {
        // That was the last handle of the running greenlet. It is ended when control leaves it, in
        // the context of the receiver.
        child.upgrade().unwrap().set_parent(&main)?;
        let ended = receiver.switch::<()>(Rc::<str>::from("sent"));
        inside.add("sender ends");
        ended
    });
    let weak = sender.downgrade();
    let child = Greenlet::builder()
        .parent(&sender)
        .build(|(): ()| Ok(getcurrent().downgrade()));
    drop(sender);
    let got: Rc<str> = child.switch(()).unwrap();
    log.add(&*got);
    assert_eq!(log.take(), ["sender ends", "sent"]);
    assert!(weak.upgrade().is_none());
}
