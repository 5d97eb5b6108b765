"""`python -m bench.queue [--cluster FILE]`: the queue of work owed, on SQLite and, given a cluster, on FoundationDB.

- **Throughput**: items enqueued (a transaction each, sixteen at a time, into random zones) and completed per second, by
  1, 4 and 16 consumers over 1, 100 and 10,000 zones, with never more than a thousand items outstanding. The work of an
  item is nothing. CPU per item is that of all the processes here, enqueuing included; the cluster's is told apart.
- **Conflicts**: the share of enqueuing transactions that had to run again, in those same cells. SQLite has none, for it
  runs one writing transaction at a time.
- **Latency**: from before the enqueuing transaction begins until the run begins, in a zone where nothing happened for a
  while, with one consumer in another process; idle, and while that consumer works on another zone of a million items.
  The same with that consumer 20 ms from the database, where round trips count and not who has the processor.

Consumers run in two processes (one, where there is one consumer), what enqueues in a third. Each figure is the median
of the rounds, over which the cells are interleaved. In the cluster everything lies under a prefix of its own, and is
removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvloop

from bench.engines import cleared_prefix, listeners
from bench.machine import machine
from bench.processes import cpu_s, end_in_order
from tigrislike.admin.check import read_status
from tigrislike.metadata import MasterKey, Metadata, owed
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import RetryableError, open_engine
from tigrislike.metadata.kv.engine import Transaction
from tigrislike.metadata.records import Item
from tigrislike.replication.consumer import Consumer

NODE = b"node-of-the-test"
TASK = "bench"
CONSUMERS = (1, 4, 16)
ZONES = (1, 100, 10_000)
ENQUEUERS = 16
OUTSTANDING = 1_000
PRELOAD = 400
"""Items in one transaction of a preload: on FoundationDB far below 10 MB."""
PRELOAD_KINDS = 100
BEAT_S = 0.04
IDLE_ZONES = 50
"""With an item every `BEAT_S`, each zone has had two seconds to come to rest."""

AWAY = "SQLite, 20 ms away"
AWAY_OPTION = "?round-trip=20ms"
AWAY_BEAT_S = 0.25
"""A consumer needs seven round trips for a zone."""

SETTLED_S = 6.0
SETTLE_LIMIT_S = 300.0
"""After a preload a cluster is busy for a while writing down what it has taken in, and holds back transactions of batch
priority: its storage then is more seconds behind than the five that it always is."""

_SPAWN = multiprocessing.get_context("spawn")
_WARM_S = 0.5


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Metadata]:
    engine = await open_engine(url)
    try:
        yield await Metadata.open(engine, master_key=MasterKey(b"k" * 32), node_id=NODE, region="here")
    finally:
        await engine.close()


def zone_at(number: int) -> bytes:
    return owed.zone_of(NODE, b"%016d" % number)


# --- consumers, in processes of their own


class Nothing:
    """A task whose work is nothing. What it notes is shared with the bench: how many runs have begun, and in which
    order and how long after they were enqueued those of timed items did."""

    name = TASK
    priority = 1
    concurrency = 4

    def __init__(self) -> None:
        self.waits_ns: list[int] = []

    async def run(self, item: Item) -> None:
        (enqueued_ns,) = struct.unpack_from(">Q", item.subject)
        if enqueued_ns:
            self.waits_ns.append(time.monotonic_ns() - enqueued_ns)


def consume(url: str, consumers: int, done: Any, begun: Any, slot: int, pipe: Connection) -> None:
    """Run consumers until something comes through the pipe; `done[slot]` says how many items they have completed,
    `begun[slot]` how many timed ones they have begun."""
    task = Nothing()

    async def main() -> None:
        async with opened(url) as metadata:
            at_work = [Consumer(metadata.queue, [NODE], [task]) for _ in range(consumers)]
            told = asyncio.Event()
            asyncio.get_running_loop().add_reader(pipe.fileno(), told.set)
            running = [asyncio.create_task(consumer.run()) for consumer in at_work]
            pipe.send(None)
            while not told.is_set():
                for run in running:
                    if run.done():
                        run.result()
                done[slot] = sum(consumer.worked.done.total() for consumer in at_work)
                begun[slot] = len(task.waits_ns)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), 0.02)
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            for run in running:
                run.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    pipe.send(task.waits_ns)


class Consuming:
    """Consumers at work: `completed` items, `cpu_s` seconds spent, and in the end `waits_ns`."""

    def __init__(self, url: str, consumers: int) -> None:
        processes = min(consumers, 2)
        self._done = _SPAWN.Array("q", processes, lock=False)
        self._begun = _SPAWN.Array("q", processes, lock=False)
        self._pipes: list[Connection] = []
        self._processes = []
        for slot in range(processes):
            mine, theirs = _SPAWN.Pipe()
            share = consumers // processes
            process = _SPAWN.Process(
                target=consume, args=(url, share, self._done, self._begun, slot, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        self.waits_ns: list[int] = []

    def wait_ready(self) -> None:
        for pipe in self._pipes:
            pipe.recv()

    @property
    def completed(self) -> int:
        return sum(self._done)

    @property
    def begun(self) -> int:
        return sum(self._begun)

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self._processes if process.pid)

    def stop(self) -> None:
        """Raises EOFError where a consumer has failed; it has said why."""
        for pipe in self._pipes:
            pipe.send(None)
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            self.waits_ns += pipe.recv()
            process.join()


@contextlib.asynccontextmanager
async def consuming(url: str, consumers: int) -> AsyncIterator[Consuming]:
    processes = Consuming(url, consumers)
    await asyncio.to_thread(processes.wait_ready)
    try:
        yield processes
    finally:
        await asyncio.to_thread(processes.stop)


# --- what enqueues


class Enqueuing:
    """Counts transactions that have ended, and how often they ran again before that."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.transactions = 0
        self.retries = 0

    async def one(self, zone: bytes, *, timed: bool = False) -> None:
        subject = struct.pack(">Q", time.monotonic_ns() if timed else 0) + os.urandom(8)
        attempts = 0

        async def enqueue(tr: Transaction, ctx: Context) -> None:
            nonlocal attempts
            attempts += 1
            await owed.enqueue(tr, ctx, zone, TASK, subject, priority=1)

        await self._metadata.engine.transact(enqueue, self._metadata.context)
        self.transactions += 1
        self.retries += attempts - 1


