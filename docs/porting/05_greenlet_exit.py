"""GreenletExit: killing, cleaning up, refusing, and errors of one's own that are thrown in."""

from greenlet import GreenletExit, getcurrent, greenlet


class Cancelled(Exception):
    pass


def worker(name):
    main = getcurrent().parent
    done = 0
    try:
        while True:
            try:
                main.switch(f"{name}: step {done}")
                done += 1
            except Cancelled as error:
                print(f"{name}: {error}, starting again")
                done = 0
    except GreenletExit:
        print(f"{name}: asked to go")
        raise
    finally:
        print(f"{name}: cleaned up after {done}")


a = greenlet(worker)
print(a.switch("a"))
print(a.switch())
print(a.throw(Cancelled("changed my mind")))
print(a.switch())

# The exit comes back as a value: nobody has to catch it.
value = a.throw(GreenletExit("enough"))
print(type(value).__name__, value, a.dead)
print(type(a.throw()).__name__)

# Dropping the last reference does the same.
b = greenlet(worker)
print(b.switch("b"))
del b
print("b is gone")

# One that was never started dies unrun.
c = greenlet(worker)
print(type(c.throw()).__name__, c.dead)


def stubborn():
    try:
        getcurrent().parent.switch("waiting")
    except GreenletExit:
        return "a last word"


d = greenlet(stubborn)
print(d.switch())
print(d.throw())
