#!/usr/bin/env python3
"""Run switching programs on Python's own `greenlet` and print what happened: the referee.

Reads programs (one JSON object a line, see OPS.md) from standard input and writes, for each,
its event log: one event a line, then a line holding only `--`.

    python3 oracle.py < programs.jsonl > expected.log

With `--verdicts` that last line says more where the log is not one to be equal to:

    -- undead N    after N lines of the log, a killed greenlet was still suspended when control came
                   back: from there on this library differs on purpose (OPS.md)
    -- cycle N     after N lines of the log, parents stood in a cycle: likewise
    -- runaway     the program was given up: it does not end, or goes deeper than Python can

Needs `pip install greenlet`. Exit status 0, or 2 with a message on a malformed program.
"""

import argparse
import gc
import inspect
import json
import sys
import threading

import greenlet as g

SLOTS = 10
GENERATOR_SLOTS = 4

# With --verdicts: so many lines are taken for no end, and Python's own limits are set far enough away.
# (A RecursionError that a `finally` replaces by an error of its own would go unseen.)
RUNAWAY = 3_000
RECURSION_LIMIT = 50_000
STACK_SIZE = 512 << 20


class E1(Exception):
    pass


class E2(Exception):
    pass


ERRORS = {"E1": E1, "E2": E2, "Exit": g.GreenletExit}


class Runaway(BaseException):
    """The program is given up."""


# the machine of the program that runs
running = None


def give_up(error):
    """Note that an error has come up that is none of the program's: where it goes is of no account."""
    if running is not None and isinstance(error, (Runaway, RecursionError)):
        running.is_runaway = True


def error_name(error):
    """The name that OPS.md gives an error."""
    if isinstance(error, (g.GreenletExit, GeneratorExit)):
        return "Exit"
    if isinstance(error, (E1, E2)):
        return type(error).__name__
    if isinstance(error, g.error):
        return "GreenletError"
    if str(error) == "generator already executing":
        return "Busy"
    if str(error) == "generator ignored GeneratorExit":
        return "Ignored"
    if isinstance(error, (ValueError, AttributeError)):
        return "BadParent"
    give_up(error)
    raise error


def value_name(value):
    if value is None:
        return "nothing"
    return "Exit" if isinstance(value, g.GreenletExit) else str(value)


class Leave(Exception):
    """Control flow inside one body: its `return` op."""

    def __init__(self, value):
        self.value = value


class InGenerator:
    """Begins the log lines of a generator's body: the generator, and the greenlet that runs it now."""

    def __init__(self, machine, name):
        self.machine = machine
        self.name = name

    def __str__(self):
        return f"{self.name}@{self.machine.name(g.getcurrent())}"


def generator_function(ops):
    """Compile the ops of a body to a generator function.

    An interpreter would be a generator for each `finally`, joined by `yield from`. Python's `close` tells each of
    these apart, so one that catches the exit would not be obeyed.
    """
    lines = [
        "def body(machine, label):",
        "    machine.emit(f'{label} start {value_name(machine.first)}')",
        "    try:",
        "        result = 0",
        *compiled(ops, " " * 8),
        "    except Leave as leave:",
        "        result = leave.value",
        "    except BaseException as error:",
        "        machine.emit(f'{label} end error {error_name(error)}')",
        "        raise",
        "    machine.emit(f'{label} end {result}')",
        "    return result",
        "    yield",
    ]
    names = dict(globals())
    exec("\n".join(lines), names)
    return names["body"]


def compiled(ops, indent):
    """The lines of source that run these ops."""
    for op in ops:
        yield f"{indent}machine.before_op()"
        if op[0] == "yield":
            _, value, catch = op
            yield f"{indent}try:"
            yield f"{indent}    got = yield {value}"
            yield f"{indent}except BaseException as error:"
            yield f"{indent}    if not machine.is_caught(label, 'yield {value}', {catch!r}, error):"
            yield f"{indent}        raise"
            yield f"{indent}else:"
            yield f"{indent}    machine.emit(f'{{label}} yield {value} -> {{value_name(got)}}')"
        elif op[0] == "finally":
            yield f"{indent}try:"
            yield f"{indent}    pass"
            yield from compiled(op[1], indent + "    ")
            yield f"{indent}finally:"
            yield f"{indent}    machine.emit(f'{{label}} finally')"
            yield from compiled(op[2], indent + "    ")
        else:
            yield f"{indent}machine.step(label, {op!r})"