async def preload(metadata: Metadata, zone: bytes, items: int) -> None:
    """Put many items into a zone, hundreds in a transaction, as `owed.enqueue` would one by one."""

    async def some(tr: Transaction, ctx: Context, first: int, last: int) -> None:
        mark = await tr.get(ctx.keys.queue_zone(zone))
        for number in range(first, last):
            subject = struct.pack(">QQ", 0, number)
            item = Item(TASK, subject, 0, ctx.now_ns(), 1)
            owed.put_item(tr, ctx, zone, owed.item_id(TASK, subject), None, item)
        owed.count(tr, ctx, zone, TASK, enqueued=last - first)
        await owed.announce(tr, ctx, zone, 0, mark)

    starts = iter(range(0, items, PRELOAD))

    async def loader() -> None:
        for number, first in enumerate(starts):
            # The cluster throttles what writes much, by the kind of transaction; this is nobody's but the bench's.
            some.__name__ = f"preload {number % PRELOAD_KINDS}"
            while True:
                try:
                    await metadata.engine.transact(some, metadata.context, first, min(first + PRELOAD, items))
                    break
                except RetryableError:  # a small cluster throttles who writes so much
                    await asyncio.sleep(1)

    await asyncio.gather(*(loader() for _ in range(2)))


async def settled(url: str) -> None:
    """Wait until a cluster has come to rest. Raises TimeoutError."""
    if not url.startswith("fdb:"):
        return
    async with asyncio.timeout(SETTLE_LIMIT_S):
        while True:
            status = json.loads(await asyncio.to_thread(read_status, url))
            roles = [role for each in status["cluster"]["processes"].values() for role in each["roles"]]
            behind_s = [role["durability_lag"]["seconds"] for role in roles if "durability_lag" in role]
            if behind_s and max(behind_s) < SETTLED_S:
                return
            await asyncio.sleep(1)


