//! Random programs: their language, their generation from a seed, and their printed form.
//!
//! A program is a tree of steps, and each step has a number. Shrinking leaves out steps by their
//! numbers, so a step never depends on what other steps contain: all of them act on tables.

use std::collections::BTreeSet;
use std::sync::Arc;

use fastrand::Rng;

/// The sizes of the tables of a thread.
pub(crate) const SLOTS: usize = 3;
pub(crate) const GATES: usize = 4;

/// The steps of a function, a destructor, a future or a hook.
pub(crate) type Body = Arc<[Step]>;

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) number: u32,
    pub(crate) op: Op,
}

/// What a body does with an error that a step returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    Propagate,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    Value,
    Owned,
    Throw,
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GenStep {
    Next,
    Throw,
    Close,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thrown {
    /// A payload with a destructor.
    Plain,
    /// A payload whose destructor panics.
    Bomb,
    /// An error, by `raise`.
    Raised,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) in_place: bool,
    pub(crate) require_await: bool,
    pub(crate) has_hooks: bool,
    pub(crate) has_spans: bool,
    /// The call of a hook that panics.
    pub(crate) hook_panics_at: Option<u32>,
    /// What the hooks do when they are called for the first time.
    pub(crate) hook: Body,
    /// What the waker of the task does when it is called.
    pub(crate) waker: Body,
}

/// The kind of an awaited future.
#[derive(Debug)]
pub(crate) enum Awaited {
    Ready,
    /// Calls its waker, and is ready in the second poll.
    Later,
    Gate(usize),
    Spawn(Body, Options),
    Task(usize),
    /// The items of a stream, of which so many are taken.
    Stream(Body, u32),
}

#[derive(Debug)]
pub(crate) struct Await {
    pub(crate) awaited: Awaited,
    /// `await_` and not `try_await_`.
    pub(crate) unwinds: bool,
    pub(crate) on_error: OnError,
    /// The poll that panics.
    pub(crate) panics_at: Option<u32>,
    /// What its first poll does.
    pub(crate) poll: Body,
    pub(crate) drop: Body,
}

#[derive(Debug)]
pub(crate) enum Op {
    New {
        slot: usize,
        parent: Option<usize>,
        body: Body,
        drop: Body,
    },
    Switch {
        slot: usize,
        how: Transfer,
        on_error: OnError,
    },
    Up(OnError),
    ToMain(OnError),
    End(usize),
    Drop(usize),
    Forget(usize),
    CloneTo {
        from: usize,
        to: usize,
    },
    SetParent {
        slot: usize,
        parent: usize,
    },
    Hold {
        slot: usize,
        body: Body,
    },
    EndSuspended,
    Local {
        body: Body,
        drop: Body,
    },
    Catch(Body),
    /// Catches what the library unwinds with, too.
    Swallow(Body),
    NoSwitch(Body),
    Repeat(u32, Body),
    Panic(Thrown),
    Fail,
    Exit,
    Return,
    Variable,
    NewGenerator {
        slot: usize,
        body: Body,
        drop: Body,
    },
    Generator {
        slot: usize,
        how: GenStep,
    },
    DropGenerator(usize),
    ForgetGenerator(usize),
    Yield(OnError),
    Scope(Body),
    Member {
        slot: usize,
        body: Body,
    },
    MemberGenerator {
        body: Body,
        steps: u32,
    },
    Spawn {
        slot: usize,
        body: Body,
        options: Options,
    },
    Stream {
        slot: usize,
        body: Body,
        options: Options,
    },
    Poll(usize),
    DropTask(usize),
    Cancel(usize),
    ForgetTask(usize),
    EndRoot(usize),
    SwitchToRoot(usize),
    Await(Await),
    Open(usize),
    Item(OnError),
    BlockOn(Body),
    Thread {
        body: Body,
        end: ThreadEnd,
    },
    Span(Body),
    /// Installs a tracer for one event.
    Trace {
        body: Body,
        fails: bool,
    },
}

/// How a thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadEnd {
    /// Everything is driven to its end, then dropped, and `end_suspended` is called.
    Orderly,
    RunToEnd,
    /// Everything is left as it is.
    Plain,
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) seed: u64,
    pub(crate) body: Body,
    pub(crate) end: ThreadEnd,
    pub(crate) skips: BTreeSet<u32>,
    pub(crate) steps: u32,
}

