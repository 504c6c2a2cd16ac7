//! The cases. A case that waits for a time asserts only what holds under every load.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use greenlet::GreenletExit;
use greenlet_toolkit::{AsyncResult, Event, Failed, Kit, Queue, Semaphore, Task, TimedOut, Timeout};

use crate::{LONG, SHORT, World};

/// A log that tasks share.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    fn add(&self, line: impl ToString) {
        self.0.borrow_mut().push(line.to_string());
    }

    fn lines(&self) -> String {
        self.0.borrow().join(" ")
    }

    #[track_caller]
    fn expect(&self, lines: &str) -> Result<()> {
        let place = std::panic::Location::caller();
        ensure!(
            self.lines() == lines,
            "{place}: {:?}, and not {lines:?}",
            self.lines()
        );
        Ok(())
    }
}

fn pause(kit: &Kit) -> Result<()> {
    kit.sleep(Duration::ZERO)
}

// ---- test__event.py: Event ---------------------------------------------------------------------------

/// `TestEvent.test_event`, AbstractGenericWaitTestCase.test_returns_none_after_timeout's opposite.
pub(crate) fn event_wait_returns_when_it_is_set(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let set = event.clone();
    world.task("waits", move |_| {
        let _: () = ensure!(event.wait(None)?);
        Ok(())
    });
    world.task("sets", move |_| {
        set.set();
        Ok(())
    });
    world.run()
}

/// `TestEventWait.test_returns_false_after_timeout` in meaning: `wait` of an event that nobody sets.
pub(crate) fn event_wait_with_a_timeout_returns_false(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    world.task("waits", move |kit| {
        let start = kit.now();
        ensure!(!event.wait(Some(SHORT))?);
        ensure!(kit.now() - start >= SHORT);
        Ok(())
    });
    world.run()
}

/// `TestEvent_SetThenClear`, `lock_tests.EventTests.test_notify`: all waiters are woken.
pub(crate) fn event_set_wakes_all_waiters(world: &World) -> Result<()> {
    let (event, woken) = (Event::new(&world.kit), Rc::new(Cell::new(0)));
    for name in ["a", "b", "c"] {
        let (event, woken) = (event.clone(), woken.clone());
        world.task(name, move |_| {
            ensure!(event.wait(None)?);
            woken.set(woken.get() + 1);
            Ok(())
        });
    }
    world.task("sets", move |_| {
        let _: () = event.set();
        Ok(())
    });
    world.run()?;
    ensure!(woken.get() == 3);
    Ok(())
}

/// `TestWait_notready`'s opposite, `TestEvent.test_wait_twice`: a set event lets all pass.
pub(crate) fn event_that_is_set_does_not_wait(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    event.set();
    world.task("passes", move |_| {
        let _: () = ensure!(event.wait(None)? && event.wait(None)?);
        Ok(())
    });
    world.run()
}

/// `TestEvent_SetThenClear.test`: a waiter wakes although the event is cleared at once.
pub(crate) fn event_set_and_clear_wakes_those_that_waited(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let (waits, log) = (event.clone(), Log::default());
    let (seen, is_waiting) = (log.clone(), Event::new(&world.kit));
    let tell = is_waiting.clone();
    world.task("waits", move |_| {
        tell.set();
        seen.add(waits.wait(None)?);
        Ok(())
    });
    world.task("sets", move |_| {
        is_waiting.wait(None)?;
        event.set();
        event.clear();
        Ok(())
    });
    world.run()?;
    log.expect("true")
}

/// `lock_tests.EventTests.test_reset_internal_locks` in meaning: set, clear, wait again.
pub(crate) fn event_is_reusable(world: &World) -> Result<()> {
    let (there, back) = (Event::new(&world.kit), Event::new(&world.kit));
    let (log, seen) = (Log::default(), (there.clone(), back.clone()));
    let lines = log.clone();
    world.task("a", move |_| {
        for n in 0..3 {
            there.wait(None)?;
            there.clear();
            lines.add(n);
            back.set();
        }
        Ok(())
    });
    world.task("b", move |_| {
        for _ in 0..3 {
            seen.0.set();
            seen.1.wait(None)?;
            seen.1.clear();
        }
        Ok(())
    });
    world.run()?;
    log.expect("0 1 2")
}

