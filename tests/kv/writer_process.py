"""A process of its own that writes an SQLite store: `python -m tests.kv.writer_process MODE PATH ARGUMENT`.

Modes:
    count N: add one to a shared counter N times; prints the values that it got, one a line.
    turns N: as `count`, but prints "ready" and waits for a line on standard input first; prints, for
        each commit, its value, how many commits there were since it was asked for, and how many ns it took.
    forever NAME: writes NAME/0, NAME/1, ... in pairs until killed; prints each number once it is acknowledged.
    hold: takes the turn to write, prints "held", and keeps it until standard input ends.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from typing import Any

from tigrislike.metadata.kv.sqlite import SqliteEngine
from tigrislike.metadata.kv.turns import Turns


async def increment(tr: Any) -> int:
    count = int(await tr.get(b"count") or b"0") + 1
    tr.set(b"count", b"%d" % count)
    return count


async def current(tr: Any) -> int:
    return int(await tr.get(b"count") or b"0")


async def put_pair(tr: Any, name: bytes, n: int) -> None:
    tr.set(b"%s/%08d/a" % (name, n), bytes(3000))
    tr.set(b"%s/%08d/b" % (name, n), bytes(3000))


async def count(path: str, n: str) -> None:
    engine = await SqliteEngine.open(path)
    values = [await engine.transact(increment) for _ in range(int(n))]
    await engine.close()
    sys.stdout.write("".join(f"{value}\n" for value in values))


async def turns(path: str, n: str) -> None:
    engine = await SqliteEngine.open(path)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    lines = []
    for _ in range(int(n)):
        seen = await engine.read(current)
        asked_ns = time.monotonic_ns()
        value = await engine.transact(increment)
        lines.append(f"{value} {value - seen} {time.monotonic_ns() - asked_ns}\n")
    await engine.close()
    sys.stdout.write("".join(lines))


async def forever(path: str, name: str) -> None:
    engine = await SqliteEngine.open(path)

    async def client(numbers: Any) -> None:
        for n in numbers:
            await engine.transact(put_pair, name.encode(), n)
            sys.stdout.write(f"{n}\n")
            sys.stdout.flush()

    numbers = itertools.count()
    await asyncio.gather(*(client(numbers) for _ in range(8)))


async def hold(path: str) -> None:
    held = Turns(path)
    held.take()
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()
    held.close()


if __name__ == "__main__":
    asyncio.run({"count": count, "turns": turns, "forever": forever, "hold": hold}[sys.argv[1]](*sys.argv[2:]))
