//! Runs switching programs on greenlets, and logs what happens: the counterpart of `oracle.py`.
//!
//! Both must hold a handle of a greenlet at the same moments, because a greenlet ends when its last
//! handle is dropped. So each op drops its handles explicitly where it matters.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::thread;

use anyhow::{Error, Result};
use greenlet::{
    Generator, GeneratorBuilder, GeneratorError, Greenlet, GreenletExit, State, TraceEvent, TraceKind,
    Tracer, Value, Yielder, getcurrent, getparent, settrace,
};

use super::program::{Catch, Failure, GENERATOR_SLOTS, Int, Malformed, Op, Place, Program, SLOTS};

/// The stack size. The interpreter is recursive: nested bodies of `finally` need a deep stack.
const MAIN_STACK: usize = 16 << 20;
const STACK: usize = 4 << 20;

/// Runs the program in a line, on a new thread, and returns its event log.
///
/// # Errors
///
/// Returns [`Malformed`] if the line is no program. Nothing has run then.
///
/// # Panics
///
/// Panics if no thread can be created, or if the library panics.
pub(crate) fn run(line: &str) -> Result<Vec<String>, Malformed> {
    let line = line.to_owned();
    let thread = thread::Builder::new()
        .stack_size(MAIN_STACK)
        .spawn(move || {
            let program = Program::parse(&line)?;
            Ok(Rc::new(Machine::new(program)).run_main())
        })
        .expect("there are threads");
    thread.join().expect("a program does not panic")
}

/// The two errors that a program can raise itself.
#[derive(Debug)]
struct OwnError(&'static str);

impl fmt::Display for OwnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for OwnError {}

impl Failure {
    fn to_error(self) -> Error {
        match self {
            Failure::E1 => OwnError("E1").into(),
            Failure::E2 => OwnError("E2").into(),
            Failure::Exit => GreenletExit::new().into(),
        }
    }
}

/// Returns the name that `OPS.md` gives an error.
fn error_name(error: &Error) -> &'static str {
    if error.is::<GreenletExit>() {
        "Exit"
    } else if let Some(own) = error.downcast_ref::<OwnError>() {
        own.0
    } else if let Some(error) = error.downcast_ref::<GeneratorError>() {
        match error {
            error if error.is_busy() => "Busy",
            error if error.is_exit_ignored() => "Ignored",
            error => unreachable!("each yield is in its generator: {error}"),
        }
    } else {
        "GreenletError"
    }
}

/// A sent value: an [`Int`], or the exit of a greenlet that ended by it.
fn value_name(value: &Value) -> String {
    match value.downcast_ref::<Int>() {
        Some(int) => int.to_string(),
        None if value.is_exit() => "Exit".to_owned(),
        None => unreachable!("programs send integers alone"),
    }
}

/// The value that a step sends; none for a `next`.
type Input = Option<Int>;

fn input_name(input: Input) -> String {
    input.map_or_else(|| "nothing".to_owned(), |int| int.to_string())
}

type Made = Generator<Int, Input, Int>;

/// The greenlet or generator that runs a body. Each log line of the body begins with it.
#[derive(Clone, Copy)]
enum Me<'a> {
    Greenlet(&'a str),
    Generator(&'a str, &'a Yielder<Int, Input>),
}

impl fmt::Display for Me<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Me::Greenlet(name) => f.write_str(name),
            // The greenlet that steps it, which may differ from step to step.
            Me::Generator(own, _) => write!(f, "{own}@{}", name(&getcurrent())),
        }
    }
}

const MAIN: Me<'static> = Me::Greenlet("main");

/// The reason why a list of ops was left before its end.
enum Leave {
    Return(Int),
    Error(Error),
}

struct Machine {
    program: Program,
    slots: [RefCell<Option<Greenlet>>; SLOTS],
    generators: [RefCell<Option<Rc<Made>>>; GENERATOR_SLOTS],
    count: Cell<usize>,
    generator_count: Cell<usize>,
    log: RefCell<Vec<String>>,
    /// The log of main has been returned. From now on greenlets only end with their thread.
    is_over: Cell<bool>,
}

impl Machine {
    fn new(program: Program) -> Machine {
        Machine {
            program,
            slots: [const { RefCell::new(None) }; SLOTS],
            generators: [const { RefCell::new(None) }; GENERATOR_SLOTS],
            count: Cell::new(0),
            generator_count: Cell::new(0),
            log: RefCell::default(),
            is_over: Cell::new(false),
        }
    }

