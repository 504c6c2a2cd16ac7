"""SQLAlchemy's bridge: synchronous code over an asynchronous driver, in the few lines that it takes."""

import asyncio

from greenlet import getcurrent, greenlet


class Bridge(greenlet):
    def __init__(self, function, driver):
        super().__init__(function, driver)


def await_only(awaitable):
    current = getcurrent()
    if not isinstance(current, Bridge):
        awaitable.close()
        raise RuntimeError("await_only() outside greenlet_spawn()")
    return current.parent.switch(awaitable)


async def greenlet_spawn(function, *args):
    context = Bridge(function, getcurrent())
    result = context.switch(*args)
    while not context.dead:
        try:
            value = await result
        except BaseException as error:
            result = context.throw(error)
        else:
            result = context.switch(value)
    return result


# An asynchronous driver.


async def fetch(table, row):
    print(f"fetch {table}/{row}")
    await asyncio.sleep(0)
    if row > 2:
        raise LookupError(f"{table} has no row {row}")
    return f"{table}[{row}]"


# A synchronous library that knows nothing of it, and uses what it is given.


def read_all(get):
    rows = []
    try:
        for row in range(10):
            rows.append(get(row))
    except LookupError as error:
        rows.append(f"({error})")
    return ", ".join(rows)


def report(table):
    return read_all(lambda row: await_only(fetch(table, row)))


async def main():
    for line in await asyncio.gather(greenlet_spawn(report, "users"), greenlet_spawn(report, "posts")):
        print(line)
    try:
        await_only(fetch("users", 0))
    except RuntimeError:
        print("not here")


asyncio.run(main())
