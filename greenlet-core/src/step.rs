//! Steps: switches between a greenlet and its parent, for things that step a greenlet, and get what it leaves: generators,
//! mostly.
//!
//! ```text
//!   consumer: the parent                          the child
//!     step ────────────── value ───────────────►  switch_to_parent returns it
//!     step returns it  ◄── value ──────────────   switch_to_parent
//! ```

#![forbid(unsafe_code)]

use std::mem::ManuallyDrop;
use std::panic::Location;

use anyhow::{Error, Result};

use crate::backend::Note;
use crate::greenlet::Greenlet;
use crate::receive::{apart, deliver, receive_any, take_out};
use crate::switch::{self, Manners, Waiting};
use crate::thread;
use crate::transfer::{Content, Parcel};
use crate::value::Value;

/// What is not the rule in a [`Greenlet::step_or_else`].
///
/// # Examples
///
/// ```
/// use greenlet_core::{Greenlet, Unexpected};
///
/// let child = Greenlet::new(|(): ()| Ok("text"));
/// let length = child.step_or_else::<_, u32, u32>((), true, |_| (), |unexpected| match unexpected {
///     Unexpected::Unsent(()) => unreachable!("it may be sent"),
///     Unexpected::Refused(error) => Err(error),
///     Unexpected::Back(outcome) => Ok(outcome?.downcast::<&str>().unwrap().len() as u32),
/// });
/// assert_eq!(length?, 4);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub enum Unexpected<T> {
    /// It was not to be sent.
    Unsent(T),
    /// The switch was refused: control has not left. The error is one of [`Greenlet::switch`], or a
    /// [`ParentError`](crate::ParentError): the caller cannot become the parent, or the one that yields is the main greenlet.
    Refused(Error),
    /// A value of another type came back, or an error.
    Back(Result<Value>),
}

