"""A process simulation: the machine shop of the SimPy tutorial, on an engine of a page.

Ten machines make parts, and break. One repairman mends them; between repairs he does other jobs, which he
drops when a machine breaks. Random numbers come from a generator that every language has.
"""

import heapq
import math
from itertools import count

from greenlet import getcurrent, greenlet

PART_MEAN, PART_SIGMA = 10.0, 2.0
MEAN_TIME_TO_FAILURE = 300.0
REPAIR_TIME, JOB_DURATION = 30.0, 30.0
MACHINES, WEEKS = 10, 4
END = WEEKS * 7 * 24 * 60


class Random:
    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 11) / 2**53

    def exponential(self, mean):
        return -math.log(1.0 - self.uniform()) * mean

    def normal(self, mean, sigma):
        total = -6.0
        for _ in range(12):
            total += self.uniform()
        return mean + sigma * total


random = Random(42)


class Interrupt(Exception):
    """Thrown into a process in the middle of its `hold`."""


class Engine:
    def __init__(self):
        self.main = getcurrent()
        self.now = 0.0
        self.agenda = []
        self.order = count()

    def schedule(self, delay, process, value=None):
        entry = [self.now + delay, next(self.order), process, value]
        heapq.heappush(self.agenda, entry)
        return entry

    def process(self, function, *args):
        process = greenlet(lambda _: function(*args), parent=self.main)
        self.schedule(0.0, process)
        return process

    def hold(self, delay):
        entry = self.schedule(delay, getcurrent())
        try:
            self.main.switch()
        finally:
            entry[2] = None

    def suspend(self):
        return self.main.switch()

    def interrupt(self, process):
        self.schedule(0.0, process, Interrupt())

    def run(self, until):
        while self.agenda and self.agenda[0][0] < until:
            time, _, process, value = heapq.heappop(self.agenda)
            if process is None:
                continue
            self.now = time
            if isinstance(value, Interrupt):
                process.throw(value)
            else:
                process.switch(value)


engine = Engine()


class Repairman:
    """A resource that is preempted: those with priority push out who has none, and queue among themselves."""

    def __init__(self):
        self.user = None
        self.is_preemptible = False
        self.urgent, self.patient = [], []

    def acquire(self, is_urgent):
        if self.user is not None and is_urgent and self.is_preemptible:
            engine.interrupt(self.user)
            self.user = None
        if self.user is not None:
            (self.urgent if is_urgent else self.patient).append(getcurrent())
            engine.suspend()
        else:
            self.take(getcurrent(), is_urgent)

    def take(self, process, is_urgent):
        self.user, self.is_preemptible = process, not is_urgent

    def release(self):
        if self.user is not getcurrent():
            return
        self.user = None
        for queue, is_urgent in ((self.urgent, True), (self.patient, False)):
            if queue:
                process = queue.pop(0)
                self.take(process, is_urgent)
                engine.schedule(0.0, process)
                return


class Machine:
    def __init__(self, name, repairman):
        self.name = name
        self.parts_made = self.failures = 0
        self.is_broken = False
        self.working = engine.process(self.work, repairman)
        engine.process(self.fail)

    def work(self, repairman):
        while True:
            todo = random.normal(PART_MEAN, PART_SIGMA)
            while todo > 0.0:
                start = engine.now
                try:
                    engine.hold(todo)
                    todo = 0.0
                except Interrupt:
                    self.is_broken = True
                    todo -= engine.now - start
                    repairman.acquire(True)
                    engine.hold(REPAIR_TIME)
                    repairman.release()
                    self.is_broken = False
            self.parts_made += 1

    def fail(self):
        while True:
            engine.hold(random.exponential(MEAN_TIME_TO_FAILURE))
            if not self.is_broken:
                self.failures += 1
                engine.interrupt(self.working)


class OtherJobs:
    def __init__(self, repairman):
        self.done = self.interruptions = 0
        engine.process(self.work, repairman)

    def work(self, repairman):
        while True:
            todo = JOB_DURATION
            while todo > 0.0:
                repairman.acquire(False)
                start = engine.now
                try:
                    engine.hold(todo)
                    todo = 0.0
                    repairman.release()
                except Interrupt:
                    self.interruptions += 1
                    todo -= engine.now - start
            self.done += 1


repairman = Repairman()
machines = [Machine(f"machine {n}", repairman) for n in range(MACHINES)]
jobs = OtherJobs(repairman)
engine.run(END)
print(f"the machine shop after {WEEKS} weeks")
for machine in machines:
    print(f"{machine.name} made {machine.parts_made} parts and failed {machine.failures} times")
print(f"the repairman finished {jobs.done} other jobs, and was called away {jobs.interruptions} times")
print(f"last event at {engine.now:.6f}")