impl Program {
    pub(crate) fn random(seed: u64, skips: BTreeSet<u32>) -> Program {
        let mut rng = Rng::with_seed(seed);
        let mut weights = [0; KINDS.len()];
        // Each program has about half of the kinds, so that rare combinations are frequent in some.
        for (weight, (_, base)) in weights.iter_mut().zip(KINDS) {
            *weight = if rng.u8(..5) < 3 { *base } else { 0 };
        }
        let mut make = Make {
            has_scopes: rng.u8(..6) == 0,
            may_refuse: rng.u8(..5) == 0,
            may_forget: rng.u8(..6) == 0,
            has_panics: rng.u8(..3) != 0,
            has_hook_faults: rng.u8(..16) == 0,
            weights,
            number: 0,
            budget: rng.i32(20..100),
            rng,
        };
        let body = make.body(Place::Top, 4, 4..12);
        let end = match make.rng.u8(..10) {
            0 => ThreadEnd::Plain,
            1 => ThreadEnd::RunToEnd,
            _ => ThreadEnd::Orderly,
        };
        Program {
            seed,
            body,
            end,
            skips,
            steps: make.number,
        }
    }
}

/// Where a body runs. This limits what it may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Greenlet,
    Generator,
    Spawn,
    Stream,
    Destructor,
    /// A poll, a waker or a hook.
    Callback,
    Scope,
    /// A member of a scope, which must end when it is asked to.
    Member,
    MemberGenerator,
    /// A spawn with spans: nothing else may run meanwhile.
    Spans,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    New,
    Switch,
    Up,
    ToMain,
    End,
    Drop,
    Forget,
    Clone,
    SetParent,
    Hold,
    EndSuspended,
    Local,
    Catch,
    Swallow,
    NoSwitch,
    Repeat,
    Panic,
    Fail,
    Exit,
    Return,
    Variable,
    NewGenerator,
    Generator,
    DropGenerator,
    Yield,
    Scope,
    Member,
    Spawn,
    Stream,
    Poll,
    DropTask,
    Cancel,
    EndRoot,
    SwitchToRoot,
    Await,
    Open,
    Item,
    BlockOn,
    Thread,
    Span,
    Trace,
}

const KINDS: &[(Kind, u32)] = &[
    (Kind::New, 14),
    (Kind::Switch, 16),
    (Kind::Up, 10),
    (Kind::ToMain, 4),
    (Kind::End, 3),
    (Kind::Drop, 5),
    (Kind::Forget, 1),
    (Kind::Clone, 3),
    (Kind::SetParent, 4),
    (Kind::Hold, 4),
    (Kind::EndSuspended, 1),
    (Kind::Local, 6),
    (Kind::Catch, 3),
    (Kind::Swallow, 3),
    (Kind::NoSwitch, 3),
    (Kind::Repeat, 3),
    (Kind::Panic, 2),
    (Kind::Fail, 1),
    (Kind::Exit, 1),
    (Kind::Return, 1),
    (Kind::Variable, 2),
    (Kind::NewGenerator, 8),
    (Kind::Generator, 9),
    (Kind::DropGenerator, 3),
    (Kind::Yield, 10),
    (Kind::Scope, 3),
    (Kind::Member, 10),
    (Kind::Spawn, 12),
    (Kind::Stream, 5),
    (Kind::Poll, 14),
    (Kind::DropTask, 3),
    (Kind::Cancel, 3),
    (Kind::EndRoot, 2),
    (Kind::SwitchToRoot, 2),
    (Kind::Await, 16),
    (Kind::Open, 8),
    (Kind::Item, 8),
    (Kind::BlockOn, 2),
    (Kind::Thread, 1),
    (Kind::Span, 6),
    (Kind::Trace, 3),
];

impl Kind {
    fn is_allowed(self, place: Place, make: &Make) -> bool {
        match self {
            Kind::Swallow if !make.may_refuse || make.has_scopes => return false,
            Kind::Trace if make.has_scopes => return false,
            Kind::Forget if !make.may_forget => return false,
            Kind::Panic if !make.has_panics => return false,
            Kind::Scope if !make.has_scopes => return false,
            Kind::Yield if !matches!(place, Place::Generator | Place::MemberGenerator) => return false,
            Kind::Item if place != Place::Stream => return false,
            Kind::Member if place != Place::Scope => return false,
            Kind::Span if place != Place::Spans => return false,
            Kind::Up if place == Place::Top => return false,
            _ => {}
        }
        match place {
            Place::Spans => matches!(
                self,
                Kind::Await
                    | Kind::Span
                    | Kind::Local
                    | Kind::Catch
                    | Kind::Repeat
                    | Kind::Panic
                    | Kind::Fail
            ),
            Place::Member | Place::MemberGenerator => matches!(
                self,
                Kind::Switch
                    | Kind::Up
                    | Kind::ToMain
                    | Kind::Local
                    | Kind::Repeat
                    | Kind::Panic
                    | Kind::Fail
                    | Kind::Exit
                    | Kind::Return
                    | Kind::Generator
                    | Kind::Yield
                    | Kind::Clone
                    | Kind::Open
            ),
            Place::Top => !matches!(self, Kind::Exit | Kind::Return | Kind::Fail),
            _ => true,
        }
    }
}