/// Opens what came back on a rare path, which may run foreign code, and unwind. It may be an `R` after all. `held` was kept until
/// it was back.
fn settle<T, R: 'static, M: From<R>>(
    held: Option<Greenlet>,
    back: Parcel,
    opens: impl Fn(bool),
    otherwise: impl FnOnce(Unexpected<T>) -> Result<M>,
) -> Result<M> {
    let taken = take_out(back); // S4: before anybody is told
    opens(true);
    let waiting = Waiting::new(Content::Message(taken.open()));
    // CAUTION: runs foreign code.
    drop(held);
    let outcome = deliver(waiting.over().into_message());
    let unexpected = match outcome.map(Value::downcast::<R>) {
        Ok(Ok(value)) => {
            opens(false);
            return Ok(value.into());
        }
        Ok(Err(other)) => Ok(other),
        Err(error) => Err(error),
    };
    otherwise(Unexpected::Back(unexpected))
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
        let at = Note::at(Location::caller());
        match switch::hand_over_to_child(self.node(), &mut value, at) {
            Ok(back) => back.receive(),
            Err(unsent) => apart(move || receive_any(self.step_otherwise(unsent, at)?)),
        }
    }

    /// Makes a [`step`](Greenlet::step), for things that keep account of where the greenlet is, and are sent one type mostly.
    ///
    /// If it `may`, the value is sent; and if an `R` comes back, that is all. Whatever else there is, `otherwise` is given, and makes
    /// the outcome of it. Before it is known what comes back, foreign code may have to run: a tracer, or the end of
    /// somebody who has nobody left. So `opens` is told before that; and again, with `false`, if it is an `R` after all.
    ///
    /// # Errors, Panics
    ///
    /// What `otherwise` says; panics as [`step`](Greenlet::step) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use greenlet_core::{Greenlet, Unexpected, getparent};
    ///
    /// let is_in_order = Cell::new(true);
    /// let child = Greenlet::new(|(): ()| {
    ///     getparent().unwrap().switch::<()>(1_u32)?;
    ///     Ok("that is all")
    /// });
    /// let step = || {
    ///     let (may, opens) = (is_in_order.get(), |opens: bool| is_in_order.set(!opens));
    ///     child.step_or_else::<_, u32, Option<u32>>((), may, opens, |unexpected| match unexpected {
    ///         Unexpected::Refused(error) => Err(error),
    ///         Unexpected::Back(outcome) => outcome.map(|value| {
    ///             assert_eq!(value.downcast::<&str>().unwrap(), "that is all");
    ///             None
    ///         }),
    ///         Unexpected::Unsent(()) => Ok(None),
    ///     })
    /// };
    /// assert_eq!([step()?, step()?, step()?], [Some(1), None, None]);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // as `step`
    pub fn step_or_else<T: 'static, R: 'static, M: From<R>>(
        &self,
        value: T,
        may: bool,
        opens: impl Fn(bool),
        otherwise: impl FnOnce(Unexpected<T>) -> Result<M>,
    ) -> Result<M> {
        if !may {
            return apart(move || otherwise(Unexpected::Unsent(value)));
        }
        let mut value = ManuallyDrop::new(value);
        let at = Note::at(Location::caller());
        match switch::hand_over_to_child(self.node(), &mut value, at) {
            Ok(arrival) => match arrival.take::<R>() {
                Ok(value) => Ok(value.into()),
                Err(back) => apart(move || settle(None, back, opens, otherwise)),
            },
            Err(unsent) => apart(move || match self.step_otherwise(unsent, at) {
                Ok(back) => settle(None, back, opens, otherwise),
                Err(refused) => otherwise(Unexpected::Refused(refused)),
            }),
        }
    }

    fn step_otherwise(&self, parcel: Parcel, at: Note) -> Result<Parcel> {
        let waiting = Waiting::new(Content::Parcel(parcel));
        let current = thread::current_greenlet();
        if self.node().parent_greenlet().as_ref() != Some(&current) {
            // CAUTION: runs foreign code, which may unwind: it may be the end of the old parent.
            self.set_parent(&current)?;
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
    /// As for [`switch`](Greenlet::switch); also [`ParentError`](crate::ParentError) if this is the main greenlet, which has
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
        let at = Note::at(Location::caller());
        match switch::hand_over_to_parent(self.node(), &mut value, at) {
            Ok(back) => back.receive(),
            Err(unsent) => apart(move || {
                let (parent, back) = switch::transfer_to_parent(self.node(), unsent, at)?;
                receive_any(switch::let_go(parent, back))
            }),
        }
    }

    /// Switches to the parent as [`switch_to_parent`](Greenlet::switch_to_parent) does, for the other side of
    /// [`step_or_else`](Greenlet::step_or_else), and as that does. Unless this greenlet is the one that runs, nothing is sent.
    /// Until control is back, it [is yielding](Greenlet::is_yielding).
    ///
    /// # Errors, Panics
    ///
    /// What `otherwise` says; panics as [`switch`](Greenlet::switch) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet_core::{Greenlet, Unexpected, getcurrent};
    ///
    /// let child = Greenlet::new(|(): ()| {
    ///     getcurrent().yield_or_else::<_, (), ()>(1, |_| (), |unexpected| match unexpected {
    ///         Unexpected::Back(outcome) => Err(anyhow::anyhow!("no step, but {outcome:?}")),
    ///         _ => unreachable!("it runs, and is not refused"),
    ///     })
    /// });
    /// assert_eq!(child.step::<i32>(())?, 1);
    /// assert!(child.is_yielding());
    /// assert!(child.step::<()>("something else").unwrap_err().to_string().starts_with("no step"));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    #[inline(always)] // as `switch_to_parent`
    pub fn yield_or_else<T: 'static, R: 'static, M: From<R>>(
        &self,
        value: T,
        opens: impl Fn(bool),
        otherwise: impl FnOnce(Unexpected<T>) -> Result<M>,
    ) -> Result<M> {
        if !self.is_current() {
            return apart(move || otherwise(Unexpected::Unsent(value)));
        }
        let mut value = ManuallyDrop::new(value);
        let at = Note::of_yield(Location::caller());
        match switch::hand_over_to_parent(self.node(), &mut value, at) {
            Ok(arrival) => match arrival.take::<R>() {
                Ok(value) => Ok(value.into()),
                Err(back) => apart(move || settle(None, back, opens, otherwise)),
            },
            Err(unsent) => apart(
                move || match switch::transfer_to_parent(self.node(), unsent, at) {
                    Ok((parent, back)) => settle(Some(parent), back, opens, otherwise),
                    Err(refused) => otherwise(Unexpected::Refused(refused)),
                },
            ),
        }
    }

    /// Says whether the greenlet is suspended in a [`yield_or_else`](Greenlet::yield_or_else).
    pub fn is_yielding(&self) -> bool {
        let note = self.node().seat.note.get().filter(|_| self.is_suspended());
        note.is_some_and(Note::is_of_yield)
    }
}