class Machine:
    def __init__(self, program, limit):
        self.bodies = program["bodies"]
        self.slots = [None] * SLOTS
        self.generators = [None] * GENERATOR_SLOTS
        self.generator_count = 0
        # the compiled bodies, by their numbers
        self.functions = {}
        # what starts a generator: Python's own gets no value then
        self.first = None
        # names are kept by identity without holding a reference to the greenlet
        self.names = {id(g.getcurrent()): "main"}
        self.count = 0
        self.log = []
        self.differs = None
        self.is_runaway = False
        self.limit = limit

    def emit(self, text):
        self.log.append(text)

    def name(self, greenlet):
        return "none" if greenlet is None else self.names[id(greenlet)]

    def place(self, where):
        """The greenlet that an operand means: a slot's number or a word."""
        if where == "main":
            main = g.getcurrent()
            while main.parent is not None:
                main = main.parent
            return main
        if where == "current":
            return g.getcurrent()
        if where == "parent":
            return g.getcurrent().parent
        return self.slots[where]

    def new(self, body, parent=None):
        self.count += 1
        label = f"g{self.count}"

        def run(*args):
            # the original loses the exit value on its way to a pending parent, a defect (UD-1): what it
            # ought to get is written here
            self.emit(f"{label} start {value_name(args[0]) if args else 'Exit'}")
            try:
                result = self.run(label, self.bodies[body])
            except Leave as leave:
                result = leave.value
            except BaseException as error:
                self.emit(f"{label} end error {error_name(error)}")
                raise
            self.emit(f"{label} end {result}")
            return result

        made = g.greenlet(run) if parent is None else g.greenlet(run, parent)
        self.names[id(made)] = label
        return made

    def new_generator(self, body):
        self.generator_count += 1
        if body not in self.functions:
            self.functions[body] = generator_function(self.bodies[body])
        return self.functions[body](self, InGenerator(self, f"y{self.generator_count}"))

    def run(self, label, ops):
        for op in ops:
            self.before_op()
            self.step(label, op)
        return 0

    def before_op(self):
        if self.is_runaway or len(self.log) > self.limit:
            self.is_runaway = True
            raise Runaway
        if self.limit < sys.maxsize and self.has_cycle():
            self.note_difference("cycle")

    def note_difference(self, what):
        """Note that from here on the log is not to be compared."""
        if self.differs is None:
            self.differs = f" {what} {len(self.log)}"

    def has_cycle(self):
        """Say whether some lineage is a cycle.

        It comes about where the clean-up of a killed greenlet hangs the greenlet's parent below the
        greenlet: that is no cycle while the kill goes on, and afterwards the parent is set back unseen.
        """
        for start in [g.getcurrent(), *self.slots]:
            steps = 0
            while start is not None:
                start = start.parent
                steps += 1
                if steps > self.count + 1:
                    return True
        return False

    def attempt(self, label, text, catch, action):
        """Do a switch or throw; log its outcome; let its error go on unless `catch` covers it."""
        try:
            value = action()
        except BaseException as error:
            if self.is_caught(label, text, catch, error):
                return
            raise
        self.emit(f"{label} {text} -> {value_name(value)}")

    def is_caught(self, label, text, catch, error):
        """Log the error of a switch, throw, step or yield; return whether it stops there."""
        if isinstance(error, Leave):
            return False
        name = error_name(error)
        self.emit(f"{label} {text} -> error {name}")
        return catch == "all" or (catch == "errors" and name != "Exit")

    def in_generator(self, label, text, slot, catch, action):
        """Do a step of a generator; log its outcome."""
        if self.generators[slot] is None:
            self.emit(f"{label} {text} -> empty")
        else:
            self.attempt(label, text, catch, lambda: self.stepped(action))

    def stepped(self, action):
        """What a step of a generator gives: a value, or that there are no more."""
        try:
            return action()
        except StopIteration as stop:
            return "finished" if stop.value is None else f"returned {stop.value}"

    def close(self, slot):
        self.generators[slot].close()
        return "ok"

    def is_in_state(self, slot, state):
        """Return whether a slot holds a generator in a state, one of those of `inspect`."""
        generator = self.generators[slot]
        return generator is not None and inspect.getgeneratorstate(generator) == state

    def step(self, label, op):
        kind = op[0]
        if kind == "new":
            _, slot, body, parent = op
            made = None
            if parent is None:
                made = self.new(body)
            else:
                where = self.place(parent)
                if where is None:
                    self.emit(f"{label} new {slot} -> empty")
                    return
                made = self.new(body, where)
                del where
            self.slots[slot] = made
            del made
            self.emit(f"{label} new {slot} -> g{self.count}")
        elif kind in ("switch", "throw"):
            _, where, operand, catch = op
            text = f"{kind} {where} {operand}"
            if self.place(where) is None:
                self.emit(f"{label} {text} -> empty")
            elif kind == "switch":
                self.attempt(label, text, catch, lambda: self.place(where).switch(operand))
            else:
                self.attempt(label, text, catch, lambda: self.place(where).throw(ERRORS[operand]))
        elif kind == "set_parent":
            _, where, parent = op
            text = f"set_parent {where} {parent}"
            child, new_parent = self.place(where), self.place(parent)
            if child is None or new_parent is None:
                self.emit(f"{label} {text} -> empty")
                return
            try:
                child.parent = new_parent
            except (ValueError, AttributeError) as error:
                outcome = error_name(error)
            else:
                outcome = "ok"
            del child, new_parent
            self.emit(f"{label} {text} -> {outcome}")
        elif kind == "drop":
            self.emit(f"{label} drop {op[1]}")
            self.slots[op[1]] = None
            self.emit(f"{label} dropped {op[1]}")
        elif kind == "copy":
            self.slots[op[2]] = self.slots[op[1]]
            self.emit(f"{label} copy {op[1]} {op[2]}")
        elif kind == "generator":
            _, slot, body = op
            self.generators[slot] = self.new_generator(body)
            self.emit(f"{label} generator {slot} -> y{self.generator_count}")
        elif kind in ("next", "send"):
            slot, *value, catch = op[1:]
            value = value[0] if value else None
            text = f"next {slot}" if kind == "next" else f"send {slot} {value}"
            if self.is_in_state(slot, inspect.GEN_CREATED):
                self.first = value
                value = None
            self.in_generator(label, text, slot, catch, lambda: self.generators[slot].send(value))
        elif kind == "throw_in":
            _, slot, error, catch = op
            text = f"throw_in {slot} {error}"
            self.in_generator(label, text, slot, catch, lambda: self.generators[slot].throw(ERRORS[error]))
        elif kind == "close":
            _, slot, catch = op
            self.in_generator(label, f"close {slot}", slot, catch, lambda: self.close(slot))
        elif kind == "generator_state":
            slot = op[1]
            state = "finished" if self.is_in_state(slot, inspect.GEN_CLOSED) else "unfinished"
            self.emit(f"{label} generator_state {slot} -> {'empty' if self.generators[slot] is None else state}")
        elif kind == "drop_generator":
            self.emit(f"{label} drop_generator {op[1]}")
            self.generators[op[1]] = None
            self.emit(f"{label} dropped_generator {op[1]}")
        elif kind == "copy_generator":
            self.generators[op[2]] = self.generators[op[1]]
            self.emit(f"{label} copy_generator {op[1]} {op[2]}")
        elif kind == "yield":
            # In a generator's body, `yield` is compiled: this body is run by a greenlet of its own.
            self.emit(f"{label} yield {op[1]} -> no generator")
        elif kind == "state":
            where = self.place(op[1])
            if where is None:
                self.emit(f"{label} state {op[1]} -> empty")
                return
            state = "dead" if where.dead else "active" if where else "pending"
            parent = self.name(where.parent)
            del where
            self.emit(f"{label} state {op[1]} -> {state} parent {parent}")
        elif kind == "who":
            now = g.getcurrent()
            self.emit(f"{label} who -> {self.name(now)} parent {self.name(now.parent)}")
            del now
        elif kind == "return":
            raise Leave(op[1])
        elif kind == "raise":
            self.emit(f"{label} raise {op[1]}")
            raise ERRORS[op[1]]
        elif kind == "finally":
            _, ops, last = op
            try:
                self.run(label, ops)
            finally:
                self.emit(f"{label} finally")
                self.run(label, last)
        elif kind == "trace":
            if op[1]:
                g.settrace(self.traced)
            else:
                g.settrace(None)
            self.emit(f"{label} trace {'on' if op[1] else 'off'}")
        else:
            raise SystemExit(f"unknown op {op!r}")

    def traced(self, event, args):
        origin, target = args
        self.log.append(f"  {event} {self.name(origin)} {self.name(target)}")


