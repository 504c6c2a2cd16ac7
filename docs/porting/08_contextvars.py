"""Context variables: each greenlet has its own values; inheritance is chosen."""

import contextvars

from greenlet import getcurrent, greenlet

user = contextvars.ContextVar("user", default="nobody")
depth = contextvars.ContextVar("depth", default=0)


def handler(name):
    main = getcurrent().parent
    before = user.get()
    if name:
        user.set(name)
    main.switch(f"{before} -> {user.get()}")
    nested(3)
    return f"{user.get()} at depth {depth.get()}"


def nested(levels):
    if levels:
        token = depth.set(depth.get() + 1)
        getcurrent().parent.switch(f"{user.get()} at depth {depth.get()}")
        nested(levels - 1)
        depth.reset(token)


user.set("admin")
alone = greenlet(handler)
heir = greenlet(handler)
heir.gr_context = contextvars.copy_context()
partner = greenlet(handler)
partner.gr_context = heir.gr_context

print(alone.switch("ann"))
print(heir.switch(""))
print(partner.switch("bob"))
for _ in range(3):
    print(alone.switch(), "/", heir.switch())
print(alone.switch())
print(heir.switch())
print(user.get())
print(heir.gr_context[user], partner.gr_context is heir.gr_context)
