"""Tracing: every transfer of control, as it happens."""

import greenlet as g

names = {g.getcurrent(): "main"}


def named(name, function):
    made = g.greenlet(function)
    names[made] = name
    return made


def tracer(event, arguments):
    origin, target = arguments
    print(f"{event}: {names[origin]} -> {names[target]}{' (origin is dead)' if origin.dead else ''}")


def upper():
    lower = named("lower", lambda: g.getcurrent().parent.switch())
    lower.switch()
    lower.switch()
    try:
        lower.switch()
        main.switch()
    except RuntimeError as error:
        print(f"upper got {error}")
    raise ValueError("the end")


main = g.getcurrent()
first = named("upper", upper)
before = g.settrace(tracer)
first.switch()
try:
    first.throw(RuntimeError("thrown"))
except ValueError as error:
    print(f"main got {error}")
main.switch()
print(g.settrace(before) is tracer, before, g.gettrace())
named("unseen", lambda: None).switch()