// ---- test__event.py: AsyncResult ---------------------------------------------------------------------

/// `TestAsyncResult.test_set` with several getters.
pub(crate) fn result_set_reaches_all_getters(world: &World) -> Result<()> {
    let result = AsyncResult::new(&world.kit);
    for name in ["a", "b"] {
        let result = result.clone();
        world.task(name, move |_| {
            let _: () = ensure!(result.get(None)? == Some(42));
            Ok(())
        });
    }
    world.task("sets", move |_| {
        let _: () = result.set(42);
        Ok(())
    });
    world.run()
}

/// `TestAsyncResult.test_nonblocking_get`, after the value was set.
pub(crate) fn result_set_before_get_returns_at_once(world: &World) -> Result<()> {
    let result = AsyncResult::new(&world.kit);
    ensure!(!result.is_ready() && !result.is_successful());
    result.set("value");
    ensure!(result.is_ready() && result.is_successful());
    world.task("gets", move |_| {
        let _: () = ensure!(result.get(Some(Duration::ZERO))? == Some("value"));
        Ok(())
    });
    world.run()
}

/// `TestAsyncResult.test_set_exception`.
pub(crate) fn result_error_reaches_the_getter(world: &World) -> Result<()> {
    let result = AsyncResult::<i32>::new(&world.kit);
    let fails = result.clone();
    world.task("gets", move |_| {
        let error = result.get(None).unwrap_err();
        let failed = error.downcast_ref::<Failed>().ok_or(anyhow!("no Failed"))?;
        ensure!(failed.error().is::<std::fmt::Error>() && !result.is_successful());
        Ok(())
    });
    world.task("fails", move |_| {
        fails.set_error(std::fmt::Error);
        Ok(())
    });
    world.run()
}

/// `TestAsyncResult.test_wait_timeout` in meaning; gevent raises `Timeout`.
pub(crate) fn result_get_with_a_timeout_returns_nothing(world: &World) -> Result<()> {
    let result = AsyncResult::<i32>::new(&world.kit);
    world.task("gets", move |_| {
        let _: () = ensure!(result.get(Some(SHORT))?.is_none());
        Ok(())
    });
    world.run()
}

/// `TestAsyncResultAsLinkTarget.test_set` in meaning: a task that ends sets the result.
pub(crate) fn result_of_a_task_is_linked(world: &World) -> Result<()> {
    let result = AsyncResult::new(&world.kit);
    let (linked, source) = (result.clone(), world.kit.spawn("source", || Ok(7)));
    world.task("link", move |_| {
        match source.get(None)? {
            Some(value) => linked.set(value),
            None => bail!("no value"),
        }
        Ok(())
    });
    world.task("gets", move |_| {
        let _: () = ensure!(result.get(None)? == Some(7));
        Ok(())
    });
    world.run()
}

// ---- test__queue.py ----------------------------------------------------------------------------------

/// `TestQueue.test_send_first`.
pub(crate) fn queue_passes_items_in_order(world: &World) -> Result<()> {
    let (queue, log) = (Queue::new(&world.kit), Log::default());
    let (put, lines) = (queue.clone(), log.clone());
    world.task("puts", move |_| {
        (0..4).try_for_each(|n| put.put(n, None).map(drop))
    });
    world.task("gets", move |_| {
        for _ in 0..4 {
            lines.add(queue.get(None)?.unwrap());
        }
        Ok(())
    });
    world.run()?;
    log.expect("0 1 2 3")
}

/// `TestQueue.test_send_last`: the getter waits first.
pub(crate) fn queue_get_waits_for_an_item(world: &World) -> Result<()> {
    let queue = Queue::new(&world.kit);
    let put = queue.clone();
    world.task("gets", move |_| {
        let _: () = ensure!(queue.get(None)? == Some("item"));
        Ok(())
    });
    world.task("puts", move |kit| {
        pause(kit)?;
        put.put("item", None).map(drop)
    });
    world.run()
}