    /// Runs body 0 in the main greenlet of the thread.
    fn run_main(self: Rc<Machine>) -> Vec<String> {
        if let Err(Leave::Error(error)) = self.run(MAIN, &self.program.bodies[0]) {
            self.emit(format!("main end error {}", error_name(&error)));
        }
        self.emit("main end".to_owned());
        for slot in 0..SLOTS {
            let is_empty = self.slots[slot].borrow().is_none();
            if !is_empty {
                self.drop_slot(MAIN, slot);
            }
        }
        for slot in 0..GENERATOR_SLOTS {
            let is_empty = self.generators[slot].borrow().is_none();
            if !is_empty {
                self.drop_generator(MAIN, slot);
            }
        }
        settrace(None);
        self.is_over.set(true);
        self.log.take()
    }

    fn emit(&self, line: String) {
        self.log.borrow_mut().push(line);
    }

    fn place(&self, place: Place) -> Option<Greenlet> {
        match place {
            Place::Slot(slot) => self.slots[slot].borrow().clone(),
            Place::Main => {
                let mut main = getcurrent();
                while let Some(parent) = main.parent() {
                    main = parent;
                }
                Some(main)
            }
            Place::Current => Some(getcurrent()),
            Place::Parent => getparent(),
        }
    }

    /// Puts a greenlet into a slot, or nothing; returns what was there.
    fn put(&self, slot: usize, greenlet: Option<Greenlet>) -> Option<Greenlet> {
        self.slots[slot].replace(greenlet)
    }

    fn run(self: &Rc<Machine>, me: Me<'_>, ops: &[Op]) -> Result<(), Leave> {
        for op in ops {
            if self.is_over.get() {
                return Err(Leave::Error(GreenletExit::new().into()));
            }
            self.step(me, op)?;
        }
        Ok(())
    }

    fn step(self: &Rc<Machine>, me: Me<'_>, op: &Op) -> Result<(), Leave> {
        match op {
            Op::New { slot, body, parent } => self.new_greenlet(me, *slot, *body, *parent),
            Op::Switch { target, value, catch } => return self.switch(me, *target, value, *catch),
            Op::Throw {
                target,
                failure,
                catch,
            } => return self.throw(me, *target, *failure, *catch),
            Op::SetParent { child, parent } => self.set_parent(me, *child, *parent),
            Op::Drop(slot) => self.drop_slot(me, *slot),
            Op::Copy { from, to } => {
                let second = self.slots[*from].borrow().clone();
                drop(self.put(*to, second));
                self.emit(format!("{me} copy {from} {to}"));
            }
            Op::State(place) => self.state(me, *place),
            Op::Who => {
                let now = getcurrent();
                self.emit(format!("{me} who -> {} parent {}", name(&now), parent_name(&now)));
            }
            Op::Return(value) => return Err(Leave::Return(value.clone())),
            Op::Raise(failure) => {
                self.emit(format!("{me} raise {failure}"));
                return Err(Leave::Error(failure.to_error()));
            }
            Op::Finally { ops, last } => {
                let outcome = self.run(me, ops);
                self.emit(format!("{me} finally"));
                // The outcome of LAST replaces that of OPS.
                self.run(me, last)?;
                return outcome;
            }
            Op::Trace(on) => self.trace(me, *on),
            Op::Generator { slot, body } => self.new_generator(me, *slot, *body),
            Op::Step { slot, value, catch } => return self.step_generator(me, *slot, value, *catch),
            Op::ThrowIn { slot, failure, catch } => return self.throw_in(me, *slot, *failure, *catch),
            Op::Close { slot, catch } => return self.close(me, *slot, *catch),
            Op::GeneratorState(slot) => self.generator_state(me, *slot),
            Op::DropGenerator(slot) => self.drop_generator(me, *slot),
            Op::CopyGenerator { from, to } => {
                let second = self.generators[*from].borrow().clone();
                drop(self.generators[*to].replace(second));
                self.emit(format!("{me} copy_generator {from} {to}"));
            }
            Op::Yield { value, catch } => return self.yield_(me, value, *catch),
        }
        Ok(())
    }

