#!/usr/bin/env python3
"""The same questions as `cargo bench`, to Python's greenlet, to gevent and to Python's own generators.

    python3 -m venv target/python && target/python/bin/pip install greenlet gevent
    target/python/bin/python python_peers.py            # a table
    target/python/bin/python python_peers.py --json     # for record.py, which does all of this

Not part of the gate. As in `cargo bench`, all contenders run in turns, in one process; medians of the rounds are given,
and between what half of them were. The cyclic garbage collector is off while the clock runs.

gevent switches by way of its hub: `sleep(0)` is its switch, and a ring is a lap of the hub over all of them.
"""

import gc
import json
import platform
import statistics
import sys
import time

import gevent
import gevent.event
import gevent.queue
import greenlet
from greenlet import getcurrent

ROUNDS = 15
STRETCH = 0.02


# ---- greenlet ---------------------------------------------------------------------------------------------


def ping_pong():
    main = getcurrent()

    def echo(n):
        while True:
            n = main.switch(n + 1)

    other = greenlet.greenlet(echo)

    def run(times):
        switch, n = other.switch, 0
        start = time.perf_counter()
        for _ in range(times):
            n = switch(n)
        return time.perf_counter() - start

    return run


def deep_ping_pong():
    main = getcurrent()

    def deep(left, body):
        return body() if left == 0 else deep(left - 1, body)

    def echo(n):
        def loop():
            nonlocal n
            while True:
                n = main.switch(n + 1)

        deep(50, loop)

    other = greenlet.greenlet(echo)

    def run(times):
        def loop():
            switch, n = other.switch, 0
            start = time.perf_counter()
            for _ in range(times):
                n = switch(n)
            return time.perf_counter() - start

        return deep(50, loop)

    return run


def ring(members):
    def make():
        main = getcurrent()
        handles = []

        def member(index):
            def body():
                n = main.switch()
                following = handles[index + 1] if index + 1 < members else main
                while True:
                    n = following.switch(n + 1)

            return body

        handles.extend(greenlet.greenlet(member(index)) for index in range(members))
        # Each from main: one that is started by another lies deeper on the C stack than that.
        for handle in handles:
            handle.switch()

        def run(laps):
            switch, n = handles[0].switch, 0
            start = time.perf_counter()
            for _ in range(laps):
                n = switch(n)
            return time.perf_counter() - start

        run(2)
        return run

    return make


def create():
    def body(n):
        return n + 1

    def run(times):
        start = time.perf_counter()
        for n in range(times):
            greenlet.greenlet(body).switch(n)
        return time.perf_counter() - start

    return run


def batches(make, what, end=lambda one: None, size=100):
    """Makes some, measures `what` of each, and ends them: only `what` is measured."""

    def run(times):
        measured = 0.0
        while times > 0:
            made = [make() for _ in range(min(times, size))]
            times -= size
            start = time.perf_counter()
            for index in range(len(made)):
                what(made, index)
            measured += time.perf_counter() - start
            for one in made:
                end(one)
        return measured

    return run