/// `TestQueue.test_max_size`: a put waits until there is room.
pub(crate) fn queue_put_waits_for_room(world: &World) -> Result<()> {
    let (queue, log) = (Queue::bounded(&world.kit, 2), Log::default());
    let (put, lines) = (queue.clone(), log.clone());
    world.task("puts", move |_| {
        for n in 0..4 {
            put.put(n, None)?;
            ensure!(put.len() <= 2);
            lines.add(format!("put{n}"));
        }
        Ok(())
    });
    let lines = log.clone();
    world.task("gets", move |kit| {
        kit.sleep(SHORT)?; // the queue is full
        lines.add("full");
        ensure!(queue.is_full());
        for n in 0..4 {
            ensure!(queue.get(None)? == Some(n));
        }
        Ok(())
    });
    world.run()?;
    ensure!(log.lines().starts_with("put0 put1 full put2"), "{}", log.lines());
    Ok(())
}

/// `TestQueue.test_max_size`: one get makes room for one put, which returns without another get.
pub(crate) fn queue_get_lets_a_put_return(world: &World) -> Result<()> {
    let queue = Queue::bounded(&world.kit, 1);
    ensure!(queue.try_put(1).is_ok());
    let put = queue.clone();
    let puts = world.kit.spawn("puts", move || put.put(2, None));
    world.task("gets", move |kit| {
        pause(kit)?;
        ensure!(queue.get(None)? == Some(1));
        ensure!(puts.get(None)? == Some(None) && queue.len() == 1);
        ensure!(queue.try_get() == Some(2));
        Ok(())
    });
    world.run()
}

/// `TestPutInterrupt` in meaning: a put that gave up leaves nothing behind for the next get.
pub(crate) fn queue_put_that_gave_up_leaves_the_list(world: &World) -> Result<()> {
    let channel = Queue::bounded(&world.kit, 0);
    let (first, second) = (channel.clone(), channel.clone());
    let gives_up = world.kit.spawn("gives up", move || first.put(1, Some(SHORT)));
    world.task("puts", move |_| {
        ensure!(gives_up.get(None)? == Some(Some(1)));
        ensure!(second.put(2, None)?.is_none());
        Ok(())
    });
    world.task("gets", move |kit| {
        kit.sleep(SHORT * 20)?; // the first put has given up
        ensure!(channel.get(None)? == Some(2));
        Ok(())
    });
    world.run()
}

/// `TestQueue.test_waiters_that_cancel`: a getter that gave up does not get the next item.
pub(crate) fn queue_get_with_a_timeout_leaves_the_list(world: &World) -> Result<()> {
    let queue = Queue::new(&world.kit);
    let put = queue.clone();
    world.task("gives up", move |_| {
        ensure!(queue.get(Some(SHORT))?.is_none());
        put.put("hi", None)?;
        ensure!(queue.get(None)? == Some("hi"));
        Ok(())
    });
    world.run()
}

/// `TestPutInterrupt`, `TestNoWait.test_put_nowait_unlock` in meaning: `Full` after a timeout.
pub(crate) fn queue_put_with_a_timeout_returns_the_item(world: &World) -> Result<()> {
    let queue = Queue::bounded(&world.kit, 1);
    world.task("puts", move |_| {
        ensure!(queue.put(1, None)?.is_none());
        ensure!(queue.put(2, Some(SHORT))? == Some(2));
        ensure!(queue.try_get() == Some(1) && queue.is_empty());
        Ok(())
    });
    world.run()
}

/// `TestQueue.test_multiple_waiters`: each item goes to one getter.
pub(crate) fn queue_gives_each_item_to_one_getter(world: &World) -> Result<()> {
    let (queue, sum) = (Queue::new(&world.kit), Rc::new(Cell::new(0)));
    for name in ["a", "b"] {
        let (queue, sum) = (queue.clone(), sum.clone());
        world.task(name, move |_| {
            let item: i32 = queue.get(None)?.unwrap();
            sum.set(sum.get() + item);
            Ok(())
        });
    }
    world.task("puts", move |_| {
        [1, 10].into_iter().try_for_each(|n| queue.put(n, None).map(drop))
    });
    world.run()?;
    ensure!(sum.get() == 11);
    Ok(())
}

/// `TestNoWait.test_put_nowait_simple`.
pub(crate) fn queue_senders_that_do_not_wait_are_refused(world: &World) -> Result<()> {
    let queue = Queue::bounded(&world.kit, 1);
    world.task("puts", move |_| {
        ensure!(queue.try_get().is_none());
        ensure!(queue.try_put(1).is_ok() && queue.try_put(2) == Err(2));
        ensure!(queue.try_get() == Some(1) && queue.try_get().is_none());
        Ok(())
    });
    world.run()
}

