//! Generators: a greenlet that hands out values one by one, as an [`Iterator`].
//!
//! ```text
//!   consumer                                  the generator's greenlet
//!     next ── Sent(input) ──────────────────►  yield_ returns the input
//!     next returns the item  ◄──── Item ─────  yield_
//!     next returns None      ◄──── End ──────  its function returned
//! ```
//!
//! A step is two bare switches and a few comparisons: the consumer is made the parent when it is
//! another one than at the last step, and both sides look whether all is in order. Neither writes down each time where it is:
//! to read back what the other side has just written takes more than to compute it (a step takes 4.3 to 4.6 ns, and took 5.0
//! to 5.1).
//! The types of all that is sent are private, so nothing but another generator's can be taken for a step. Each has one of its own, so
//! that an item as small as a word travels in a register.
//!
//! - **N1** As long as all is in order, either nobody is in a step, and the function is in a `yield_` of its own (the greenlet
//!   says so: [`Greenlet::is_yielding`]); or the consumer waits in a step, and the function is not in a `yield_`. Whoever
//!   comes back from a step or a `yield_` in another way says that it is not in order any more, before foreign code runs.
//! - **N2** A step borrows the generator mutably, so nobody else can begin one meanwhile.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::panic::Location;
use std::rc::Rc;

use anyhow::{Error, Result};

use greenlet_core::{Builder, Greenlet, TypeMismatch, Unexpected, Value, getcurrent};

/// Values computed one by one by a function with a stack of its own: Python's generators, without a mark
/// on the functions in between.
///
/// The function gets a [`Yielder`], and hands out a value with each [`yield_`](Yielder::yield_), from any
/// depth of calls. It starts with the first step. Each step runs it up to its next `yield_`; when it
/// returns, the iteration is over. An item is a `Result`: an error that the function returns is the last
/// item, and a panic goes on in who asked for the item.
///
/// When the generator is dropped, its function is ended, whoever else has handles of the greenlet: `yield_`
/// returns a [`GreenletExit`](crate::GreenletExit) as its error, and a function that goes on regardless is
/// unwound (see [`Greenlet::end`]).
///
/// # Who is the consumer
///
/// Whoever steps it, from any greenlet of the thread; it may be another one each time. The consumer of the
/// last step is the parent of the generator's greenlet, so what the function awaits, or looks for among its
/// ancestors, it finds as if the consumer had called it.
///
/// A greenlet that is suspended with a generator on its own stack is the generator's parent, and a parent
/// has a handle in each child: it is not ended by dropping the last handle that others have of it.
///
/// # When the function switches elsewhere
///
/// A function may switch to any greenlet, or make some that yield for it. Until something is yielded, the
/// consumer waits in its step. If anything else reaches the consumer first, its step returns that as
/// an error; the generator is then busy, and each further step says so ([`GeneratorError::is_busy`]), until
/// the function has ended. A value that nobody waits for any more cannot be yielded
/// ([`GeneratorError::is_cut_short`]).
///
/// # Examples
///
/// ```
/// use greenlet::{Generator, Yielder};
///
/// fn walk(depth: u32, out: &Yielder<u32>) -> anyhow::Result<()> {
///     if depth > 0 {
///         walk(depth - 1, out)?;
///         out.yield_(depth)?; // from any depth
///         walk(depth - 1, out)?;
///     }
///     Ok(())
/// }
///
/// let ruler = Generator::new(|out| walk(3, &out));
/// let marks = ruler.collect::<anyhow::Result<Vec<u32>>>()?;
/// assert_eq!(marks, [1, 2, 1, 3, 1, 2, 1]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Generator<Y: 'static, S: 'static = ()> {
    greenlet: Greenlet,
    link: Rc<Link<Y, S>>,
}

/// What the generator and its function share.
struct Link<Y, S> {
    stage: Cell<Stage>,
    /// The greenlet that yielded for the function, while the stage is `InChild`: it gets the next step.
    child: RefCell<Option<Greenlet>>,
    types: PhantomData<fn(S) -> Y>,
}

