"""The repaint loop of `bridge.rs` in Python: a row is written and read back on PostgreSQL, by asyncpg, once in plain
`async` code and once in synchronous code on greenlets, bridged as SQLAlchemy does it.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install asyncpg greenlet
    DATABASE_URL=postgres://user@host/db /tmp/venv/bin/python benches/repaint_asyncpg.py

Prints nanoseconds for each row, medians of rounds that take turns. Not part of the checks.
"""

import asyncio
import os
import statistics
import sys
import time

import asyncpg
import greenlet

ROUNDS = 201
ROWS = 100


class Spawned(greenlet.greenlet):
    """Runs a synchronous function; its parent awaits for it."""


def await_(awaitable):
    return greenlet.getcurrent().parent.switch(awaitable)


async def greenlet_spawn(function, *args):
    spawned = Spawned(function)
    result = spawned.switch(*args)
    while not spawned.dead:
        try:
            value = await result
        except BaseException:
            result = spawned.throw(*sys.exc_info())
        else:
            result = spawned.switch(value)
    return result


INSERT = "insert into bench_bridge(data) values ($1) returning id"
SELECT = "select data from bench_bridge where id = ($1)"


async def write_and_read(conn, data):
    row_id = await conn.fetchval(INSERT, data)
    return await conn.fetchval(SELECT, row_id)


def write_and_read_repainted(conn, data):
    row_id = await_(conn.fetchval(INSERT, data))
    return await_(conn.fetchval(SELECT, row_id))


async def main():
    conn = await asyncpg.connect(os.environ["DATABASE_URL"])
    await conn.execute("create temporary table bench_bridge (id bigserial primary key, data text not null)")
    natives, bridges = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(ROWS):
            assert await write_and_read(conn, "data") == "data"
        natives.append((time.perf_counter_ns() - start) / ROWS)
        start = time.perf_counter_ns()
        for _ in range(ROWS):
            assert await greenlet_spawn(write_and_read_repainted, conn, "data") == "data"
        bridges.append((time.perf_counter_ns() - start) / ROWS)
    native, bridge = statistics.median(natives), statistics.median(bridges)
    print(f"{'a row of the repaint loop, asyncpg':44} {native:12.1f} {bridge:12.1f} {(bridge / native - 1) * 100:+11.1f}%")
    await conn.close()


asyncio.run(main())