    fn new_greenlet(self: &Rc<Machine>, me: Me<'_>, slot: usize, body: usize, parent: Option<Place>) {
        let mut builder = Greenlet::builder().stack_size(STACK);
        if let Some(place) = parent {
            let Some(parent) = self.place(place) else {
                self.emit(format!("{me} new {slot} -> empty"));
                return;
            };
            builder = builder.parent(&parent);
        }
        self.count.set(self.count.get() + 1);
        let label = format!("g{}", self.count.get());
        let machine = Rc::clone(self);
        let made = builder.name(label.as_str()).build(move |first: Value| {
            let result = machine.run_body(Me::Greenlet(&label), body, &value_name(&first))?;
            Ok(Value::new(result))
        });
        let before = self.put(slot, Some(made.clone()));
        // CAUTION: runs arbitrary user code, which may use the new greenlet already.
        drop(before);
        drop(made);
        // Log the count, not the number of this greenlet: an end just now may have created more.
        self.emit(format!("{me} new {slot} -> g{}", self.count.get()));
    }

    fn run_body(self: &Rc<Machine>, me: Me<'_>, body: usize, first: &str) -> Result<Int> {
        self.emit(format!("{me} start {first}"));
        let result = match self.run(me, &self.program.bodies[body]) {
            Ok(()) => Int::zero(),
            Err(Leave::Return(value)) => value,
            Err(Leave::Error(error)) => {
                self.emit(format!("{me} end error {}", error_name(&error)));
                return Err(error);
            }
        };
        self.emit(format!("{me} end {result}"));
        Ok(result)
    }

    fn switch(&self, me: Me<'_>, place: Place, value: &Int, catch: Catch) -> Result<(), Leave> {
        // Hold the target exactly until the switch has returned.
        let switched = |target: Greenlet| target.switch::<Value>(value.clone());
        let outcome = self.place(place).map(switched).map(named);
        self.settle(me, &format!("switch {place} {value}"), catch, outcome)
    }

    fn throw(&self, me: Me<'_>, place: Place, failure: Failure, catch: Catch) -> Result<(), Leave> {
        let thrown = |target: Greenlet| target.throw::<Value>(failure.to_error());
        let outcome = self.place(place).map(thrown).map(named);
        self.settle(me, &format!("throw {place} {failure}"), catch, outcome)
    }

    /// Logs the outcome of a switch, throw, step or yield. Propagates its error unless the op
    /// catches it.
    fn settle(
        &self,
        me: Me<'_>,
        text: &str,
        catch: Catch,
        outcome: Option<Result<String>>,
    ) -> Result<(), Leave> {
        let error = match outcome {
            None => {
                self.emit(format!("{me} {text} -> empty"));
                return Ok(());
            }
            Some(Ok(value)) => {
                self.emit(format!("{me} {text} -> {value}"));
                return Ok(());
            }
            Some(Err(error)) => error,
        };
        self.emit(format!("{me} {text} -> error {}", error_name(&error)));
        let is_caught = match catch {
            Catch::None => false,
            Catch::Errors => !error.is::<GreenletExit>(),
            Catch::All => true,
        };
        if is_caught {
            Ok(())
        } else {
            Err(Leave::Error(error))
        }
    }

    fn new_generator(self: &Rc<Machine>, me: Me<'_>, slot: usize, body: usize) {
        self.generator_count.set(self.generator_count.get() + 1);
        let label = format!("y{}", self.generator_count.get());
        let machine = Rc::clone(self);
        let function = move |yielder: Yielder<Int, Input>, first: Input| {
            machine.run_body(Me::Generator(&label, &yielder), body, &input_name(first))
        };
        let made = GeneratorBuilder::new()
            .stack_size(STACK)
            .build_with_input(function);
        let before = self.generators[slot].replace(Some(Rc::new(made)));
        // CAUTION: runs arbitrary user code, which may use the new generator already.
        drop(before);
        self.emit(format!(
            "{me} generator {slot} -> y{}",
            self.generator_count.get()
        ));
    }

    fn step_generator(&self, me: Me<'_>, slot: usize, value: &Input, catch: Catch) -> Result<(), Leave> {
        let text = match value {
            None => format!("next {slot}"),
            Some(value) => format!("send {slot} {value}"),
        };
        let outcome = self.in_generator(slot, |generator| generator.resume(value.clone()));
        self.settle(me, &text, catch, outcome)
    }

    fn throw_in(&self, me: Me<'_>, slot: usize, failure: Failure, catch: Catch) -> Result<(), Leave> {
        let outcome = self.in_generator(slot, |generator| generator.throw(failure.to_error()));
        self.settle(me, &format!("throw_in {slot} {failure}"), catch, outcome)
    }

