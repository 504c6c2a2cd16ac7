//! The greenlet that polls a spawned function is ended, moved or dropped in the middle of the poll.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use greenlet::{
    Caught, Greenlet, GreenletExit, ParentError, SpawnResult, Tracer, end_suspended, getcurrent, getmain,
    greenlet_spawn, settrace, try_await_,
};

use crate::bridge::soundness::Shared;
use crate::bridge::{poll, ready};
use crate::support::{Drops, NoLeaks, catch_reports, take_reports};

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The function, or a greenlet below it, ends the greenlet that polls it. That is unwound at once, and
/// the function ends at its next wait.
#[test]
fn a_function_may_end_its_poller() {
    for below in [false, true] {
        let _no_leaks = NoLeaks::watch();
        catch_reports();
        let drops = Drops::new();
        let (function_drops, poller_drops) = (drops.clone(), drops.clone());
        let is_ended = Rc::new(Cell::new(None));
        let seen = is_ended.clone();
        let poller = Greenlet::new(move |(): ()| {
            let poller = getcurrent();
            let mut spawned = greenlet_spawn(move || {
                let _witness = function_drops.witness();
                let ends = {
                    let poller = poller.downgrade();
                    move || poller.upgrade().unwrap().end()
                };
                drop(poller);
                match below {
                    false => ends(),
                    // Ends this function, too, since it waits for nobody but the child.
                    true => {
                        let child = Greenlet::new(move |(): ()| {
                            ends();
                            Ok(())
                        });
                        drop(child.switch::<()>(()));
                    }
                }
                seen.set(Some(true));
                try_await_(pending::<()>()).unwrap_err()
            });
            let _witness = poller_drops.witness();
            assert!(poll_once(&mut spawned).is_pending());
            Ok("the poll returned")
        });
        let _ = poller.switch::<greenlet::Value>(()); // from the function, or from the poller
        assert_eq!(is_ended.get(), Some(true), "below: {below}");
        assert!(poller.is_dead());
        Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap(); // what waited runs now
        assert_eq!(drops.count(), 2);
        assert_eq!(take_reports(), [""; 0]);
    }
}

/// `throw` of an exit, or `kill`, at a greenlet that polls ends it, too. Another error is a stray
/// message, which the function gets.
#[test]
fn an_exit_that_is_thrown_at_a_poller_is_not_for_the_function() {
    let _no_leaks = NoLeaks::watch();
    catch_reports();
    let errors: Shared<String> = Rc::default();
    let got = errors.clone();
    let poller = Greenlet::new(move |(): ()| {
        let mut spawned = greenlet_spawn(move || {
            let error = getmain().switch::<()>(()).unwrap_err();
            got.replace(Some(error.to_string()));
        });
        poll_once(&mut spawned).is_ready();
        Ok("the poll returned")
    });
    poller.switch::<()>(()).unwrap(); // from the function
    let exit = poller
        .throw::<GreenletExit>(GreenletExit::with_reason("stop"))
        .unwrap();
    assert_eq!(exit.to_string(), "greenlet exit: stop");
    assert!(poller.is_dead());
    let error = errors.take().unwrap();
    assert!(error.contains("exit"), "the function was ended by: {error}");
    assert_eq!(take_reports(), [""; 0]);
}

/// A tracer runs in the greenlet that is being resumed, before the await has returned.
#[test]
fn a_tracer_that_polls_the_function_it_interrupts_gets_an_error() {
    for resumes in [(|function: &Greenlet| function.end()) as fn(&Greenlet), |_| {
        end_suspended().unwrap()
    }] {
        let _no_leaks = NoLeaks::watch();
        let mut spawned = greenlet_spawn(|| try_await_(pending::<()>()).unwrap_err()).into_result();
        assert!(poll(&mut spawned).is_pending());
        let place: Shared<SpawnResult<anyhow::Error>> = Rc::default();
        let greenlet = root_of(&spawned);
        place.replace(Some(spawned));
        let polled: Shared<Poll<anyhow::Result<anyhow::Error>>> = Rc::default();
        let (inside, result) = (place.clone(), polled.clone());
        let tracer = Tracer::new(move |_| {
            if let Some(mut spawned) = inside.take() {
                result.replace(Some(poll_once(&mut spawned)));
            }
            Ok(())
        });
        drop(settrace(Some(tracer)));
        resumes(&greenlet);
        drop(settrace(None));
        let error = ready(polled.take().expect("the tracer has run")).unwrap_err();
        assert!(error.is::<ParentError>(), "{error:#}");
        greenlet.end();
        assert!(greenlet.is_dead());
    }
}

