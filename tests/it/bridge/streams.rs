//! Streams from functions, iterators from streams, and `block_on_greenlet`.

use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use greenlet::{GreenletExit, await_, block_on_greenlet, greenlet_spawn, iter_stream, stream_from};

use crate::bridge::{Handle, poll, ready};
use crate::support::{Drops, Log, NoLeaks};

fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> Poll<Option<T>> {
    poll(&mut stream.next())
}

#[test]
fn an_iterator_over_a_stream_awaits_each_item_and_stays_at_the_end() {
    let (sender, receiver) = futures::channel::mpsc::unbounded();
    let mut spawned = greenlet_spawn(move || {
        let mut items = iter_stream(receiver);
        let all: Vec<u32> = items.by_ref().collect();
        assert_eq!(items.next(), None);
        assert_eq!(items.size_hint(), (0, Some(0)));
        all
    });
    assert!(poll(&mut spawned).is_pending());
    sender.unbounded_send(1).unwrap();
    assert!(poll(&mut spawned).is_pending());
    sender.unbounded_send(2).unwrap();
    drop(sender);
    assert_eq!(ready(poll(&mut spawned)), [1, 2]);
}

#[test]
fn a_stream_runs_its_function_one_item_at_a_time() {
    let _no_leaks = NoLeaks::watch();
    let log = Log::new();
    let handle = Handle::default();
    let (written, future) = (log.clone(), handle.future());
    let mut stream = stream_from(move |items| {
        written.add("starts");
        items.yield_(1);
        written.add("goes on");
        await_(future);
        items.yield_(2);
        written.add("ends");
    });
    assert_eq!(log.take(), [""; 0]);
    assert_eq!(next(&mut stream), Poll::Ready(Some(1)));
    assert_eq!(log.take(), ["starts"]);
    assert!(next(&mut stream).is_pending());
    assert_eq!(log.take(), ["goes on"]);
    handle.ready.set(true);
    assert_eq!(next(&mut stream), Poll::Ready(Some(2)));
    assert_eq!(next(&mut stream), Poll::Ready(None));
    assert_eq!(next(&mut stream), Poll::Ready(None));
    assert_eq!(log.take(), ["ends"]);
}

#[test]
fn dropping_a_stream_ends_its_function_and_drops_its_items() {
    let _no_leaks = NoLeaks::watch();
    let drops = Drops::new();
    let watched = drops.clone();
    let mut stream = stream_from(move |items| {
        let _local = watched.witness();
        items.yield_(watched.witness());
        let error = items.try_yield(watched.witness()).unwrap_err();
        assert!(error.is::<GreenletExit>());
        assert_eq!(watched.count(), 2, "items that are not taken are dropped");
    });
    drop(next(&mut stream));
    assert_eq!(drops.count(), 1);
    drop(next(&mut stream));
    assert_eq!(drops.count(), 2);
    drop(stream);
    assert_eq!(drops.count(), 3);
}

#[test]
fn a_stream_can_become_an_iterator_and_a_stream_again() {
    let numbers = stream::iter(1..=4);
    let doubled = stream_from(move |items| {
        for n in iter_stream(numbers) {
            items.yield_(n * 2);
        }
    });
    let all: Vec<i32> = futures::executor::block_on(doubled.collect());
    assert_eq!(all, [2, 4, 6, 8]);
}

#[test]
fn blocking_parks_until_another_thread_wakes() {
    let (ask, asked) = mpsc::channel::<futures::channel::oneshot::Sender<u32>>();
    let answers = std::thread::spawn(move || {
        for (n, sender) in asked.iter().enumerate() {
            sender.send(n as u32).unwrap();
        }
    });
    let sum = block_on_greenlet(move || {
        (0..1_000)
            .map(|_| {
                let (sender, receiver) = futures::channel::oneshot::channel();
                ask.send(sender).unwrap();
                await_(receiver).unwrap()
            })
            .sum::<u32>()
    });
    answers.join().unwrap();
    assert_eq!(sum, 499_500);
}

#[test]
fn blocking_polls_once_for_each_wake_up() {
    let (send, wakers) = mpsc::channel::<std::task::Waker>();
    let is_woken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let set = is_woken.clone();
    let wakes = std::thread::spawn(move || {
        let waker = wakers.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20)); // a loop that does not park would poll many times meanwhile
        set.store(true, std::sync::atomic::Ordering::SeqCst);
        waker.wake();
    });
    let polls = block_on_greenlet(move || {
        let mut polls = 0;
        await_(std::future::poll_fn(|cx| {
            polls += 1;
            if is_woken.load(std::sync::atomic::Ordering::SeqCst) {
                return Poll::Ready(polls);
            }
            let _ = send.send(cx.waker().clone());
            Poll::Pending
        }))
    });
    wakes.join().unwrap();
    assert_eq!(polls, 2);
}

#[test]
fn blocking_takes_a_wake_up_that_came_before_it_parked() {
    let mut polls = 0;
    let counted = block_on_greenlet(move || {
        await_(std::future::poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls < 3 {
                Poll::Pending
            } else {
                Poll::Ready(polls)
            }
        }))
    });
    assert_eq!(counted, 3);
}

#[test]
fn blocking_works_with_the_timers_of_a_runtime_that_is_entered() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let is_elapsed = block_on_greenlet(|| {
        let waited = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>());
        await_(waited).is_err()
    });
    assert!(is_elapsed);
}
