"""A chat server on a hub of its own: sequential code for each client over non-blocking sockets.

The clients are greenlets of the same hub, and follow a script, so what they see is always the same.
"""

import selectors
import socket
from collections import deque

from greenlet import getcurrent, greenlet


class Hub:
    def __init__(self):
        self.main = getcurrent()
        self.selector = selectors.DefaultSelector()
        self.ready = deque()
        self.waiting = {}

    def spawn(self, function, *args):
        task = greenlet(lambda: function(*args), parent=self.main)
        self.ready.append(task)
        return task

    def wait(self, sock, event):
        """Suspends the caller until the socket is ready."""
        waiting = self.waiting.setdefault(sock, {})
        waiting[event] = getcurrent()
        self.update(sock, waiting)
        try:
            self.main.switch()
        finally:
            del waiting[event]
            self.update(sock, waiting)

    def update(self, sock, waiting):
        """One task may wait to read, and another one to write."""
        if sock in self.selector.get_map():
            self.selector.unregister(sock)
        if waiting:
            self.selector.register(sock, sum(waiting), waiting)
        else:
            del self.waiting[sock]

    def run(self, until):
        while not until.dead:
            while self.ready:
                self.ready.popleft().switch()
            if until.dead:
                break
            for key, events in self.selector.select():
                self.ready.extend(task for event, task in key.data.items() if event & events)


hub = Hub()


class Stream:
    """Lines over a socket, as if it blocked."""

    def __init__(self, sock):
        sock.setblocking(False)
        self.sock = sock
        self.buffer = b""
        self.outgoing = b""
        self.is_flushing = False

    def read_line(self):
        while b"\n" not in self.buffer:
            try:
                data = self.sock.recv(4096)
            except BlockingIOError:
                hub.wait(self.sock, selectors.EVENT_READ)
                continue
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()

    def write_line(self, line):
        """Writes a line. While another task writes to the same socket, it is left to that one."""
        self.outgoing += line.encode() + b"\n"
        if self.is_flushing:
            return
        self.is_flushing = True
        try:
            while self.outgoing:
                try:
                    self.outgoing = self.outgoing[self.sock.send(self.outgoing) :]
                except BlockingIOError:
                    hub.wait(self.sock, selectors.EVENT_WRITE)
        finally:
            self.is_flushing = False

    def close(self):
        self.sock.close()


class Room:
    def __init__(self):
        self.members = {}

    def say(self, line, without=None):
        for name in sorted(self.members):
            if name != without:
                self.members[name].write_line(line)


def serve_client(room, stream):
    stream.write_line("who are you?")
    name = stream.read_line()
    if name is None or name in room.members:
        stream.write_line("that name is taken")
        stream.close()
        return
    room.say(f"* {name} comes in")
    room.members[name] = stream
    stream.write_line(f"* here: {' '.join(sorted(room.members))}")
    while (line := stream.read_line()) is not None:
        if line == "/quit":
            stream.write_line("* bye")
            break
        elif line == "/who":
            stream.write_line(f"* here: {' '.join(sorted(room.members))}")
        elif line.startswith("/to "):
            _, to, text = line.split(" ", 2)
            if to in room.members:
                room.members[to].write_line(f"{name} (to you): {text}")
            else:
                stream.write_line(f"* nobody is called {to}")
        else:
            room.say(f"{name}: {line}", without=name)
    del room.members[name]
    stream.close()
    room.say(f"* {name} leaves")


def listen(listener, room):
    listener.setblocking(False)
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            hub.wait(listener, selectors.EVENT_READ)
            continue
        hub.spawn(serve_client, room, Stream(sock))


class Client:
    def __init__(self, label, address):
        self.label = label
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            hub.wait(sock, selectors.EVENT_WRITE)
        self.stream = Stream(sock)

    def say(self, line):
        print(f"{self.label} > {line}")
        self.stream.write_line(line)

    def hear(self):
        line = self.stream.read_line()
        print(f"{self.label} < {'(closed)' if line is None else line}")


def script(address):
    def enter(label, name, *others):
        client = Client(label, address)
        client.hear()
        client.say(name)
        for other in others:
            other.hear()
        client.hear()
        return client

    one = enter("1", "ann")
    two = enter("2", "bob", one)
    three = enter("3", "cid", one, two)

    one.say("hello, everybody")
    two.hear()
    three.hear()
    two.say("hello ann")
    one.hear()
    three.hear()
    three.say("/to ann psst")
    one.hear()
    three.say("/to dan psst")
    three.hear()
    four = enter("4", "bob")
    four.hear()
    two.say("/quit")
    for client in (two, two, one, three):
        client.hear()
    one.say("/who")
    one.hear()
    one.stream.close()  # without a word
    three.hear()
    three.say("/who")
    three.hear()


listener = socket.create_server(("127.0.0.1", 0))
hub.spawn(listen, listener, Room())
hub.run(until=hub.spawn(script, listener.getsockname()))
print("over")