class Complaints:
    """Stands in for standard error: hears `greenlet` complain that a killed greenlet did not die."""

    def write(self, text):
        if running is None:
            sys.__stderr__.write(text)
        elif text.startswith("GreenletExit did not kill"):
            running.note_difference("undead")

    def flush(self):
        pass


def run_program(program, limit):
    """Run a program in the calling thread; return its log and, if it is not to be compared, why."""
    global running
    running = machine = Machine(program, limit)
    try:
        try:
            machine.run("main", program["bodies"][0])
        except Leave:
            pass
        except BaseException as error:
            machine.emit(f"main end error {error_name(error)}")
        machine.emit("main end")
        for slot in range(SLOTS):
            if machine.slots[slot] is not None:
                machine.step("main", ["drop", slot])
        for slot in range(GENERATOR_SLOTS):
            if machine.generators[slot] is not None:
                machine.step("main", ["drop_generator", slot])
    except (Runaway, RecursionError):
        machine.is_runaway = True
    finally:
        g.settrace(None)
        running = None
    if machine.is_runaway:
        return machine.log, " runaway"
    return machine.log, machine.differs or ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", action="store_true", help="say which logs are not to be compared")
    args = parser.parse_args()
    limit = sys.maxsize
    if args.verdicts:
        limit = RUNAWAY
        sys.setrecursionlimit(RECURSION_LIMIT)
        threading.stack_size(STACK_SIZE)
    gc.disable()  # only the last reference ends a greenlet here, never a collection
    sys.stderr = Complaints()
    # an error that a killed greenlet leaves is no part of a log
    sys.unraisablehook = lambda unraisable: give_up(unraisable.exc_value)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            program = json.loads(line)
        except ValueError as error:
            print(f"malformed program: {error}", file=sys.stderr)
            return 2
        # each program gets a thread, and so a main greenlet, of its own
        box = []
        thread = threading.Thread(target=lambda: box.append(run_program(program, limit)))
        thread.start()
        thread.join()
        log, verdict = box[0]
        print("\n".join(log))
        print("--" + (verdict if args.verdicts else ""), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
