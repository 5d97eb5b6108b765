"""`python -m bench.fdb_binding --cluster FILE`: what the FoundationDB engine costs over the bare binding.

Client CPU (the whole process, network thread included) per small get, per small commit and per 1,000-row range, once
through `FdbEngine` and once over the least that asyncio allows: the official binding and a callback per future that
wakes the event loop. The bare bridge has no retries, time limit, tags, rules, nor a way to know what became of a commit
whose answer was lost. One transaction per operation on both sides; rounds alternate between them, so that what else the
machine does strikes both. The medians of the rounds are compared.

Everything is kept under a prefix of its own, which is cleared at the end. Exit status 1 where the engine costs more
than 1.3 times the bare bridge.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from tigrislike.metadata.kv.engine import Transaction
from tigrislike.metadata.kv.fdb import FdbEngine
from tigrislike.metadata.kv.fdb_client import load_binding

LIMIT = 1.3
KEYS = 2_000
VALUE_BYTES = 200
RANGE_ROWS = 1_000

Operation = Callable[[random.Random], Awaitable[object]]


@dataclass(frozen=True)
class Cost:
    """One operation at one concurrency: client CPU microseconds and operations per second, engine and bare."""

    operation: str
    tasks: int
    engine_us: float
    bare_us: float
    ratio: float
    engine_rate: float
    bare_rate: float


class Bare:
    """The binding under asyncio with nothing added: every operation is a transaction of its own."""

    def __init__(self, cluster_file: str, prefix: bytes) -> None:
        self._database: Any = load_binding().open(cluster_file)
        self._binding: Any = load_binding()
        self._prefix = prefix

    async def get(self, rng: random.Random) -> bytes | None:
        native = self._database.create_transaction()
        future = native.get(small_key(self._prefix, rng))
        await ready(future)
        value: bytes | None = future.value
        return value

    async def commit(self, rng: random.Random) -> None:
        native = self._database.create_transaction()
        native.set(written_key(self._prefix, rng), VALUE)
        future = native.commit()
        await ready(future)
        future.wait()

    async def range(self, _rng: random.Random) -> int:
        native = self._database.create_transaction()
        selector = self._binding.KeySelector.first_greater_or_equal
        future = native.snapshot._get_range(
            selector(small_key_at(self._prefix, 0)),
            selector(small_key_at(self._prefix, KEYS)),
            RANGE_ROWS,
            self._binding.StreamingMode.exact,
            1,
            False,
        )
        await ready(future)
        rows, _count, _more = future.wait()
        return len(rows)


async def ready(native: Any) -> None:
    """Wait for a native future: the bridge that `asyncio` needs at least."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    native.on_ready(lambda _native: loop.call_soon_threadsafe(wake))
    await waiter


class ThroughEngine:
    """The same operations as the store does them."""

    def __init__(self, engine: FdbEngine) -> None:
        self._engine = engine
        self._prefix = engine.prefix

    async def get(self, rng: random.Random) -> bytes | None:
        return await self._engine.read(_get, small_key(self._prefix, rng))

    async def commit(self, rng: random.Random) -> None:
        await self._engine.transact(_set, written_key(self._prefix, rng))

    async def range(self, _rng: random.Random) -> int:
        return await self._engine.read(_range, small_key_at(self._prefix, 0), small_key_at(self._prefix, KEYS))


async def _get(tr: Transaction, key: bytes) -> bytes | None:
    return await tr.get(key)


async def _set(tr: Transaction, key: bytes) -> None:
    tr.set(key, VALUE)


async def _range(tr: Transaction, begin: bytes, end: bytes) -> int:
    return len(await tr.get_range(begin, end, limit=RANGE_ROWS))


VALUE = os.urandom(VALUE_BYTES)


def small_key_at(prefix: bytes, index: int) -> bytes:
    return prefix + b"\x02small\x00%06d" % index


def small_key(prefix: bytes, rng: random.Random) -> bytes:
    """One of the keys that `fill` has made."""
    return small_key_at(prefix, int(rng.random() * KEYS))


def written_key(prefix: bytes, rng: random.Random) -> bytes:
    """One of so many keys that commits meet rarely."""
    return prefix + b"\x02written\x00%016x" % rng.getrandbits(64)


async def fill(tr: Transaction, prefix: bytes) -> None:
    """Store what gets and ranges read."""
    for index in range(KEYS):
        tr.set(small_key_at(prefix, index), VALUE)


async def clear(tr: Transaction, prefix: bytes) -> None:
    """Remove all that was stored."""
    tr.clear_range(prefix, prefix + b"\xff")


async def measure(operation: Operation, tasks: int, seconds: float, seed: int) -> tuple[float, float]:
    """CPU microseconds per operation, and operations per second, with `tasks` callers that each wait for an answer."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller(rng: random.Random) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await operation(rng)
            done += 1

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(random.Random(seed * 1000 + n)) for n in range(tasks)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / done * 1e6, done / wall


async def compare(name: str, engine: Operation, bare: Operation, tasks: int, seconds: float, rounds: int) -> Cost:
    """Alternate between the two, each going first every other round."""
    costs: dict[str, list[float]] = {"engine": [], "bare": []}
    rates: dict[str, list[float]] = {"engine": [], "bare": []}
    sides = [("engine", engine), ("bare", bare)]
    for side, operation in sides:
        if name == "range":
            assert await operation(random.Random()) == RANGE_ROWS, f"the {side} side reads less than it should"
        await measure(operation, tasks, seconds / 4, 0)
    for number in range(rounds):
        for side, operation in sides if number % 2 else reversed(sides):
            cost, rate = await measure(operation, tasks, seconds, number + 1)
            costs[side].append(cost)
            rates[side].append(rate)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(costs["engine"], costs["bare"], strict=True))
    return Cost(
        name,
        tasks,
        statistics.median(costs["engine"]),
        statistics.median(costs["bare"]),
        ratio,
        statistics.median(rates["engine"]),
        statistics.median(rates["bare"]),
    )


async def run(cluster_file: str, seconds: float, rounds: int, only: str, concurrency: Sequence[int]) -> list[Cost]:
    """All comparisons, in a place of the cluster that is cleared afterwards."""
    prefix = b"bench-" + secrets.token_hex(6).encode() + b"/"
    engine = await FdbEngine.open(cluster_file, prefix=prefix)
    try:
        await engine.transact(fill, prefix)
        mine, bare = ThroughEngine(engine), Bare(cluster_file, prefix)
        return [
            await compare(name, getattr(mine, name), getattr(bare, name), tasks, seconds, rounds)
            for name in ([only] if only else ["get", "commit", "range"])
            for tasks in concurrency
        ]
    finally:
        await engine.transact(clear, prefix)
        await engine.close()


def table(costs: Sequence[Cost]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| operation | tasks | engine, us | bare, us | ratio | engine, op/s | bare, op/s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.operation} | {cost.tasks} | {cost.engine_us:.0f} | {cost.bare_us:.0f} | {cost.ratio:.2f} "
        f"| {cost.engine_rate:.0f} | {cost.bare_rate:.0f} |"
        for cost in costs
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fdb_binding", description=__doc__.split("\n")[0])
    parser.add_argument("--cluster", required=True, metavar="FILE", help="cluster file")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one round of one side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", choices=["", "get", "commit", "range"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args(argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        costs = runner.run(run(options.cluster, options.seconds, options.rounds, options.only, options.tasks))
    print(table(costs))
    return int(any(cost.ratio > LIMIT for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
