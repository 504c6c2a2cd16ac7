//! The choices of one run: what a test asks, and the path that it has taken so far.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::panic::{Location, resume_unwind};
use std::rc::Rc;

use greenlet_core::Greenlet;

use super::step::{Bounds, Divergence, Kind, Point, Step};
use super::strategy::Strategy;

/// The source of choices of a run: see the [module](super).
///
/// All clones are the same source. A test hands them to its scheduler, its tasks and its fakes.
///
/// # Examples
///
/// ```
/// use greenlet::testing::explore::Explore;
///
/// let report = Explore::new().check(|choices| {
///     let coin = choices.choose(2);
///     let die = if coin == 0 { choices.choose(6) } else { 0 };
///     anyhow::ensure!(die < 6);
///     Ok(())
/// });
/// assert_eq!(report.orders(), 6 + 1);
/// ```
#[derive(Clone)]
pub struct Choices {
    run: Rc<RefCell<Run>>,
}

impl Choices {
    pub(super) fn new(run: Run) -> Choices {
        Choices {
            run: Rc::new(RefCell::new(run)),
        }
    }

    /// Returns a number below `alternatives`. A run without a reason to deviate takes 0, so let 0 be the
    /// ordinary case.
    ///
    /// # Panics
    ///
    /// Panics if `alternatives` is 0. Unwinds if the search stops this run: at the bound of
    /// [`max_choices`](super::Explore::max_choices), or because the test is not deterministic.
    #[track_caller]
    pub fn choose(&self, alternatives: usize) -> usize {
        self.ask(Kind::Value, alternatives, &mut std::iter::empty())
    }

    /// Returns the index of the greenlet that runs next. `ready` are those that can run, in the order in
    /// which the scheduler would run them without an exploration.
    ///
    /// If the greenlet that was picked last is ready, then to pick another one is a preemption, unless it
    /// has [yielded](Choices::yielded).
    ///
    /// # Panics
    ///
    /// Panics if `ready` is empty. Unwinds as [`choose`](Choices::choose) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::Greenlet;
    /// use greenlet::testing::explore::Explore;
    ///
    /// let report = Explore::new().check(|choices| {
    ///     let mut ready: Vec<Greenlet> = (0..3).map(|_| Greenlet::new(|(): ()| Ok(()))).collect();
    ///     while !ready.is_empty() {
    ///         let next = ready.swap_remove(choices.pick(&ready));
    ///         next.switch_owned::<()>(())?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(report.orders(), 6); // 3 * 2 * 1
    /// ```
    #[track_caller]
    pub fn pick<'a>(&self, ready: impl IntoIterator<Item = &'a Greenlet>) -> usize {
        self.pick_id(&mut ready.into_iter().map(Greenlet::id))
    }

    /// Does the same for things that are no greenlets, such as tasks. `ready` are their numbers, which
    /// must be the same ones in each run.
    ///
    /// # Panics
    ///
    /// As [`pick`](Choices::pick).
    #[track_caller]
    pub fn pick_id(&self, ready: &mut dyn Iterator<Item = u64>) -> usize {
        self.ask(Kind::Next, 0, ready)
    }

    /// Tells that the greenlet that was picked last gives way of its own accord. To pick another one next
    /// is then no preemption, but to pick the same one is. So a bound on preemptions also bounds loops
    /// that wait for others by yielding.
    pub fn yielded(&self) {
        self.run.borrow_mut().has_yielded = true;
    }

    /// Returns 0 if nothing fails here, or which one of `kinds` faults, from 1, happens.
    ///
    /// A run has at most as many faults as [`Explore::faults`](super::Explore::faults) allows. After
    /// those this returns 0, and is no choice.
    ///
    /// # Panics
    ///
    /// Unwinds as [`choose`](Choices::choose) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::testing::explore::Explore;
    ///
    /// let report = Explore::new().faults(1).check(|choices| {
    ///     for _ in 0..3 {
    ///         let _is_lost = choices.fault(1) == 1;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(report.orders(), 1 + 3); // none, or one of three
    /// ```
    #[track_caller]
    pub fn fault(&self, kinds: usize) -> usize {
        if self.run.borrow().faults_left == 0 {
            return 0;
        }
        let fault = self.ask(Kind::Fault, kinds + 1, &mut std::iter::empty());
        if fault > 0 {
            self.run.borrow_mut().faults_left -= 1;
        }
        fault
    }

    /// Returns `true` if this run may have another fault.
    pub fn has_faults_left(&self) -> bool {
        self.run.borrow().faults_left > 0
    }

    #[track_caller]
    fn ask(&self, kind: Kind, alternatives: usize, ready: &mut dyn Iterator<Item = u64>) -> usize {
        let place = Location::caller();
        // CAUTION: the iterator runs arbitrary user code.
        let ids: Vec<u64> = ready.collect();
        let alternatives = if kind == Kind::Next {
            ids.len()
        } else {
            alternatives
        };
        assert!(
            alternatives > 0,
            "nothing to choose from: no greenlet is ready, or 0 alternatives"
        );
        let asked = self.run.borrow_mut().ask(kind, alternatives, &ids, place);
        match asked {
            Ok(picked) => picked,
            // A second panic would abort the process.
            Err(Stopped) if std::thread::panicking() => 0,
            Err(Stopped) => resume_unwind(Box::new(Stopped)),
        }
    }

    pub(super) fn with_run<R>(&self, use_it: impl FnOnce(&mut Run) -> R) -> R {
        use_it(&mut self.run.borrow_mut())
    }
}