/// `TestQueue.test_two_bogus_waiters`: those that gave up are skipped, the others are served in order.
pub(crate) fn queue_getters_are_served_in_order(world: &World) -> Result<()> {
    let (queue, came, served) = (Queue::new(&world.kit), Log::default(), Log::default());
    for name in ["a", "b", "c"] {
        let (queue, came, served) = (queue.clone(), came.clone(), served.clone());
        world.task(name, move |_| {
            if name == "b" {
                ensure!(queue.get(Some(SHORT))?.is_none());
                return Ok(());
            }
            came.add(name);
            let nth: i32 = queue.get(None)?.unwrap();
            served.add(format!("{nth}{name}"));
            Ok(())
        });
    }
    world.task("puts", move |kit| {
        kit.sleep(SHORT * 5)?;
        (0..2).try_for_each(|n| queue.put(n, None).map(drop))
    });
    world.run()?;
    let came = came.lines();
    let expected: Vec<String> = came
        .split(' ')
        .enumerate()
        .map(|(nth, name)| format!("{nth}{name}"))
        .collect();
    let mut served: Vec<String> = served.lines().split(' ').map(str::to_owned).collect();
    served.sort();
    ensure!(served == expected, "{served:?}");
    Ok(())
}

/// `TestChannel.test_send`: a put returns when a get has come.
pub(crate) fn channel_put_waits_for_a_get(world: &World) -> Result<()> {
    let (channel, log) = (Queue::bounded(&world.kit, 0), Log::default());
    let (put, lines) = (channel.clone(), log.clone());
    world.task("puts", move |_| {
        lines.add("puts");
        put.put("hello", None)?;
        lines.add("has put");
        Ok(())
    });
    let lines = log.clone();
    world.task("gets", move |kit| {
        kit.sleep(SHORT)?;
        lines.add("gets");
        ensure!(channel.get(None)? == Some("hello"));
        Ok(())
    });
    world.run()?;
    log.expect("puts gets has put")
}

/// Not gevent's: there the item may be lost.
pub(crate) fn queue_item_of_a_killed_getter_is_not_lost(world: &World) -> Result<()> {
    let queue = Queue::new(&world.kit);
    let get = queue.clone();
    let victim = world.kit.spawn("victim", move || get.get(None));
    world.task("puts and kills", move |kit| {
        pause(kit)?;
        queue.put("item", None)?;
        victim.kill()?;
        // It had ended before, or the item is here.
        ensure!(victim.get(None).is_ok() || queue.try_get() == Some("item"));
        Ok(())
    });
    world.run()
}

// ---- test__semaphore.py ------------------------------------------------------------------------------

/// `TestSemaphore.test_acquire_returns_false_after_timeout`.
pub(crate) fn semaphore_acquire_with_a_timeout_returns_false(world: &World) -> Result<()> {
    let semaphore = Semaphore::new(&world.kit, 0);
    world.task("waits", move |_| {
        ensure!(!semaphore.acquire(Some(SHORT))?);
        ensure!(semaphore.waiting() == 0 && !semaphore.try_acquire());
        Ok(())
    });
    world.run()
}

/// `TestSemaphoreFair`, `TestSemaphoreMultiThread` in meaning: first come, first served.
pub(crate) fn semaphore_release_hands_over_in_order(world: &World) -> Result<()> {
    let (semaphore, came, served) = (Semaphore::new(&world.kit, 1), Log::default(), Log::default());
    for name in ["a", "b", "c"] {
        let (semaphore, came, served) = (semaphore.clone(), came.clone(), served.clone());
        world.task(name, move |kit| {
            came.add(name);
            semaphore.acquire(None)?;
            served.add(name);
            pause(kit)?;
            semaphore.release()
        });
    }
    world.run()?;
    served.expect(&came.lines())
}

