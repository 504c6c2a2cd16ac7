"""Where errors go: up the parents, which can be changed, and past the dead."""

from greenlet import getcurrent, greenlet


def supervisor(name, child):
    """Runs the child; an error in it ends up here, since it is the child's parent."""
    child.parent = getcurrent()
    try:
        print(f"{name}: child returned {child.switch(name)}")
    except ValueError as error:
        print(f"{name}: caught {error}")
    return f"{name} is done"


def good(name):
    return f"a present for {name}"


def bad(name):
    raise ValueError(f"trouble for {name}")


print(greenlet(supervisor).switch("first", greenlet(good)))
print(greenlet(supervisor).switch("second", greenlet(bad)))


# An error nobody handles goes on to the next parent.
def careless(child):
    child.parent = getcurrent()
    child.switch("nobody")


try:
    greenlet(careless).switch(greenlet(bad))
except ValueError as error:
    print(f"main: caught {error}")

# What is sent to a dead greenlet goes to its parent.
dead = greenlet(good)
print(dead.switch("main"))
print(dead.switch("comes right back"))

# No rings.
upper, lower = greenlet(good), greenlet(good)
lower.parent = upper
try:
    upper.parent = lower
except ValueError:
    print("no rings")
print(lower.parent is upper, upper.parent is getcurrent())