impl<Y, S> Link<Y, S> {
    /// Says whether nothing is in the way of a step. Where none is going on, which N2 sees to.
    #[inline(always)] // one comparison
    fn can_be_stepped(&self) -> bool {
        self.stage.get() <= Stage::InOrder
    }

    #[inline(always)] // one comparison
    fn is_in_order(&self) -> bool {
        self.stage.get() == Stage::InOrder
    }

    /// What came back on a rare path is opened, or was after all what it mostly is; unless the code that ran meanwhile has set
    /// all adrift.
    fn opens(&self, opens: bool) {
        if opens {
            self.stage.set(Stage::Opening);
        } else if self.stage.get() == Stage::Opening {
            self.stage.set(Stage::InOrder);
        }
    }
}

/// Where the function is. See N1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Not started.
    Fresh,
    /// All is in order.
    InOrder,
    /// In order, and in a `yield_` that another greenlet called for it.
    InChild,
    /// Something came to the consumer, or to the function, and it is not known yet what.
    Opening,
    /// Not in a `yield_`, and nobody waits: the consumer's step was cut short, or something else than a
    /// step went on with it. Or it has ended.
    Adrift,
}

/// What goes to the function.
struct Sent<S>(S);

/// What comes from it.
struct Item<Y>(Y);

/// An item that another greenlet yielded, and that greenlet.
struct ItemOfChild<Y>(Box<(Y, Greenlet)>);

/// The function has returned.
struct End;

impl<Y: 'static> Generator<Y> {
    /// Makes a generator of a function. Nothing runs before the first step.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::Generator;
    ///
    /// let mut evens = Generator::new(|out| {
    ///     for n in (0..).step_by(2) {
    ///         out.yield_(n)?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(evens.next().unwrap()?, 0);
    /// assert_eq!(evens.next().unwrap()?, 2);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn new(function: impl FnOnce(Yielder<Y>) -> Result<()> + 'static) -> Generator<Y> {
        Generator::with_builder(Greenlet::builder(), move |out, ()| function(out))
    }
}