/// `lock_tests.BaseSemaphoreTests.test_multirelease` in meaning.
pub(crate) fn semaphore_counter_returns_after_a_burst(world: &World) -> Result<()> {
    let (semaphore, inside) = (Semaphore::bounded(&world.kit, 2), Rc::new(Cell::new(0)));
    for name in ["a", "b", "c"] {
        let (semaphore, inside) = (semaphore.clone(), inside.clone());
        world.task(name, move |kit| {
            let _permit = semaphore.hold()?;
            inside.set(inside.get() + 1);
            ensure!(inside.get() <= 2);
            pause(kit)?;
            inside.set(inside.get() - 1);
            Ok(())
        });
    }
    world.run()?;
    ensure!(semaphore.permits() == 2 && !semaphore.is_locked());
    Ok(())
}

/// `TestBoundedSemaphore.test_release_unacquired`.
pub(crate) fn semaphore_bounded_refuses_a_release_too_many(world: &World) -> Result<()> {
    let (bounded, other) = (Semaphore::bounded(&world.kit, 1), Semaphore::new(&world.kit, 1));
    ensure!(bounded.release().is_err() && bounded.permits() == 1);
    ensure!(other.release().is_ok() && other.permits() == 2);
    world.run()
}

/// `TestSemaphore.test_release_twice` and its kills in meaning: a waiter that is killed leaves the list.
pub(crate) fn semaphore_killed_waiter_takes_no_permit(world: &World) -> Result<()> {
    let semaphore = Semaphore::new(&world.kit, 0);
    let waits = semaphore.clone();
    let victim = world.kit.spawn("victim", move || waits.acquire(None));
    world.task("kills", move |kit| {
        pause(kit)?;
        victim.kill()?;
        ensure!(semaphore.waiting() == 0);
        semaphore.release()?;
        ensure!(semaphore.permits() == 1);
        Ok(())
    });
    world.run()
}

/// The semaphore of <https://github.com/python/asyncio/issues/270>: the waiter is killed when it has its permit.
pub(crate) fn semaphore_is_not_lost_with_a_killed_waiter_that_was_served(world: &World) -> Result<()> {
    let semaphore = Semaphore::new(&world.kit, 0);
    let first = semaphore.clone();
    let victim = world.kit.spawn("victim", move || {
        first.acquire(None)?;
        first.release()
    });
    let second = semaphore.clone();
    world.task("second", move |_| {
        let _: () = ensure!(second.acquire(None)?);
        Ok(())
    });
    world.task("releases and kills", move |kit| {
        pause(kit)?;
        semaphore.release()?;
        victim.kill()
    });
    world.run()
}

/// `TestSemaphore.test_acquire_in_one_then_another` with `with`, and an error inside.
pub(crate) fn semaphore_hold_releases_after_an_error(world: &World) -> Result<()> {
    let semaphore = Semaphore::new(&world.kit, 1);
    let hold = semaphore.clone();
    let fails: Task<()> = world.kit.spawn("fails", move || {
        let _permit = hold.hold()?;
        bail!("inside")
    });
    world.task("waits", move |_| {
        fails.join(None)?;
        ensure!(semaphore.try_acquire());
        Ok(())
    });
    world.run()
}

// ---- test__timeout.py --------------------------------------------------------------------------------

/// `Test.test_api`: the wait ends with the timeout's error.
pub(crate) fn timeout_ends_a_sleep(world: &World) -> Result<()> {
    world.task("sleeps", |kit| {
        let timeout = Timeout::start(kit, SHORT)?;
        ensure!(timeout.is_pending());
        let error = kit.sleep(LONG).unwrap_err();
        ensure!(timeout.is_cause_of(&error) && error.is::<TimedOut>() && !timeout.is_pending());
        Ok(())
    });
    world.run()
}

/// `Test.test_cancel`.
pub(crate) fn timeout_that_is_dropped_does_nothing(world: &World) -> Result<()> {
    world.task("sleeps", |kit| {
        drop(Timeout::start(kit, SHORT)?);
        kit.sleep(SHORT * 3)
    });
    world.run()
}

/// `Test.test_with_timeout` with two: the shorter one ends the wait, and the longer one is left.
pub(crate) fn timeouts_nest_and_the_first_wins(world: &World) -> Result<()> {
    world.task("sleeps", |kit| {
        let outer = Timeout::start(kit, LONG)?;
        let inner = Timeout::start(kit, SHORT)?;
        let error = kit.sleep(LONG * 2).unwrap_err();
        ensure!(inner.is_cause_of(&error) && !outer.is_cause_of(&error) && outer.is_pending());
        Ok(())
    });
    world.run()
}

