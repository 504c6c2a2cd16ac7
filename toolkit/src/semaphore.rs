//! Semaphores, and locks made of them.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use greenlet::{WeakGreenlet, getcurrent};

use crate::kit::Kit;
use crate::wait::{Wait, WaitList};

/// A number of permits: gevent's `Semaphore`, `BoundedSemaphore` and, with one permit, a lock.
///
/// A release hands its permit to the first waiter, so it is fair. All clones are the same semaphore.
///
/// # Examples
///
/// ```
/// use greenlet_toolkit::{Kit, Semaphore, VirtualTime};
///
/// let scheduler = VirtualTime::default();
/// let kit = Kit::new(&scheduler);
/// let printer = Semaphore::new(&kit, 1);
/// for name in ["ann", "bob"] {
///     let printer = printer.clone();
///     kit.spawn(name, move || {
///         let _permit = printer.hold()?;
///         Ok(())
///     });
/// }
/// kit.run(|| scheduler.run())?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone)]
pub struct Semaphore {
    kit: Kit,
    shared: Rc<Shared>,
}

struct Shared {
    permits: Cell<usize>,
    /// The most permits that there may be.
    most: usize,
    waiters: WaitList<()>,
    /// The tasks that hold a permit, for reports.
    holders: RefCell<Vec<WeakGreenlet>>,
}

impl Semaphore {
    /// Creates a semaphore.
    pub fn new(kit: &Kit, permits: usize) -> Semaphore {
        Semaphore::with(kit, permits, usize::MAX)
    }

    /// Creates a semaphore that refuses a release without an acquire: gevent's `BoundedSemaphore`.
    pub fn bounded(kit: &Kit, permits: usize) -> Semaphore {
        Semaphore::with(kit, permits, permits)
    }

    fn with(kit: &Kit, permits: usize, most: usize) -> Semaphore {
        Semaphore {
            kit: kit.clone(),
            shared: Rc::new(Shared {
                permits: Cell::new(permits),
                most,
                waiters: WaitList::default(),
                holders: RefCell::default(),
            }),
        }
    }

    /// Returns the number of permits that are free: gevent's `counter`.
    pub fn permits(&self) -> usize {
        self.shared.permits.get()
    }

    /// Returns `true` if no permit is free: gevent's `locked()`.
    pub fn is_locked(&self) -> bool {
        self.permits() == 0
    }

    /// Returns the number of tasks that wait.
    pub fn waiting(&self) -> usize {
        self.shared.waiters.len()
    }

    /// Takes a permit if one is free: gevent's `acquire(blocking=False)`.
    pub fn try_acquire(&self) -> bool {
        match self.shared.permits.get().checked_sub(1) {
            Some(rest) => {
                self.shared.permits.set(rest);
                self.note_holder();
                true
            }
            None => false,
        }
    }

    /// Takes a permit. Waits until one is free, but not longer than `timeout`. Returns `false` if that was too
    /// short.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout, without a permit.
    #[track_caller]
    pub fn acquire(&self, timeout: Option<Duration>) -> Result<bool> {
        if self.try_acquire() {
            return Ok(true);
        }
        let deadline = timeout.map(|timeout| self.kit.now() + timeout);
        let mut waits_for = self.kit.waits_for("a semaphore", Location::caller());
        waits_for.holders.clone_from(&self.shared.holders.borrow());
        match self.shared.waiters.wait(&self.kit, deadline, waits_for)? {
            Wait::Granted(()) => {
                self.note_holder();
                Ok(true)
            }
            Wait::TooLate => Ok(false),
            Wait::Interrupted(error, permit) => {
                if permit.is_some() {
                    self.give();
                }
                Err(error)
            }
        }
    }

    /// Takes a permit, which is released when the guard is dropped: gevent's `with semaphore`.
    ///
    /// # Errors
    ///
    /// Returns the error of a kill or a timeout.
    #[track_caller]
    pub fn hold(&self) -> Result<Permit> {
        self.acquire(None)?;
        Ok(Permit { of: self.clone() })
    }

    /// Returns a permit.
    ///
    /// # Errors
    ///
    /// Returns an error if a [bounded](Semaphore::bounded) semaphore has all its permits.
    pub fn release(&self) -> Result<()> {
        ensure!(
            self.permits() < self.shared.most,
            "the semaphore was released more often than it was acquired"
        );
        let current = getcurrent();
        let mut holders = self.shared.holders.borrow_mut();
        let is_own = |holder: &WeakGreenlet| holder.upgrade().is_some_and(|holder| holder == current);
        // Another task may release it.
        let index = holders.iter().position(is_own).unwrap_or(0);
        if index < holders.len() {
            holders.remove(index);
        }
        drop(holders);
        self.give();
        Ok(())
    }

    fn give(&self) {
        if self.shared.waiters.grant(&self.kit, ()).is_err() {
            self.shared.permits.set(self.shared.permits.get() + 1);
        }
    }

    fn note_holder(&self) {
        self.shared.holders.borrow_mut().push(getcurrent().downgrade());
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("permits", &self.permits())
            .field("waiting", &self.waiting())
            .finish()
    }
}

/// A permit of a [`Semaphore`], until it is dropped.
#[derive(Debug)]
pub struct Permit {
    of: Semaphore,
}

impl Drop for Permit {
    fn drop(&mut self) {
        // An error means that somebody has released this permit by `release`.
        let _ = self.of.release();
    }
}
