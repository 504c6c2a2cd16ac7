//! A channel from any thread to a task of a hub: sending wakes the hub.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::hub::{Hub, Remote};

/// Creates a channel whose receiver is in `hub`.
pub(crate) fn channel<T: Send + 'static>(hub: &Rc<Hub>) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Mutex::new(VecDeque::new()));
    let signal = hub.next_number();
    let sender = Sender {
        end: Arc::new(End {
            queue: queue.clone(),
            remote: hub.remote(),
            signal,
        }),
    };
    let receiver = Receiver {
        queue,
        signal,
        hub: hub.clone(),
    };
    (sender, receiver)
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
    /// `None` means that all senders are gone.
    queue: Arc<Mutex<VecDeque<Option<T>>>>,
    remote: Remote,
    signal: u64,
}

impl<T> End<T> {
    fn push(&self, item: Option<T>) {
        self.queue.lock().expect("nobody panics with it").push_back(item);
        self.remote.raise(self.signal);
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
    queue: Arc<Mutex<VecDeque<Option<T>>>>,
    signal: u64,
    hub: Rc<Hub>,
}

impl<T> Receiver<T> {
    /// Waits for the next item. Returns `None` when all senders are gone.
    pub(crate) fn recv(&self) -> Result<Option<T>> {
        loop {
            let next = self.queue.lock().expect("nobody panics with it").pop_front();
            match next {
                Some(item) => return Ok(item),
                // The loop handles a signal that is raised from here on, so none is missed.
                None => self.hub.wait_for_signal(self.signal)?,
            }
        }
    }
}