impl<Y: 'static, S: 'static> Generator<Y, S> {
    /// Makes a generator that is sent a value with each step.
    ///
    /// The function gets the value of the first step as its second argument; the others are what its
    /// `yield_` returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::Generator;
    ///
    /// let mut average = Generator::with_input(|out, first: f64| {
    ///     let (mut sum, mut count) = (first, 1.0);
    ///     loop {
    ///         sum += out.yield_(sum / count)?;
    ///         count += 1.0;
    ///     }
    /// });
    /// assert_eq!(average.send(10.0).unwrap()?, 10.0);
    /// assert_eq!(average.send(20.0).unwrap()?, 15.0);
    /// assert_eq!(average.send(30.0).unwrap()?, 20.0);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn with_input(function: impl FnOnce(Yielder<Y, S>, S) -> Result<()> + 'static) -> Generator<Y, S> {
        Generator::with_builder(Greenlet::builder(), function)
    }

    /// Makes a generator whose greenlet has a name or a stack size of its own. Its parent is whoever steps
    /// the generator, whatever the builder says.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{Generator, Greenlet};
    ///
    /// let builder = Greenlet::builder().name("one").stack_size(16 << 10);
    /// let mut one = Generator::with_builder(builder, |out, ()| out.yield_(1));
    /// assert_eq!(one.next().unwrap()?, 1);
    /// assert!(one.next().is_none());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[track_caller]
    pub fn with_builder(
        builder: Builder,
        function: impl FnOnce(Yielder<Y, S>, S) -> Result<()> + 'static,
    ) -> Generator<Y, S> {
        let link = Rc::new(Link {
            stage: Cell::new(Stage::Fresh),
            child: RefCell::new(None),
            types: PhantomData,
        });
        let shared = Rc::clone(&link);
        let greenlet = builder.build(move |Sent(first): Sent<S>| {
            shared.stage.set(Stage::InOrder);
            let yielder = Yielder {
                greenlet: getcurrent(),
                link: shared,
            };
            function(yielder, first)?;
            Ok(End)
        });
        greenlet.attach(Rc::clone(&link));
        Generator { greenlet, link }
    }

    /// Sends a value to the function, which returns it from its `yield_`, and runs it up to the next
    /// `yield_`. Returns what it yields; `None` when it has returned.
    ///
    /// # Errors
    ///
    /// The item is an error where the function returned one, and where something else than an item came
    /// to the caller: see [`Generator`]. A step that is refused, like any switch may be (see
    /// [`Greenlet::switch`]), and one that would make the caller its own ancestor, have changed nothing.
    ///
    /// # Panics
    ///
    /// Panics with what the function panics with.
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn send(&mut self, value: S) -> Option<Result<Y>> {
        let at = Location::caller();
        let outcome = self.greenlet.step_or_else::<_, Item<Y>, Option<Item<Y>>>(
            Sent(value),
            self.link.can_be_stepped(),
            |opens| self.link.opens(opens),
            |unexpected| match unexpected {
                Unexpected::Unsent(value) => self.send_otherwise(value, at),
                Unexpected::Refused(error) => Err(error),
                Unexpected::Back(outcome) => self.settle(outcome),
            },
        );
        Some(outcome.transpose()?.map(|Item(item)| item))
    }

    /// A step when the function is not simply in its `yield_`.
    fn send_otherwise(&self, value: Sent<S>, at: &'static Location<'static>) -> Result<Option<Item<Y>>> {
        if self.greenlet.is_dead() {
            return Ok(None);
        }
        if self.link.stage.get() != Stage::InChild {
            return Err(GeneratorError::new(Kind::Busy).into());
        }
        let parent = getcurrent();
        if self.greenlet.parent().as_ref() != Some(&parent) {
            self.greenlet.set_parent(&parent)?;
        }
        drop(parent);
        // Held over the switch, however long the stage says that there is one.
        let child = RefCell::new(self.link.child.borrow().clone());
        let unless_back = AdriftUnlessSaid(&self.link.stage);
        let outcome = Greenlet::switch_in(&child, value, at)?;
        std::mem::forget(unless_back);
        self.settle(outcome)
    }

    /// Notes who yielded, for the next step.
    fn keep_child(&self, item: ItemOfChild<Y>) -> Item<Y> {
        let (item, child) = *item.0;
        self.link.child.replace(Some(child));
        self.link.stage.set(Stage::InChild);
        Item(item)
    }

    /// What is not simply an item, or came back on a rare path.
    fn settle(&self, outcome: Result<Value>) -> Result<Option<Item<Y>>> {
        let error = match outcome {
            Ok(value) if value.is::<Item<Y>>() => {
                return Ok(Some(value.downcast().expect("just looked")));
            }
            Ok(value) if value.is::<ItemOfChild<Y>>() => {
                return Ok(Some(self.keep_child(value.downcast().expect("just looked"))));
            }
            // It ended, by exit or without; or it was dead before, and passed up what was sent to it.
            Ok(value) if self.greenlet.is_dead() && is_of_the_end::<S>(&value) => {
                self.link.stage.set(Stage::Adrift); // what is below it may live on, and yield in vain
                return Ok(None);
            }
            // Another generator's, which was stepped past its `Generator`.
            Ok(value) if value.is::<End>() => GeneratorError::new(Kind::Busy).into(),
            Ok(value) => TypeMismatch::of::<Item<Y>>(value).into(),
            Err(error) => error,
        };
        // Else it was a child's step, and was refused: the child has not seen it.
        if self.link.stage.get() != Stage::InChild {
            self.link.stage.set(Stage::Adrift);
        }
        Err(error)
    }

    /// Says whether the iteration is over: the function has returned, or was ended.
    pub fn is_finished(&self) -> bool {
        self.greenlet.is_dead()
    }

    /// The greenlet that runs the function, to look at. To switch to it is to go past the generator.
    pub fn greenlet(&self) -> &Greenlet {
        &self.greenlet
    }
}

/// Sets a stage adrift where a step to a child unwinds that the child has seen.
struct AdriftUnlessSaid<'a>(&'a Cell<Stage>);

impl Drop for AdriftUnlessSaid<'_> {
    fn drop(&mut self) {
        if self.0.get() == Stage::InOrder {
            self.0.set(Stage::Adrift);
        }
    }
}