# --- measurements


@dataclass(frozen=True)
class Flow:
    """Items completed per second; CPU microseconds per item, here and in the cluster; the share of enqueuing
    transactions that ran again."""

    rate: float
    cpu_us: float
    cluster_us: float
    conflicts: float


@dataclass(frozen=True)
class Wait:
    """Milliseconds from the enqueuing to the run, and how many items of the large zone were done meanwhile a second."""

    p50_ms: float
    p99_ms: float
    others: float


async def flow(url: str, cluster: Sequence[int], consumers: int, zones: int, seconds: float) -> Flow:
    async with opened(url) as metadata, consuming(url, consumers) as at_work:
        enqueuing = Enqueuing(metadata)
        over = False

        async def enqueuer(rng: random.Random) -> None:
            while not over:
                if enqueuing.transactions - at_work.completed > OUTSTANDING:
                    await asyncio.sleep(0.005)
                else:
                    await enqueuing.one(zone_at(rng.randrange(zones)))

        enqueuers = [asyncio.create_task(enqueuer(random.Random(seed))) for seed in range(ENQUEUERS)]
        await asyncio.sleep(_WARM_S)

        def now() -> tuple[float, ...]:
            return (
                time.perf_counter(),
                at_work.completed,
                time.process_time() + at_work.cpu_s(),
                sum(map(cpu_s, cluster)),
                enqueuing.transactions,
                enqueuing.retries,
            )

        before = now()
        await asyncio.sleep(seconds)
        wall_s, done, here_s, there_s, transactions, retries = (
            after - earlier for after, earlier in zip(now(), before, strict=True)
        )
        over = True
        await asyncio.gather(*enqueuers)
    items = max(done, 1)
    conflicts = retries / max(transactions, 1)
    return Flow(done / wall_s, here_s / items * 1e6, there_s / items * 1e6, conflicts)


async def wait(url: str, seconds: float, large: int, away: str = "", beat_s: float = BEAT_S) -> Wait:
    """Latency in zones that rest, beside a zone of `large` items; `away` is what the consumer's URL has in addition."""
    async with opened(url) as metadata:
        if large:
            await preload(metadata, zone_at(IDLE_ZONES), large)
            await settled(url)
        async with consuming(url + away, 1) as at_work:
            await asyncio.sleep(_WARM_S)
            began_s, before = time.perf_counter(), at_work.completed
            enqueuing = Enqueuing(metadata)
            for number in range(max(int(seconds / beat_s), 1)):
                await enqueuing.one(zone_at(number % IDLE_ZONES), timed=True)
                await asyncio.sleep(max(began_s + (number + 1) * beat_s - time.perf_counter(), 0))
            done = (at_work.completed - before) / (time.perf_counter() - began_s)
            async with asyncio.timeout(60):
                while at_work.begun < enqueuing.transactions:  # noqa: ASYNC110 - it is counted in another process
                    await asyncio.sleep(BEAT_S)
    waits = sorted(each / 1e6 for each in at_work.waits_ns)
    return Wait(statistics.median(waits), waits[int(len(waits) * 0.99)], done if large else 0.0)


@dataclass
class Results:
    """By engine, and by what was measured: a figure for each round."""

    flows: dict[tuple[str, int, int], list[Flow]]
    waits: dict[tuple[str, int], list[Wait]]