struct Make {
    rng: Rng,
    weights: [u32; KINDS.len()],
    number: u32,
    budget: i32,
    has_scopes: bool,
    may_refuse: bool,
    may_forget: bool,
    has_panics: bool,
    has_hook_faults: bool,
}

impl Make {
    fn body(&mut self, place: Place, depth: u32, len: std::ops::Range<usize>) -> Body {
        let len = self.rng.usize(len);
        let mut steps = Vec::new();
        // Otherwise few of them would be suspended.
        let waits = self.one_in(2).then(|| match place {
            Place::Greenlet | Place::Member => Some(Op::Up(self.on_error())),
            Place::Generator => Some(Op::Yield(self.on_error())),
            Place::Stream => Some(Op::Item(self.on_error())),
            Place::Spawn | Place::Spans => Some(Op::Await(self.await_(place, 0))),
            _ => None,
        });
        if let Some(op) = waits.flatten() {
            self.number += 1;
            steps.push(Step {
                number: self.number,
                op,
            });
        }
        for _ in 0..len {
            if self.budget <= 0 {
                break;
            }
            self.budget -= 1;
            self.number += 1;
            let number = self.number;
            if let Some(op) = self.op(place, depth) {
                steps.push(Step { number, op });
            }
        }
        steps.into()
    }

    fn inner(&mut self, place: Place, depth: u32) -> Body {
        match depth {
            0 => Body::default(),
            _ => self.body(place, depth - 1, 1..6),
        }
    }

    /// The body of a destructor, a poll, a waker or a hook: mostly empty.
    fn rare(&mut self, place: Place, depth: u32) -> Body {
        if self.has_scopes || depth == 0 || self.rng.u8(..4) != 0 {
            return Body::default();
        }
        self.body(place, depth - 1, 1..3)
    }

    fn one_in(&mut self, n: u8) -> bool {
        self.rng.u8(..n) == 0
    }

    fn on_error(&mut self) -> OnError {
        if self.one_in(3) {
            OnError::Ignore
        } else {
            OnError::Propagate
        }
    }

    fn options(&mut self, depth: u32) -> Options {
        let has_spans = self.one_in(8);
        let has_faults = self.has_hook_faults && !has_spans;
        Options {
            in_place: self.one_in(3),
            require_await: self.one_in(12),
            has_hooks: self.one_in(2),
            has_spans,
            hook_panics_at: (has_faults && self.one_in(2)).then(|| self.rng.u32(1..6)),
            hook: if has_faults {
                self.rare(Place::Callback, depth)
            } else {
                Body::default()
            },
            waker: if has_spans || !self.one_in(4) {
                Body::default()
            } else {
                self.rare(Place::Callback, depth)
            },
        }
    }