/// Says whether what came back from a greenlet that is dead says just that.
fn is_of_the_end<S: 'static>(value: &Value) -> bool {
    value.is::<End>() || value.is_exit() || value.is::<Sent<S>>()
}

impl<Y: 'static> Iterator for Generator<Y> {
    type Item = Result<Y>;

    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    fn next(&mut self) -> Option<Result<Y>> {
        self.send(())
    }
}

impl<Y: 'static> FusedIterator for Generator<Y> {}

impl<Y: 'static, S: 'static> Drop for Generator<Y, S> {
    fn drop(&mut self) {
        // CAUTION: runs foreign code, twice. The greenlet that yielded for the function goes first, if
        // nobody else has a handle of it: it is the inner one.
        drop(self.link.child.take());
        self.greenlet.end();
        // Where the function itself, or a greenlet below, drops its generator: nobody is left to yield to.
        self.link.stage.set(Stage::Adrift);
    }
}

impl<Y, S> fmt::Debug for Generator<Y, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("greenlet", &self.greenlet)
            .finish_non_exhaustive()
    }
}

/// Hands out the values of a [`Generator`]; its function is given one.
///
/// Clones are the same. A greenlet that the function makes can yield for it, with a clone: its consumer's
/// next step then goes on with that greenlet. So a generator within a generator can yield to the outer
/// consumer directly.
///
/// # Examples
///
/// ```
/// use greenlet::Generator;
///
/// let squares = Generator::new(|outer| {
///     let numbers = Generator::new(move |inner| {
///         for n in 1..4 {
///             inner.yield_(n)?; // to the loop below
///             outer.yield_(n * n)?; // to the consumer of `squares`
///         }
///         Ok(())
///     });
///     numbers.map(|number| number.map(drop)).collect()
/// });
/// assert_eq!(squares.collect::<anyhow::Result<Vec<i32>>>()?, [1, 4, 9]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Yielder<Y: 'static, S: 'static = ()> {
    /// The generator's own: it does not keep the greenlet, which is ended by its generator.
    greenlet: Greenlet,
    link: Rc<Link<Y, S>>,
}

impl<Y: 'static, S: 'static> Yielder<Y, S> {
    /// Finds the nearest generator of these types that the caller runs in: the running greenlet's own, or
    /// that of an ancestor.
    ///
    /// # Errors
    ///
    /// [`GeneratorError::is_outside`] if there is none.
    pub fn nearest() -> Result<Yielder<Y, S>, GeneratorError> {
        let mut next = Some(getcurrent());
        while let Some(greenlet) = next {
            if let Some(link) = greenlet.attached::<Link<Y, S>>() {
                return Ok(Yielder { greenlet, link });
            }
            next = greenlet.parent();
        }
        Err(GeneratorError::new(Kind::Outside))
    }

    /// Gives a value to the consumer, and returns what the next step sends: `()` for one that is only
    /// iterated over.
    ///
    /// # Errors
    ///
    /// - What is thrown at the function's greenlet; when the generator is dropped, a
    ///   [`GreenletExit`](crate::GreenletExit). Pass it on with `?`.
    /// - [`GeneratorError`] if the caller does not run in this generator, or if nobody waits for the value.
    /// - A refused switch: see [`Greenlet::switch`].
    #[track_caller]
    #[inline(always)] // a return after a switch is one that the processor does not predict
    pub fn yield_(&self, value: Y) -> Result<S> {
        if !self.link.is_in_order() || !self.greenlet.is_current() {
            return self.yield_otherwise(value);
        }
        let outcome = self.greenlet.yield_or_else::<_, Sent<S>, Sent<S>>(
            Item(value),
            |opens| self.link.opens(opens),
            |unexpected| match unexpected {
                Unexpected::Unsent(_) => unreachable!("it is current"),
                Unexpected::Refused(error) => Err(error), // the consumer waits as before
                Unexpected::Back(Ok(value)) => Err(self.cut_short(TypeMismatch::of::<Sent<S>>(value).into())),
                Unexpected::Back(Err(error)) => Err(self.cut_short(error)),
            },
        );
        outcome.map(|Sent(input)| input)
    }

