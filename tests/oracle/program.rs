//! Switching programs as data. This module reads a program from its line of JSON, and finds every
//! mistake in it before any op runs. `OPS.md` describes the language.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde_json::value::RawValue;

/// The number of slots that the bodies of a program share.
pub(crate) const SLOTS: usize = 10;

/// The number of slots for generators that they share.
pub(crate) const GENERATOR_SLOTS: usize = 4;

/// The maximal nesting of `finally`. Python's interpreter has a lower limit.
const MAX_DEPTH: usize = 500;

/// The mistake in a program: one line, without the number of the program's own line.
#[derive(Debug)]
pub(crate) struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

type Result<T> = std::result::Result<T, Malformed>;

/// A program: see `OPS.md`.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) bodies: Vec<Vec<Op>>,
}

/// An integer of any size, as its decimal digits. No op calculates with it.
#[derive(Clone, Debug)]
pub(crate) struct Int(Rc<str>);

impl Int {
    pub(crate) fn zero() -> Int {
        Int("0".into())
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An operand that means a greenlet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Slot(usize),
    Main,
    Current,
    Parent,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Slot(slot) => write!(f, "{slot}"),
            Place::Main => f.write_str("main"),
            Place::Current => f.write_str("current"),
            Place::Parent => f.write_str("parent"),
        }
    }
}

/// An error that a program can raise or throw.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    E1,
    E2,
    Exit,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::E1 => "E1",
            Failure::E2 => "E2",
            Failure::Exit => "Exit",
        })
    }
}

/// The errors of a switch that an op catches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Catch {
    None,
    Errors,
    All,
}

#[derive(Debug)]
pub(crate) enum Op {
    New {
        slot: usize,
        body: usize,
        parent: Option<Place>,
    },
    Switch {
        target: Place,
        value: Int,
        catch: Catch,
    },
    Throw {
        target: Place,
        failure: Failure,
        catch: Catch,
    },
    SetParent {
        child: Place,
        parent: Place,
    },
    Drop(usize),
    Copy {
        from: usize,
        to: usize,
    },
    State(Place),
    Who,
    Return(Int),
    Raise(Failure),
    Finally {
        ops: Vec<Op>,
        last: Vec<Op>,
    },
    Trace(bool),
    Generator {
        slot: usize,
        body: usize,
    },
    /// `next` if there is no value, otherwise `send`.
    Step {
        slot: usize,
        value: Option<Int>,
        catch: Catch,
    },
    ThrowIn {
        slot: usize,
        failure: Failure,
        catch: Catch,
    },
    Close {
        slot: usize,
        catch: Catch,
    },
    GeneratorState(usize),
    DropGenerator(usize),
    CopyGenerator {
        from: usize,
        to: usize,
    },
    Yield {
        value: Int,
        catch: Catch,
    },
}

impl Program {
    /// Reads a program from its line.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed`] if the line is no JSON, or no program.
    pub(crate) fn parse(line: &str) -> Result<Program> {
        let raw: &RawValue = serde_json::from_str(line).map_err(|error| {
            let text = error.to_string();
            // The error's line number is always 1, so it is left out.
            let text = text.split(" at line ").next().unwrap_or(&text);
            Malformed(format!("not JSON: {text} at column {}", error.column()))
        })?;
        let fields: BTreeMap<String, &RawValue> = read(raw)
            .ok_or_else(|| Malformed("a program is an object with the fields `name` and `bodies`".into()))?;
        if let Some(name) = fields.get("name") {
            read::<String>(name)
                .ok_or_else(|| Malformed(format!("`name` is to be a string, not {}", short(name))))?;
        }
        let bodies = fields
            .get("bodies")
            .ok_or_else(|| Malformed("the field `bodies` is missing".into()))?;
        let bodies = list(bodies).ok_or_else(|| {
            Malformed(format!(
                "`bodies` is to be a list of lists of ops, not {}",
                short(bodies)
            ))
        })?;
        if bodies.is_empty() {
            return Err(Malformed("`bodies` is empty; body 0 is what main runs".into()));
        }
        let reader = Reader { bodies: bodies.len() };
        let bodies = bodies.iter().enumerate().map(|(index, ops)| {
            reader
                .ops(ops, 0)
                .map_err(|Malformed(what)| Malformed(format!("body {index}, {what}")))
        });
        Ok(Program {
            bodies: bodies.collect::<Result<_>>()?,
        })
    }
}

