"""Two functions pass a number to and fro."""

from greenlet import greenlet


def player(name, other):
    def play(n):
        while n < 6:
            print(f"{name}: {n}")
            n = other().switch(n + 1)
        return f"{name} stops at {n}"

    return greenlet(play)


ping = player("ping", lambda: pong)
pong = player("pong", lambda: ping)
print(ping.switch(1))
print(f"ping is {'dead' if ping.dead else 'suspended'}, pong is {'dead' if pong.dead else 'suspended'}")