    /// Steps the generator in a slot. Returns `None` if the slot is empty.
    fn in_generator(
        &self,
        slot: usize,
        step: impl FnOnce(&Made) -> Option<Result<Int>>,
    ) -> Option<Result<String>> {
        // Hold the generator exactly until the step has returned.
        let generator = self.generators[slot].borrow().clone()?;
        Some(match step(&generator) {
            Some(item) => item.map(|item| item.to_string()),
            None => Ok(match generator.take_return() {
                Some(returned) => format!("returned {returned}"),
                None => "finished".to_owned(),
            }),
        })
    }

    fn close(&self, me: Me<'_>, slot: usize, catch: Catch) -> Result<(), Leave> {
        let closed = |generator: Rc<Made>| {
            let outcome = generator.close();
            // Python's `close` discards it.
            generator.take_return();
            outcome.map(|()| "ok".to_owned())
        };
        let generator = self.generators[slot].borrow().clone();
        self.settle(me, &format!("close {slot}"), catch, generator.map(closed))
    }

    fn generator_state(&self, me: Me<'_>, slot: usize) {
        let state = match &*self.generators[slot].borrow() {
            None => "empty",
            Some(generator) if generator.is_finished() => "finished",
            Some(_) => "unfinished",
        };
        self.emit(format!("{me} generator_state {slot} -> {state}"));
    }

    fn drop_generator(&self, me: Me<'_>, slot: usize) {
        self.emit(format!("{me} drop_generator {slot}"));
        drop(self.generators[slot].take());
        self.emit(format!("{me} dropped_generator {slot}"));
    }

    fn yield_(&self, me: Me<'_>, value: &Int, catch: Catch) -> Result<(), Leave> {
        let outcome = match me {
            Me::Generator(_, yielder) => yielder.yield_(value.clone()).map(input_name),
            Me::Greenlet(_) => Ok("no generator".to_owned()),
        };
        self.settle(me, &format!("yield {value}"), catch, Some(outcome))
    }

    fn set_parent(&self, me: Me<'_>, child_place: Place, parent_place: Place) {
        let (child, parent) = (self.place(child_place), self.place(parent_place));
        let outcome = match (&child, &parent) {
            (Some(child), Some(parent)) => match child.set_parent(parent) {
                Ok(()) => "ok",
                Err(_) => "BadParent",
            },
            _ => "empty",
        };
        // In this order: the end of the old parent may have emptied the slots.
        drop(child);
        drop(parent);
        self.emit(format!(
            "{me} set_parent {child_place} {parent_place} -> {outcome}"
        ));
    }

    fn drop_slot(&self, me: Me<'_>, slot: usize) {
        self.emit(format!("{me} drop {slot}"));
        drop(self.put(slot, None));
        self.emit(format!("{me} dropped {slot}"));
    }

    fn state(&self, me: Me<'_>, place: Place) {
        let Some(greenlet) = self.place(place) else {
            self.emit(format!("{me} state {place} -> empty"));
            return;
        };
        let state = match greenlet.state() {
            State::Pending => "pending",
            State::Active => "active",
            State::Dead => "dead",
        };
        let parent = parent_name(&greenlet);
        self.emit(format!("{me} state {place} -> {state} parent {parent}"));
    }

    fn trace(self: &Rc<Machine>, me: Me<'_>, on: bool) {
        let tracer = on.then(|| {
            let machine = Rc::clone(self);
            Tracer::new(move |event| {
                machine.traced(event);
                Ok(())
            })
        });
        settrace(tracer);
        self.emit(format!("{me} trace {}", if on { "on" } else { "off" }));
    }

    fn traced(&self, event: &TraceEvent) {
        let kind = match event.kind {
            TraceKind::Switch => "switch",
            TraceKind::Throw => "throw",
            other => unreachable!("a new kind of event: {other:?}"),
        };
        self.emit(format!(
            "  {kind} {} {}",
            name(&event.origin),
            name(&event.target)
        ));
    }
}

fn named(outcome: Result<Value>) -> Result<String> {
    outcome.map(|value| value_name(&value))
}

fn name(greenlet: &Greenlet) -> String {
    greenlet.name().expect("every greenlet has a name").to_owned()
}

fn parent_name(greenlet: &Greenlet) -> String {
    greenlet
        .parent()
        .map_or_else(|| "none".to_owned(), |parent| name(&parent))
}