fn root_of<T>(spawned: &SpawnResult<T>) -> Greenlet {
    let text = format!("{spawned:?}");
    greenlet::greenlets()
        .into_iter()
        .find(|greenlet| !greenlet.is_main() && text.contains(&format!("{greenlet:?}")))
        .expect("a spawn prints its greenlet")
}

/// The function moves its greenlet to main, and its poller below itself. Its next await cannot return
/// to the poller, which would run below a greenlet that waits.
#[test]
fn a_function_that_moves_its_poller_below_itself_cannot_wait() {
    for in_child in [false, true] {
        let _no_leaks = NoLeaks::watch();
        let outcome: Shared<anyhow::Error> = Rc::default();
        let result = outcome.clone();
        let poller = Greenlet::new(move |(): ()| {
            let poller = getcurrent();
            let mut spawned = greenlet_spawn(move || {
                let root = getcurrent();
                root.set_parent(&getmain()).unwrap();
                poller.set_parent(&root).unwrap();
                drop((poller, root));
                let wait = || try_await_(pending::<()>()).map_err(|_| anyhow::anyhow!("ended"));
                match in_child {
                    false => wait(),
                    true => Greenlet::new(move |(): ()| wait()).switch::<()>(()),
                }
            })
            .into_result();
            let Poll::Ready(Err(error)) = poll_once(&mut spawned) else {
                panic!("the poll waits below its own function");
            };
            result.replace(Some(error));
            drop(spawned);
            getcurrent().set_parent(&getmain()).map_err(anyhow::Error::from)
        });
        poller.switch::<()>(()).unwrap();
        let error = outcome.take().expect("the poll has returned");
        assert!(error.is::<ParentError>(), "{error:#}");
    }
}

/// The driver of a function that has ended keeps no poller.
#[test]
fn a_handle_of_the_function_does_not_keep_a_former_poller() {
    let _no_leaks = NoLeaks::watch();
    let kept: Rc<RefCell<Vec<Greenlet>>> = Rc::default();
    let functions: [fn(); 2] = [
        || std::panic::panic_any("a bug"),
        || getcurrent().parent().unwrap().end(), // the poller
    ];
    for function in functions {
        let keeps = kept.clone();
        let poller = Greenlet::new(move |(): ()| {
            let mut spawned = greenlet_spawn(function);
            keeps.borrow_mut().push(spawned.greenlet().clone());
            drop(greenlet::catch(|| poll_once(&mut spawned)));
            Ok(())
        });
        let weak = poller.downgrade();
        drop(poller.switch::<greenlet::Value>(()));
        drop(poller);
        getmain().switch::<()>(()).unwrap(); // runs what waits
        assert!(weak.upgrade().is_none(), "the poller is kept");
    }
    assert_eq!(kept.borrow().len(), 2);
}

/// A tracer awaits while the panic of another future is on its way to the greenlet that awaits it. Each
/// panic reaches its own greenlet.
#[test]
fn a_tracer_that_awaits_a_future_that_panics_does_not_take_the_panic_of_another_one() {
    fn fails(message: &'static str) -> impl Future<Output = ()> {
        std::future::poll_fn(move |_| std::panic::panic_any(message))
    }
    fn message(await_it: impl FnOnce()) -> &'static str {
        match greenlet::catch(await_it).unwrap_err() {
            Caught::Panic(payload) => payload.downcast_ref::<&str>().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    let _no_leaks = NoLeaks::watch();
    let mut spawned = greenlet_spawn(|| {
        let child = Greenlet::new(|(): ()| {
            let seen: Shared<&'static str> = Rc::default();
            let inside = seen.clone();
            let id = getcurrent().id();
            let tracer = Tracer::new(move |_| {
                if getcurrent().id() == id {
                    drop(settrace(None));
                    inside.replace(Some(message(|| greenlet::await_(fails("the tracer's")))));
                }
                Ok(())
            });
            drop(settrace(Some(tracer)));
            let own = message(|| greenlet::await_(fails("its own")));
            Ok((own, seen.take().unwrap()))
        });
        child.switch::<(&str, &str)>(()).unwrap()
    });
    assert_eq!(ready(poll(&mut spawned)), ("its own", "the tracer's"));
}
