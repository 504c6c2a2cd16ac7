"""A gevent-like hub in virtual time: spawn, sleep, events, timeouts that are thrown in, kill and join."""

import heapq
import itertools

from greenlet import GreenletExit, getcurrent, greenlet


class Hub:
    def __init__(self):
        self.main = getcurrent()
        self.now = 0
        self.timers = []
        self.order = itertools.count()

    def call_at(self, time, callback):
        entry = [time, next(self.order), callback]
        heapq.heappush(self.timers, entry)
        return entry

    def run(self):
        while self.timers:
            time, _, callback = heapq.heappop(self.timers)
            if callback is not None:
                self.now = time
                callback()


hub = Hub()


def log(text):
    print(f"{hub.now:3} {text}")


def sleep(seconds):
    hub.call_at(hub.now + seconds, getcurrent().switch)
    hub.main.switch()


def spawn(name, function, *args):
    def main():
        try:
            function(*args)
        except GreenletExit:
            log(f"{name} was killed")
        except Exception as error:
            log(f"{name} failed: {error}")

    task = greenlet(main, parent=hub.main)
    hub.call_at(hub.now, task.switch)
    return task


class Event:
    def __init__(self):
        self.is_set = False
        self.waiting = []

    def set(self):
        self.is_set = True
        for task in self.waiting:
            hub.call_at(hub.now, task.switch)
        self.waiting.clear()

    def wait(self):
        if not self.is_set:
            task = getcurrent()
            self.waiting.append(task)
            try:
                hub.main.switch()
            finally:
                if task in self.waiting:
                    self.waiting.remove(task)


class Timeout(Exception):
    def __init__(self, seconds):
        super().__init__(f"timed out after {seconds}")
        self.timer = hub.call_at(hub.now + seconds, lambda task=getcurrent(): task.throw(self))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.timer[2] = None


door = Event()


def guest(name, patience):
    log(f"{name} rings")
    try:
        with Timeout(patience):
            door.wait()
        log(f"{name} comes in")
    except Timeout as error:
        log(f"{name} leaves: {error}")


def host():
    sleep(5)
    log("the door opens")
    door.set()


def clock():
    try:
        while True:
            log("tick")
            sleep(3)
    finally:
        log("the clock stops")


def broken():
    sleep(2)
    raise ValueError("bad wiring")


ticking = spawn("clock", clock)
spawn("ann", guest, "ann", 10)
spawn("bob", guest, "bob", 4)
spawn("host", host)
spawn("lamp", broken)
hub.call_at(8, lambda: (ticking.throw(), log(f"clock dead: {ticking.dead}")))
hub.run()
