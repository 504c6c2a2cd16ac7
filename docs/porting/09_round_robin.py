"""A round-robin scheduler, with tasks that wait for each other and a bounded queue between them."""

from collections import deque

from greenlet import getcurrent, greenlet


class Scheduler:
    def __init__(self):
        self.ready = deque()
        self.hub = getcurrent()

    def spawn(self, function, *args):
        task = Task(self, function, args)
        self.ready.append(task.greenlet)
        return task

    def pause(self):
        self.ready.append(getcurrent())
        self.hub.switch()

    def run(self):
        while self.ready:
            self.ready.popleft().switch()


class Task:
    def __init__(self, scheduler, function, args):
        self.scheduler = scheduler
        self.greenlet = greenlet(lambda: self.main(function, args))
        self.waiting = []

    def main(self, function, args):
        self.result = function(*args)
        self.scheduler.ready.extend(self.waiting)

    def join(self):
        if not self.greenlet.dead:
            self.waiting.append(getcurrent())
            self.scheduler.hub.switch()
        return self.result


class Queue:
    def __init__(self, scheduler, size):
        self.scheduler, self.size = scheduler, size
        self.items, self.waiting = deque(), deque()

    def wait(self):
        self.waiting.append(getcurrent())
        self.scheduler.hub.switch()

    def wake(self):
        self.scheduler.ready.extend(self.waiting)
        self.waiting.clear()

    def put(self, item):
        while len(self.items) == self.size:
            self.wait()
        self.items.append(item)
        self.wake()

    def get(self):
        while not self.items:
            self.wait()
        item = self.items.popleft()
        self.wake()
        return item


scheduler = Scheduler()
queue = Queue(scheduler, 2)


def count(name, to):
    for n in range(1, to + 1):
        print(f"{name}: {n}")
        scheduler.pause()
    return name * to


def produce():
    for n in range(5):
        queue.put(n)
        print(f"put {n}")
    queue.put(None)


def consume():
    total = 0
    while (item := queue.get()) is not None:
        print(f"got {item}")
        total += item
        scheduler.pause()
    return total


def collect(*tasks):
    print("all:", " ".join(str(task.join()) for task in tasks))


scheduler.spawn(collect, scheduler.spawn(count, "a", 3), scheduler.spawn(count, "b", 2))
scheduler.run()
scheduler.spawn(produce)
scheduler.spawn(collect, scheduler.spawn(consume))
scheduler.run()
