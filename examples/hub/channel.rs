//! A channel from any thread to a task of a hub: sending wakes the hub.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use greenlet::{Scheduler, Ticket, getcurrent};

use crate::hub::Hub;

/// Creates a channel whose receiver is in `hub`.
pub(crate) fn channel<T: Send + 'static>(hub: &Rc<Hub>) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Mutex::new(Queue {
        items: VecDeque::new(),
        receiver: None,
    }));
    let sender = Sender {
        end: Arc::new(End { queue: queue.clone() }),
    };
    let receiver = Receiver {
        queue,
        hub: hub.clone(),
    };
    (sender, receiver)
}

struct Queue<T> {
    /// `None` means that all senders are gone.
    items: VecDeque<Option<T>>,
    /// Wakes the receiver, which waits.
    receiver: Option<Ticket>,
}

/// The sending end, for any thread. All clones are the same end.
pub(crate) struct Sender<T> {
    end: Arc<End<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender {
            end: self.end.clone(),
        }
    }
}

struct End<T> {
    queue: Arc<Mutex<Queue<T>>>,
}

impl<T> End<T> {
    fn push(&self, item: Option<T>) {
        let mut queue = self.queue.lock().expect("nobody panics with it");
        queue.items.push_back(item);
        let receiver = queue.receiver.take();
        drop(queue);
        drop(receiver); // makes it ready
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        self.push(None);
    }
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, item: T) {
        self.end.push(Some(item));
    }
}

/// The receiving end, for one task of the hub.
pub(crate) struct Receiver<T> {
    queue: Arc<Mutex<Queue<T>>>,
    hub: Rc<Hub>,
}

impl<T> Receiver<T> {
    /// Waits for the next item. Returns `None` when all senders are gone.
    pub(crate) fn recv(&self) -> Result<Option<T>> {
        loop {
            let unused = {
                let mut queue = self.queue.lock().expect("nobody panics with it");
                if let Some(item) = queue.items.pop_front() {
                    return Ok(item);
                }
                // A sender that comes from here on uses the ticket, so its item is not missed.
                queue.receiver.replace(self.hub.ticket(&getcurrent()))
            };
            drop(unused);
            self.hub.park(None)?;
        }
    }
}