/// Reads the parts of a program with a given number of bodies.
struct Reader {
    bodies: usize,
}

impl Reader {
    fn ops(&self, raw: &RawValue, depth: usize) -> Result<Vec<Op>> {
        if depth > MAX_DEPTH {
            return Err(Malformed(format!("`finally` is nested deeper than {MAX_DEPTH}")));
        }
        let Some(ops) = list(raw) else {
            return Err(Malformed(format!(
                "a list of ops is expected, not {}",
                short(raw)
            )));
        };
        let ops = ops.iter().enumerate().map(|(index, op)| {
            self.op(op, depth)
                .map_err(|Malformed(what)| Malformed(format!("op {index}: {what}")))
        });
        ops.collect()
    }

    fn op(&self, raw: &RawValue, depth: usize) -> Result<Op> {
        let no_op = || {
            Malformed(format!(
                "an op is a list that begins with its name, not {}",
                short(raw)
            ))
        };
        let parts = list(raw).ok_or_else(no_op)?;
        let (kind, operands) = parts.split_first().ok_or_else(no_op)?;
        let kind: String = read(kind).ok_or_else(no_op)?;
        let op = match (kind.as_str(), operands) {
            ("new", [at, body, parent]) => Op::New {
                slot: slot(at, SLOTS)?,
                body: self.body(body)?,
                parent: if parent.get() == "null" {
                    None
                } else {
                    Some(place(parent)?)
                },
            },
            ("switch", [target, value, stop]) => Op::Switch {
                target: place(target)?,
                value: int(value)?,
                catch: catch(stop)?,
            },
            ("throw", [target, error, stop]) => Op::Throw {
                target: place(target)?,
                failure: failure(error)?,
                catch: catch(stop)?,
            },
            ("set_parent", [child, parent]) => Op::SetParent {
                child: place(child)?,
                parent: place(parent)?,
            },
            ("drop", [at]) => Op::Drop(slot(at, SLOTS)?),
            ("copy", [from, to]) => Op::Copy {
                from: slot(from, SLOTS)?,
                to: slot(to, SLOTS)?,
            },
            ("state", [target]) => Op::State(place(target)?),
            ("who", []) => Op::Who,
            ("return", [value]) => Op::Return(int(value)?),
            ("raise", [error]) => Op::Raise(failure(error)?),
            ("finally", [ops, last]) => Op::Finally {
                ops: self.ops(ops, depth + 1)?,
                last: self.ops(last, depth + 1)?,
            },
            ("trace", [on]) => Op::Trace(
                read(on)
                    .ok_or_else(|| Malformed(format!("`trace` takes true or false, not {}", short(on))))?,
            ),
            ("generator", [at, body]) => Op::Generator {
                slot: slot(at, GENERATOR_SLOTS)?,
                body: self.body(body)?,
            },
            ("next", [at, stop]) => Op::Step {
                slot: slot(at, GENERATOR_SLOTS)?,
                value: None,
                catch: catch(stop)?,
            },
            ("send", [at, value, stop]) => Op::Step {
                slot: slot(at, GENERATOR_SLOTS)?,
                value: Some(int(value)?),
                catch: catch(stop)?,
            },
            ("throw_in", [at, error, stop]) => Op::ThrowIn {
                slot: slot(at, GENERATOR_SLOTS)?,
                failure: failure(error)?,
                catch: catch(stop)?,
            },
            ("close", [at, stop]) => Op::Close {
                slot: slot(at, GENERATOR_SLOTS)?,
                catch: catch(stop)?,
            },
            ("generator_state", [at]) => Op::GeneratorState(slot(at, GENERATOR_SLOTS)?),
            ("drop_generator", [at]) => Op::DropGenerator(slot(at, GENERATOR_SLOTS)?),
            ("copy_generator", [from, to]) => Op::CopyGenerator {
                from: slot(from, GENERATOR_SLOTS)?,
                to: slot(to, GENERATOR_SLOTS)?,
            },
            ("yield", [value, stop]) => Op::Yield {
                value: int(value)?,
                catch: catch(stop)?,
            },
            (kind, operands) => {
                return Err(match operands_of(kind) {
                    Some(wanted) => Malformed(format!(
                        "`{kind}` takes {wanted} operands, and {} are given",
                        operands.len()
                    )),
                    None => Malformed(format!("there is no op `{kind}`")),
                });
            }
        };
        Ok(op)
    }