/// `Test.test_outer`: `with_timeout` does not swallow the error of another timeout.
pub(crate) fn timeout_of_the_outer_one_passes_the_inner_one(world: &World) -> Result<()> {
    world.task("sleeps", |kit| {
        let outer = Timeout::start(kit, SHORT)?;
        let error = Timeout::with(kit, LONG, || kit.sleep(LONG * 2)).unwrap_err();
        ensure!(outer.is_cause_of(&error));
        Ok(())
    });
    world.run()
}

/// `Test.test_with_timeout`, with a `timeout_value`.
pub(crate) fn with_timeout_returns_nothing(world: &World) -> Result<()> {
    world.task("sleeps", |kit| {
        let _: () = ensure!(Timeout::with(kit, SHORT, || kit.sleep(LONG))?.is_none());
        Ok(())
    });
    world.run()
}

/// `Test.test_with_timeout`, whose function is fast enough.
pub(crate) fn with_timeout_returns_the_value(world: &World) -> Result<()> {
    world.task("pauses", |kit| {
        let value = Timeout::with(kit, LONG, || pause(kit).map(|()| 5))?;
        ensure!(value == Some(5));
        pause(kit)
    });
    world.run()
}

// ---- test__greenlet.py -------------------------------------------------------------------------------

/// `TestReturn_link.test_return`.
pub(crate) fn task_returns_its_value(world: &World) -> Result<()> {
    let task = world.kit.spawn("returns", || Ok(25));
    let asks = task.clone();
    world.task("asks", move |_| {
        let _: () = ensure!(asks.get(None)? == Some(25));
        Ok(())
    });
    world.run()?;
    ensure!(task.is_dead() && task.is_successful() && task.error().is_none());
    Ok(())
}

/// `TestRaise_link.test_raise`.
pub(crate) fn task_get_returns_its_error(world: &World) -> Result<()> {
    let task: Task<()> = world.kit.spawn("fails", || Err(std::fmt::Error.into()));
    let asks = task.clone();
    world.task("asks", move |_| {
        let error = asks.get(None).unwrap_err();
        ensure!(
            error
                .downcast_ref::<Failed>()
                .is_some_and(|failed| failed.error().is::<std::fmt::Error>())
        );
        Ok(())
    });
    world.run()?;
    ensure!(task.is_dead() && !task.is_successful() && task.error().is_some());
    Ok(())
}

/// `TestGreenletGet`, `TestJoin.test_join_timeout` in meaning.
pub(crate) fn task_join_with_a_timeout_returns_false(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let waits = event.clone();
    let task = world.kit.spawn("waits", move || waits.wait(None));
    world.task("joins", move |_| {
        ensure!(!task.join(Some(SHORT))? && task.get(Some(SHORT))?.is_none());
        event.set();
        ensure!(task.join(None)?);
        Ok(())
    });
    world.run()
}

/// `TestStuff.test_kill_not_started`, `TestKill_notrunning` in meaning.
pub(crate) fn task_that_is_killed_before_its_start_never_runs(world: &World) -> Result<()> {
    let has_run = Rc::new(Cell::new(false));
    let runs = has_run.clone();
    let task = world.kit.spawn("never", move || {
        runs.set(true);
        Ok(())
    });
    task.kill_later();
    world.run()?;
    ensure!(!has_run.get() && task.is_dead() && task.is_successful());
    Ok(())
}

/// `TestStuff.test_kill`: the wait returns the exit.
pub(crate) fn task_that_is_killed_ends_its_wait(world: &World) -> Result<()> {
    let (log, is_waiting) = (Log::default(), Event::new(&world.kit));
    let (lines, tell) = (log.clone(), is_waiting.clone());
    let kit = world.kit.clone();
    let task = world.kit.spawn("sleeps", move || {
        tell.set();
        kit.sleep(LONG)
            .inspect_err(|error| lines.add(error.is::<GreenletExit>()))
    });
    let victim = task.clone();
    world.task("kills", move |_| {
        is_waiting.wait(None)?;
        victim.kill()
    });
    world.run()?;
    ensure!(task.is_dead() && task.is_successful() && task.error().is_none());
    ensure!(task.get(None).unwrap_err().is::<GreenletExit>());
    log.expect("true")
}

