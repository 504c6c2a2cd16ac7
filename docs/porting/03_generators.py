"""Generators that yield from any depth, and are sent values: a class of a page, as everybody wrote it."""

from greenlet import getcurrent, greenlet


class Generator:
    def __init__(self, function):
        self.greenlet = greenlet(lambda first: function(self))

    def send(self, value):
        self.greenlet.parent = getcurrent()
        item = self.greenlet.switch(value)
        if self.greenlet.dead:
            raise StopIteration
        return item

    def yield_(self, value):
        return self.greenlet.parent.switch(value)

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)


def walk(tree, out):
    if tree is not None:
        left, value, right = tree
        walk(left, out)
        out.yield_(value)
        walk(right, out)


tree = (((None, 1, None), 2, (None, 3, None)), 4, (None, 5, (None, 6, None)))
print(" ".join(str(n) for n in Generator(lambda out: walk(tree, out))))


def squares(out):
    for n in Generator(lambda inner: walk(tree, inner)):
        out.yield_(n * n)


print(" ".join(str(n) for n in Generator(squares)))


def average(out):
    total = count = 0
    value = out.yield_(None)
    while True:
        total += value
        count += 1
        value = out.yield_(total / count)


running = Generator(average)
next(running)
for n in (10, 20, 60):
    print(f"{running.send(n):.1f}")


def fails(out):
    out.yield_("one")
    raise ValueError("nothing left")


failing = Generator(fails)
print(next(failing))
try:
    next(failing)
except ValueError as error:
    print(f"error: {error}")
print(f"items left: {len(list(failing))}")
