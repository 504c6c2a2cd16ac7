//! Five programs of the gallery, corrected, so that every order passes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::World;

/// Data that tasks share. Its locks are never contended: tasks switch only at switch points.
type Shared<T> = Arc<Mutex<T>>;

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

/// A number of permits, and the tasks that wait for one.
struct Semaphore<W: World>(Shared<(u32, VecDeque<W::Id>)>);

impl<W: World> Clone for Semaphore<W> {
    fn clone(&self) -> Self {
        Semaphore(Arc::clone(&self.0))
    }
}

impl<W: World> Semaphore<W> {
    fn new(permits: u32) -> Self {
        Semaphore(shared((permits, VecDeque::new())))
    }

    fn acquire(&self) {
        loop {
            {
                let (permits, waiting) = &mut *self.0.lock().unwrap();
                if *permits > 0 {
                    *permits -= 1;
                    return;
                }
                waiting.push_back(W::me());
            }
            W::park();
        }
    }

    fn release(&self) {
        let first = {
            let (permits, waiting) = &mut *self.0.lock().unwrap();
            *permits += 1;
            waiting.pop_front()
        };
        first.into_iter().for_each(W::wake);
    }
}

/// Three tasks add to a counter, under a lock.
fn counter<W: World>() {
    let (lock, count) = (Semaphore::<W>::new(1), shared(0));
    for _ in 0..3 {
        let (lock, count) = (lock.clone(), Arc::clone(&count));
        W::spawn(move || {
            lock.acquire();
            let read = *count.lock().unwrap();
            W::pause();
            *count.lock().unwrap() = read + 1;
            lock.release();
        });
    }
    W::join_all();
    assert_eq!(*count.lock().unwrap(), 3);
}

/// Two tasks take two locks in the same order, twice.
fn two_locks<W: World>() {
    let locks = [(); 2].map(|()| Semaphore::<W>::new(1));
    for _ in 0..2 {
        let locks = locks.clone();
        W::spawn(move || {
            for _ in 0..2 {
                locks[0].acquire();
                W::pause();
                locks[1].acquire();
                W::pause();
                locks[1].release();
                locks[0].release();
            }
        });
    }
    W::join_all();
}

/// A producer, and two consumers that look again when they were woken.
fn queue<W: World>() {
    let queue = shared((VecDeque::new(), VecDeque::<W::Id>::new()));
    let sum = shared(0);
    for _ in 0..2 {
        let (queue, sum) = (Arc::clone(&queue), Arc::clone(&sum));
        W::spawn(move || {
            let item: i32 = loop {
                {
                    let (items, waiting) = &mut *queue.lock().unwrap();
                    if let Some(item) = items.pop_front() {
                        break item;
                    }
                    waiting.push_back(W::me());
                }
                W::park();
            };
            *sum.lock().unwrap() += item;
        });
    }
    for item in [1, 10] {
        let first = {
            let (items, waiting) = &mut *queue.lock().unwrap();
            items.push_back(item);
            waiting.pop_front()
        };
        first.into_iter().for_each(W::wake);
        W::pause();
    }
    W::join_all();
    assert_eq!(*sum.lock().unwrap(), 11);
}

/// Three tasks, of which two may be inside.
fn semaphore<W: World>() {
    let (permits, inside) = (Semaphore::<W>::new(2), shared(0));
    for _ in 0..3 {
        let (permits, inside) = (permits.clone(), Arc::clone(&inside));
        W::spawn(move || {
            permits.acquire();
            *inside.lock().unwrap() += 1;
            assert!(*inside.lock().unwrap() <= 2);
            W::pause();
            *inside.lock().unwrap() -= 1;
            permits.release();
        });
    }
    W::join_all();
}

/// Two tasks wait for an event, and check it when they register.
fn event<W: World>() {
    let event = shared((false, Vec::<W::Id>::new()));
    for _ in 0..2 {
        let event = Arc::clone(&event);
        W::spawn(move || {
            W::pause();
            let waits = {
                let (is_set, waiting) = &mut *event.lock().unwrap();
                if !*is_set {
                    waiting.push(W::me());
                }
                !*is_set
            };
            if waits {
                W::park();
            }
        });
    }
    W::pause();
    let waiting = {
        let (is_set, waiting) = &mut *event.lock().unwrap();
        *is_set = true;
        std::mem::take(waiting)
    };
    waiting.into_iter().for_each(W::wake);
    W::join_all();
}

pub(crate) fn all<W: World>() -> [(&'static str, fn()); 5] {
    [
        ("counter", counter::<W>),
        ("two locks", two_locks::<W>),
        ("queue", queue::<W>),
        ("semaphore", semaphore::<W>),
        ("event", event::<W>),
    ]
}