/// `TestBasic.test_simple_exit`, `kill(block=True)`: it has ended when the kill returns.
pub(crate) fn task_kill_waits_until_it_has_ended(world: &World) -> Result<()> {
    let kit = world.kit.clone();
    let (log, is_waiting) = (Log::default(), Event::new(&world.kit));
    let (lines, tell) = (log.clone(), is_waiting.clone());
    let task = world.kit.spawn("cleans up", move || {
        tell.set();
        let waited = kit.sleep(LONG);
        pause(&kit)?;
        lines.add("cleaned up");
        waited
    });
    let lines = log.clone();
    world.task("kills", move |_| {
        is_waiting.wait(None)?;
        task.kill()?;
        ensure!(task.is_dead());
        lines.add("killed");
        Ok(())
    });
    world.run()?;
    log.expect("cleaned up killed")
}

/// `TestStuff.test_kill_dead` in meaning.
pub(crate) fn task_kill_of_a_dead_task_does_nothing(world: &World) -> Result<()> {
    let task = world.kit.spawn("ends", || Ok(1));
    world.task("kills", move |_| {
        task.join(None)?;
        task.kill()?;
        ensure!(task.get(None)? == Some(1));
        Ok(())
    });
    world.run()
}

/// `TestKill.test_kill_exception` in meaning: `kill(exception)`.
pub(crate) fn task_kill_with_an_error_of_your_own(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let task = world.kit.spawn("waits", move || event.wait(None));
    let victim = task.clone();
    world.task("kills", move |kit| {
        pause(kit)?;
        victim.kill_with(std::fmt::Error)?;
        victim.join(None).map(drop)
    });
    world.run()?;
    ensure!(
        task.error()
            .is_some_and(|failed| failed.error().is::<std::fmt::Error>())
    );
    Ok(())
}

/// `TestStuff.test_wait_noerrors` and `TestKill` in meaning: a task may catch the exit, and return a value.
pub(crate) fn task_that_ignores_a_kill_is_waited_for(world: &World) -> Result<()> {
    let (event, kit, is_waiting) = (Event::new(&world.kit), world.kit.clone(), Event::new(&world.kit));
    let tell = is_waiting.clone();
    let task = world.kit.spawn("stubborn", move || {
        tell.set();
        ensure!(event.wait(None).is_err());
        kit.sleep(SHORT)?;
        Ok("finished")
    });
    world.task("kills", move |_| {
        is_waiting.wait(None)?;
        task.kill()?;
        ensure!(task.get(None)? == Some("finished"));
        Ok(())
    });
    world.run()
}

/// `TestStuff.test_kill_self` in meaning: `gevent.getcurrent().kill()`.
pub(crate) fn task_that_kills_itself_ends(world: &World) -> Result<()> {
    let (own, log) = (Rc::new(RefCell::new(None::<Task<()>>)), Log::default());
    let (me, lines) = (own.clone(), log.clone());
    let task = world.kit.spawn("suicidal", move || {
        let task = me.take().ok_or(anyhow!("stored below"))?;
        task.kill()?;
        lines.add("not reached");
        Ok(())
    });
    own.replace(Some(task.clone()));
    world.run()?;
    ensure!(task.is_dead() && task.is_successful());
    log.expect("")
}

/// `TestKillDefaultResult`, two kills in a row: the task is interrupted once.
pub(crate) fn task_is_killed_once(world: &World) -> Result<()> {
    let (kit, log) = (world.kit.clone(), Log::default());
    let lines = log.clone();
    let is_waiting = Event::new(&world.kit);
    let tell = is_waiting.clone();
    let task = world.kit.spawn("counts", move || {
        tell.set();
        for _ in 0..2 {
            lines.add(kit.sleep(SHORT).is_err());
        }
        Ok(())
    });
    world.task("kills", move |_| {
        is_waiting.wait(None)?;
        task.kill_later();
        task.kill_later();
        task.join(None).map(drop)
    });
    world.run()?;
    log.expect("true false")
}

/// `test__killall`, `TestSpawn.test_killall`.
pub(crate) fn killall_ends_all(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let wait = |name| {
        let event = event.clone();
        world.kit.spawn(name, move || event.wait(None))
    };
    let tasks = ["a", "b", "c"].map(wait);
    world.task("kills", move |kit| {
        pause(kit)?;
        kit.killall(&tasks)?;
        ensure!(tasks.iter().all(|task| task.is_dead() && task.is_successful()));
        Ok(())
    });
    world.run()
}

