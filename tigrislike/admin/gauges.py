"""What the metrics page says of the database, and of the store as a whole: its queue, its nodes, its buckets.

All but `database_ping` is the same on each node of a store, whichever is asked, so that it is told while any of them
lives. It costs a look at the counters and pointers of the queue, and is therefore told again for a while: as long as
a fiftieth of the time goes into it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from tigrislike.metadata import Metadata
from tigrislike.metadata.context import Context
from tigrislike.metadata.homes import ANYBODY
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.records import DRAINING, LOST, REMOVED, Beat, Counts, Node
from tigrislike.metrics import Look, Reading

from .desk import Desk
from .overview import oldest_zones
from .queues import age_s, read_sums

BUCKETS: Final = 1000
"""Buckets that are told of, the first by name: a series each is what Prometheus can be asked to keep."""

CONTENTS: Final = 1000
"""Contents that are counted of those that lack a home, or are lost: any is too many."""

_LEAST_S: Final = 1.0
_SHARE: Final = 50.0


def database(metadata: Metadata) -> Look:
    """How long a small read takes."""

    async def look() -> list[Reading]:
        began_s = time.perf_counter()
        await metadata.ping()
        return [("database_ping_seconds", (), time.perf_counter() - began_s)]

    return look


def store(desk: Desk, clock_s: Callable[[], float] = time.monotonic) -> Look:
    """The queue and the nodes."""

    async def look() -> list[Reading]:
        known = await desk.metadata.nodes()
        nodes = [(node, beat) for node, beat in known if node.state != REMOVED]
        short, lost = await desk.metadata.engine.background.read(_endangered, desk.metadata.context)
        endangered: list[Reading] = [("short_contents", (), short), ("lost_contents", (), lost)]
        return [*await _queue(desk, nodes), *endangered, *_nodes(desk, nodes)]

    return _seldom(look, clock_s)


def buckets(desk: Desk, clock_s: Callable[[], float] = time.monotonic) -> Look:
    """Objects and bytes of the first `BUCKETS` buckets."""

    async def look() -> list[Reading]:
        readings: list[Reading] = []
        page, _ = await desk.metadata.list_buckets(None, limit=BUCKETS)
        for bucket in page:
            usage = await desk.metadata.usage(bucket)
            readings.append(("bucket_objects", (bucket.name,), usage.objects))
            readings.append(("bucket_bytes", (bucket.name,), usage.bytes))
        return readings

    return _seldom(look, clock_s)


def _seldom(look: Callable[[], Awaitable[list[Reading]]], clock_s: Callable[[], float]) -> Look:
    """The same, with what was seen last for as long as that is new enough for its price."""
    seen: list[Reading] = []
    until_s = 0.0

    async def looked() -> list[Reading]:
        nonlocal seen, until_s
        began_s = clock_s()
        if began_s >= until_s:
            seen = await look()
            ended_s = clock_s()
            until_s = ended_s + max(_LEAST_S, _SHARE * (ended_s - began_s))
        return seen

    return looked


Nodes = list[tuple[Node, Beat | None]]


async def _queue(desk: Desk, nodes: Nodes) -> list[Reading]:
    sums, oldest, places = await read_sums(desk), await oldest_zones(desk), desk.places(nodes)

    def region_of(destination: bytes) -> str:
        place = places.get(destination)
        return "unknown" if place is None else place.region or place.name

    totals: dict[tuple[str, str], Counts] = {}
    ages_s = dict.fromkeys([region_of(ANYBODY), *(node.region for node, _ in nodes)], 0.0)
    for destination, by_task in sums.sums.items():
        region = region_of(destination)
        for task, counts in by_task.items():
            totals[region, task] = totals.get((region, task), Counts()) + counts
    for destination, aged in oldest.items():
        region = region_of(destination)
        ages_s[region] = max([ages_s.get(region, 0.0), *(age_s(since_ns, sums.at_ns) for since_ns, _ in aged)])
    readings: list[Reading] = [("queue_oldest_due_seconds", (region,), age) for region, age in ages_s.items()]
    for labels, counts in totals.items():
        readings += [
            ("queue_items", labels, counts.waiting),
            ("queue_in_flight_items", labels, counts.leased),
            ("queue_failing_items", labels, counts.failing),
            ("queue_dead_letters", labels, counts.dead),
        ]
    return readings


async def _endangered(tr: Transaction, ctx: Context) -> tuple[int, int]:
    """How many contents lack a home, and how many are lost."""
    short = tr.get_range(*subspace(ctx.keys.shorts), limit=CONTENTS, snapshot=True)
    lost = tr.get_range(*ctx.keys.homes_of(LOST), limit=CONTENTS, snapshot=True)
    return len(await short), len(await lost)


def _nodes(desk: Desk, known: Nodes) -> Iterator[Reading]:
    for region in sorted({node.region for node, _ in known}):
        mine = [each for each in known if each[0].region == region]
        yield "region_nodes", (region,), len(mine)
        yield "region_alive_nodes", (region,), sum(desk.is_alive(*each) for each in mine)
    for node, beat in known:
        labels = node.node.hex(), node.region
        yield "node_alive", labels, desk.is_alive(node, beat)
        yield "node_draining", labels, node.state == DRAINING
        if beat is not None:
            yield "node_beat_age_seconds", labels, (desk.now_ns() - beat.at_ns) / 1e9
