//! A queue between tasks, with or without a bound.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use crate::kit::Kit;
use crate::wait::{Wait, WaitList};

/// A queue of items, first in, first out: gevent's `Queue`.
///
/// An item goes to the first getter that waits. If that one is killed before it runs, the item returns to the
/// front of the queue. All clones are the same queue.
///
/// # Examples
///
/// ```
/// use greenlet_toolkit::{Kit, Queue, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let queue = Queue::bounded(&kit, 1);
/// let put = queue.clone();
/// kit.spawn("puts", move || (0..3).try_for_each(|n| put.put(n, None).map(drop)));
/// let sum = kit.spawn("gets", move || (0..3).map(|_| Ok(queue.get(None)?.unwrap())).sum::<anyhow::Result<i32>>());
/// let asks = sum.clone();
/// kit.run(|| scheduler.run())?;
/// assert!(asks.is_successful());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Queue<T> {
    kit: Kit,
    shared: Rc<Shared<T>>,
}

struct Shared<T> {
    bound: usize,
    items: RefCell<VecDeque<T>>,
    getters: WaitList<T>,
    /// Each has its item beside it.
    putters: WaitList<()>,
    waiting_items: RefCell<VecDeque<Rc<Cell<Option<T>>>>>,
}

impl<T> Queue<T> {
    /// Creates a queue without a bound.
    pub fn new(kit: &Kit) -> Queue<T> {
        Queue::bounded(kit, usize::MAX)
    }

    /// Creates a queue of at most `bound` items: gevent's `Queue(maxsize)`. With 0 a put waits for a get:
    /// gevent's `Channel`.
    pub fn bounded(kit: &Kit, bound: usize) -> Queue<T> {
        Queue {
            kit: kit.clone(),
            shared: Rc::new(Shared {
                bound,
                items: RefCell::default(),
                getters: WaitList::default(),
                putters: WaitList::default(),
                waiting_items: RefCell::default(),
            }),
        }
    }

    /// Returns the number of items, without those of puts that wait: gevent's `qsize()`.
    pub fn len(&self) -> usize {
        self.shared.items.borrow().len()
    }

    /// Returns `true` if there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `true` if a put would wait.
    pub fn is_full(&self) -> bool {
        self.len() >= self.shared.bound && self.shared.getters.is_empty()
    }

    /// Puts an item in if the queue is not full: gevent's `put_nowait`.
    ///
    /// # Errors
    ///
    /// Returns the item otherwise.
    pub fn try_put(&self, item: T) -> Result<(), T> {
        match self.shared.getters.grant(&self.kit, item) {
            Ok(()) => Ok(()),
            Err(item) if self.len() >= self.shared.bound => Err(item),
            Err(item) => {
                self.shared.items.borrow_mut().push_back(item);
                Ok(())
            }
        }
    }

    /// Takes the first item, if there is one: gevent's `get_nowait`.
    pub fn try_get(&self) -> Option<T> {
        let first = self.shared.items.borrow_mut().pop_front();
        match first {
            Some(item) => {
                self.accept_next();
                Some(item)
            }
            // The items of puts that wait, in a queue with a bound of 0.
            None => self.take_waiting(),
        }
    }

    /// Takes the item of the first put that waits, and ends that wait.
    fn take_waiting(&self) -> Option<T> {
        let first = self.shared.waiting_items.borrow_mut().pop_front()?;
        let _ = self.shared.putters.grant(&self.kit, ());
        first.take()
    }

    fn accept_next(&self) {
        if self.len() < self.shared.bound {
            if let Some(item) = self.take_waiting() {
                self.shared.items.borrow_mut().push_back(item);
            }
        }
    }

    /// Puts an item in. Waits while the queue is full, but not longer than `timeout`. Returns the item if
    /// that was too short: gevent raises `Full`.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout. Then the item was put in only if a get has accepted it
    /// before.
    #[track_caller]
    pub fn put(&self, item: T, timeout: Option<Duration>) -> Result<Option<T>> {
        let Err(item) = self.try_put(item) else {
            return Ok(None);
        };
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        let waits_for = self.kit.waits_for("room in a queue", Location::caller());
        let place = Rc::new(Cell::new(Some(item)));
        self.shared
            .waiting_items
            .borrow_mut()
            .push_back(Rc::clone(&place));
        let waiting = Waiting {
            items: &self.shared.waiting_items,
            place,
        };
        match self.shared.putters.wait(&self.kit, deadline, waits_for)? {
            Wait::Granted(()) => Ok(None),
            Wait::TooLate => Ok(waiting.place.take()),
            Wait::Interrupted(error, _) => Err(error),
        }
    }

    /// Takes the first item. Waits while the queue is empty, but not longer than `timeout`. Returns `None` if
    /// that was too short: gevent raises `Empty`.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout. No item is lost.
    #[track_caller]
    pub fn get(&self, timeout: Option<Duration>) -> Result<Option<T>> {
        if let Some(item) = self.try_get() {
            return Ok(Some(item));
        }
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        let waits_for = self.kit.waits_for("an item of a queue", Location::caller());
        match self.shared.getters.wait(&self.kit, deadline, waits_for)? {
            Wait::Granted(item) => Ok(Some(item)),
            Wait::TooLate => Ok(None),
            Wait::Interrupted(error, item) => {
                if let Some(item) = item {
                    self.put_back(item);
                }
                Err(error)
            }
        }
    }

    fn put_back(&self, item: T) {
        if let Err(item) = self.shared.getters.grant(&self.kit, item) {
            self.shared.items.borrow_mut().push_front(item);
        }
    }
}

/// Removes the item of a put at the end of its wait.
struct Waiting<'a, T> {
    items: &'a RefCell<VecDeque<Rc<Cell<Option<T>>>>>,
    place: Rc<Cell<Option<T>>>,
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        self.items
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, &self.place));
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue {
            kit: self.kit.clone(),
            shared: Rc::clone(&self.shared),
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