class Local:
    """What each one that is killed has on its stack: something with an end of its own."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def suspended():
    main = getcurrent()

    def body(n):
        with Local():
            return main.switch(n)

    one = greenlet.greenlet(body)
    one.switch(1)
    return one


def drop(made, index):
    made[index] = None


def kill():
    return batches(suspended, drop)


def first_switch():
    main = getcurrent()

    def make():
        return greenlet.greenlet(lambda n: main.switch(n))

    return batches(make, lambda made, index: made[index].switch(1), lambda one: one.switch(1))


def throw():
    main = getcurrent()

    def body(n):
        while n:
            try:
                n = main.switch(n)
            except greenlet.GreenletExit:
                pass

    other = greenlet.greenlet(body)
    other.switch(1)

    def run(times):
        throw = other.throw
        start = time.perf_counter()
        for _ in range(times):
            throw()
        return time.perf_counter() - start

    run.stop = lambda: other.switch(0)
    return run


class Generator:
    """The usual recipe: the consumer is the parent."""

    def __init__(self, function):
        self.greenlet = greenlet.greenlet(function)

    def __iter__(self):
        return self

    def __next__(self):
        self.greenlet.parent = getcurrent()
        item = self.greenlet.switch()
        if self.greenlet:
            return item
        raise StopIteration


def count_by_greenlet():
    def numbers():
        n = 0
        while True:
            getcurrent().parent.switch(n)
            n += 1

    return drain(Generator(numbers))


def count_by_yield():
    def numbers():
        n = 0
        while True:
            yield n
            n += 1

    return drain(numbers())


def drain(iterator):
    def run(times):
        total = 0
        start = time.perf_counter()
        for _, n in zip(range(times), iterator):
            total += n
        return time.perf_counter() - start

    return run


# ---- gevent -----------------------------------------------------------------------------------------------


def gevent_ring(members):
    def make():
        counts = [0]

        def body():
            while True:
                gevent.sleep(0)
                counts[0] += 1

        everyone = [gevent.spawn(body) for _ in range(members)]

        def run(laps):
            # Main is one more, that makes laps: the hub runs everyone between two of its turns.
            start = time.perf_counter()
            for _ in range(laps):
                gevent.sleep(0)
            return time.perf_counter() - start

        run(2)
        run.stop = lambda: gevent.killall(everyone)
        return run

    return make


def gevent_create():
    def body(n):
        return n + 1

    def run(times):
        start = time.perf_counter()
        for n in range(times):
            gevent.spawn(body, n).get()
        return time.perf_counter() - start

    return run


def gevent_kill():
    def body():
        with Local():
            gevent.event.Event().wait()

    def make():
        one = gevent.spawn(body)
        gevent.sleep(0)
        return one

    return batches(make, lambda made, index: made[index].kill())


def gevent_generator():
    channel = gevent.queue.Channel()

    def numbers():
        n = 0
        while True:
            channel.put(n)
            n += 1

    producer = gevent.spawn(numbers)
    run = drain(iter(channel.get, None))
    run.stop = producer.kill
    return run


# ---- the table --------------------------------------------------------------------------------------------

# The names are those of `cargo bench`; how many units are in one iteration; who takes part.
QUESTIONS = [
    ("ping-pong", 2, {"greenlet": ping_pong, "gevent": gevent_ring(1)}),
    ("ping-pong, 50 frames deep", 2, {"greenlet": deep_ping_pong}),
    ("ring of 1,000", 1_000, {"greenlet": ring(1_000), "gevent": gevent_ring(1_000)}),
    ("ring of 10,000", 10_000, {"greenlet": ring(10_000), "gevent": gevent_ring(10_000)}),
    ("ring of 100,000", 100_000, {"greenlet": ring(100_000), "gevent": gevent_ring(100_000)}),
    ("create, run, end", 1, {"greenlet": create, "gevent": gevent_create}),
    ("first switch", 1, {"greenlet": first_switch}),
    ("kill of a suspended one", 1, {"greenlet": kill, "gevent": gevent_kill}),
    ("throw there and switch back", 1, {"greenlet": throw}),
    (
        "generator, per value",
        1,
        {"greenlet": count_by_greenlet, "gevent": gevent_generator, "yield": count_by_yield},
    ),
]


def fitting(run):
    """How many iterations take about a stretch, with what is not measured of them."""
    times = 1
    while True:
        start = time.perf_counter()
        run(times)
        took = time.perf_counter() - start
        if took >= STRETCH / 2:
            return max(1, int(times * STRETCH / took))
        times *= 2


def measure(units, contenders):
    runs = {name: make() for name, make in contenders.items()}
    counts = {name: fitting(run) for name, run in runs.items()}
    times = {name: [] for name in runs}
    names = list(runs)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = runs[name](counts[name])
            times[name].append(took * 1e9 / (counts[name] * units))
    for run in runs.values():
        getattr(run, "stop", lambda: None)()
    figures = {}
    for name, values in times.items():
        low, typical, high = statistics.quantiles(values, n=4)
        figures[name] = {"typical": round(typical, 1), "low": round(low, 1), "high": round(high, 1)}
    return figures


def main():
    versions = {
        "Python": platform.python_version(),
        "greenlet": greenlet.__version__,
        "gevent": gevent.__version__,
    }
    gc.disable()
    groups = {}
    for name, units, contenders in QUESTIONS:
        groups[name] = measure(units, contenders)
        gc.collect()
        if "--json" not in sys.argv:
            for contender, figure in groups[name].items():
                spread = f"[{figure['low']} .. {figure['high']}]"
                print(f"{name:32}{contender:12}{figure['typical']:12.1f}  {spread}", flush=True)
    if "--json" in sys.argv:
        print(json.dumps({"versions": versions, "groups": groups}, indent=1))
    else:
        print("nanoseconds, medians:", ", ".join(f"{name} {version}" for name, version in versions.items()))


main()