    fn op(&mut self, place: Place, depth: u32) -> Option<Op> {
        let allowed: Vec<(Kind, u32)> = KINDS
            .iter()
            .zip(self.weights)
            .map(|((kind, _), weight)| (*kind, weight))
            .filter(|(kind, weight)| *weight > 0 && kind.is_allowed(place, self))
            .collect();
        let total: u32 = allowed.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.rng.u32(..total);
        let kind = allowed.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.wrapping_sub(*weight);
            is_it
        })?;
        let (slot, other) = (self.rng.usize(..SLOTS), self.rng.usize(..SLOTS));
        Some(match kind.0 {
            Kind::New => Op::New {
                slot,
                parent: self.one_in(4).then_some(other),
                body: self.inner(Place::Greenlet, depth),
                drop: self.rare(Place::Destructor, depth),
            },
            Kind::Switch => Op::Switch {
                slot,
                how: match self.rng.u8(..10) {
                    0 => Transfer::Throw,
                    1 => Transfer::Kill,
                    2 => Transfer::Owned,
                    _ => Transfer::Value,
                },
                on_error: self.on_error(),
            },
            Kind::Up => Op::Up(self.on_error()),
            Kind::ToMain => Op::ToMain(self.on_error()),
            Kind::End => Op::End(slot),
            Kind::Drop => Op::Drop(slot),
            Kind::Forget => match self.rng.u8(..3) {
                0 => Op::Forget(slot),
                1 => Op::ForgetGenerator(slot),
                _ => Op::ForgetTask(slot),
            },
            Kind::Clone => Op::CloneTo {
                from: slot,
                to: other,
            },
            Kind::SetParent => Op::SetParent { slot, parent: other },
            Kind::Hold => Op::Hold {
                slot,
                body: self.inner(place, depth),
            },
            Kind::EndSuspended => Op::EndSuspended,
            Kind::Local => {
                let is_gentle = matches!(place, Place::Spans | Place::Member | Place::MemberGenerator);
                let drop = if is_gentle {
                    Body::default()
                } else {
                    self.rare(Place::Destructor, depth)
                };
                Op::Local {
                    body: self.inner(place, depth),
                    drop,
                }
            }
            Kind::Catch => Op::Catch(self.inner(place, depth)),
            Kind::Swallow => Op::Swallow(self.inner(place, depth)),
            Kind::NoSwitch => Op::NoSwitch(self.inner(place, depth)),
            Kind::Repeat => Op::Repeat(self.rng.u32(2..5), self.inner(place, depth)),
            Kind::Panic => Op::Panic(match self.rng.u8(..4) {
                0 => Thrown::Bomb,
                1 => Thrown::Raised,
                _ => Thrown::Plain,
            }),
            Kind::Fail => Op::Fail,
            Kind::Exit => Op::Exit,
            Kind::Return => Op::Return,
            Kind::Variable => Op::Variable,
            Kind::NewGenerator => Op::NewGenerator {
                slot,
                body: self.inner(Place::Generator, depth),
                drop: self.rare(Place::Destructor, depth),
            },
            Kind::Generator => Op::Generator {
                slot,
                how: match self.rng.u8(..10) {
                    0 => GenStep::Throw,
                    1 => GenStep::Close,
                    2 => GenStep::End,
                    _ => GenStep::Next,
                },
            },
            Kind::DropGenerator => Op::DropGenerator(slot),
            Kind::Yield => Op::Yield(self.on_error()),
            Kind::Scope => Op::Scope(self.inner(Place::Scope, depth)),
            Kind::Member if self.one_in(3) => Op::MemberGenerator {
                body: self.inner(Place::MemberGenerator, depth),
                steps: self.rng.u32(..4),
            },
            Kind::Member => Op::Member {
                slot,
                body: self.inner(Place::Member, depth),
            },
            Kind::Spawn => {
                let options = self.options(depth);
                let inside = if options.has_spans {
                    Place::Spans
                } else {
                    Place::Spawn
                };
                Op::Spawn {
                    slot,
                    body: self.inner(inside, depth),
                    options,
                }
            }
            Kind::Stream => {
                let mut options = self.options(depth);
                options.has_spans = false;
                Op::Stream {
                    slot,
                    body: self.inner(Place::Stream, depth),
                    options,
                }
            }
            Kind::Poll => Op::Poll(slot),
            Kind::DropTask => Op::DropTask(slot),
            Kind::Cancel => Op::Cancel(slot),
            Kind::EndRoot => Op::EndRoot(slot),
            Kind::SwitchToRoot => Op::SwitchToRoot(slot),
            Kind::Await => Op::Await(self.await_(place, depth)),
            Kind::Open => Op::Open(self.rng.usize(..GATES)),
            Kind::Item => Op::Item(self.on_error()),
            Kind::BlockOn => Op::BlockOn(self.inner(Place::Spawn, depth)),
            Kind::Thread => Op::Thread {
                body: self.inner(Place::Top, depth),
                end: match self.rng.u8(..3) {
                    0 => ThreadEnd::Orderly,
                    1 => ThreadEnd::RunToEnd,
                    _ => ThreadEnd::Plain,
                },
            },
            Kind::Span => Op::Span(self.inner(place, depth)),
            Kind::Trace => Op::Trace {
                body: self.rare(Place::Callback, depth),
                fails: self.one_in(3),
            },
        })
    }

    fn await_(&mut self, place: Place, depth: u32) -> Await {
        let is_simple = place == Place::Spans || depth == 0;
        let awaited = match self.rng.u8(..if is_simple { 7 } else { 12 }) {
            0 => Awaited::Ready,
            1 => Awaited::Later,
            2..=6 => Awaited::Gate(self.rng.usize(..GATES)),
            7..=8 => {
                let mut options = self.options(depth);
                options.has_spans = false;
                Awaited::Spawn(self.inner(Place::Spawn, depth), options)
            }
            9..=10 => Awaited::Task(self.rng.usize(..SLOTS)),
            _ => Awaited::Stream(self.inner(Place::Stream, depth), self.rng.u32(..4)),
        };
        Await {
            awaited,
            unwinds: self.one_in(3),
            on_error: self.on_error(),
            panics_at: (self.has_panics && self.one_in(16)).then(|| self.rng.u32(1..3)),
            poll: if is_simple {
                Body::default()
            } else {
                self.rare(Place::Callback, depth)
            },
            drop: if is_simple {
                Body::default()
            } else {
                self.rare(Place::Destructor, depth)
            },
        }
    }
}