impl fmt::Debug for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choices").finish_non_exhaustive()
    }
}

/// The payload of the panic that stops a run.
#[derive(Debug)]
pub(super) struct Stopped;

/// Why a run was stopped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// It reached the bound of its choices.
    Bound,
    /// It did not repeat the choices of a run before it.
    Diverged(Divergence),
}

/// The state of a run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) strategy: Strategy,
    pub(super) bounds: Bounds,
    /// The steps so far, and behind [`Run::at`] those of an earlier run that this one must repeat.
    pub(super) path: Vec<Step>,
    at: usize,
    preemptions: u32,
    faults_left: u32,
    /// The id of the greenlet that was picked last.
    last: Option<u64>,
    has_yielded: bool,
    pub(super) stop: Option<Stop>,
    /// The test has returned. What still asks, such as the end of a greenlet that it has left, gets 0.
    is_over: bool,
}

impl Run {
    pub(super) fn new(strategy: Strategy, bounds: Bounds) -> Run {
        Run {
            faults_left: bounds.faults,
            strategy,
            bounds,
            path: Vec::new(),
            at: 0,
            preemptions: 0,
            last: None,
            has_yielded: false,
            stop: None,
            is_over: false,
        }
    }

    /// Returns to the start, for a run that repeats the steps of `path`.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
        self.preemptions = 0;
        self.faults_left = self.bounds.faults;
        self.last = None;
        self.has_yielded = false;
        self.stop = None;
        self.is_over = false;
    }

    fn ask(
        &mut self,
        kind: Kind,
        alternatives: usize,
        ids: &[u64],
        place: &'static Location<'static>,
    ) -> Result<usize, Stopped> {
        let position = |id: u64| {
            ids.iter()
                .position(|other| *other == id)
                .map(|index| index as u32)
        };
        let point = Point {
            kind,
            alternatives: u32::try_from(alternatives).expect("fewer than 2^32 alternatives"),
            place,
            running: self.last.filter(|_| kind == Kind::Next).and_then(position),
            has_yielded: kind == Kind::Next && self.has_yielded,
        };
        // One alternative is no choice.
        let picked = if alternatives == 1 {
            0
        } else {
            self.pick(point, ids)?
        };
        if kind == Kind::Next {
            self.last = Some(ids[picked as usize]);
            self.has_yielded = false;
        }
        Ok(picked as usize)
    }

    fn pick(&mut self, point: Point, ids: &[u64]) -> Result<u32, Stopped> {
        if self.is_over {
            return Ok(0);
        }
        if self.stop.is_some() {
            return Err(Stopped);
        }
        let step = match self.path.get(self.at) {
            Some(step) if step.point == point => *step,
            Some(step) => {
                self.stop = Some(Stop::Diverged(Divergence {
                    nth: self.at + 1,
                    before: step.point,
                    now: Some(point),
                }));
                return Err(Stopped);
            }
            None if self.at >= self.bounds.choices => {
                self.stop = Some(Stop::Bound);
                return Err(Stopped);
            }
            None => {
                let preemptions_left = self.bounds.preemptions.saturating_sub(self.preemptions);
                let step = Step {
                    point,
                    picked: self.strategy.pick(self.at, &point, ids, preemptions_left),
                    preemptions: self.preemptions,
                };
                self.path.push(step);
                step
            }
        };
        self.at += 1;
        self.preemptions += point.cost(step.picked);
        Ok(step.picked)
    }

    /// Ends the run. Notes a divergence if it has not repeated all steps that it had to.
    pub(super) fn finish(&mut self) {
        self.is_over = true;
        if let (None, Some(step)) = (self.stop, self.path.get(self.at)) {
            self.stop = Some(Stop::Diverged(Divergence {
                nth: self.at + 1,
                before: step.point,
                now: None,
            }));
        }
    }
}