/// `test__joinall.Test.test`.
pub(crate) fn joinall_waits_for_all(world: &World) -> Result<()> {
    let kit = world.kit.clone();
    let sleep = |nth: u32| {
        let kit = kit.clone();
        world.kit.spawn("sleeps", move || kit.sleep(SHORT * nth))
    };
    let tasks = [2, 1].map(sleep);
    world.task("joins", move |kit| {
        ensure!(kit.joinall(&tasks, None)? == 2);
        ensure!(tasks.iter().all(Task::is_dead));
        Ok(())
    });
    world.run()
}

/// `test__pool`'s and `test__joinall`'s timeouts in meaning.
pub(crate) fn joinall_with_a_timeout_counts_those_that_ended(world: &World) -> Result<()> {
    let event = Event::new(&world.kit);
    let wait = |name, is_waiting: bool| {
        let event = event.clone();
        world.kit.spawn(name, move || Ok(is_waiting && event.wait(None)?))
    };
    let tasks = [wait("waits", true), wait("ends", false)];
    world.task("joins", move |kit| {
        ensure!(kit.joinall(&tasks, Some(SHORT))? == 1);
        event.set();
        ensure!(kit.joinall(&tasks, None)? == 2);
        Ok(())
    });
    world.run()
}

// ---- test__sleep0.py, test__core.py, test__hub.py, test__threadpool.py -------------------------------

/// `test__sleep0.Test.test`: `sleep(0)` lets all others run that are ready.
pub(crate) fn sleep_zero_lets_others_run(world: &World) -> Result<()> {
    let (has_run, seen) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (runs, sees) = (has_run.clone(), seen.clone());
    world.task("sleeps", move |kit| {
        pause(kit)?;
        sees.set(runs.get());
        Ok(())
    });
    world.task("runs", move |_| {
        let _: () = has_run.set(true);
        Ok(())
    });
    world.run()?;
    ensure!(seen.get());
    Ok(())
}

/// `TestSpawn.test_spawn` in meaning: `spawn` does not switch.
pub(crate) fn spawned_tasks_run_after_the_spawner(world: &World) -> Result<()> {
    let log = Log::default();
    let lines = log.clone();
    world.task("outer", move |kit| {
        let inner = lines.clone();
        let task = kit.spawn("inner", move || {
            let _: () = inner.add("inner");
            Ok(())
        });
        lines.add("outer");
        task.join(None).map(drop)
    });
    world.run()?;
    log.expect("outer inner")
}

/// `test__hub.TestLoopExit`-like: gevent raises `LoopExit`, "This operation would block forever".
pub(crate) fn a_wait_for_ever_is_reported(world: &World) -> Result<()> {
    let lock = Semaphore::new(&world.kit, 1);
    let (holds, never) = (lock.clone(), Event::new(&world.kit));
    let is_held = Event::new(&world.kit);
    let tell = is_held.clone();
    world.kit.spawn("keeper", move || {
        let _permit = holds.hold()?;
        tell.set();
        never.wait(None)
    });
    world.kit.spawn("waits", move || {
        is_held.wait(None)?;
        lock.acquire(None)
    });
    let report = world.run().unwrap_err().to_string();
    for part in [
        "'keeper' waits for an event, at ",
        "'waits' waits for a semaphore, which 'keeper' holds, at ",
        "toolkit/tests/gevent/cases.rs:",
    ] {
        ensure!(report.contains(part), "{part}: {report}");
    }
    Ok(())
}

/// `test__threadpool.TestPool.test_apply`, and its exceptions.
pub(crate) fn a_thread_wakes_its_task(world: &World) -> Result<()> {
    world.task("asks", |kit| {
        let here = std::thread::current().id();
        ensure!(kit.in_thread(|| std::thread::current().id())? != here);
        // A panic that prints nothing.
        let panics = || std::panic::resume_unwind(Box::new(()));
        let error = kit.in_thread::<()>(panics).unwrap_err();
        ensure!(error.to_string() == "the thread panicked");
        Ok(())
    });
    world.run()
}
