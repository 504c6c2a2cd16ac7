//! Work in another thread, for which a task waits.

use std::panic::Location;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;

use anyhow::{Result, bail};
use greenlet::getcurrent;

use crate::kit::Kit;
use crate::wait::{Wait, WaitList};

impl Kit {
    /// Runs a function in a new thread, and waits for its value: gevent's `threadpool.apply`.
    ///
    /// # Errors
    ///
    /// Returns an error if the function panics. Returns the error of a kill or a timeout; the thread
    /// runs on.
    ///
    /// # Panics
    ///
    /// Panics if the system does not start a thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_toolkit::{Kit, VirtualTime};
    ///
    /// let scheduler = VirtualTime::default();
    /// let kit = Kit::new(&scheduler);
    /// let inside = kit.clone();
    /// let sum = kit.spawn("sums", move || inside.in_thread(|| (1..=4).sum::<i32>()));
    /// kit.run(|| scheduler.run())?;
    /// assert!(sum.is_successful());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn in_thread<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, receiver) = channel();
        // Dropped in this order, also if the function panics: the task then sees what there is.
        let done = (sender, self.scheduler().ticket(&getcurrent()));
        thread::spawn(move || {
            let done = done;
            let _ = done.0.send(run()); // the task may have been killed
        });
        let waits_for = self.waits_for("a thread", Location::caller());
        let mut received = Err(TryRecvError::Empty);
        let is_over = || {
            received = receiver.try_recv();
            !matches!(received, Err(TryRecvError::Empty))
        };
        match WaitList::<()>::default().wait_unless(self, None, waits_for, is_over)? {
            Wait::Interrupted(error, _) => Err(error),
            Wait::Granted(()) | Wait::TooLate => match received {
                Ok(value) => Ok(value),
                Err(_) => bail!("the thread panicked"),
            },
        }
    }
}
