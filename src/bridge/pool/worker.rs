//! A thread of a pool: a runtime of tokio that starts what it receives.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use greenlet_core::run_to_end;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

/// Starts a function, on the thread that runs it.
pub(super) type Start = Box<dyn FnOnce() + Send>;

enum Message {
    Start(Start),
    /// Nothing will be started any more.
    Close,
}

/// A thread, from outside.
pub(super) struct Worker {
    messages: UnboundedSender<Message>,
    /// How many functions it runs, or will run.
    load: AtomicUsize,
    /// Set while its thread waits for events.
    is_parked: Arc<AtomicBool>,
}

impl Worker {
    /// Starts a thread, which calls `on_end` at its very end. The thread ends when it was told to
    /// [`close`](Worker::close), or when the `Worker` was dropped, and all functions have ended.
    pub(super) fn start(
        name: String,
        on_end: impl FnOnce() + Send + 'static,
    ) -> io::Result<(Worker, JoinHandle<()>)> {
        let (messages, received) = unbounded_channel();
        let is_parked = Arc::new(AtomicBool::new(false));
        let [parked, unparked] = [(); 2].map(|()| Arc::clone(&is_parked));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || parked.store(true, Ordering::Relaxed))
            .on_thread_unpark(move || unparked.store(false, Ordering::Relaxed))
            .build()?;
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _at_the_end = OnDrop(Some(on_end)); // also after a panic
            run_to_end(|| work(&runtime, received));
            drop(runtime);
        })?;
        let worker = Worker {
            messages,
            load: AtomicUsize::new(0),
            is_parked,
        };
        Ok((worker, thread))
    }

    /// Returns a number that is smaller, the sooner the thread can run another function: idle
    /// threads first, then by load.
    pub(super) fn business(&self) -> (bool, usize) {
        let load = self.load.load(Ordering::Relaxed);
        let is_busy = !self.is_parked.load(Ordering::Relaxed);
        (load > 0 && is_busy, load)
    }

    /// Counts one more function.
    pub(super) fn add_load(&self) {
        self.load.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one function less.
    pub(super) fn remove_load(&self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls `start` on the thread, or drops it if a panic has ended the thread.
    pub(super) fn send(&self, start: Start) {
        let _ = self.messages.send(Message::Start(start));
    }

    /// Tells the thread to end.
    pub(super) fn close(&self) {
        let _ = self.messages.send(Message::Close);
    }
}

/// Runs what arrives on this thread.
fn work(runtime: &Runtime, mut messages: UnboundedReceiver<Message>) {
    let tasks = LocalSet::new();
    runtime.block_on(async {
        let start_all = async {
            while let Some(Message::Start(start)) = messages.recv().await {
                start();
            }
        };
        tasks.run_until(start_all).await;
        tasks.await;
    });
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(function) = self.0.take() {
            function();
        }
    }
}