    fn body(&self, raw: &RawValue) -> Result<usize> {
        match index(raw) {
            Some(body) if body < self.bodies => Ok(body),
            _ => Err(Malformed(format!(
                "a body is a number from 0 to {}, not {}",
                self.bodies - 1,
                short(raw)
            ))),
        }
    }
}

fn operands_of(kind: &str) -> Option<usize> {
    Some(match kind {
        "who" => 0,
        "drop" | "state" | "return" | "raise" | "trace" | "generator_state" | "drop_generator" => 1,
        "set_parent" | "copy" | "finally" | "generator" | "next" | "close" | "copy_generator" | "yield" => 2,
        "new" | "switch" | "throw" | "send" | "throw_in" => 3,
        _ => return None,
    })
}

fn read<'a, T: serde::Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn list(raw: &RawValue) -> Option<Vec<&RawValue>> {
    read(raw)
}

/// Reads the number of a slot, below the given number of slots.
fn slot(raw: &RawValue, slots: usize) -> Result<usize> {
    match index(raw) {
        Some(slot) if slot < slots => Ok(slot),
        _ => Err(Malformed(format!(
            "a slot is a number from 0 to {}, not {}",
            slots - 1,
            short(raw)
        ))),
    }
}

fn place(raw: &RawValue) -> Result<Place> {
    match read::<String>(raw).as_deref() {
        Some("main") => Ok(Place::Main),
        Some("current") => Ok(Place::Current),
        Some("parent") => Ok(Place::Parent),
        _ => match index(raw) {
            Some(slot) if slot < SLOTS => Ok(Place::Slot(slot)),
            _ => Err(Malformed(format!(
                "a place is a slot from 0 to {}, \"main\", \"current\" or \"parent\", not {}",
                SLOTS - 1,
                short(raw)
            ))),
        },
    }
}

fn failure(raw: &RawValue) -> Result<Failure> {
    match read::<String>(raw).as_deref() {
        Some("E1") => Ok(Failure::E1),
        Some("E2") => Ok(Failure::E2),
        Some("Exit") => Ok(Failure::Exit),
        _ => Err(Malformed(format!(
            "an error is \"E1\", \"E2\" or \"Exit\", not {}",
            short(raw)
        ))),
    }
}

fn catch(raw: &RawValue) -> Result<Catch> {
    match read::<String>(raw).as_deref() {
        Some("none") => Ok(Catch::None),
        Some("errors") => Ok(Catch::Errors),
        Some("all") => Ok(Catch::All),
        _ => Err(Malformed(format!(
            "what is caught is \"none\", \"errors\" or \"all\", not {}",
            short(raw)
        ))),
    }
}

/// Reads an integer from its text. JSON excludes everything but signs, points and exponents.
fn int(raw: &RawValue) -> Result<Int> {
    let text = raw.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed(format!("an integer is expected, not {}", short(raw))));
    }
    Ok(Int(if digits == "0" { digits } else { text }.into()))
}

fn index(raw: &RawValue) -> Option<usize> {
    int(raw).ok()?.0.parse().ok()
}

/// Returns the text of a found value, cut off if it is long.
fn short(raw: &RawValue) -> String {
    const MOST: usize = 40;
    let text = raw.get();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("`{}...`", &text[..end]),
        None => format!("`{text}`"),
    }
}
