//! Steps: switches between a greenlet and its parent, for things that step a greenlet, and get what it leaves: generators,
//! mostly.
//!
//! ```text
//!   consumer: the parent                          the child
//!     step ────────────── value ───────────────►  switch_to_parent returns it
//!     step returns it  ◄── value ──────────────   switch_to_parent
//! ```

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::Location;

use anyhow::Result;

use crate::greenlet::Greenlet;
use crate::receive::{apart, receive_any};
use crate::switch::{self, Manners, Waiting};
use crate::thread;
use crate::transfer::{Content, Control, Message, Parcel};
use crate::value::Value;

/// What is not the rule in a [`Greenlet::step_or_else`].
#[derive(Debug)]
pub enum Unexpected<T> {
    /// The stage was another one: the value was not sent.
    Unsent(T),
    /// A value of another type came back, or an error, or the switch was refused; or one of the type that is mostly sent came
    /// back on a rare path, where a tracer is installed say.
    Back(Result<Value>),
}

impl Greenlet {
    /// Makes the running greenlet the parent, and switches to this one as [`switch`](Greenlet::switch) does.
    ///
    /// For things that step a greenlet, and are to get what it leaves, whoever steps it. Where the running
    /// greenlet is the parent already, it is the cheapest of all switches.
    ///
    /// # Errors, Panics
    ///
    /// As for [`set_parent`](Greenlet::set_parent), and then for [`switch`](Greenlet::switch). Where the
    /// parent cannot be set, the value is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getcurrent};
    ///
    /// let child = Greenlet::new(|(): ()| Ok("from the child"));
    /// let shared = child.clone();
    /// let consumer = Greenlet::new(move |(): ()| shared.step::<&str>(()));
    /// assert_eq!(consumer.switch::<&str>(())?, "from the child");
    /// assert_eq!(child.parent(), Some(consumer));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn step<R: 'static>(&self, value: impl Sized + 'static) -> Result<R> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        match switch::hand_over_to_child(self.node(), true, &mut value, at) {
            Ok(back) => back.receive(),
            Err(unsent) => apart(move || receive_any(self.step_otherwise(unsent, at))),
        }
    }

    /// Makes a [`step`](Greenlet::step), for things that keep account of where the greenlet is, and are sent one type mostly.
    ///
    /// If the stage is `waits`, the value is sent. If an `R` comes back then, the stage is `waits` again before anything else,
    /// whatever the other side has made it, and that is all. Whatever else there is, `otherwise` is given, and makes the
    /// outcome of it. It is not called if the step unwinds.
    ///
    /// # Errors, Panics
    ///
    /// What `otherwise` says; panics as [`step`](Greenlet::step) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use greenlet_core::{Greenlet, Stages, Unexpected, getparent};
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     getparent().unwrap().switch::<()>(1_u32)?;
    ///     Ok("that is all")
    /// });
    /// let stage = Cell::new("waits");
    /// let step = || {
    ///     child.step_or_else::<_, u32, Option<u32>, _>((), &stage, "waits", |unexpected| match unexpected {
    ///         Unexpected::Unsent(()) => Ok(None),
    ///         Unexpected::Back(outcome) => {
    ///             stage.set("over");
    ///             assert_eq!(outcome?.downcast::<&str>().unwrap(), "that is all");
    ///             Ok(None)
    ///         }
    ///     })
    /// };
    /// assert_eq!((step()?, stage.get()), (Some(1), "waits"));
    /// assert_eq!((step()?, stage.get()), (None, "over"));
    /// assert_eq!(step()?, None);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // as `step`
    pub fn step_or_else<T: 'static, R: 'static, M: From<R>, S: Copy + PartialEq>(
        &self,
        value: T,
        stage: &Cell<S>,
        waits: S,
        otherwise: impl FnOnce(Unexpected<T>) -> Result<M>,
    ) -> Result<M> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        let may = stage.get() == waits;
        match switch::hand_over_to_child(self.node(), may, &mut value, at) {
            Ok(arrival) => match arrival.take::<R>(|| stage.set(waits)) {
                Ok(value) => Ok(value.into()),
                Err(other) => apart(move || otherwise(Unexpected::Back(receive_any(other)))),
            },
            Err(unsent) if may => {
                apart(move || otherwise(Unexpected::Back(receive_any(self.step_otherwise(unsent, at)))))
            }
            Err(unsent) => apart(move || otherwise(Unexpected::Unsent(receive_any(unsent)?))),
        }
    }

    fn step_otherwise(&self, parcel: Parcel, at: &'static Location<'static>) -> Parcel {
        let waiting = Waiting::new(Content::Parcel(parcel));
        let current = thread::current_greenlet();
        if self.node().parent_greenlet().as_ref() != Some(&current) {
            // CAUTION: runs foreign code, which may unwind: it may be the end of the old parent.
            if let Err(error) = self.set_parent(&current) {
                return Control::local(Message::Error(error.into()));
            }
        }
        drop(current); // not held over the switch
        switch::transfer(self.node(), waiting.over(), at, Manners::Polite)
    }

    /// Switches from the running greenlet to the parent of this one with a value, and returns what is
    /// next sent to the caller.
    ///
    /// The same as switching to [`parent()`](Greenlet::parent), but no handle of the parent is made: for
    /// things that step a greenlet, whose every step comes back this way.
    ///
    /// # Errors, Panics
    ///
    /// As for [`switch`](Greenlet::switch); also [`ParentError`] if this is the main greenlet, which has
    /// no parent.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, getcurrent};
    ///
    /// let child = Greenlet::new(|(): ()| getcurrent().switch_to_parent::<u32>("a number, please"));
    /// assert_eq!(child.switch::<&str>(())?, "a number, please");
    /// assert_eq!(child.switch::<u32>(5_u32)?, 5);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn switch_to_parent<R: 'static>(&self, value: impl Sized + 'static) -> Result<R> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        match switch::hand_over_to_parent(self.node(), true, &mut value, at) {
            Ok(back) => back.receive(),
            Err(unsent) => apart(move || receive_any(switch::transfer_to_parent(self.node(), unsent, at))),
        }
    }

    /// Switches to the parent as [`switch_to_parent`](Greenlet::switch_to_parent) does, with the account that
    /// [`step_or_else`](Greenlet::step_or_else) keeps on the other side. Where another greenlet runs than this one, the value is
    /// not sent either.
    ///
    /// # Errors, Panics
    ///
    /// What `otherwise` says; panics as [`switch`](Greenlet::switch) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    /// use greenlet_core::{Greenlet, Unexpected, getcurrent};
    ///
    /// let stage = Rc::new(Cell::new("runs"));
    /// let shared = Rc::clone(&stage);
    /// let child = Greenlet::new(move |(): ()| {
    ///     for n in 0..2 {
    ///         getcurrent().switch_to_parent_or_else::<_, (), (), _>(n, &shared, "runs", |unexpected| match unexpected {
    ///             Unexpected::Unsent(n) => Err(anyhow::anyhow!("nobody waits for {n}")),
    ///             Unexpected::Back(outcome) => outcome.map(drop),
    ///         })?;
    ///         shared.set("waits for nothing");
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(child.step::<i32>(())?, 0);
    /// assert_eq!(child.step::<i32>(()).unwrap_err().to_string(), "nobody waits for 1");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // as `step`
    pub fn switch_to_parent_or_else<T: 'static, R: 'static, M: From<R>, S: Copy + PartialEq>(
        &self,
        value: T,
        stage: &Cell<S>,
        runs: S,
        otherwise: impl FnOnce(Unexpected<T>) -> Result<M>,
    ) -> Result<M> {
        let mut value = ManuallyDrop::new(value);
        let at = Location::caller();
        let may = self.is_current() & (stage.get() == runs);
        match switch::hand_over_to_parent(self.node(), may, &mut value, at) {
            Ok(arrival) => match arrival.take::<R>(|| stage.set(runs)) {
                Ok(value) => Ok(value.into()),
                Err(other) => apart(move || otherwise(Unexpected::Back(receive_any(other)))),
            },
            Err(unsent) if may => apart(move || {
                otherwise(Unexpected::Back(receive_any(switch::transfer_to_parent(
                    self.node(),
                    unsent,
                    at,
                ))))
            }),
            Err(unsent) => apart(move || otherwise(Unexpected::Unsent(receive_any(unsent)?))),
        }
    }
}