    /// A yield by another greenlet, or to nobody.
    #[cold]
    #[inline(never)]
    #[track_caller]
    fn yield_otherwise(&self, value: Y) -> Result<S> {
        let current = getcurrent();
        let mut lineage = std::iter::successors(Some(current.clone()), Greenlet::parent);
        if !lineage.any(|ancestor| ancestor == self.greenlet) {
            return Err(GeneratorError::new(Kind::Outside).into());
        }
        drop(lineage);
        if !self.link.is_in_order() || self.greenlet.is_yielding() {
            return Err(GeneratorError::new(Kind::CutShort).into());
        }
        // The handle of the running greenlet goes along, so that none is left on this stack.
        let item = ItemOfChild(Box::new((value, current)));
        match self.greenlet.switch_to_parent(item) {
            Ok(Sent(input)) => {
                self.link.stage.set(Stage::InOrder);
                drop(self.link.child.take());
                Ok(input)
            }
            // Else it was refused, and the consumer waits as before.
            Err(error) if !self.link.is_in_order() => Err(self.cut_short(error)),
            Err(error) => Err(error),
        }
    }

    /// Something else than a step came back.
    fn cut_short(&self, error: Error) -> Error {
        self.link.stage.set(Stage::Adrift);
        drop(self.link.child.take());
        error
    }
}

impl<Y, S> Clone for Yielder<Y, S> {
    fn clone(&self) -> Yielder<Y, S> {
        Yielder {
            greenlet: self.greenlet.clone(),
            link: Rc::clone(&self.link),
        }
    }
}

impl<Y, S> fmt::Debug for Yielder<Y, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder")
            .field("greenlet", &self.greenlet)
            .finish_non_exhaustive()
    }
}

/// Gives a value to the consumer of the nearest [`Generator`] of such values that the caller runs in.
///
/// For functions that are not handed a [`Yielder`], which is the faster way.
///
/// # Errors
///
/// As for [`Yielder::yield_`].
///
/// # Examples
///
/// ```
/// use greenlet::{Generator, GeneratorError, yield_};
///
/// fn count_down(from: u32) -> anyhow::Result<()> {
///     (0..from).rev().try_for_each(yield_)
/// }
/// let numbers = Generator::<u32>::new(|_| count_down(3));
/// assert_eq!(numbers.collect::<anyhow::Result<Vec<_>>>()?, [2, 1, 0]);
///
/// let error = count_down(1).unwrap_err();
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[track_caller]
pub fn yield_<Y: 'static>(value: Y) -> Result<()> {
    Yielder::<Y>::nearest()?.yield_(value)
}

/// A step, or a yield, at the wrong place or time.
///
/// # Examples
///
/// ```
/// use greenlet::{GeneratorError, yield_};
///
/// let error = yield_(1).unwrap_err(); // there is no generator around this
/// assert!(error.downcast_ref::<GeneratorError>().unwrap().is_outside());
/// ```
#[derive(Debug)]
pub struct GeneratorError {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Outside,
    Busy,
    CutShort,
}

impl GeneratorError {
    fn new(kind: Kind) -> GeneratorError {
        GeneratorError { kind }
    }

    /// Says whether the caller of the yield runs in no such generator.
    pub fn is_outside(&self) -> bool {
        self.kind == Kind::Outside
    }

    /// Says whether the step found the function running, or suspended elsewhere than in a `yield_`.
    pub fn is_busy(&self) -> bool {
        self.kind == Kind::Busy
    }

    /// Says whether nobody waits for the value: the step it belongs to was cut short, or the generator is
    /// being ended.
    pub fn is_cut_short(&self) -> bool {
        self.kind == Kind::CutShort
    }
}

impl fmt::Display for GeneratorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Outside => {
                "yield outside a generator of this type: call it from a generator's function, or from a \
                 greenlet below one"
            }
            Kind::Busy => {
                "the generator is busy: its function runs, or has switched elsewhere; step it again when it \
                 has yielded"
            }
            Kind::CutShort => "nobody waits for the value: the generator's step was cut short",
        })
    }
}

impl std::error::Error for GeneratorError {}