def tables(results: Results) -> str:
    """Markdown: medians over the rounds."""
    lines = ["| engine | consumers | 1 zone | 100 zones | 10,000 zones |", "|---|---|---|---|---|"]
    for engine in dict.fromkeys(engine for engine, _, _ in results.flows):
        for consumers in CONSUMERS:
            cells = [_flow_cell(engine, results.flows[engine, consumers, zones]) for zones in ZONES]
            lines.append(f"| {engine} | {consumers} | {' | '.join(cells)} |")
    lines += ["", "| engine | beside | p50 | p99 | ratio of p50, p99 to idle |", "|---|---|---|---|---|"]
    for (engine, large), waits in results.waits.items():
        p50, p99 = (statistics.median(getattr(wait, name) for wait in waits) for name in ("p50_ms", "p99_ms"))
        idle50, idle99 = (
            statistics.median(getattr(wait, name) for wait in results.waits[engine, 0]) for name in ("p50_ms", "p99_ms")
        )
        others = statistics.median(wait.others for wait in waits)
        beside = f"a zone of {large:,} items, {others:,.0f}/s of which are done" if large else "nothing"
        ratio = f"{p50 / idle50:.2f}, {p99 / idle99:.2f}" if large else "-"
        lines.append(f"| {engine} | {beside} | {p50:.1f} ms | {p99:.1f} ms | {ratio} |")
    return "\n".join(lines)


def _flow_cell(engine: str, flows: Sequence[Flow]) -> str:
    rate, cpu, cluster, conflicts = (
        statistics.median(getattr(flow, name) for flow in flows)
        for name in ("rate", "cpu_us", "cluster_us", "conflicts")
    )
    cell = f"{rate:,.0f}/s; {cpu:,.0f} us"
    return cell if engine == "SQLite" else f"{cell}; {cluster:,.0f} us; {conflicts:.2%}"


@contextlib.contextmanager
def engines(cluster: Path | None) -> Iterator[dict[str, tuple[Iterator[str], list[int]]]]:
    """By name: URLs of ever new stores, and the processes whose CPU is the cluster's."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tigrislike-queue-"))
        found: dict[str, tuple[Iterator[str], list[int]]] = {
            "SQLite": ((f"sqlite://{quote(scratch)}/{n}.db" for n in itertools.count()), list[int]())
        }
        if cluster is not None:
            prefix = stack.enter_context(cleared_prefix(cluster))
            file = quote(str(cluster.resolve()))
            urls = (f"fdb://{file}?prefix={prefix}/{n}/" for n in itertools.count())
            found["FoundationDB"] = (urls, listeners(cluster))
        yield found


async def measure(options: argparse.Namespace) -> Results:
    results = Results({}, {})

    async def waiting(name: str, large: int) -> Wait:
        urls, _ = stores.get(name, stores["SQLite"])
        if name == AWAY:
            return await wait(next(urls), 15 * options.seconds, large, AWAY_OPTION, AWAY_BEAT_S)
        return await wait(next(urls), 3 * options.seconds, large)

    with engines(options.cluster) as stores:
        for turn in range(options.rounds):
            for (name, (urls, cluster)), zones, consumers in itertools.product(stores.items(), ZONES, CONSUMERS):
                flowed = await flow(next(urls), cluster, consumers, zones, options.seconds)
                results.flows.setdefault((name, consumers, zones), []).append(flowed)
                _tell(f"{turn + 1}/{options.rounds} {name:12} {consumers:3} consumers {zones:6} zones {flowed}")
            for name in (*stores, AWAY):
                waited = await waiting(name, 0)
                results.waits.setdefault((name, 0), []).append(waited)
                _tell(f"{turn + 1}/{options.rounds} {name:12} idle {waited}")
        # Once: the zone takes longer to fill than to measure beside.
        for name in (*stores, AWAY):
            began_s = time.perf_counter()
            waited = await waiting(name, options.items)
            results.waits.setdefault((name, options.items), []).append(waited)
            _tell(f"{name:12} beside {options.items:,} {waited} in {time.perf_counter() - began_s:.0f} s")
    return results


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.queue", description=__doc__.split("\n")[0])
    parser.add_argument("--cluster", type=Path, help="cluster file of a FoundationDB (default: SQLite only)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one cell (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=1_000_000, help="in the large zone (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run whose numbers say nothing")
    options = parser.parse_args(argv)
    if options.quick:
        options.seconds, options.rounds, options.items = 0.4, 1, 20_000
    for name, value in machine().items():
        print(f"- {name}: {value}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(tables(runner.run(measure(options))))
    return 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
